// Lane type for x86-64-v4: sixteen lanes in one register.
#pragma once
#include <immintrin.h>

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kLanes = 16;
// Lanes in the order in which sum_lanes and fsum add them up: neighbours first, then neighbouring pairs, and so on.
constexpr int kSumOrder[kLanes] = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
constexpr int kFsumOrder[kLanes] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};

struct F {
    __m512 v;
};
struct U {
    __m512i v;
};
struct M {
    __mmask16 v;
};
struct L {  // 64-bit values of the even and of the odd lanes
    __m512i even, odd;
};

// ---- masks ----
TOYKERN_INLINE M mask_first(int n) { return {(__mmask16)(n >= 16 ? 0xFFFFu : ((1u << n) - 1u))}; }
TOYKERN_INLINE M mask_bits(uint32_t bits) { return {(__mmask16)bits}; }
TOYKERN_INLINE uint32_t bits(M m) { return m.v; }
TOYKERN_INLINE M operator&(M a, M b) { return {(__mmask16)(a.v & b.v)}; }
TOYKERN_INLINE M operator|(M a, M b) { return {(__mmask16)(a.v | b.v)}; }
TOYKERN_INLINE M and_not(M a, M b) { return {(__mmask16)(a.v & ~b.v)}; }

// ---- floats ----
TOYKERN_INLINE F fzero() { return {_mm512_setzero_ps()}; }
TOYKERN_INLINE F bcast(float x) { return {_mm512_set1_ps(x)}; }
TOYKERN_INLINE F load(const float* p) { return {_mm512_loadu_ps(p)}; }
TOYKERN_INLINE F load_first(const float* p, M m) { return {_mm512_maskz_loadu_ps(m.v, p)}; }
TOYKERN_INLINE void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
TOYKERN_INLINE void stream(float* p, F a) {
    _mm512_stream_ps(p, a.v);
}  // p aligned; past the caches, until fence_streams
TOYKERN_INLINE void fence_streams() { _mm_sfence(); }
TOYKERN_INLINE void store_first(float* p, F a, M m) { _mm512_mask_storeu_ps(p, m.v, a.v); }
TOYKERN_INLINE F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
TOYKERN_INLINE F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
TOYKERN_INLINE F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
TOYKERN_INLINE F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
TOYKERN_INLINE F fmadd(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// b where either is NaN: write fmax(bound, x) so that a NaN shows.
TOYKERN_INLINE F fmax(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
TOYKERN_INLINE F fsqrt(F a) { return {_mm512_sqrt_ps(a.v)}; }
TOYKERN_INLINE F and_bits(F a, uint32_t mask) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32((int)mask)))};
}
TOYKERN_INLINE M gt(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
TOYKERN_INLINE M gt(F a, F b, M among) { return {_mm512_mask_cmp_ps_mask(among.v, a.v, b.v, _CMP_GT_OQ)}; }
// a > b, or either is NaN: where a slope is 1, so that a NaN shows.
TOYKERN_INLINE M gt_or_nan(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLE_UQ)}; }
TOYKERN_INLINE M nonzero(F a) { return {_mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NEQ_UQ)}; }
TOYKERN_INLINE F keep(M m, F a) { return {_mm512_maskz_mov_ps(m.v, a.v)}; }
// a ± b where m is set, else a; c + a b where m is set, else c.
TOYKERN_INLINE F add_where(M m, F a, F b) { return {_mm512_mask_add_ps(a.v, m.v, a.v, b.v)}; }
TOYKERN_INLINE F sub_where(M m, F a, F b) { return {_mm512_mask_sub_ps(a.v, m.v, a.v, b.v)}; }
TOYKERN_INLINE F fmadd_where(M m, F a, F b, F c) { return {_mm512_mask3_fmadd_ps(a.v, b.v, c.v, m.v)}; }

// Sum over lanes in the fixed order of a binary tree (lane i with i + 8, then + 4, + 2, + 1).
TOYKERN_INLINE float fsum(F a) {
    const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}

