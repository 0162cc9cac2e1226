// Compiled with the flags of its instruction-set level (setup.py); see cpu/simd/simd.h.
#define TOYKERN_LEVEL v4
#include "cpu/level.inl"
