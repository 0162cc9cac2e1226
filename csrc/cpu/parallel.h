// The parallel seam: OpenMP by its runtime functions alone, so that the sources need no omp.h.
#pragma once

#if defined(_OPENMP)
extern "C" {
int omp_get_thread_num();
int omp_get_num_threads();
}
#else
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
#endif