// out[i] = sum over lanes of rows[i], i < 16: sixteen sums at once by transposing additions (15 adds, 30 shuffles).
TOYKERN_INLINE F sum16(const F* r) {
    __m512 a[8], b[4], c[2];
    for (int i = 0; i < 8; ++i)  // lanes (0 1 2 3 | …) of rows 2i, 2i+1 -> pairs
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v),
                             _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v));
    for (int i = 0; i < 4; ++i) {  // each 128-bit quarter now holds four rows' partial sums
        const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    for (int i = 0; i < 2; ++i)
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xDD));
    return {_mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xDD))};
}

// out[i] = sum over lanes of rows[i] for i < count; out is written in whole vectors of 16.
TOYKERN_INLINE void sum_lanes(const F* rows, int count, float* out) {
    int i = 0;
    for (; i + 16 <= count; i += 16) store(out + i, sum16(rows + i));
    if (i < count) {
        F last[16];
        for (int k = 0; k < 16; ++k) last[k] = i + k < count ? rows[i + k] : fzero();
        store(out + i, sum16(last));
    }
}

// r becomes its transpose: r[i] lane j <-> r[j] lane i.
TOYKERN_INLINE void transpose(F* r) {
    __m512 a[16], b[16];
    for (int i = 0; i < 8; ++i) {
        a[2 * i] = _mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
        a[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
    }
    for (int i = 0; i < 4; ++i) {  // columns c, c+4, c+8, c+12 of rows 4i … 4i+3, for c = 0 … 3
        const __m512d p = _mm512_castps_pd(a[4 * i]), q = _mm512_castps_pd(a[4 * i + 2]);
        const __m512d s = _mm512_castps_pd(a[4 * i + 1]), t = _mm512_castps_pd(a[4 * i + 3]);
        b[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(p, q));
        b[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p, q));
        b[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(s, t));
        b[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(s, t));
    }
    for (int c = 0; c < 4; ++c) {
        const __m512 e = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88),
                     f = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
        const __m512 g = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xDD),
                     h = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xDD);
        r[c].v = _mm512_shuffle_f32x4(e, f, 0x88);
        r[c + 4].v = _mm512_shuffle_f32x4(g, h, 0x88);
        r[c + 8].v = _mm512_shuffle_f32x4(e, f, 0xDD);
        r[c + 12].v = _mm512_shuffle_f32x4(g, h, 0xDD);
    }
}

