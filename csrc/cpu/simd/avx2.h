// Lane type for x86-64-v3: eight lanes in one register. The vocabulary is that of cpu/simd/avx512.h.
#pragma once
#include <immintrin.h>

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kLanes = 8;
constexpr int kSumOrder[kLanes] = {0, 4, 2, 6, 1, 5, 3, 7};
constexpr int kFsumOrder[kLanes] = {0, 4, 2, 6, 1, 5, 3, 7};

struct F {
    __m256 v;
};
struct U {
    __m256i v;
};
struct M {  // all ones in set lanes
    __m256i v;
};
struct L {
    __m256i even, odd;
};

// ---- masks ----
TOYKERN_INLINE U ulane() { return {_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0)}; }
TOYKERN_INLINE M mask_first(int n) { return {_mm256_cmpgt_epi32(_mm256_set1_epi32(n), ulane().v)}; }
TOYKERN_INLINE M mask_bits(uint32_t bits) {
    const __m256i lane = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
    return {_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), lane), lane)};
}
TOYKERN_INLINE uint32_t bits(M m) { return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(m.v)); }
TOYKERN_INLINE M operator&(M a, M b) { return {_mm256_and_si256(a.v, b.v)}; }
TOYKERN_INLINE M operator|(M a, M b) { return {_mm256_or_si256(a.v, b.v)}; }
TOYKERN_INLINE M and_not(M a, M b) { return {_mm256_andnot_si256(b.v, a.v)}; }

// ---- floats ----
TOYKERN_INLINE F fzero() { return {_mm256_setzero_ps()}; }
TOYKERN_INLINE F bcast(float x) { return {_mm256_set1_ps(x)}; }
TOYKERN_INLINE F load(const float* p) { return {_mm256_loadu_ps(p)}; }
TOYKERN_INLINE F load_first(const float* p, M m) { return {_mm256_maskload_ps(p, m.v)}; }
TOYKERN_INLINE void store(float* p, F a) { _mm256_storeu_ps(p, a.v); }
TOYKERN_INLINE void stream(float* p, F a) {
    _mm256_stream_ps(p, a.v);
}  // p aligned; past the caches, until fence_streams
TOYKERN_INLINE void fence_streams() { _mm_sfence(); }
TOYKERN_INLINE void store_first(float* p, F a, M m) { _mm256_maskstore_ps(p, m.v, a.v); }
TOYKERN_INLINE F operator+(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
TOYKERN_INLINE F operator-(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
TOYKERN_INLINE F operator*(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
TOYKERN_INLINE F operator/(F a, F b) { return {_mm256_div_ps(a.v, b.v)}; }
TOYKERN_INLINE F fmadd(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
TOYKERN_INLINE F fmax(F a, F b) { return {_mm256_max_ps(a.v, b.v)}; }
TOYKERN_INLINE F fsqrt(F a) { return {_mm256_sqrt_ps(a.v)}; }
TOYKERN_INLINE F and_bits(F a, uint32_t mask) {
    return {_mm256_and_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32((int)mask)))};
}
TOYKERN_INLINE M gt(F a, F b) { return {_mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))}; }
TOYKERN_INLINE M gt(F a, F b, M among) { return gt(a, b) & among; }
// a > b, or either is NaN: where a slope is 1, so that a NaN shows.
TOYKERN_INLINE M gt_or_nan(F a, F b) { return {_mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_NLE_UQ))}; }
TOYKERN_INLINE M nonzero(F a) { return {_mm256_castps_si256(_mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_NEQ_UQ))}; }
TOYKERN_INLINE F keep(M m, F a) { return {_mm256_and_ps(_mm256_castsi256_ps(m.v), a.v)}; }
// a ± b where m is set, else a; c + a b where m is set, else c.
TOYKERN_INLINE F add_where(M m, F a, F b) { return a + keep(m, b); }
TOYKERN_INLINE F sub_where(M m, F a, F b) { return a - keep(m, b); }
TOYKERN_INLINE F fmadd_where(M m, F a, F b, F c) { return fmadd(a, keep(m, b), c); }
TOYKERN_INLINE float fsum(F a) {
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
TOYKERN_INLINE void sum_lanes(const F* rows, int count, float* out) {  // out is written in whole vectors of 16
    int i = 0;
    for (; i < count; ++i) out[i] = fsum(rows[i]);
    for (; i & 15; ++i) out[i] = 0.0f;
}

TOYKERN_INLINE void transpose(F* r) {
    __m256 a[8], b[8];
    for (int i = 0; i < 4; ++i) {
        a[2 * i] = _mm256_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
        a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
    }
    for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 2; ++k) {
            b[4 * i + 2 * k] = _mm256_shuffle_ps(a[4 * i + k], a[4 * i + 2 + k], 0x44);
            b[4 * i + 2 * k + 1] = _mm256_shuffle_ps(a[4 * i + k], a[4 * i + 2 + k], 0xEE);
        }
    for (int c = 0; c < 4; ++c) {
        r[c].v = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
        r[c + 4].v = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
    }
}

