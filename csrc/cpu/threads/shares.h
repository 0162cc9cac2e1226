// Work dealt to threads from one counter, for entry points of the baseline whose results do not depend on who does
// what.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/threads/crew.h"
#include "cpu/threads/parallel.h"

namespace toykern {

constexpr int64_t kSerialEntries = 1 << 16;  // of less than this a second thread costs more than it does

// Calls work(i) for i < count, on up to `threads` threads that take numbers from one counter.
template <class Work>
void for_each(int64_t count, int threads, const Work& work) {
    threads = (int)std::min<int64_t>(threads, count);
    guard_fork(threads);
    if (threads <= 1) {
        for (int64_t i = 0; i < count; ++i) work(i);
        return;
    }
    std::atomic<int64_t> next{0};
    parallel(threads, [&] {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
    });
}

// Threads worth waking for that many entries.
inline int threads_for(int64_t entries, int threads) { return entries < kSerialEntries ? 1 : std::max(1, threads); }

}  // namespace toykern