// ---- words ----
TOYKERN_INLINE U ubcast(uint32_t x) { return {_mm512_set1_epi32((int)x)}; }
TOYKERN_INLINE U ulane() { return {_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}; }
TOYKERN_INLINE U load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
TOYKERN_INLINE void store(uint32_t* p, U a) { _mm512_storeu_si512(p, a.v); }
TOYKERN_INLINE U operator+(U a, U b) { return {_mm512_add_epi32(a.v, b.v)}; }
TOYKERN_INLINE U operator-(U a, U b) { return {_mm512_sub_epi32(a.v, b.v)}; }
TOYKERN_INLINE U operator&(U a, U b) { return {_mm512_and_si512(a.v, b.v)}; }
TOYKERN_INLINE U operator|(U a, U b) { return {_mm512_or_si512(a.v, b.v)}; }
TOYKERN_INLINE U operator^(U a, U b) { return {_mm512_xor_si512(a.v, b.v)}; }
TOYKERN_INLINE U and_not(U a, U b) { return {_mm512_andnot_si512(b.v, a.v)}; }  // a & ~b
TOYKERN_INLINE U shl(U a, int k) { return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(k))}; }
TOYKERN_INLINE U shr(U a, int k) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(k))}; }
TOYKERN_INLINE U shl_lanes(U a, U k) { return {_mm512_sllv_epi32(a.v, k.v)}; }
TOYKERN_INLINE U spread_sign(U a) { return {_mm512_srai_epi32(a.v, 31)}; }
TOYKERN_INLINE U clz(U a) { return {_mm512_lzcnt_epi32(a.v)}; }
TOYKERN_INLINE U mullo(U a, U b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
TOYKERN_INLINE U mulhi(U a, U b) {
    const __m512i even = _mm512_mul_epu32(a.v, b.v);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), _mm512_srli_epi64(b.v, 32));
    return {_mm512_mask_shuffle_epi32(odd, 0x5555, even, (_MM_PERM_ENUM)0xF5)};
}
TOYKERN_INLINE U lookup16(const uint32_t* table, U index) {
    return {_mm512_permutexvar_epi32(index.v, _mm512_loadu_si512(table))};
}
TOYKERN_INLINE M eq(U a, U b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
TOYKERN_INLINE M lt(U a, U b) { return {_mm512_cmplt_epu32_mask(a.v, b.v)}; }
TOYKERN_INLINE U select(M m, U a, U b) { return {_mm512_mask_mov_epi32(b.v, m.v, a.v)}; }
TOYKERN_INLINE bool any(U a) { return _mm512_test_epi32_mask(a.v, a.v) != 0; }
TOYKERN_INLINE F to_float(U a) { return {_mm512_cvtepu32_ps(a.v)}; }
TOYKERN_INLINE F to_float_signed(U a) { return {_mm512_cvtepi32_ps(a.v)}; }
TOYKERN_INLINE U as_words(F a) { return {_mm512_castps_si512(a.v)}; }
TOYKERN_INLINE F as_floats(U a) { return {_mm512_castsi512_ps(a.v)}; }
TOYKERN_INLINE F gather(const float* base, U index) { return {_mm512_i32gather_ps(index.v, base, 4)}; }
TOYKERN_INLINE U gather(const uint32_t* base, U index) { return {_mm512_i32gather_epi32(index.v, base, 4)}; }
// Lane by lane: the scatter instruction is no faster (Zen 5).
TOYKERN_INLINE void scatter(float* base, U index, F a, M m) {
    alignas(64) uint32_t at[16];
    alignas(64) float value[16];
    store(at, index);
    store(value, a);
    for (uint32_t left = m.v; left; left &= left - 1) {
        const int i = __builtin_ctz(left);
        base[at[i]] = value[i];
    }
}
// All lanes, of the values at `from`; the last of those with one index stays. Two indices at a time come out of the
// register: one by one they would keep its shuffles busy, and with indices that were stored and loaded again a draw of
// models side by side took 1.2 to 1.4 times as long (Xeon).
TOYKERN_INLINE void scatter_all(float* base, U index, const float* from) {
    const __m128i quarter[4] = {_mm512_castsi512_si128(index.v), _mm512_extracti32x4_epi32(index.v, 1),
                                _mm512_extracti32x4_epi32(index.v, 2), _mm512_extracti32x4_epi32(index.v, 3)};
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
        const uint64_t low = (uint64_t)_mm_cvtsi128_si64(quarter[q]), high = (uint64_t)_mm_extract_epi64(quarter[q], 1);
        base[(uint32_t)low] = from[4 * q];
        base[low >> 32] = from[4 * q + 1];
        base[(uint32_t)high] = from[4 * q + 2];
        base[high >> 32] = from[4 * q + 3];
    }
}
TOYKERN_INLINE void scatter_all(float* base, U index, F a) {
    alignas(64) float value[16];
    store(value, a);
    asm("" : "+m"(value));
    scatter_all(base, index, value);
}
// The lanes of m moved to the front; the whole vector is written.
TOYKERN_INLINE void store_packed(uint32_t* p, U a, M m) { store(p, U{_mm512_maskz_compress_epi32(m.v, a.v)}); }
// Consecutive words dealt to the lanes of m, zero elsewhere; reads a whole vector.
TOYKERN_INLINE U load_dealt(const uint32_t* p, M m) { return {_mm512_maskz_expand_epi32(m.v, _mm512_loadu_si512(p))}; }
// (last lane of before, lanes 0 … 14 of a)
TOYKERN_INLINE U shift_in(U a, U before) { return {_mm512_alignr_epi32(a.v, before.v, 15)}; }
TOYKERN_INLINE U last_lane(U a) { return {_mm512_permutexvar_epi32(_mm512_set1_epi32(15), a.v)}; }
// Number of set lanes up to and including each lane.
TOYKERN_INLINE U count_upto(M m) {
    const uint64_t ones = 0x0101010101010101ull;
    const uint64_t low = _pdep_u64(m.v & 0xFFu, ones) * ones;
    const uint64_t high = _pdep_u64(m.v >> 8, ones) * ones + (uint64_t)_mm_popcnt_u32(m.v & 0xFFu) * ones;
    return {_mm512_cvtepu8_epi32(_mm_set_epi64x((long long)high, (long long)low))};
}

