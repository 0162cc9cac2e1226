// Lane type without intrinsics: any CPU, any compiler. Four lanes as an array; loops of fixed length that a compiler
// turns into whatever vectors the target has. fmadd rounds twice here: the baseline has no fused multiply-add.
#pragma once
#include <cstring>

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kLanes = 4;
constexpr int kSumOrder[kLanes] = {0, 2, 1, 3};
constexpr int kFsumOrder[kLanes] = {0, 2, 1, 3};

struct F {
    float v[kLanes];
};
struct U {
    uint32_t v[kLanes];
};
struct M {
    uint32_t v;
};
struct L {  // in lane order; nothing outside this file looks inside
    uint64_t v[kLanes];
};

#define TOYKERN_EACH for (int i = 0; i < kLanes; ++i)

// ---- masks ----
TOYKERN_INLINE M mask_first(int n) { return {n >= kLanes ? 0xFu : (1u << n) - 1u}; }
TOYKERN_INLINE M mask_bits(uint32_t bits) { return {bits & 0xFu}; }
TOYKERN_INLINE uint32_t bits(M m) { return m.v; }
TOYKERN_INLINE M operator&(M a, M b) { return {a.v & b.v}; }
TOYKERN_INLINE M operator|(M a, M b) { return {a.v | b.v}; }
TOYKERN_INLINE M and_not(M a, M b) { return {a.v & ~b.v}; }

