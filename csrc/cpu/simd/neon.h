// Lane type for NEON, which every 64-bit ARM CPU has: eight lanes in two registers. The vocabulary is that of
// cpu/simd/avx512.h.
//
// Eight and not four: ARM's thirty-two registers of four lanes are the sixteen of eight lanes that the loops are cut
// for at x86-64-v3, one instruction after the other has no result to wait for, and all sums run in the order of that
// level, so that both have the same bits. Denormals aside, which the two flush in their own ways
// (cpu/threads/crew.h).
#pragma once
#include <arm_neon.h>

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kLanes = 8;
constexpr int kSumOrder[kLanes] = {0, 4, 2, 6, 1, 5, 3, 7};
constexpr int kFsumOrder[kLanes] = {0, 4, 2, 6, 1, 5, 3, 7};

struct F {
    float32x4_t low, high;
};
struct U {
    uint32x4_t low, high;
};
struct M {  // all ones in set lanes
    uint32x4_t low, high;
};
struct L {  // in lane order, two to a register
    uint64x2_t v[4];
};

TOYKERN_INLINE uint32x4_t four_words(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const uint32_t lanes[4] = {a, b, c, d};
    return vld1q_u32(lanes);
}

// ---- masks ----
TOYKERN_INLINE U ulane() { return {four_words(0, 1, 2, 3), four_words(4, 5, 6, 7)}; }
TOYKERN_INLINE M mask_first(int n) {
    const int32x4_t all = vdupq_n_s32(n);
    return {vcgtq_s32(all, vreinterpretq_s32_u32(ulane().low)), vcgtq_s32(all, vreinterpretq_s32_u32(ulane().high))};
}
TOYKERN_INLINE M mask_bits(uint32_t bits) {
    const uint32x4_t all = vdupq_n_u32(bits);
    return {vtstq_u32(all, four_words(1, 2, 4, 8)), vtstq_u32(all, four_words(16, 32, 64, 128))};
}
TOYKERN_INLINE uint32_t bits(M m) {
    return vaddvq_u32(
        vorrq_u32(vandq_u32(m.low, four_words(1, 2, 4, 8)), vandq_u32(m.high, four_words(16, 32, 64, 128))));
}
TOYKERN_INLINE M operator&(M a, M b) { return {vandq_u32(a.low, b.low), vandq_u32(a.high, b.high)}; }
TOYKERN_INLINE M operator|(M a, M b) { return {vorrq_u32(a.low, b.low), vorrq_u32(a.high, b.high)}; }
TOYKERN_INLINE M and_not(M a, M b) { return {vbicq_u32(a.low, b.low), vbicq_u32(a.high, b.high)}; }

// ---- floats and words in place of each other ----
TOYKERN_INLINE U as_words(F a) { return {vreinterpretq_u32_f32(a.low), vreinterpretq_u32_f32(a.high)}; }
TOYKERN_INLINE F as_floats(U a) { return {vreinterpretq_f32_u32(a.low), vreinterpretq_f32_u32(a.high)}; }

