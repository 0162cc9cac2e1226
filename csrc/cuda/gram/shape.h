// Which models the Gram form of a device trains, and how it cuts their work: the one place where both are decided.
//
// A block of one warp trains one model. It takes `slots` samples at a time, each with `lanes` lanes of four outputs;
// every slot adds to an A of its own.
#pragma once
#include "common/stream/unit_tables.h"
#include "cuda/regimes.h"
#include "cuda/small/shape.h"

namespace toykern {

constexpr int64_t kGramBatch = 65536;  // a slot's sums are single floats

struct GramShape {
    SmallShape small;    // the model, the list of entries, the moments: as the small loop has them
    int lanes, slots;    // of a sample; samples at a time
    int stride;          // floats from one row of G and A to the next: an odd number of quads
    uint32_t gram, sum;  // G [n][stride], later A + Aᵀ; A [slots][n][stride]
    uint32_t bias_sum;   // [slots][stride]
};

// Networks that it does not know have shared_bytes beyond every limit.
inline GramShape gram_shape(const Network& net) {
    GramShape g = {};
    SmallShape& s = g.small;
    s = small_shape(net);
    if (!net.tied || s.n > 128 || net.hidden_activation != (int32_t)Activation::kNone || !s.floors ||
        s.shared_bytes == 0x7FFFFFFF) {
        s.shared_bytes = 0x7FFFFFFF;
        return g;
    }
    s.warps = s.draw_warps = 1;
    g.lanes = small_ceil(s.n, 4);
    g.slots = 32 / g.lanes;
    g.stride = (small_ceil(s.n, 4) | 1) * 4;
    s.hidden_rows = s.code_rows = s.code_parts = 0;  // there are no tiles
    s.sums = 1;
    s.capacity = 256 + s.n;

    uint64_t at = 0;
    const auto take = [&at](uint64_t floats) {
        const uint64_t here = at;
        at += (4 * floats + 15) / 16 * 16;
        return (uint32_t)here;
    };
    const uint64_t rows = (uint64_t)(s.n * s.row), square = (uint64_t)s.n * (uint64_t)g.stride;
    s.decoder = s.encoder = take(rows);
    s.decoder_sum = s.encoder_sum = take(rows);
    g.gram = take(square);
    g.sum = take(square * (uint64_t)g.slots);
    g.bias_sum = take((uint64_t)(g.slots * g.stride));
    s.place = take((uint64_t)s.capacity);
    s.value = take((uint64_t)s.capacity);
    s.first = take(((uint64_t)s.capacity + 2) / 2);
    s.exchange = take(kSmallExchangeBytes / 4);
    s.moments_shared = at + 8 * rows <= kSmallShareMoments;
    if (s.moments_shared) s.moments = take(2 * rows);
    s.shared_bytes = (uint32_t)at;
    at = 0;
    if (!s.moments_shared) s.moments = take(2 * rows);
    s.workspace_bytes = (uint32_t)((at + 255) / 256 * 256);
    return g;
}

// By the shape and the batch: whether any model of the network may go by it.
inline bool gram_fits(const Network& net, int64_t batch_size, int64_t shared_limit) {
    return batch_size <= kGramBatch && (int64_t)gram_shape(net).small.shared_bytes <= shared_limit;
}

// What Launch::gram says.
enum class GramChoice : int32_t { kNowhere, kWhereItPays, kEverywhere };

// By a model's own data: single rare features, few enough in a sample. What an output of 32 samples costs, in
// warp-instructions as counted (docs/gpu_trainer.md), is 16 for each entry of a sample and 16 beside, in the small loop
// 30 + 10 m; what is done once a batch costs as much as 1,000 + 4 n m such. Not empty are at least active / (1 + rate)
// samples.
TOYKERN_SHARED bool gram_takes(GramChoice choice, const Network& net, const TablesLayout& layout, float noise,
                               const UnitTables& head, int64_t batch_size) {
    if (choice == GramChoice::kNowhere || drawn_as_rows(layout, noise, head) || head.n_frequent) return false;
    if (choice == GramChoice::kEverywhere) return true;
    const double rate = head.rare_rate, active = rate * (double)batch_size, m = (double)net.n_hidden;
    return (16.0 * active + 4.0 * m * (double)net.n_features + 1000.0) * (1.0 + rate) < (14.0 + 10.0 * m) * active;
}

}  // namespace toykern