// ---- words ----
TOYKERN_INLINE U ubcast(uint32_t x) { return {_mm256_set1_epi32((int)x)}; }
TOYKERN_INLINE U load(const uint32_t* p) { return {_mm256_loadu_si256((const __m256i*)p)}; }
TOYKERN_INLINE void store(uint32_t* p, U a) { _mm256_storeu_si256((__m256i*)p, a.v); }
TOYKERN_INLINE U operator+(U a, U b) { return {_mm256_add_epi32(a.v, b.v)}; }
TOYKERN_INLINE U operator-(U a, U b) { return {_mm256_sub_epi32(a.v, b.v)}; }
TOYKERN_INLINE U operator&(U a, U b) { return {_mm256_and_si256(a.v, b.v)}; }
TOYKERN_INLINE U operator|(U a, U b) { return {_mm256_or_si256(a.v, b.v)}; }
TOYKERN_INLINE U operator^(U a, U b) { return {_mm256_xor_si256(a.v, b.v)}; }
TOYKERN_INLINE U and_not(U a, U b) { return {_mm256_andnot_si256(b.v, a.v)}; }
TOYKERN_INLINE U shl(U a, int k) { return {_mm256_sll_epi32(a.v, _mm_cvtsi32_si128(k))}; }
TOYKERN_INLINE U shr(U a, int k) { return {_mm256_srl_epi32(a.v, _mm_cvtsi32_si128(k))}; }
TOYKERN_INLINE U shl_lanes(U a, U k) { return {_mm256_sllv_epi32(a.v, k.v)}; }
TOYKERN_INLINE U spread_sign(U a) { return {_mm256_srai_epi32(a.v, 31)}; }
TOYKERN_INLINE U mullo(U a, U b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
TOYKERN_INLINE U mulhi(U a, U b) {
    const __m256i even = _mm256_mul_epu32(a.v, b.v);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a.v, 32), _mm256_srli_epi64(b.v, 32));
    return {_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA)};
}
TOYKERN_INLINE U clz(U a) {
    // The exponent of the float conversion, made exact by clearing the bits below that could round it up.
    const __m256i top =
        _mm256_andnot_si256(_mm256_srli_epi32(a.v, 1), a.v);  // clears a bit whose upper neighbour is set
    const __m256i half = _mm256_srli_epi32(top, 1);           // keeps the conversion non-negative
    const __m256i exponent = _mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(half)), 23);
    // half = 0 (a <= 1): exponent 0. Otherwise clz = 31 - (exponent - 127 + 1).
    const __m256i wide = _mm256_sub_epi32(_mm256_set1_epi32(157), exponent);
    const __m256i small = _mm256_sub_epi32(_mm256_set1_epi32(32), a.v);  // a = 0 -> 32, a = 1 -> 31
    return {_mm256_blendv_epi8(wide, small, _mm256_cmpeq_epi32(half, _mm256_setzero_si256()))};
}
TOYKERN_INLINE U lookup16(const uint32_t* table, U index) {
    const __m256i low = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)table), index.v);
    const __m256i high = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)(table + 8)), index.v);
    return {_mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high),
                                                 _mm256_castsi256_ps(_mm256_slli_epi32(index.v, 28))))};
}
TOYKERN_INLINE M eq(U a, U b) { return {_mm256_cmpeq_epi32(a.v, b.v)}; }
TOYKERN_INLINE M lt(U a, U b) {
    const __m256i bias = _mm256_set1_epi32((int)0x80000000u);
    return {_mm256_cmpgt_epi32(_mm256_xor_si256(b.v, bias), _mm256_xor_si256(a.v, bias))};
}
TOYKERN_INLINE U select(M m, U a, U b) { return {_mm256_blendv_epi8(b.v, a.v, m.v)}; }
TOYKERN_INLINE bool any(U a) { return !_mm256_testz_si256(a.v, a.v); }
TOYKERN_INLINE F to_float(U a) {  // both halves and the product are exact, so the one addition rounds to nearest even
    const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(a.v, 16));
    const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(a.v, _mm256_set1_epi32(0xFFFF)));
    return {_mm256_add_ps(_mm256_mul_ps(high, _mm256_set1_ps(65536.0f)), low)};
}
TOYKERN_INLINE F to_float_signed(U a) { return {_mm256_cvtepi32_ps(a.v)}; }
TOYKERN_INLINE U as_words(F a) { return {_mm256_castps_si256(a.v)}; }
TOYKERN_INLINE F as_floats(U a) { return {_mm256_castsi256_ps(a.v)}; }
TOYKERN_INLINE F gather(const float* base, U index) { return {_mm256_i32gather_ps(base, index.v, 4)}; }
TOYKERN_INLINE U gather(const uint32_t* base, U index) {
    return {_mm256_i32gather_epi32((const int*)base, index.v, 4)};
}
TOYKERN_INLINE void scatter(float* base, U index, F a, M m) {
    alignas(32) uint32_t at[8];
    alignas(32) float value[8];
    store(at, index);
    store(value, a);
    for (uint32_t left = bits(m); left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        base[at[lane]] = value[lane];
    }
}
TOYKERN_INLINE void scatter_all(float* base, U index, const float* from) {
    alignas(32) uint32_t at[kLanes];
    store(at, index);
    asm("" : "+m"(at));
    for (int i = 0; i < kLanes; ++i) base[at[i]] = from[i];
}
TOYKERN_INLINE void scatter_all(float* base, U index, F a) {
    alignas(32) float value[kLanes];
    store(value, a);
    asm("" : "+m"(value));
    scatter_all(base, index, value);
}
TOYKERN_INLINE void store_packed(uint32_t* p, U a, M m) {
    const uint64_t kept = _pdep_u64(bits(m), 0x0101010101010101ull) * 0xFFu;
    const uint64_t from = _pext_u64(0x0706050403020100ull, kept);
    store(p, U{_mm256_permutevar8x32_epi32(a.v, _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)from)))});
}
TOYKERN_INLINE U count_upto(M m) {
    const uint64_t ones = 0x0101010101010101ull;
    return {_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)(_pdep_u64(bits(m), ones) * ones)))};
}
TOYKERN_INLINE U load_dealt(const uint32_t* p, M m) {
    const __m256i from = _mm256_sub_epi32(count_upto(m).v, _mm256_set1_epi32(1));
    return {_mm256_and_si256(m.v, _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)p), from))};
}
TOYKERN_INLINE U last_lane(U a) { return {_mm256_permutevar8x32_epi32(a.v, _mm256_set1_epi32(7))}; }
TOYKERN_INLINE U shift_in(U a, U before) {
    const __m256i order = _mm256_set_epi32(6, 5, 4, 3, 2, 1, 0, 7);
    return {_mm256_blend_epi32(_mm256_permutevar8x32_epi32(a.v, order), last_lane(before).v, 1)};
}

