// The data stream's constants and per-model tables (docs/data_stream.md §1-§5): what both backends need before drawing.
//
// Double precision with separately rounded operations (this project is compiled with -ffp-contract=off), no libm:
// the same bits everywhere. No CUDA headers needed; TOYKERN_HD marks what a device may call.
#pragma once
#include <cstdint>

#include "common/lanes.h"
#include "toykern/params.h"

namespace toykern {

enum class Kind : uint32_t {
    kGap = 1,
    kRareMagnitude = 2,
    kRareChoice = 3,
    kGate = 4,
    kFrequentMagnitude = 5,
    kFrequentChoice = 6,
    kNoise = 7,
    kInit = 8,
    kTopology = 9,
    kJoint = 10,
    kJointMagnitude = 11,
    kLangevin = 12,
    kShuffle = 15,
};

// The fourth counter word.
TOYKERN_HD static constexpr uint32_t counter_tag(Kind kind, uint32_t purpose, uint32_t member) {
    return (uint32_t)kind + 16u * purpose + 256u * member;
}

constexpr double kRareLimit = 0.125;       // units up to this gate probability are drawn by arrival
constexpr double kSmallestRate = 0x1p-31;  // below this total rate there are no arrivals
constexpr double kLn2 = 0.6931471805599453;

// What exponential and lognormal magnitudes are made with, in single precision (§6).
constexpr float kLn2Single = 0x1.62e43p-1f, kLog2ESingle = 0x1.715476p+0f;
constexpr float kRoundingMagic = 12582912.0f;  // 1.5·2^23: the last bits of a sum with it are the rounded integer
// Of 2^f for |f| <= 1/2, by its interpolation at Chebyshev's points: right to 3·10^-9.
TOYKERN_SHARED constexpr float exp2_coefficient(int k) {
    constexpr float coefficients[] = {0x1p+0f,        0x1.62e43p-1f,  0x1.ebfbep-3f, 0x1.c6aeccp-5f,
                                      0x1.3b2a1cp-7f, 0x1.5f48cp-10f, 0x1.4440p-13f};
    return coefficients[k];
}

// -ln(1 - q) for 0 <= q <= 1/8, by eighteen terms of its series.
TOYKERN_SHARED double arrival_rate(double q) {
    double h = 1.0 / 18.0;
    for (int k = 17; k >= 1; --k) h = h * q + 1.0 / k;
    return q * h;
}

// The Poisson process of all rare units of one model, in fixed point (§3).
struct RareProcess {
    uint32_t n_units;    // N; 0: no arrivals
    int32_t rho;         // a sample is 2^rho cells
    uint32_t gap_scale;  // C
    int32_t slice_log2;  // k
    bool uniform;        // all rates equal: a unit's place follows from one multiplication
};

// Split total = fraction · 2^exponent with fraction in [1/2, 1); total is normal and positive.
TOYKERN_SHARED double split_exponent(double total, int32_t* exponent) {
    union {
        double d;
        uint64_t u;
    } x;
    x.d = total;
    *exponent = (int32_t)((x.u >> 52) & 0x7FF) - 1022;
    x.u = (x.u & 0x800FFFFFFFFFFFFFull) | (1022ull << 52);
    return x.d;
}

TOYKERN_SHARED RareProcess rare_process(uint32_t n_units, double total_rate, bool uniform) {
    RareProcess process = {n_units, 0, 0, 0, uniform};
    if (n_units == 0 || total_rate < kSmallestRate) {
        process.n_units = 0;
        return process;
    }
    const double fraction = split_exponent(total_rate, &process.rho);
    process.gap_scale = (uint32_t)(kLn2 * 2147483648.0 / fraction + 0.5);
    const int32_t k = 10 - process.rho;
    process.slice_log2 = k < 0 ? 0 : (k > 24 ? 24 : k);
    return process;
}

// log2 of the samples in a dense slice of D frequent units (§4).
TOYKERN_SHARED int32_t dense_slice_log2(uint32_t n_frequent) {
    int32_t ceil_log2 = 0;
    while ((1u << ceil_log2) < n_frequent) ++ceil_log2;
    return ceil_log2 > 7 ? 5 : 12 - ceil_log2;
}

}  // namespace toykern