// ---- floats ----
TOYKERN_INLINE F bcast(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
TOYKERN_INLINE F fzero() { return bcast(0.0f); }
TOYKERN_INLINE F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
TOYKERN_INLINE void store(float* p, F a) {
    vst1q_f32(p, a.low);
    vst1q_f32(p + 4, a.high);
}
// There is no load or store under a mask: nothing outside of it may be touched, so lane by lane where not all are set.
TOYKERN_INLINE F load_first(const float* p, M m) {
    const uint32_t set = bits(m);
    if (set == 0xFFu) return load(p);
    alignas(16) float value[kLanes] = {};
    for (uint32_t left = set; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        value[lane] = p[lane];
    }
    return load(value);
}
TOYKERN_INLINE void store_first(float* p, F a, M m) {
    const uint32_t set = bits(m);
    if (set == 0xFFu) return store(p, a);
    alignas(16) float value[kLanes];
    store(value, a);
    for (uint32_t left = set; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        p[lane] = value[lane];
    }
}
TOYKERN_INLINE void stream(float* p, F a) { store(p, a); }  // x86's goes past the caches
TOYKERN_INLINE void fence_streams() {}
TOYKERN_INLINE F operator+(F a, F b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
TOYKERN_INLINE F operator-(F a, F b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
TOYKERN_INLINE F operator*(F a, F b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
TOYKERN_INLINE F operator/(F a, F b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
TOYKERN_INLINE F fmadd(F a, F b, F c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
// b where either is NaN, and of two zeros: NEON's own maximum would give the NaN, and +0.
TOYKERN_INLINE F fmax(F a, F b) {
    return {vbslq_f32(vcgtq_f32(a.low, b.low), a.low, b.low), vbslq_f32(vcgtq_f32(a.high, b.high), a.high, b.high)};
}
TOYKERN_INLINE F fsqrt(F a) { return {vsqrtq_f32(a.low), vsqrtq_f32(a.high)}; }
TOYKERN_INLINE F and_bits(F a, uint32_t mask) {
    const uint32x4_t all = vdupq_n_u32(mask);
    return as_floats({vandq_u32(as_words(a).low, all), vandq_u32(as_words(a).high, all)});
}
TOYKERN_INLINE M gt(F a, F b) { return {vcgtq_f32(a.low, b.low), vcgtq_f32(a.high, b.high)}; }
TOYKERN_INLINE M gt(F a, F b, M among) { return gt(a, b) & among; }
// a > b, or either is NaN: where a slope is 1, so that a NaN shows.
TOYKERN_INLINE M gt_or_nan(F a, F b) {
    return {vmvnq_u32(vcleq_f32(a.low, b.low)), vmvnq_u32(vcleq_f32(a.high, b.high))};
}
TOYKERN_INLINE M nonzero(F a) { return {vmvnq_u32(vceqzq_f32(a.low)), vmvnq_u32(vceqzq_f32(a.high))}; }
TOYKERN_INLINE F keep(M m, F a) {
    return as_floats({vandq_u32(m.low, as_words(a).low), vandq_u32(m.high, as_words(a).high)});
}
// a ± b where m is set, else a; c + a b where m is set, else c.
TOYKERN_INLINE F add_where(M m, F a, F b) { return a + keep(m, b); }
TOYKERN_INLINE F sub_where(M m, F a, F b) { return a - keep(m, b); }
TOYKERN_INLINE F fmadd_where(M m, F a, F b, F c) { return fmadd(a, keep(m, b), c); }
TOYKERN_INLINE float fsum(F a) {
    const float32x4_t s4 = vaddq_f32(a.low, a.high);
    const float32x2_t s2 = vadd_f32(vget_low_f32(s4), vget_high_f32(s4));
    return vpadds_f32(s2);
}
TOYKERN_INLINE void sum_lanes(const F* rows, int count, float* out) {  // out is written in whole vectors of 16
    int i = 0;
    for (; i < count; ++i) out[i] = fsum(rows[i]);
    for (; i & 15; ++i) out[i] = 0.0f;
}

// Four rows of four become four columns.
TOYKERN_INLINE void transpose4(float32x4_t& a, float32x4_t& b, float32x4_t& c, float32x4_t& d) {
    const float64x2_t ab0 = vreinterpretq_f64_f32(vtrn1q_f32(a, b)), ab1 = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
    const float64x2_t cd0 = vreinterpretq_f64_f32(vtrn1q_f32(c, d)), cd1 = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
    a = vreinterpretq_f32_f64(vtrn1q_f64(ab0, cd0));
    b = vreinterpretq_f32_f64(vtrn1q_f64(ab1, cd1));
    c = vreinterpretq_f32_f64(vtrn2q_f64(ab0, cd0));
    d = vreinterpretq_f32_f64(vtrn2q_f64(ab1, cd1));
}
TOYKERN_INLINE void transpose(F* r) {
    for (int i = 0; i < kLanes; i += 4) {
        transpose4(r[i].low, r[i + 1].low, r[i + 2].low, r[i + 3].low);
        transpose4(r[i].high, r[i + 1].high, r[i + 2].high, r[i + 3].high);
    }
    for (int i = 0; i < 4; ++i) {
        const float32x4_t x = r[i].high;
        r[i].high = r[i + 4].low;
        r[i + 4].low = x;
    }
}

// ---- words ----
TOYKERN_INLINE U ubcast(uint32_t x) { return {vdupq_n_u32(x), vdupq_n_u32(x)}; }
TOYKERN_INLINE U load(const uint32_t* p) { return {vld1q_u32(p), vld1q_u32(p + 4)}; }
TOYKERN_INLINE void store(uint32_t* p, U a) {
    vst1q_u32(p, a.low);
    vst1q_u32(p + 4, a.high);
}
TOYKERN_INLINE U operator+(U a, U b) { return {vaddq_u32(a.low, b.low), vaddq_u32(a.high, b.high)}; }
TOYKERN_INLINE U operator-(U a, U b) { return {vsubq_u32(a.low, b.low), vsubq_u32(a.high, b.high)}; }
TOYKERN_INLINE U operator&(U a, U b) { return {vandq_u32(a.low, b.low), vandq_u32(a.high, b.high)}; }
TOYKERN_INLINE U operator|(U a, U b) { return {vorrq_u32(a.low, b.low), vorrq_u32(a.high, b.high)}; }
TOYKERN_INLINE U operator^(U a, U b) { return {veorq_u32(a.low, b.low), veorq_u32(a.high, b.high)}; }
TOYKERN_INLINE U and_not(U a, U b) { return {vbicq_u32(a.low, b.low), vbicq_u32(a.high, b.high)}; }
// NEON shifts by lanes, to the right by negative numbers: 32 and more leave nothing. By a constant, the compiler makes
// one instruction of it.
TOYKERN_INLINE U shift(U a, int32x4_t k) { return {vshlq_u32(a.low, k), vshlq_u32(a.high, k)}; }
TOYKERN_INLINE U shl(U a, int k) {
    if (__builtin_constant_p(k) && k >= 0 && k < 32)
        return {a.low << vdupq_n_u32((uint32_t)k), a.high << vdupq_n_u32((uint32_t)k)};
    return shift(a, vdupq_n_s32(k));
}
TOYKERN_INLINE U shr(U a, int k) {
    if (__builtin_constant_p(k) && k >= 0 && k < 32)
        return {a.low >> vdupq_n_u32((uint32_t)k), a.high >> vdupq_n_u32((uint32_t)k)};
    return shift(a, vdupq_n_s32(-k));
}
TOYKERN_INLINE U shl_lanes(U a, U k) {  // NEON looks at the lowest byte of k alone
    const uint32x4_t all = vdupq_n_u32(32);
    return {vshlq_u32(a.low, vreinterpretq_s32_u32(vminq_u32(k.low, all))),
            vshlq_u32(a.high, vreinterpretq_s32_u32(vminq_u32(k.high, all)))};
}
TOYKERN_INLINE U spread_sign(U a) {
    return {vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a.low), 31)),
            vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a.high), 31))};
}
TOYKERN_INLINE U clz(U a) { return {vclzq_u32(a.low), vclzq_u32(a.high)}; }
TOYKERN_INLINE U mullo(U a, U b) { return {vmulq_u32(a.low, b.low), vmulq_u32(a.high, b.high)}; }
// The upper and the lower words of four 64-bit lanes.
TOYKERN_INLINE uint32x4_t upper(uint64x2_t a, uint64x2_t b) {
    return vuzp2q_u32(vreinterpretq_u32_u64(a), vreinterpretq_u32_u64(b));
}
TOYKERN_INLINE uint32x4_t lower(uint64x2_t a, uint64x2_t b) {
    return vuzp1q_u32(vreinterpretq_u32_u64(a), vreinterpretq_u32_u64(b));
}
TOYKERN_INLINE uint64x2_t wide_low(uint32x4_t a, uint32x4_t b) { return vmull_u32(vget_low_u32(a), vget_low_u32(b)); }
TOYKERN_INLINE U mulhi(U a, U b) {
    return {upper(wide_low(a.low, b.low), vmull_high_u32(a.low, b.low)),
            upper(wide_low(a.high, b.high), vmull_high_u32(a.high, b.high))};
}
TOYKERN_INLINE U lookup16(const uint32_t* table, U index) {  // of the last four bits, by the bytes of the words
    const uint8_t* p = (const uint8_t*)table;
    const uint8x16x4_t bytes = {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
    const U at = mullo(index & ubcast(15), ubcast(0x04040404u)) + ubcast(0x03020100u);
    return {vreinterpretq_u32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(at.low))),
            vreinterpretq_u32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(at.high)))};
}
TOYKERN_INLINE M eq(U a, U b) { return {vceqq_u32(a.low, b.low), vceqq_u32(a.high, b.high)}; }
TOYKERN_INLINE M lt(U a, U b) { return {vcltq_u32(a.low, b.low), vcltq_u32(a.high, b.high)}; }
TOYKERN_INLINE U select(M m, U a, U b) { return {vbslq_u32(m.low, a.low, b.low), vbslq_u32(m.high, a.high, b.high)}; }
TOYKERN_INLINE bool any(U a) { return vmaxvq_u32(vorrq_u32(a.low, a.high)) != 0; }
TOYKERN_INLINE F to_float(U a) { return {vcvtq_f32_u32(a.low), vcvtq_f32_u32(a.high)}; }
TOYKERN_INLINE F to_float_signed(U a) {
    return {vcvtq_f32_s32(vreinterpretq_s32_u32(a.low)), vcvtq_f32_s32(vreinterpretq_s32_u32(a.high))};
}
TOYKERN_INLINE F gather(const float* base, U index) {
    alignas(16) uint32_t at[kLanes];
    alignas(16) float value[kLanes];
    store(at, index);
    for (int i = 0; i < kLanes; ++i) value[i] = base[at[i]];
    return load(value);
}
TOYKERN_INLINE U gather(const uint32_t* base, U index) {
    alignas(16) uint32_t at[kLanes];
    store(at, index);
    for (int i = 0; i < kLanes; ++i) at[i] = base[at[i]];
    return load(at);
}
TOYKERN_INLINE void scatter(float* base, U index, F a, M m) {
    alignas(16) uint32_t at[kLanes];
    alignas(16) float value[kLanes];
    store(at, index);
    store(value, a);
    for (uint32_t left = bits(m); left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        base[at[lane]] = value[lane];
    }
}
TOYKERN_INLINE void scatter_all(float* base, U index, const float* from) {
    alignas(16) uint32_t at[kLanes];
    store(at, index);
    for (int i = 0; i < kLanes; ++i) base[at[i]] = from[i];
}
TOYKERN_INLINE void scatter_all(float* base, U index, F a) {
    alignas(16) float value[kLanes];
    store(value, a);
    scatter_all(base, index, value);
}

