// Scores as unsigned numbers in the order of torch.sort: -0 equals 0, NaN (of either sign) comes last.
#pragma once
#include <cstdint>
#include <cstring>

namespace toykern {

inline uint32_t ordered(float x) {
    uint32_t u;
    std::memcpy(&u, &x, sizeof(u));
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return 0xFFFFFFFFu;
    if (u == 0x80000000u) u = 0;
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}
inline uint64_t ordered(double x) {
    uint64_t u;
    std::memcpy(&u, &x, sizeof(u));
    if ((u & 0x7FFFFFFFFFFFFFFFull) > 0x7FF0000000000000ull) return ~0ull;
    if (u == 0x8000000000000000ull) u = 0;
    return u >> 63 ? ~u : u | 0x8000000000000000ull;
}

constexpr int kBinBits = 13;  // sign, exponent, four bits of the fraction of a float; the bins fit L1
constexpr int64_t kBins = 1 << kBinBits;
constexpr int64_t kFewEntries = 4096;  // below this a group is sorted as it is

}  // namespace toykern
