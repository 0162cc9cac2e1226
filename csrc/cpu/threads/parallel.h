// The parallel seam: libgomp's threads, which are torch's too, by libgomp's own entry points (stable since GCC 4.9;
// what GCC makes of the pragmas). No `#pragma omp` anywhere: Clang compiles it for a runtime of its own or, told to use
// libgomp, ignores it without a word.
#pragma once

extern "C" {
void GOMP_parallel(void (*body)(void*), void* context, unsigned threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
}

namespace toykern {

// Calls body() once on each thread of a team and waits for all. The team has `threads` (>= 1) threads, or fewer where
// the runtime has no more to give (inside another parallel region, one). What throws in there ends the process.
template <class Body>
void parallel(int threads, const Body& body) {
    const auto call = [](void* context) noexcept { (*static_cast<const Body*>(context))(); };
    GOMP_parallel(call, const_cast<Body*>(&body), (unsigned)threads, 0);
}

}  // namespace toykern