// Where each of four words comes from, by its bytes: set lanes moved to the front (the rest is anything), and
// consecutive words dealt to set lanes (the rest is 0, as from a byte that is not there). By the mask's bits.
struct Orders {
    uint32_t packed[16][4], dealt[16][4];
};
constexpr Orders orders() {
    Orders made = {};
    for (uint32_t set = 0; set < 16; ++set) {
        uint32_t count = 0;
        for (uint32_t lane = 0; lane < 4; ++lane) {
            made.dealt[set][lane] = 0xFFFFFFFFu;
            if (!(set >> lane & 1u)) continue;
            made.dealt[set][lane] = 0x03020100u + 0x04040404u * count;
            made.packed[set][count++] = 0x03020100u + 0x04040404u * lane;
        }
    }
    return made;
}
constexpr Orders kOrders = orders();
TOYKERN_INLINE uint32x4_t reordered(uint32x4_t a, const uint32_t* order) {
    return vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(vld1q_u32(order))));
}
// The bits of four lanes, and 16 times their number.
TOYKERN_INLINE uint32_t bits_and_count(uint32x4_t m) { return vaddvq_u32(vandq_u32(m, four_words(17, 18, 20, 24))); }
TOYKERN_INLINE void store_packed(uint32_t* p, U a, M m) {
    const uint32_t low = bits_and_count(m.low), high = bits_and_count(m.high);
    vst1q_u32(p, reordered(a.low, kOrders.packed[low & 15u]));
    vst1q_u32(p + (low >> 4), reordered(a.high, kOrders.packed[high & 15u]));
}
TOYKERN_INLINE U load_dealt(const uint32_t* p, M m) {
    const uint32_t low = bits_and_count(m.low), high = bits_and_count(m.high);
    return {reordered(vld1q_u32(p), kOrders.dealt[low & 15u]),
            reordered(vld1q_u32(p + (low >> 4)), kOrders.dealt[high & 15u])};
}
TOYKERN_INLINE uint32x4_t running_count(uint32x4_t a) {
    const uint32x4_t none = vdupq_n_u32(0);
    a = vaddq_u32(a, vextq_u32(none, a, 3));
    return vaddq_u32(a, vextq_u32(none, a, 2));
}
TOYKERN_INLINE U count_upto(M m) {
    const uint32x4_t low = running_count(vshrq_n_u32(m.low, 31)), high = running_count(vshrq_n_u32(m.high, 31));
    return {low, vaddq_u32(high, vdupq_laneq_u32(low, 3))};
}
TOYKERN_INLINE U last_lane(U a) {
    const uint32x4_t last = vdupq_laneq_u32(a.high, 3);
    return {last, last};
}
TOYKERN_INLINE U shift_in(U a, U before) { return {vextq_u32(before.high, a.low, 3), vextq_u32(a.low, a.high, 3)}; }

