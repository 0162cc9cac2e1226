// Compiled with the flags of its instruction-set level (setup.py); see cpu/simd/simd.h.
#define TOYKERN_LEVEL v3
#include "cpu/level.inl"