// ---- 64-bit lanes ----
TOYKERN_INLINE L lzero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
TOYKERN_INLINE L mul_wide(U a, U b) {
    return {_mm256_mul_epu32(a.v, b.v), _mm256_mul_epu32(_mm256_srli_epi64(a.v, 32), _mm256_srli_epi64(b.v, 32))};
}
TOYKERN_INLINE L operator+(L a, L b) { return {_mm256_add_epi64(a.even, b.even), _mm256_add_epi64(a.odd, b.odd)}; }
TOYKERN_INLINE L shl1(L a) { return {_mm256_slli_epi64(a.even, 1), _mm256_slli_epi64(a.odd, 1)}; }
TOYKERN_INLINE L shr31(L a) { return {_mm256_srli_epi64(a.even, 31), _mm256_srli_epi64(a.odd, 31)}; }
TOYKERN_INLINE L widen(U a) {
    return {_mm256_and_si256(a.v, _mm256_set1_epi64x(0xFFFFFFFF)), _mm256_srli_epi64(a.v, 32)};
}
TOYKERN_INLINE L lbcast(uint32_t x) { return {_mm256_set1_epi64x(x), _mm256_set1_epi64x(x)}; }
TOYKERN_INLINE L mul_low(L a, L b) { return {_mm256_mul_epu32(a.even, b.even), _mm256_mul_epu32(a.odd, b.odd)}; }
TOYKERN_INLINE L shl_lanes(L a, L k) { return {_mm256_sllv_epi64(a.even, k.even), _mm256_sllv_epi64(a.odd, k.odd)}; }
TOYKERN_INLINE L shr32(L a) { return {_mm256_srli_epi64(a.even, 32), _mm256_srli_epi64(a.odd, 32)}; }
TOYKERN_INLINE L operator^(L a, L b) { return {_mm256_xor_si256(a.even, b.even), _mm256_xor_si256(a.odd, b.odd)}; }
TOYKERN_INLINE L xor3(L a, L b, L c) { return a ^ b ^ c; }
TOYKERN_INLINE U low_words(L a) { return {_mm256_blend_epi32(a.even, _mm256_slli_epi64(a.odd, 32), 0xAA)}; }
TOYKERN_INLINE U high_words(L a) { return {_mm256_blend_epi32(_mm256_srli_epi64(a.even, 32), a.odd, 0xAA)}; }
TOYKERN_INLINE L running_sum(L a) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i pair = _mm256_add_epi64(a.even, a.odd);
    pair = _mm256_add_epi64(pair, _mm256_blend_epi32(_mm256_permute4x64_epi64(pair, 0x90), zero, 0x03));
    pair = _mm256_add_epi64(pair, _mm256_blend_epi32(_mm256_permute4x64_epi64(pair, 0x40), zero, 0x0F));
    return {_mm256_sub_epi64(pair, a.odd), pair};
}
TOYKERN_INLINE L carry_over(L a, L& carry) {
    const L sum = a + carry;
    const __m256i total = _mm256_permute4x64_epi64(sum.odd, 0xFF);
    carry = {total, total};
    return sum;
}