// ---- 64-bit lanes ----
#define TOYKERN_PAIRWISE(expression)                 \
    L r;                                             \
    for (int i = 0; i < 4; ++i) r.v[i] = expression; \
    return r
TOYKERN_INLINE L lbcast(uint32_t x) { TOYKERN_PAIRWISE(vdupq_n_u64(x)); }
TOYKERN_INLINE L lzero() { return lbcast(0); }
TOYKERN_INLINE L mul_wide(U a, U b) {
    return {{wide_low(a.low, b.low), vmull_high_u32(a.low, b.low), wide_low(a.high, b.high),
             vmull_high_u32(a.high, b.high)}};
}
TOYKERN_INLINE L operator+(L a, L b) { TOYKERN_PAIRWISE(vaddq_u64(a.v[i], b.v[i])); }
TOYKERN_INLINE L operator^(L a, L b) { TOYKERN_PAIRWISE(veorq_u64(a.v[i], b.v[i])); }
TOYKERN_INLINE L xor3(L a, L b, L c) { return a ^ b ^ c; }
TOYKERN_INLINE L shl1(L a) { TOYKERN_PAIRWISE(vshlq_n_u64(a.v[i], 1)); }
TOYKERN_INLINE L shr31(L a) { TOYKERN_PAIRWISE(vshrq_n_u64(a.v[i], 31)); }
TOYKERN_INLINE L shr32(L a) { TOYKERN_PAIRWISE(vshrq_n_u64(a.v[i], 32)); }
TOYKERN_INLINE L shl_lanes(L a, L k) { TOYKERN_PAIRWISE(vshlq_u64(a.v[i], vreinterpretq_s64_u64(k.v[i]))); }
// Products of the lower halves.
TOYKERN_INLINE L mul_low(L a, L b) { TOYKERN_PAIRWISE(vmull_u32(vmovn_u64(a.v[i]), vmovn_u64(b.v[i]))); }
#undef TOYKERN_PAIRWISE
TOYKERN_INLINE L widen(U a) {
    return {{vmovl_u32(vget_low_u32(a.low)), vmovl_high_u32(a.low), vmovl_u32(vget_low_u32(a.high)),
             vmovl_high_u32(a.high)}};
}
TOYKERN_INLINE U low_words(L a) { return {lower(a.v[0], a.v[1]), lower(a.v[2], a.v[3])}; }
TOYKERN_INLINE U high_words(L a) { return {upper(a.v[0], a.v[1]), upper(a.v[2], a.v[3])}; }
TOYKERN_INLINE L running_sum(L a) {
    const uint64x2_t none = vdupq_n_u64(0);
    for (int i = 0; i < 4; ++i) a.v[i] = vaddq_u64(a.v[i], vextq_u64(none, a.v[i], 1));
    for (int i = 1; i < 4; ++i) a.v[i] = vaddq_u64(a.v[i], vdupq_laneq_u64(a.v[i - 1], 1));
    return a;
}
TOYKERN_INLINE L carry_over(L a, L& carry) {
    const L sum = a + carry;
    for (int i = 0; i < 4; ++i) carry.v[i] = vdupq_laneq_u64(sum.v[3], 1);
    return sum;
}

