// Memory of one worker: a run of aligned arrays carved from one block.
//
// Everything is inlined into its caller: see cpu/simd/simd.h.
//
// A kernel describes its arrays once, in a function that takes a Workspace; that function is run on an empty one to
// learn the size and again on real memory. Nothing is allocated inside a parallel region.
#pragma once
#include <cstddef>
#include <cstdint>

namespace toykern {

#define TOYKERN_INLINED __attribute__((always_inline))

class Workspace {
  public:
    TOYKERN_INLINED Workspace() : base_(nullptr), used_(0) {}
    TOYKERN_INLINED explicit Workspace(void* base) : base_(static_cast<char*>(base)), used_(0) {}

    // `count` elements, aligned to a cache line and followed by one, so that whole vectors may be stored at the end.
    template <class T>
    TOYKERN_INLINED T* take(size_t count) {
        T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
        used_ += (count * sizeof(T) + 64 + 63) / 64 * 64;
        return p;
    }
    TOYKERN_INLINED size_t bytes() const { return used_; }

  private:
    char* base_;
    size_t used_;
};

}  // namespace toykern
