// The two peaks that the bench sets beside the kernels: fused multiply-adds from registers, and Philox words into L1.
#pragma once
#include "cpu/stream/stream.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// Ten independent chains hide the latency of the multiply-add on every core so far.
inline double spin_fma(int64_t rounds, int64_t* operations) {
    constexpr int kChains = 10;
    F a[kChains];
    for (int i = 0; i < kChains; ++i) a[i] = bcast(1.0f + (float)i);
    const F x = bcast(0.999999f), y = bcast(1e-6f);
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 10
        for (int i = 0; i < kChains; ++i) a[i] = fmadd(a[i], x, y);
    }
    F sum = fzero();
    for (int i = 0; i < kChains; ++i) sum = sum + a[i];
    *operations = rounds * kChains * kLanes;
    return (double)fsum(sum);
}

// Every word is read: what nobody reads, the compiler does not draw.
inline uint32_t spin_words(int64_t rounds, int64_t* words) {
    uint32_t out[192];
    U mixed = ubcast(0);
    const StreamKey key = stream_key(1, 2, 0);
    for (int64_t r = 0; r < rounds; ++r) {
        const uint32_t first = 48u * (uint32_t)r, tag = counter_tag(Kind::kTopology, 0, 0);
        philox16<3>({first, first + 16u, first + 32u}, 0, 2, {tag, tag, tag}, key.keys, {out, out + 64, out + 128});
        for (int i = 0; i < 192; i += kLanes) mixed = mixed ^ load(out + i);
    }
    *words = rounds * 192;
    uint32_t lanes[kLanes], all = 0;
    store(lanes, mixed);
    for (const uint32_t lane : lanes) all ^= lane;
    return all;
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
