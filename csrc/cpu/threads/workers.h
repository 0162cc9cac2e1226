// Models handed out to threads: queues, a meeting place for teams, one loop over all models.
//
// Included by files compiled for the baseline only, as crew.h.
#pragma once
#include <atomic>
#include <thread>

#include "cpu/threads/crew.h"
#include "cpu/threads/parallel.h"

namespace toykern {

// Models in runs from a common counter.
struct CommonQueue {
    std::atomic<int64_t> next{0};
    int64_t end, run;
};
struct ThreadQueue {
    CommonQueue* common;
    int64_t at = 0, stop = 0;
    static int64_t take(void* context) {
        auto& q = *static_cast<ThreadQueue*>(context);
        if (q.at == q.stop) {
            q.at = q.common->next.fetch_add(q.common->run);
            q.stop = std::min(q.at + q.common->run, q.common->end);
            if (q.at >= q.common->end) {
                q.at = q.stop = q.common->end;
                return -1;
            }
        }
        return q.at++;
    }
};

// Every member of a team counts through all models by itself.
struct CountingQueue {
    int64_t at = 0, end;
    static int64_t take(void* context) {
        auto& q = *static_cast<CountingQueue*>(context);
        return q.at < q.end ? q.at++ : -1;
    }
};

// Where a team waits for its last member, several times a step. It spins for a few microseconds, the usual wait, and
// then gives its core away: a runtime's own barrier spins far longer, which on cores that others use too costs ten
// times the work.
struct Meeting {
    std::atomic<int> arrived{0};
    std::atomic<unsigned> round{0};

    static void wait(void* context, int size) {
        auto& m = *static_cast<Meeting*>(context);
        const unsigned round = m.round.load(std::memory_order_acquire);
        if (m.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            m.arrived.store(0, std::memory_order_relaxed);
            m.round.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; m.round.load(std::memory_order_acquire) == round; ++spins)
            if (spins < 4000)
                pause();
            else
                std::this_thread::yield();
    }
    static void pause() {
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
};

// Calls work(worker, queue) on each of `threads` threads, models handed out in short runs.
template <class Work>
void over_models(int64_t n_models, int threads, const Work& work) {
    CommonQueue common;
    common.end = n_models;
    common.run = std::max<int64_t>(1, std::min<int64_t>(64, n_models / (threads * 16)));
    parallel(threads, [&] {
        [[maybe_unused]] FlushDenormals flush;
        ThreadQueue queue{&common};
        work((size_t)thread_rank(), Queue{ThreadQueue::take, &queue});
    });
}

inline int workers_for(int64_t n_models, int threads) {
    return (int)std::max<int64_t>(1, std::min<int64_t>(threads, n_models));
}

}  // namespace toykern