// ---- Philox 4x32-10, sixteen counters c0 = first … first + 15, four to a register ----
TOYKERN_INLINE void philox_run(uint32_t first, uint32_t c1, uint32_t c2, uint32_t c3, const RoundKeys& keys,
                               uint32_t* out) {
    const uint32x4_t m0 = vdupq_n_u32(0xD2511F53u), m1 = vdupq_n_u32(0xCD9E8D57u);
    uint32x4_t x0[4], x1[4], x2[4], x3[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        x0[i] = vaddq_u32(vdupq_n_u32(first + 4u * (uint32_t)i), four_words(0, 1, 2, 3));
        x1[i] = vdupq_n_u32(c1), x2[i] = vdupq_n_u32(c2), x3[i] = vdupq_n_u32(c3);
    }
    for (int round = 0; round < 10; ++round) {
        const uint32x4_t a = vdupq_n_u32((uint32_t)keys.k0[round]), b = vdupq_n_u32((uint32_t)keys.k1[round]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const uint64x2_t p00 = wide_low(x0[i], m0), p01 = vmull_high_u32(x0[i], m0);
            const uint64x2_t p10 = wide_low(x2[i], m1), p11 = vmull_high_u32(x2[i], m1);
            x0[i] = veorq_u32(veorq_u32(upper(p10, p11), x1[i]), a);
            x2[i] = veorq_u32(veorq_u32(upper(p00, p01), x3[i]), b);
            x1[i] = lower(p10, p11), x3[i] = lower(p00, p01);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        vst1q_u32(out + 4 * i, x0[i]);
        vst1q_u32(out + 4 * i + 16, x1[i]);
        vst1q_u32(out + 4 * i + 32, x2[i]);
        vst1q_u32(out + 4 * i + 48, x3[i]);
    }
}

// kBlocks runs of sixteen counters c0 = first[b] … first[b] + 15, with tags c3[b].
template <int kBlocks>
TOYKERN_INLINE void philox16(const uint32_t (&first)[kBlocks], uint32_t c1, uint32_t c2, const uint32_t (&c3)[kBlocks],
                             const RoundKeys& keys, uint32_t* const (&out)[kBlocks]) {
    for (int b = 0; b < kBlocks; ++b) philox_run(first[b], c1, c2, c3[b], keys, out[b]);
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
