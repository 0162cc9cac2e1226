// Teams of std::threads, for builds without libgomp (TOYKERN_OWN_THREADS; empty in others).
//
// A team lives as long as its call: starting a thread costs some tens of microseconds, little beside the stretches that
// `fit` runs in one call, and no threads are left that a forked child would lack. Where the system gives no more
// threads the team is smaller, as libgomp's may be.
#include "cpu/threads/parallel.h"

#ifdef TOYKERN_OWN_THREADS

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace toykern {
namespace {

thread_local int rank = 0;
thread_local int size = 1;
thread_local bool inside = false;

// The place of one thread in a team while it runs the body.
class Place {
  public:
    Place(int own_rank, int team) {
        rank = own_rank;
        size = team;
        inside = true;
    }
    ~Place() {
        rank = 0;
        size = 1;
        inside = false;
    }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
};

// Holds the threads of a team back until it is known how many they are.
class Start {
  public:
    int wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        known_.wait(lock, [this] { return team_ > 0; });
        return team_;
    }
    void tell(int team) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            team_ = team;
        }
        known_.notify_all();
    }

  private:
    std::mutex mutex_;
    std::condition_variable known_;
    int team_ = 0;
};

}  // namespace

int thread_rank() { return rank; }

int team_size() { return size; }

void run_team(int threads, void (*body)(void*), void* context) {
    if (inside) {  // a team of one, which the caller is of two teams at once
        const int outer_rank = rank, outer_size = size;
        rank = 0;
        size = 1;
        body(context);
        rank = outer_rank;
        size = outer_size;
        return;
    }
    Start start;
    std::vector<std::thread> others;
    try {
        others.reserve((size_t)std::max(threads - 1, 0));
        for (int i = 1; i < threads; ++i)
            others.emplace_back([&start, body, context, i] {
                const Place place(i, start.wait());
                body(context);
            });
    } catch (const std::system_error&) {  // no more threads are to be had
    }
    const int team = (int)others.size() + 1;
    start.tell(team);
    {
        const Place place(0, team);
        body(context);
    }
    for (std::thread& other : others) other.join();
}

}  // namespace toykern

#endif