// ---- 64-bit lanes ----
TOYKERN_INLINE L lzero() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
TOYKERN_INLINE L mul_wide(U a, U b) {
    return {_mm512_mul_epu32(a.v, b.v), _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), _mm512_srli_epi64(b.v, 32))};
}
TOYKERN_INLINE L operator+(L a, L b) { return {_mm512_add_epi64(a.even, b.even), _mm512_add_epi64(a.odd, b.odd)}; }
TOYKERN_INLINE L shl1(L a) { return {_mm512_slli_epi64(a.even, 1), _mm512_slli_epi64(a.odd, 1)}; }
TOYKERN_INLINE L shr31(L a) { return {_mm512_srli_epi64(a.even, 31), _mm512_srli_epi64(a.odd, 31)}; }
TOYKERN_INLINE L widen(U a) {
    return {_mm512_and_si512(a.v, _mm512_set1_epi64(0xFFFFFFFF)), _mm512_srli_epi64(a.v, 32)};
}
TOYKERN_INLINE L lbcast(uint32_t x) { return {_mm512_set1_epi64(x), _mm512_set1_epi64(x)}; }
// Products of the lower halves.
TOYKERN_INLINE L mul_low(L a, L b) { return {_mm512_mul_epu32(a.even, b.even), _mm512_mul_epu32(a.odd, b.odd)}; }
TOYKERN_INLINE L shl_lanes(L a, L k) { return {_mm512_sllv_epi64(a.even, k.even), _mm512_sllv_epi64(a.odd, k.odd)}; }
TOYKERN_INLINE L shr32(L a) { return {_mm512_srli_epi64(a.even, 32), _mm512_srli_epi64(a.odd, 32)}; }
TOYKERN_INLINE L operator^(L a, L b) { return {_mm512_xor_si512(a.even, b.even), _mm512_xor_si512(a.odd, b.odd)}; }
TOYKERN_INLINE L xor3(L a, L b, L c) {
    return {_mm512_ternarylogic_epi64(a.even, b.even, c.even, 0x96),
            _mm512_ternarylogic_epi64(a.odd, b.odd, c.odd, 0x96)};
}
TOYKERN_INLINE U low_words(L a) { return {_mm512_mask_shuffle_epi32(a.even, 0xAAAA, a.odd, (_MM_PERM_ENUM)0xA0)}; }
TOYKERN_INLINE U high_words(L a) { return {_mm512_mask_shuffle_epi32(a.odd, 0x5555, a.even, (_MM_PERM_ENUM)0xF5)}; }
// Running sums over the lanes in order.
TOYKERN_INLINE L running_sum(L a) {
    __m512i pair = _mm512_add_epi64(a.even, a.odd);
    pair = _mm512_add_epi64(pair, _mm512_maskz_permutexvar_epi64(0xFE, _mm512_set_epi64(6, 5, 4, 3, 2, 1, 0, 0), pair));
    pair = _mm512_add_epi64(pair, _mm512_maskz_permutexvar_epi64(0xFC, _mm512_set_epi64(5, 4, 3, 2, 1, 0, 0, 0), pair));
    pair = _mm512_add_epi64(pair, _mm512_maskz_permutexvar_epi64(0xF0, _mm512_set_epi64(3, 2, 1, 0, 0, 0, 0, 0), pair));
    return {_mm512_sub_epi64(pair, a.odd), pair};
}
// Adds carry (the same value in every lane); carry becomes the last lane's sum.
TOYKERN_INLINE L carry_over(L a, L& carry) {
    const L sum = a + carry;
    const __m512i total = _mm512_permutexvar_epi64(_mm512_set1_epi64(7), sum.odd);
    carry = {total, total};
    return sum;
}

