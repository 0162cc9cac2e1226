// How the stacked kernel of the layer cuts its work and its shared memory: by the network and the batch alone, since it
// decides the order of the sums. A block takes `slice_rows` samples of one model, in tiles of 32 (a warp's lanes); the
// slices of a model are added in order.
#pragma once
#include "common/activation.h"
#include "toykern/layer_cuda.h"

namespace toykern {

constexpr int64_t kStackedSliceRows = 512;
constexpr int kStackedPitch =
    33;  // floats from a feature of a tile to the next: lanes along either are on banks of their own

struct StackedShape {
    int n, m, threads;
    int64_t slice_rows, slices, partial;  // floats of a slice's sums: encoder, decoder, bias, hidden bias, loss
    // Floats from the start of shared memory.
    int encoder, decoder, bias, importance, code_bias;       // [n][m] twice, [n] [n] [m]
    int encoder_sum, decoder_sum, bias_sum, code_sum, sums;  // [m][n] [n][m] [n] [m] [32]
    int x, z, given, direct, codes, code_grad, slope;        // [n][33] four times, [m][33] three times
    int x_mask, z_mask, code_mask;                           // words [n] [n] [m]
    int floats;
};

// `given`: a tile of targets or output gradients is needed; `direct`: one of gradients of the target or of x; `slopes`:
// one of slopes.
inline StackedShape stacked_shape(int64_t n, int64_t m, int64_t batch, bool tied, bool gradients, bool given,
                                  bool direct, bool slopes) {
    StackedShape s = {};
    s.n = (int)n, s.m = (int)m;
    const int64_t cells = n * m;
    s.threads = cells <= 64 ? 32 : cells <= 1024 ? 128 : 256;
    s.slice_rows = kStackedSliceRows;
    s.slices = batch > 0 ? (batch + kStackedSliceRows - 1) / kStackedSliceRows : 1;
    s.partial = cells * (tied ? 1 : 2) + n + m + 1;
    int at = 0;
    const auto take = [&](int64_t floats) {
        const int from = at;
        at += (int)floats;
        return from;
    };
    s.encoder = take(cells);
    s.decoder = tied ? s.encoder : take(cells);
    s.bias = take(n), s.importance = take(n), s.code_bias = take(m);
    s.encoder_sum = gradients ? take(cells) : 0;
    s.decoder_sum = !gradients ? 0 : tied ? s.encoder_sum : take(cells);
    s.bias_sum = take(n), s.code_sum = take(m), s.sums = take(32);
    s.x = take(n * kStackedPitch), s.z = take(n * kStackedPitch);
    s.given = given ? take(n * kStackedPitch) : 0;
    s.direct = direct ? take(n * kStackedPitch) : 0;
    s.codes = take(m * kStackedPitch), s.code_grad = gradients || direct ? take(m * kStackedPitch) : 0;
    s.slope = slopes ? take(m * kStackedPitch) : 0;
    s.x_mask = take(n), s.z_mask = take(n), s.code_mask = take(m);
    s.floats = at;
    return s;
}

inline StackedShape stacked_shape(const LayerParams& p) {
    const bool backward = p.task == (int32_t)LayerTask::kBackward, loss = p.task == (int32_t)LayerTask::kLoss;
    const bool given = backward || (loss && p.target == (int32_t)Target::kTensor);
    return stacked_shape(p.n_features, p.n_hidden, p.batch, p.tied, p.encoder_grad != nullptr, given,
                         p.x_grad || p.value_grad || p.target_grad, !slope_selects(p.hidden_activation));
}

// Whether or not weight gradients are wanted: a loss has the same bits with and without them.
inline bool stacked_fits(int64_t n, int64_t m, bool tied, bool given, bool direct, int32_t hidden_activation,
                         int64_t shared_limit) {
    if (n * m > 16384 || n > 16384 || m > 16384) return false;
    return 4 * (int64_t)stacked_shape(n, m, 1, tied, true, given, direct, !slope_selects(hidden_activation)).floats <=
           shared_limit;
}

}  // namespace toykern
