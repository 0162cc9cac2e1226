// What every parallel entry point needs around its kernels: a guard against forked children, denormals off, memory for
// workers.
//
// Included by files compiled for the baseline only (run.cpp and its like), never by a per-level file: std:: is used
// here.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <string>

#include "toykern/api.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace toykern {

// The threads of the parent's pool do not exist in a child: throws ForkedChild there if the parent used them through
// us. Call it before every parallel region, with the number of threads wanted.
void guard_fork(int threads);

// Denormals flushed while a kernel runs: those in Adam's second moment slow a core tenfold.
class FlushDenormals {
  public:
#if defined(__x86_64__)
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#endif
};

// Memory of several workers, each run of bytes on pages of its own.
class Room {
  public:
    Room(size_t pieces, size_t bytes, const char* what) : stride_((bytes + 4095) / 4096 * 4096) {
        memory_ = std::aligned_alloc(4096, std::max<size_t>(pieces * stride_, 4096));
        if (!memory_)
            throw OutOfMemory(std::to_string(pieces * stride_ >> 20) + " MiB are needed for " + what + " (" +
                              std::to_string(pieces) + " threads); fewer threads or a smaller batch need less");
    }
    ~Room() { std::free(memory_); }
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;
    void* piece(size_t i) const { return static_cast<char*>(memory_) + i * stride_; }

  private:
    void* memory_;
    size_t stride_;
};

}  // namespace toykern
