// Scratch memory that outlives the call: pages fresh from the system cost a call of a millisecond a third of its time.
// One block of each kind is kept, up to kHeldBytes; concurrent calls make blocks of their own.
//
// Included by files compiled for the baseline only, as crew.h.
#pragma once
#include <atomic>
#include <cstdlib>
#include <string>

#include "cpu/threads/crew.h"

namespace toykern {

constexpr size_t kHeldBytes = (size_t)64 << 20;

enum class Held { kLayerShared, kLayerRooms, kSparse, kCount };

class Scratch {
  public:
    Scratch(Held kind, size_t pieces, size_t bytes, const char* what) : slot_(held(kind)) {
        stride_ = (bytes + 4095) / 4096 * 4096;
        const size_t needed = std::max<size_t>(pieces * stride_, 4096) + 4096;
        block_ = slot_.exchange(nullptr);
        if (block_ && block_->size >= needed) return;
        std::free(block_);
        block_ = static_cast<Block*>(std::aligned_alloc(4096, needed));
        if (!block_)
            throw OutOfMemory(std::to_string(needed >> 20) + " MiB are needed for " + what + " (" +
                              std::to_string(pieces) + " threads); fewer threads or a smaller batch need less");
        block_->size = needed;
    }
    ~Scratch() {
        Block* none = nullptr;
        if (block_->size > kHeldBytes || !slot_.compare_exchange_strong(none, block_)) std::free(block_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    void* piece(size_t i) const { return reinterpret_cast<char*>(block_) + 4096 + i * stride_; }

  private:
    struct Block {
        size_t size;
    };
    static std::atomic<Block*>& held(Held kind) {
        static std::atomic<Block*> slots[(int)Held::kCount];
        return slots[(int)kind];
    }
    std::atomic<Block*>& slot_;
    Block* block_;
    size_t stride_;
};

}  // namespace toykern
