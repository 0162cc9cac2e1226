// What the layer's kernels share: storage in float or bfloat16, one output's loss and gradient.
//
//   y = g(z);  loss: e = y − t, I e² to the sum, dz = scale · I e · g′(z);  backward: dz = dy · g′(z)
//
// g, g′      common/activation.h; what is off gets a gradient of 0 whatever its error is
// Rounding   arithmetic in float; bfloat16 is rounded to nearest even where it is stored
#pragma once
#include "common/activation.h"
#include "common/loss.h"
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

// In the order of numbers, NaN above all of them as torch.topk has it; equal for 0 and −0.
TOYKERN_DEVICE uint32_t rank_of(float x) {
    const uint32_t w = word_of(x);
    if ((w & 0x7FFFFFFFu) > 0x7F800000u) return 0xFFFFFFFFu;
    if ((w & 0x7FFFFFFFu) == 0) return 0x80000000u;
    return (w & 0x80000000u) ? ~w : w | 0x80000000u;
}

TOYKERN_DEVICE AnyActivation<float> hidden_of(const LayerParams& p) {
    return AnyActivation<float>::of(p.hidden_activation, p.hidden_option);
}
TOYKERN_DEVICE AnyActivation<float> output_of(const LayerParams& p) {
    return AnyActivation<float>::of(p.output_activation, p.output_option);
}

// The loss of one output: `own` before scaling, `direct` what goes straight to a target tensor, or to x where it is the
// target. It is rounded by itself, and the caller adds it: added to a sum at once, as the trainer does it, a layer's
// losses would have other bits.
struct OutputLoss {
    float own, dz, direct;
};
TOYKERN_DEVICE OutputLoss output_loss(const LayerParams& p, const AnyActivation<float>& output,
                                      const Activated<float>& a, float given, float importance) {
    const AnyLoss loss = {p.loss_function};
    const float error = a.y - keep_bits(given, target_bits(p.target)), back = loss.slope(error, importance);
    const float d = back * (float)(loss.gradient() * p.loss_scale);
    const bool magnitude = p.target == (int32_t)Target::kMagnitude;
    return {loss.add(error, back, importance, 0.0f), output.back(a.y, a.slope, d),
            magnitude ? with_sign_of(-d, given) : -d};
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

// Of all threads, in `sums` [warps]: butterflies within warps, then the warps in order. Ends behind a barrier; the sum
// is sums[0].
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
