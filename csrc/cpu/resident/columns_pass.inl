// A run of columns through a small network: samples across lanes, forward and back in one pass.
//
//   h = f(E x), y = g(D h + b), loss = Σ_j I_j (t_j − y_j)², gradients of E, D and b added to sums over lanes
//
// Layout     weights [n][m] (all hidden units of a feature together), x [n][columns], one accumulator vector per
//            gradient entry
// Owner      the caller; sums stay in registers for the listed shapes and in L1 otherwise
// Order      columns in their order, lane by lane
// Limits     whole runs of columns, zeros past the last; columns_fit() of forms.inl
// Roof       5 n m fused multiply-adds and about 7 n elementwise operations per sixteen samples
#pragma once
#include "common/loss.h"
#include "cpu/resident/forms.inl"
#include "cpu/simd/lanes.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kSumColumns = 4096;  // a float lane adds up so many columns at most before its sum is put away

// What a pass over columns reads and adds to.
struct ColumnsPass {
    int n, count;                                        // features, columns
    int64_t stride;                                      // of a row of x
    const float *x, *clean;                              // [n][stride] input; the same without noise (the target)
    const float *encoder, *decoder, *bias, *importance;  // [n][m] [n][m] [n] [n]
    int32_t hidden_activation, output_activation;
    double hidden_option, output_option;
    AnyLoss loss_function;
    uint32_t target_bits;                     // of the input
    F *encoder_sum, *decoder_sum, *bias_sum;  // [n][m] [n][m] (tied: the same) [n]
    F* residual;                              // [n][2] scratch
    F loss;
};

// Columns come in runs of this many; the ones past the last are zeros.
constexpr int kColumnRun = 32;

// Lane groups that go side by side, where the registers last: each weight and each sum in L1 is then touched once for all
// of them. Each has a loss of its own.
template <int kN, int kM, bool kFloor>
constexpr int kColumnGroups = kN || kM > 5 || 2 * kLanes > kColumnRun || !kFloor ? 1 : 2;

// kN = 0: n at run time. kTied: decoder = encoder and so are their sums. A: FloorActivation, or CalledActivation for
// all others.
template <int kN, int kM, bool kTied, class A>
void columns_pass(ColumnsPass& a) {
    constexpr int kG = kColumnGroups<kN, kM, std::is_same<A, FloorActivation<F>>::value>;
    constexpr int kE = kN ? kN * kM : 1, kD = kN && !kTied ? kN * kM : 1, kB = kN ? kN : 1;
    F local_e[kE], local_d[kD], local_b[kB], local_r[kB];
    const int n = kN ? kN : a.n;
    F* ge = kN ? local_e : a.encoder_sum;
    F* gd = kTied ? ge : (kN ? local_d : a.decoder_sum);
    F* gb = kN ? local_b : a.bias_sum;
    F* d = kN ? local_r : a.residual;  // [n][kG]
    if (kN) {
#pragma GCC unroll 32
        for (int i = 0; i < kE; ++i) ge[i] = a.encoder_sum[i];
#pragma GCC unroll 32
        for (int i = 0; i < kD && !kTied; ++i) gd[i] = a.decoder_sum[i];
#pragma GCC unroll 32
        for (int j = 0; j < kB; ++j) gb[j] = a.bias_sum[j];
    }
    const A hidden = A::of(a.hidden_activation, a.hidden_option), output = A::of(a.output_activation, a.output_option);
    F loss[kG];
    for (int g = 0; g < kG; ++g) loss[g] = g ? fzero() : a.loss;
    for (int c = 0; c < a.count; c += kG * kLanes) {
        const float *x = a.x + c, *clean = a.clean + c;
        M lanes[kG];
        F h[kG][kM], dh[kG][kM], slope[kG][kM];
#pragma GCC unroll 2
        for (int g = 0; g < kG; ++g) {
            const int left = a.count - c - g * kLanes;
            lanes[g] = mask_first(left > 0 ? left : 0);
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) h[g][k] = dh[g][k] = fzero();
        }
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j)
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) {
                const F w = bcast(a.encoder[j * kM + k]);
#pragma GCC unroll 2
                for (int g = 0; g < kG; ++g) h[g][k] = fmadd(w, load(x + j * a.stride + g * kLanes), h[g][k]);
            }
#pragma GCC unroll 2
        for (int g = 0; g < kG; ++g)
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) h[g][k] = hidden.value(h[g][k], slope[g][k]);
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j) {
            F y[kG];
#pragma GCC unroll 2
            for (int g = 0; g < kG; ++g) y[g] = bcast(a.bias[j]);
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) {
                const F w = bcast(a.decoder[j * kM + k]);
#pragma GCC unroll 2
                for (int g = 0; g < kG; ++g) y[g] = fmadd(w, h[g][k], y[g]);
            }
            F sum = gb[j];