// ---- floats ----
TOYKERN_INLINE F bcast(float x) {
    F r;
    TOYKERN_EACH r.v[i] = x;
    return r;
}
TOYKERN_INLINE F fzero() { return bcast(0.0f); }
TOYKERN_INLINE F load(const float* p) {
    F r;
    memcpy(r.v, p, sizeof(r.v));
    return r;
}
TOYKERN_INLINE F load_first(const float* p, M m) {
    F r;
    TOYKERN_EACH r.v[i] = (m.v >> i & 1u) ? p[i] : 0.0f;
    return r;
}
TOYKERN_INLINE void store(float* p, F a) { memcpy(p, a.v, sizeof(a.v)); }
TOYKERN_INLINE void stream(float* p, F a) { store(p, a); }  // the wider levels' goes past the caches
TOYKERN_INLINE void fence_streams() {}
TOYKERN_INLINE void store_first(float* p, F a, M m) {
    TOYKERN_EACH {
        if (m.v >> i & 1u) p[i] = a.v[i];
    }
}
TOYKERN_INLINE F operator+(F a, F b) {
    TOYKERN_EACH a.v[i] += b.v[i];
    return a;
}
TOYKERN_INLINE F operator-(F a, F b) {
    TOYKERN_EACH a.v[i] -= b.v[i];
    return a;
}
TOYKERN_INLINE F operator*(F a, F b) {
    TOYKERN_EACH a.v[i] *= b.v[i];
    return a;
}
TOYKERN_INLINE F operator/(F a, F b) {
    TOYKERN_EACH a.v[i] /= b.v[i];
    return a;
}
TOYKERN_INLINE F fmadd(F a, F b, F c) {
    TOYKERN_EACH c.v[i] = a.v[i] * b.v[i] + c.v[i];
    return c;
}
TOYKERN_INLINE F fmax(F a, F b) {
    TOYKERN_EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
TOYKERN_INLINE F fsqrt(F a) {
    TOYKERN_EACH a.v[i] = __builtin_sqrtf(a.v[i]);
    return a;
}
TOYKERN_INLINE U as_words(F a) {
    U r;
    memcpy(r.v, a.v, sizeof(r.v));
    return r;
}
TOYKERN_INLINE F as_floats(U a) {
    F r;
    memcpy(r.v, a.v, sizeof(r.v));
    return r;
}
TOYKERN_INLINE F and_bits(F a, uint32_t mask) {
    U r = as_words(a);
    TOYKERN_EACH r.v[i] &= mask;
    return as_floats(r);
}
TOYKERN_INLINE M gt(F a, F b) {
    uint32_t m = 0;
    TOYKERN_EACH m |= (uint32_t)(a.v[i] > b.v[i]) << i;
    return {m};
}
TOYKERN_INLINE M gt(F a, F b, M among) { return gt(a, b) & among; }
// a > b, or either is NaN: where a slope is 1, so that a NaN shows.
TOYKERN_INLINE M gt_or_nan(F a, F b) {
    uint32_t m = 0;
    TOYKERN_EACH m |= (uint32_t)!(a.v[i] <= b.v[i]) << i;
    return {m};
}
TOYKERN_INLINE M nonzero(F a) {
    uint32_t m = 0;
    TOYKERN_EACH m |= (uint32_t)(a.v[i] != 0.0f) << i;
    return {m};
}
TOYKERN_INLINE F keep(M m, F a) {
    TOYKERN_EACH a.v[i] = (m.v >> i & 1u) ? a.v[i] : 0.0f;
    return a;
}
// a ± b where m is set, else a; c + a b where m is set, else c.
TOYKERN_INLINE F add_where(M m, F a, F b) { return a + keep(m, b); }
TOYKERN_INLINE F sub_where(M m, F a, F b) { return a - keep(m, b); }
TOYKERN_INLINE F fmadd_where(M m, F a, F b, F c) { return fmadd(a, keep(m, b), c); }
TOYKERN_INLINE float fsum(F a) {
    for (int half = kLanes / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
    return a.v[0];
}
TOYKERN_INLINE void sum_lanes(const F* rows, int count, float* out) {  // out is written in whole vectors of 16
    int i = 0;
    for (; i < count; ++i) out[i] = fsum(rows[i]);
    for (; i & 15; ++i) out[i] = 0.0f;
}

TOYKERN_INLINE void transpose(F* r) {
    for (int i = 0; i < kLanes; ++i)
        for (int j = 0; j < i; ++j) {
            const float x = r[i].v[j];
            r[i].v[j] = r[j].v[i];
            r[j].v[i] = x;
        }
}

// ---- words ----
TOYKERN_INLINE U ubcast(uint32_t x) {
    U r;
    TOYKERN_EACH r.v[i] = x;
    return r;
}
TOYKERN_INLINE U ulane() {
    U r;
    TOYKERN_EACH r.v[i] = (uint32_t)i;
    return r;
}
TOYKERN_INLINE U load(const uint32_t* p) {
    U r;
    memcpy(r.v, p, sizeof(r.v));
    return r;
}
TOYKERN_INLINE void store(uint32_t* p, U a) { memcpy(p, a.v, sizeof(a.v)); }
#define TOYKERN_WORDWISE(name, expression) \
    TOYKERN_INLINE U name(U a, U b) {      \
        U r;                               \
        TOYKERN_EACH r.v[i] = expression;  \
        return r;                          \
    }
TOYKERN_WORDWISE(operator+, a.v[i] + b.v[i])
TOYKERN_WORDWISE(operator-, a.v[i] - b.v[i])
TOYKERN_WORDWISE(operator&, a.v[i] & b.v[i])
TOYKERN_WORDWISE(operator|, a.v[i] | b.v[i])
TOYKERN_WORDWISE(operator^, a.v[i] ^ b.v[i])
TOYKERN_WORDWISE(and_not, a.v[i] & ~b.v[i])
TOYKERN_WORDWISE(shl_lanes, b.v[i] < 32 ? a.v[i] << b.v[i] : 0u)
TOYKERN_WORDWISE(mullo, a.v[i] * b.v[i])
TOYKERN_WORDWISE(mulhi, (uint32_t)(((uint64_t)a.v[i] * b.v[i]) >> 32))
#undef TOYKERN_WORDWISE
TOYKERN_INLINE U shl(U a, int k) {
    TOYKERN_EACH a.v[i] = k < 32 ? a.v[i] << k : 0u;
    return a;
}
TOYKERN_INLINE U shr(U a, int k) {
    TOYKERN_EACH a.v[i] = k < 32 ? a.v[i] >> k : 0u;
    return a;
}
TOYKERN_INLINE U spread_sign(U a) {
    TOYKERN_EACH a.v[i] = 0u - (a.v[i] >> 31);
    return a;
}
TOYKERN_INLINE U clz(U a) {
    TOYKERN_EACH a.v[i] = a.v[i] ? (uint32_t)__builtin_clz(a.v[i]) : 32u;
    return a;
}
TOYKERN_INLINE U lookup16(const uint32_t* table, U index) {
    TOYKERN_EACH index.v[i] = table[index.v[i] & 15u];
    return index;
}
TOYKERN_INLINE M eq(U a, U b) {
    uint32_t m = 0;
    TOYKERN_EACH m |= (uint32_t)(a.v[i] == b.v[i]) << i;
    return {m};
}
TOYKERN_INLINE M lt(U a, U b) {
    uint32_t m = 0;
    TOYKERN_EACH m |= (uint32_t)(a.v[i] < b.v[i]) << i;
    return {m};
}
TOYKERN_INLINE U select(M m, U a, U b) {
    TOYKERN_EACH a.v[i] = (m.v >> i & 1u) ? a.v[i] : b.v[i];
    return a;
}
TOYKERN_INLINE bool any(U a) {
    uint32_t m = 0;
    TOYKERN_EACH m |= a.v[i];
    return m != 0;
}
TOYKERN_INLINE F to_float(U a) {
    F r;
    TOYKERN_EACH r.v[i] = (float)a.v[i];
    return r;
}
TOYKERN_INLINE F to_float_signed(U a) {
    F r;
    TOYKERN_EACH r.v[i] = (float)(int32_t)a.v[i];
    return r;
}
TOYKERN_INLINE F gather(const float* base, U index) {
    F r;
    TOYKERN_EACH r.v[i] = base[index.v[i]];
    return r;
}
TOYKERN_INLINE U gather(const uint32_t* base, U index) {
    TOYKERN_EACH index.v[i] = base[index.v[i]];
    return index;
}
TOYKERN_INLINE void scatter(float* base, U index, F a, M m) {
    TOYKERN_EACH {
        if (m.v >> i & 1u) base[index.v[i]] = a.v[i];
    }
}
TOYKERN_INLINE void scatter_all(float* base, U index, const float* from) { TOYKERN_EACH base[index.v[i]] = from[i]; }
TOYKERN_INLINE void scatter_all(float* base, U index, F a) { scatter_all(base, index, a.v); }
TOYKERN_INLINE void store_packed(uint32_t* p, U a, M m) {
    TOYKERN_EACH {
        if (m.v >> i & 1u) *p++ = a.v[i];
    }
}
TOYKERN_INLINE U count_upto(M m) {
    U r;
    uint32_t count = 0;
    TOYKERN_EACH r.v[i] = count += m.v >> i & 1u;
    return r;
}
TOYKERN_INLINE U load_dealt(const uint32_t* p, M m) {
    U r;
    TOYKERN_EACH r.v[i] = (m.v >> i & 1u) ? *p++ : 0u;
    return r;
}
TOYKERN_INLINE U last_lane(U a) { return ubcast(a.v[kLanes - 1]); }
TOYKERN_INLINE U shift_in(U a, U before) {
    for (int i = kLanes - 1; i > 0; --i) a.v[i] = a.v[i - 1];
    a.v[0] = before.v[kLanes - 1];
    return a;
}

// ---- 64-bit lanes ----
TOYKERN_INLINE L lzero() {
    L r;
    TOYKERN_EACH r.v[i] = 0;
    return r;
}
TOYKERN_INLINE L mul_wide(U a, U b) {
    L r;
    TOYKERN_EACH r.v[i] = (uint64_t)a.v[i] * b.v[i];
    return r;
}
TOYKERN_INLINE L operator+(L a, L b) {
    TOYKERN_EACH a.v[i] += b.v[i];
    return a;
}
TOYKERN_INLINE L shl1(L a) {
    TOYKERN_EACH a.v[i] <<= 1;
    return a;
}
TOYKERN_INLINE L shr31(L a) {
    TOYKERN_EACH a.v[i] >>= 31;
    return a;
}
TOYKERN_INLINE L widen(U a) {
    L r;
    TOYKERN_EACH r.v[i] = a.v[i];
    return r;
}
TOYKERN_INLINE L lbcast(uint32_t x) { return widen(ubcast(x)); }
TOYKERN_INLINE L mul_low(L a, L b) {
    TOYKERN_EACH a.v[i] = (a.v[i] & 0xFFFFFFFFu) * (b.v[i] & 0xFFFFFFFFu);
    return a;
}
TOYKERN_INLINE L shl_lanes(L a, L k) {
    TOYKERN_EACH a.v[i] <<= k.v[i];
    return a;
}
TOYKERN_INLINE L shr32(L a) {
    TOYKERN_EACH a.v[i] >>= 32;
    return a;
}
TOYKERN_INLINE L operator^(L a, L b) {
    TOYKERN_EACH a.v[i] ^= b.v[i];
    return a;
}
TOYKERN_INLINE L xor3(L a, L b, L c) { return a ^ b ^ c; }
TOYKERN_INLINE U low_words(L a) {
    U r;
    TOYKERN_EACH r.v[i] = (uint32_t)a.v[i];
    return r;
}
TOYKERN_INLINE U high_words(L a) {
    U r;
    TOYKERN_EACH r.v[i] = (uint32_t)(a.v[i] >> 32);
    return r;
}
TOYKERN_INLINE L running_sum(L a) {
    for (int i = 1; i < kLanes; ++i) a.v[i] += a.v[i - 1];
    return a;
}
TOYKERN_INLINE L carry_over(L a, L& carry) {
    const L sum = a + carry;
    TOYKERN_EACH carry.v[i] = sum.v[kLanes - 1];
    return sum;
}

// ---- Philox 4x32-10, sixteen counters c0 = first … first + 15 ----
TOYKERN_INLINE void philox_run(uint32_t first, uint32_t c1, uint32_t c2, uint32_t c3, const RoundKeys& keys,
                               uint32_t* out) {
    uint32_t x0[16], x1[16], x2[16], x3[16];
    for (uint32_t i = 0; i < 16; ++i) x0[i] = first + i, x1[i] = c1, x2[i] = c2, x3[i] = c3;
    for (int round = 0; round < 10; ++round) {
        const uint32_t k0 = (uint32_t)keys.k0[round], k1 = (uint32_t)keys.k1[round];
        for (int i = 0; i < 16; ++i) {
            const uint64_t p0 = (uint64_t)x0[i] * 0xD2511F53u, p1 = (uint64_t)x2[i] * 0xCD9E8D57u;
            x0[i] = (uint32_t)(p1 >> 32) ^ x1[i] ^ k0;
            x1[i] = (uint32_t)p1;
            x2[i] = (uint32_t)(p0 >> 32) ^ x3[i] ^ k1;
            x3[i] = (uint32_t)p0;
        }
    }
    memcpy(out, x0, sizeof(x0));
    memcpy(out + 16, x1, sizeof(x1));
    memcpy(out + 32, x2, sizeof(x2));
    memcpy(out + 48, x3, sizeof(x3));
}

// kBlocks runs of sixteen counters c0 = first[b] … first[b] + 15, with tags c3[b].
template <int kBlocks>
TOYKERN_INLINE void philox16(const uint32_t (&first)[kBlocks], uint32_t c1, uint32_t c2, const uint32_t (&c3)[kBlocks],
                             const RoundKeys& keys, uint32_t* const (&out)[kBlocks]) {
    for (int b = 0; b < kBlocks; ++b) philox_run(first[b], c1, c2, c3[b], keys, out[b]);
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
