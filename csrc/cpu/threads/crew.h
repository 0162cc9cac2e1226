// What every parallel entry point needs around its kernels: a guard against forked children, denormals off, memory for
// workers.
//
// Included by files compiled for the baseline only (run.cpp and its like), never by a per-level file: std:: is used
// here.
#pragma once
#include <algorithm>
#include <cstdint>
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

// Denormals flushed while a kernel runs: those in Adam's second moment slow a core tenfold. Both CPUs flush operands and
// results; x86 looks at a result after rounding it, ARM before, so the two differ where rounding alone makes it normal.
class FlushDenormals {
  public:
#if defined(__x86_64__)
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#elif defined(__aarch64__)
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" : : "r"(saved_ | (uint64_t)1 << 24) : "memory");
    }
    ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }

  private:
    uint64_t saved_;
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