#pragma GCC unroll 2
            for (int g = 0; g < kG; ++g) {
                const F t = and_bits(load(clean + j * a.stride + g * kLanes), a.target_bits);
                F at_output;  // the slope there
                const F r = keep(lanes[g], output.value(y[g], at_output) - t);
                y[g] = output.back(y[g], at_output, a.loss_function.add_to(loss[g], r, bcast(a.importance[j])));
                d[j * kG + g] = y[g];
                sum = sum + y[g];
            }
            gb[j] = sum;
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) {
                const F w = bcast(a.decoder[j * kM + k]);
#pragma GCC unroll 2
                for (int g = 0; g < kG; ++g) dh[g][k] = fmadd(w, y[g], dh[g][k]);
            }
        }
#pragma GCC unroll 2
        for (int g = 0; g < kG; ++g)
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) dh[g][k] = hidden.back(h[g][k], slope[g][k], dh[g][k]);
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j) {
            F xj[kG], dj[kG];
#pragma GCC unroll 2
            for (int g = 0; g < kG; ++g) xj[g] = load(x + j * a.stride + g * kLanes), dj[g] = d[j * kG + g];
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) {
                F e = ge[j * kM + k], t = kTied ? fzero() : gd[j * kM + k];
#pragma GCC unroll 2
                for (int g = 0; g < kG; ++g) {
                    (kTied ? e : t) = fmadd(dj[g], h[g][k], kTied ? e : t);
                    e = fmadd(xj[g], dh[g][k], e);
                }
                ge[j * kM + k] = e;
                if (!kTied) gd[j * kM + k] = t;
            }
        }
    }
    a.loss = loss[0];
    for (int g = 1; g < kG; ++g) a.loss = a.loss + loss[g];
    if (kN) {
#pragma GCC unroll 32
        for (int i = 0; i < kE; ++i) a.encoder_sum[i] = ge[i];
#pragma GCC unroll 32
        for (int i = 0; i < kD && !kTied; ++i) a.decoder_sum[i] = gd[i];
#pragma GCC unroll 32
        for (int j = 0; j < kB; ++j) a.bias_sum[j] = gb[j];
    }
}

using ColumnsPassFunction = void (*)(ColumnsPass&);

template <bool kTied, class A>
inline ColumnsPassFunction columns_pass_of(int n, int m) {
    if (kTied && std::is_same<A, FloorActivation<F>>::value) {
        if (n == 2 && m == 1) return columns_pass<2, 1, true, FloorActivation<F>>;
        if (n == 3 && m == 1) return columns_pass<3, 1, true, FloorActivation<F>>;
        if (n == 3 && m == 2) return columns_pass<3, 2, true, FloorActivation<F>>;
        if (n == 4 && m == 2) return columns_pass<4, 2, true, FloorActivation<F>>;
        if (n == 5 && m == 2) return columns_pass<5, 2, true, FloorActivation<F>>;
        if (n == 6 && m == 2) return columns_pass<6, 2, true, FloorActivation<F>>;
    }
    switch (m) {
        case 1: return columns_pass<0, 1, kTied, A>;
        case 2: return columns_pass<0, 2, kTied, A>;
        case 3: return columns_pass<0, 3, kTied, A>;
        case 4: return columns_pass<0, 4, kTied, A>;
        case 5: return columns_pass<0, 5, kTied, A>;
        case 6: return columns_pass<0, 6, kTied, A>;
        case 7: return columns_pass<0, 7, kTied, A>;
        default: return columns_pass<0, 8, kTied, A>;
    }
}

inline ColumnsPassFunction columns_pass_for(int n, int m, bool tied, int32_t hidden, int32_t output) {
    if (is_floor(hidden) && is_floor(output))
        return tied ? columns_pass_of<true, FloorActivation<F>>(n, m)
                    : columns_pass_of<false, FloorActivation<F>>(n, m);
    return tied ? columns_pass_of<true, CalledActivation>(n, m) : columns_pass_of<false, CalledActivation>(n, m);
}

// All-zero samples: x = 0, h = 0, y = g(b). Adds their bias gradient; returns their loss.
inline double empty_columns(const ColumnsPass& a, int64_t count, float* bias_g) {
    const CalledActivation output = CalledActivation::of(a.output_activation, a.output_option);
    const F times = bcast((float)count);
    F loss = fzero();
    for (int64_t j = 0; j < a.n; j += kLanes) {
        const M m = mask_first(a.n - (int)j < kLanes ? a.n - (int)j : kLanes);
        F slope;
        const F b = load_first(a.bias + j, m), y = keep(m, output.value(b, slope));
        const F d = output.back(b, slope, a.loss_function.add_to(loss, y, load_first(a.importance + j, m)));
        store_first(bias_g + j, fmadd(d, times, load_first(bias_g + j, m)), m);
    }
    return (double)fsum(loss) * (double)count;
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
