// The parallel seam: one team of threads that all call the same body, and nothing else.
//
// Whose threads they are is the build's choice (tools/native_build.py), and no loop above can tell:
//   libgomp's    which are torch's too on Linux, by libgomp's own entry points (stable since GCC 4.9; what GCC makes of
//                the pragmas). No `#pragma omp` anywhere: Clang compiles it for a runtime of its own or, told to use
//                libgomp, ignores it without a word.
//   our own      with TOYKERN_OWN_THREADS, where torch brings another runtime (macOS): started at every call and
//                ended with it, so that no second OpenMP runtime comes into the process (own_threads.cpp).
#pragma once

#ifdef TOYKERN_OWN_THREADS

namespace toykern {

// Calls body(context) once on each thread of a team, the caller's among them, and waits for all.
void run_team(int threads, void (*body)(void*), void* context);

int thread_rank();  // of the caller in its team, 0 … team_size() - 1; 0 outside of one
int team_size();    // 1 outside of one

}  // namespace toykern

#else

extern "C" {
void GOMP_parallel(void (*body)(void*), void* context, unsigned threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
}

namespace toykern {

inline void run_team(int threads, void (*body)(void*), void* context) {
    GOMP_parallel(body, context, (unsigned)threads, 0);
}

inline int thread_rank() { return omp_get_thread_num(); }
inline int team_size() { return omp_get_num_threads(); }

}  // namespace toykern

#endif

namespace toykern {

// Calls body() once on each thread of a team and waits for all. The team has `threads` (>= 1) threads, or fewer where
// the runtime has no more to give (inside another parallel region, one). What throws in there ends the process.
template <class Body>
void parallel(int threads, const Body& body) {
    const auto call = [](void* context) noexcept { (*static_cast<const Body*>(context))(); };
    run_team(threads, call, const_cast<Body*>(&body));
}

}  // namespace toykern
