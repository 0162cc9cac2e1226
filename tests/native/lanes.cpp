// The vocabulary of one instruction-set level (cpu/simd/) on numbers that are drawn and on odd ones: a line for each of
// its words, with a hash of all that came out. tests/test_other_cpus.py compares levels that have as many lanes.
//
// Compiled with TOYKERN_LEVEL and the level's flags.
#include "cpu/simd/lanes.h"
#include "hash.h"

using namespace toykern::TOYKERN_LEVEL;

namespace {

constexpr uint32_t kOdd[] = {0u,          0x80000000u, 1u,          31u,         32u,         0x3F800000u,
                             0xBF800000u, 0x7F800000u, 0xFF800000u, 0x7FC00000u, 0xFFFFFFFFu, 0x7F7FFFFFu,
                             0x4B000001u, 0x007FFFFFu, 2u,          0x7FFFFFFFu};  // sixteen: a table for lookup16, too

Random random_words{1};
Lines lines;

U words(uint32_t limit = 0) {
    uint32_t w[kLanes];
    for (uint32_t& x : w) {
        x = random_words.word();
        if (limit)
            x %= limit;
        else if (x % 4 == 0)
            x = kOdd[x >> 2 & 15u];
    }
    return load(w);
}
F floats() {
    float x[kLanes];
    for (float& v : x) v = (float)random_words.between(-2.0, 2.0);
    return load(x);
}
D doubles() {
    double x[kDoubleLanes];
    for (double& v : x) v = random_words.between(-2.0, 2.0);
    return load(x);
}

void put(const char* name, U a) {
    uint32_t w[kLanes];
    store(w, a);
    for (uint32_t x : w) lines.of[name].add((uint64_t)x);
}
void put(const char* name, F a) {
    float x[kLanes];
    store(x, a);
    lines.add(name, x, kLanes);
}
void put(const char* name, D a) {
    double x[kDoubleLanes];
    store(x, a);
    lines.add(name, x, kDoubleLanes);
}
void put(const char* name, M m) { lines.of[name].add((uint64_t)bits(m)); }
void put(const char* name, MD m) { lines.of[name].add((uint64_t)bits(m)); }
void put(const char* name, L a) { put(name, low_words(a)), put(name, high_words(a)); }

void masks(M m, M k, int n) {
    put("mask and", m & k), put("mask or", m | k), put("mask and_not", and_not(m, k));
    put("ulane", ulane()), put("mask_first", mask_first(n)), put("count_upto", count_upto(m));
}

void float_words(F x, F y, F z, M m) {
    put("+", x + y), put("-", x - y), put("*", x * y), put("/", x / y), put("fmadd", fmadd(x, y, z));
    put("fmax", fmax(x, y)), put("fsqrt", fsqrt(x)), put("and_bits", and_bits(x, 0x7FFFFFFFu));
    put("gt", gt(x, y)), put("gt among", gt(x, y, m)), put("gt_or_nan", gt_or_nan(x, y)), put("nonzero", nonzero(x));
    put("as_words", as_words(x)), put("zero", fzero() + keep(m, x)), put("keep", keep(m, x)),
        put("add_where", add_where(m, x, y)), put("sub_where", sub_where(m, x, y));
    put("fmadd_where", fmadd_where(m, x, y, z)), put("signed_like", signed_like(x, y)), put("magnitude", magnitude(x));
    const float sum = fsum(x);
    lines.add("fsum", &sum, 1);
    const F rows[3] = {x, y, z};
    float sums[16];
    sum_lanes(rows, 3, sums);
    lines.add("sum_lanes", sums, 16);
}

void double_words(D x, D y, D z) {
    put("double fmadd", fmadd(x, y, z)), put("double fmax", fmax(x, y)), put("double gt", gt(x, y));
    put("double signed_like", signed_like(x, y)), put("double keep", keep(gt_or_nan(x, y), z));
    const double sum = fsum(x);
    lines.add("double fsum", &sum, 1);
}

void integer_words(U a, U b, M m, int k) {
    put("word +", a + b), put("word -", a - b), put("word &", a & b), put("word |", a | b), put("word ^", a ^ b);
    put("word and_not", and_not(a, b)), put("shl", shl(a, k)), put("shr", shr(a, k)), put("shl 7", shl(a, 7));
    put("shr 32", shr(a, 32)), put("shl_lanes", shl_lanes(a, b)), put("spread_sign", spread_sign(a));
    put("clz", clz(a)), put("mullo", mullo(a, b)), put("mulhi", mulhi(a, b)), put("lookup16", lookup16(kOdd, b));
    put("eq", eq(a, b)), put("lt", lt(a, b)), put("select", select(m, a, b));
    put("to_float", to_float(a)), put("to_float_signed", to_float_signed(a));
    put("shift_in", shift_in(a, b)), put("last_lane", last_lane(a));
    lines.of["any"].add((uint64_t)any(select(m, a, ubcast(0)) & ubcast(1u << k % 32)));
}

void wide_words(L a, L b, U c, U k) {
    L carry = lbcast(0x87654321u);
    const L sum = carry_over(running_sum(a), carry);
    put("zero wide", lzero() + a), put("mul_wide", a), put("wide +", a + b), put("wide ^", a ^ b),
        put("xor3", xor3(a, b, widen(c)));
    put("shl1", shl1(a)), put("shr31", shr31(a)), put("shr32", shr32(a)), put("mul_low", mul_low(a, b));
    put("wide shl_lanes", shl_lanes(a, widen(k))), put("running_sum", sum), put("carry", carry);
}

// What reads and writes memory: nothing outside of a mask may be touched, and what is packed may be followed by anything.
void memory_words(F x, U a, U at, M m, int n) {
    float room[2 * kLanes] = {}, table[64];
    uint32_t packed[2 * kLanes] = {}, words_of[64];
    for (int i = 0; i < 64; ++i) table[i] = (float)i - 9.5f, words_of[i] = 77u * (uint32_t)i;
    store_first(room + 3, x, mask_first(n)), lines.add("store_first", room, 2 * kLanes);
    put("load_first", load_first(table + n + 1, mask_first(n)));
    alignas(64) float streamed[kLanes];
    stream(streamed, x), fence_streams(), lines.add("stream", streamed, kLanes);
    store_packed(packed, a, m);
    for (int i = 0; i < __builtin_popcount(bits(m)); ++i) lines.of["store_packed"].add((uint64_t)packed[i]);
    put("load_dealt", load_dealt(words_of + n + 1, m));
    put("gather", gather(table, at)), put("gather words", gather(words_of, at));
    scatter(table, at, x, m), lines.add("scatter", table, 64);
    scatter_all(table, at, x), lines.add("scatter_all", table, 64);
    F block[kLanes];
    for (int i = 0; i < kLanes; ++i) block[i] = load(table + i) * bcast((float)(i + 1));
    transpose(block);
    for (const F& row : block) put("transpose", row);
}

void philox_words(uint32_t first, uint32_t key) {
    toykern::RoundKeys keys;
    for (uint32_t round = 0; round < 10; ++round)
        keys.k0[round] = key + round * 0x9E3779B9u, keys.k1[round] = key * 3u + round * 0xBB67AE85u;
    uint32_t out[192];
    philox16<3>({first, ~first, 7u}, 5u, key, {1u, 2u, 3u}, keys, {out, out + 64, out + 128});
    for (uint32_t word : out) lines.of["philox16"].add((uint64_t)word);
}

}  // namespace

int main() {
    for (int i = 0; i < 2000; ++i) {  // what is drawn stands in statements of its own: the order of arguments is free
        const uint32_t some = random_words.word();
        const M m = mask_bits(some % 8 ? some >> 8 : ~0u), k = mask_bits(some >> 16);
        const int n = (int)(some % (kLanes + 2)) - 1, shift = (int)(some >> 24) % 33;
        const F x = floats(), y = floats(), z = floats();
        const D u = doubles(), v = doubles(), w = doubles();
        const U a = words(), b = words(), c = words(), at = words(64), narrow = words(32);
        masks(m, k, n);
        float_words(x, y, z, m), float_words(as_floats(a), as_floats(b), as_floats(c), m);
        double_words(u, v, w);
        integer_words(a, b, m, shift);
        wide_words(mul_wide(a, b), mul_wide(b, c), c, narrow);
        memory_words(x, a, at, m, n);
        philox_words(some, random_words.word());
    }
    lines.print();
}
