// 64-bit ARM: its compiler needs no flags for NEON; see cpu/simd/simd.h.
#define TOYKERN_LEVEL neon
#define TOYKERN_NEON
#include "cpu/level.inl"
