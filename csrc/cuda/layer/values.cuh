// What the layer's kernels share: storage in float or bfloat16, activations, one output's loss and gradient.
//
//   y = g(z);  loss: e = y − t, I e² to the sum, dz = scale · I e · g′(z);  backward: dz = dy · g′(z)
//
// Slopes     ReLU: 0 at 0 and below, 1 at NaN; GELU: Φ(z) + z φ(z). What is off gets a gradient of 0 whatever its error is.
// Rounding   arithmetic in float; bfloat16 is rounded to nearest even where it is stored
#pragma once
#include "cuda/warp.h"
#include "toykern/layer_cuda.h"

#if !defined(__CUDACC__)
#include <cstring>
#endif

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

struct Bf16 {
    uint16_t bits;
};

#if defined(__CUDACC__)
TOYKERN_DEVICE uint32_t word_of(float x) { return __float_as_uint(x); }
TOYKERN_DEVICE float float_of(uint32_t w) { return __uint_as_float(w); }
TOYKERN_DEVICE float normal_distribution(float z) { return 0.5f * erfcf(z * -0.70710678f); }
TOYKERN_DEVICE float normal_density(float z) { return 0.39894228f * expf(-0.5f * z * z); }
#else
inline uint32_t word_of(float x) {
    uint32_t w;
    std::memcpy(&w, &x, sizeof w);
    return w;
}
inline float float_of(uint32_t w) {
    float x;
    std::memcpy(&x, &w, sizeof x);
    return x;
}
inline float normal_distribution(float z) { return 0.5f * __builtin_erfcf(z * -0.70710678f); }
inline float normal_density(float z) { return 0.39894228f * __builtin_expf(-0.5f * z * z); }
#endif

TOYKERN_DEVICE float number(float x) { return x; }
TOYKERN_DEVICE float number(Bf16 x) { return float_of((uint32_t)x.bits << 16); }

template <class T>
TOYKERN_DEVICE T stored(float x);
template <>
TOYKERN_DEVICE float stored<float>(float x) {
    return x;
}
template <>
TOYKERN_DEVICE Bf16 stored<Bf16>(float x) {
    const uint32_t w = word_of(x);
    if ((w & 0x7FFFFFFFu) > 0x7F800000u) return {(uint16_t)((w >> 16) | 0x40u)};
    return {(uint16_t)((w + 0x7FFFu + ((w >> 16) & 1u)) >> 16)};
}

TOYKERN_DEVICE float not_a_number() { return float_of(0x7FC00000u); }
TOYKERN_DEVICE float magnitude_of(float x) { return float_of(word_of(x) & 0x7FFFFFFFu); }
TOYKERN_DEVICE float with_sign_of(float x, float sign) { return sign > 0.0f ? x : sign < 0.0f ? -x : 0.0f * sign; }
TOYKERN_DEVICE bool slope_of_relu(float z) { return !(z <= 0.0f); }

// In the order of numbers, NaN above all of them as torch.topk has it; equal for 0 and −0.
TOYKERN_DEVICE uint32_t rank_of(float x) {
    const uint32_t w = word_of(x);
    if ((w & 0x7FFFFFFFu) > 0x7F800000u) return 0xFFFFFFFFu;
    if ((w & 0x7FFFFFFFu) == 0) return 0x80000000u;
    return (w & 0x80000000u) ? ~w : w | 0x80000000u;
}

struct Activated {
    float y, slope;
};
TOYKERN_DEVICE Activated activate(int32_t g, float z) {
    if (g == (int32_t)Activation::kRelu) return {floored(0.0f, z), slope_of_relu(z) ? 1.0f : 0.0f};
    if (g == (int32_t)Activation::kGelu) {
        const float below = normal_distribution(z);
        return {z * below, fused(z, normal_density(z), below)};
    }
    return {z, 1.0f};
}

// The loss of one output: `square` is I e² before scaling, `direct` what goes straight to a target tensor, or to x where it is the target.
struct OutputLoss {
    float square, dz, direct;
};
TOYKERN_DEVICE OutputLoss output_loss(const LayerParams& p, float z, float given, float importance) {
    const Activated a = activate(p.output_activation, z);
    const bool magnitude = p.target == (int32_t)Target::kMagnitude;
    const float error = a.y - (magnitude ? magnitude_of(given) : given), weighted = error * importance;
    const float slope = weighted * (float)(2.0 * p.loss_scale);
    const float dz = p.output_activation == (int32_t)Activation::kGelu ? slope * a.slope
                     : a.slope != 0.0f                                 ? slope
                                                                       : 0.0f;
    return {weighted * error, dz, magnitude ? with_sign_of(-slope, given) : -slope};
}

// The part of dh that goes on to da: 1 where the code is on. `code` is h, with −0 for what top-k has dropped.
TOYKERN_DEVICE bool code_is_on(int32_t f, float code) {
    if (f == (int32_t)Activation::kRelu) return slope_of_relu(code);
    return f != (int32_t)Activation::kTopK || word_of(code) != 0x80000000u;
}
TOYKERN_DEVICE float sign_of(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f; }

// Entries of one sample, clipped to what there is; `broken` where row_start says what cannot be.
struct EntryRange {
    int64_t first, last;
    bool broken;
};
TOYKERN_DEVICE EntryRange entries_of(const int64_t* row_start, int64_t row, int64_t entries) {
    const int64_t first = row_start[row], last = row_start[row + 1];
    if (first < 0 || last < first || last > entries) return {0, 0, true};
    return {first, last, false};
}

template <class T>
TOYKERN_DEVICE const T* array_at(const void* base, int64_t offset) {
    return base ? static_cast<const T*>(base) + offset : nullptr;
}
template <class T>
TOYKERN_DEVICE T* array_at(void* base, int64_t offset) {
    return base ? static_cast<T*>(base) + offset : nullptr;
}

// Of all threads, in `sums` [warps]: butterflies within warps, then the warps in order. Ends behind a barrier; the sum is sums[0].
TOYKERN_DEVICE void sum_of_block(const Block& b, PerThread<float>& value, float* sums) {
    b.each_warp([&](const Warp& w) {
        Lane<float> v;
        w.each([&](int lane) { v[lane] = value[w.number * kWarpLanes + lane]; });
        v = sum_of_lanes(w, v);
        w.each([&](int lane) {
            if (lane == 0) sums[w.number] = v[lane];
        });
    });
    b.sync();  // the warps' sums are there
    b.each([&](int thread) {
        if (thread == 0)
            for (int i = 1; i < b.warps(); ++i) sums[0] += sums[i];
    });
    b.sync();  // so is the sum
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
