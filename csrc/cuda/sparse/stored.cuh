// Numbers as sparse layers store them and as their kernels compute with them, on a device: the CPU's twin is in
// cpu/sparse/lanes.inl.
#pragma once
#include "cuda/warp.h"
#include "toykern/sparse.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

struct BFloat16 {
    uint16_t bits;
};

template <class T>
struct Stored {  // float32 and float64 are computed as they are
    using Computed = T;
    static TOYKERN_DEVICE T get(T x) { return x; }
    static TOYKERN_DEVICE T put(T x) { return x; }
};
template <>
struct Stored<BFloat16> {  // in float; rounded to nearest even, a NaN stays one
    using Computed = float;
    static TOYKERN_DEVICE float get(BFloat16 x) {
        union {
            uint32_t u;
            float f;
        } word;
        word.u = (uint32_t)x.bits << 16;
        return word.f;
    }
    static TOYKERN_DEVICE BFloat16 put(float x) {
        union {
            float f;
            uint32_t u;
        } word;
        word.f = x;
        const uint32_t rounded = (word.u + 0x7FFFu + ((word.u >> 16) & 1u)) >> 16;
        const bool nan = (word.u & 0x7FFFFFFFu) > 0x7F800000u;
        return {(uint16_t)(nan ? (word.u >> 16) | 0x40u : rounded)};
    }
};

TOYKERN_DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace TOYKERN_DEVICE_SPACE

// Shapes of launches, on the host.
inline int64_t pieces_of(int64_t total, int64_t piece) { return (total + piece - 1) / piece; }

}  // namespace toykern