// ---- Philox 4x32-10: kBlocks runs of sixteen counters c0 = first[b] … first[b] + 15, with tags c3[b] ----
// 64-bit lanes hold 32-bit values in their lower halves; the upper halves may be anything, since vpmuludq ignores them.
// Only the first counter word differs between lanes, so half of the first two rounds is the same in all of them and
// done once, in scalars. One run is bound by latency: two or three side by side take 1.3 and 1.5 times less a word (Zen
// 5).
template <int kBlocks>
TOYKERN_INLINE void philox16(const uint32_t (&first)[kBlocks], uint32_t c1, uint32_t c2, const uint32_t (&c3)[kBlocks],
                             const RoundKeys& keys, uint32_t* const (&out)[kBlocks]) {
    constexpr int kHalves = 2 * kBlocks;  // even and odd counters
    const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
    const uint64_t q1 = (uint64_t)c2 * 0xCD9E8D57u;  // round 1
    const uint32_t s0 = (uint32_t)(q1 >> 32) ^ c1 ^ (uint32_t)keys.k0[0];
    const uint64_t q0 = (uint64_t)s0 * 0xD2511F53u;  // round 2
    const __m512i f2 = _mm512_set1_epi64((long long)((uint32_t)q1 ^ (uint32_t)keys.k0[1]));
    const __m512i f3 = _mm512_set1_epi64((long long)((uint32_t)(q0 >> 32) ^ (uint32_t)keys.k1[1]));
    const __m512i even = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0), odd = _mm512_set_epi64(15, 13, 11, 9, 7, 5, 3, 1);
    __m512i x0[kHalves], x1[kHalves], x2[kHalves], x3[kHalves];
#pragma GCC unroll 6
    for (int h = 0; h < kHalves; ++h) {
        const __m512i f1 = _mm512_set1_epi64((long long)(c3[h / 2] ^ (uint32_t)keys.k1[0]));
        x0[h] = _mm512_add_epi32(_mm512_set1_epi64(first[h / 2]), h & 1 ? odd : even);
        x3[h] = _mm512_mul_epu32(x0[h], m0);
        x2[h] = _mm512_xor_si512(_mm512_srli_epi64(x3[h], 32), f1);
    }
#pragma GCC unroll 6
    for (int h = 0; h < kHalves; ++h) {
        x1[h] = _mm512_mul_epu32(x2[h], m1);
        x0[h] = _mm512_xor_si512(_mm512_srli_epi64(x1[h], 32), f2);
        x2[h] = _mm512_xor_si512(x3[h], f3);
        x3[h] = _mm512_set1_epi64((long long)(uint32_t)q0);
    }
#pragma GCC unroll 8
    for (int round = 2; round < 10; ++round) {
        const __m512i a = _mm512_set1_epi64((long long)keys.k0[round]),
                      b = _mm512_set1_epi64((long long)keys.k1[round]);
#pragma GCC unroll 6
        for (int h = 0; h < kHalves; ++h) {
            const __m512i p0 = _mm512_mul_epu32(x0[h], m0), p1 = _mm512_mul_epu32(x2[h], m1);
            x0[h] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), x1[h], a, 0x96);
            x2[h] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), x3[h], b, 0x96);
            x1[h] = p1, x3[h] = p0;
        }
    }
#pragma GCC unroll 3
    for (int b = 0; b < kBlocks; ++b) {
        store(out[b], low_words(L{x0[2 * b], x0[2 * b + 1]}));
        store(out[b] + 16, low_words(L{x1[2 * b], x1[2 * b + 1]}));
        store(out[b] + 32, low_words(L{x2[2 * b], x2[2 * b + 1]}));
        store(out[b] + 48, low_words(L{x3[2 * b], x3[2 * b + 1]}));
    }
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