// ---- Philox 4x32-10, sixteen counters c0 = first … first + 15, in two halves of eight ----
TOYKERN_INLINE void philox_run(uint32_t first, uint32_t c1, uint32_t c2, uint32_t c3, const RoundKeys& keys,
                               uint32_t* out) {
    const __m256i m0 = _mm256_set1_epi64x(0xD2511F53), m1 = _mm256_set1_epi64x(0xCD9E8D57);
    for (int half = 0; half < 2; ++half) {
        const __m256i base = _mm256_set1_epi64x(first + 8u * (uint32_t)half);
        __m256i e0 = _mm256_add_epi32(base, _mm256_set_epi64x(6, 4, 2, 0));
        __m256i o0 = _mm256_add_epi32(base, _mm256_set_epi64x(7, 5, 3, 1));
        __m256i e1 = _mm256_set1_epi64x(c1), e2 = _mm256_set1_epi64x(c2), e3 = _mm256_set1_epi64x(c3);
        __m256i o1 = e1, o2 = e2, o3 = e3;
        for (int round = 0; round < 10; ++round) {
            const __m256i ka = _mm256_set1_epi64x((long long)keys.k0[round]),
                          kb = _mm256_set1_epi64x((long long)keys.k1[round]);
            const __m256i ep0 = _mm256_mul_epu32(e0, m0), ep1 = _mm256_mul_epu32(e2, m1);
            const __m256i op0 = _mm256_mul_epu32(o0, m0), op1 = _mm256_mul_epu32(o2, m1);
            e0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(ep1, 32), e1), ka);
            o0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(op1, 32), o1), ka);
            e2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(ep0, 32), e3), kb);
            o2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(op0, 32), o3), kb);
            e1 = ep1, o1 = op1, e3 = ep0, o3 = op0;
        }
        store(out + 8 * half, low_words(L{e0, o0}));
        store(out + 8 * half + 16, low_words(L{e1, o1}));
        store(out + 8 * half + 32, low_words(L{e2, o2}));
        store(out + 8 * half + 48, low_words(L{e3, o3}));
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
