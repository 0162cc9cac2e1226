// How the small regime cuts its work and its memory: a function of the network's shape alone, because it decides the
// order of the sums.
//
// A block of `warps` trains one model. It takes the batch in tiles of `columns` samples; a warp has 32 of them and one
// of `feature_warps` shares of the features. What does not fit the shared memory beside the rest (moments; the rows of
// dense batches) lies in the launch's workspace, where it changes no bit.
#pragma once
#include "common/activation.h"
#include "common/stream/stream.h"
#include "toykern/params.h"

namespace toykern {

constexpr int kSmallFusedHidden = 8;  // up to here the code of a sample stays in registers while its outputs are made
constexpr int kSmallWeights = 16384;  // n·m at most: a thread's share of the work is bounded
constexpr int kSmallExchangeBytes = 512;   // see SmallExchange
constexpr int kSmallShareMoments = 32768;  // a block's shared bytes up to which the moments are kept there
constexpr int kSmallShareRows = 24576;     // the same for the rows of dense batches
constexpr int kSmallWorkspaceBlocks = 1024;

struct SmallShape {
    int n, m;
    bool tied;
    bool floors;  // none and ReLU alone; networks with other activations take the passes for any m, whatever their m is
    int warps, column_warps, feature_warps;
    int columns,
        stride;          // samples of a tile; floats from one row of it to the next (no two of eight on the same banks)
    int row;             // floats of a feature's row: m weights, bias, importance, zeros
    uint32_t row_magic;  // floor(i / row) = high word of i·row_magic
    int hidden_rows;     // rows of codes: m, one of ones (what the bias multiplies), zeros up to a multiple of four
    int code_rows;       // rows of the codes' gradient: m, zeros up to a multiple of four
    int code_parts;      // shares of the features that it is summed in
    int output_features;  // made together by a lane (m > kSmallFusedHidden)
    // A thread's piece of the decoder's gradient: features × hidden rows; samples are dealt to `sums` copies.
    int piece_features, piece_hidden, sums;
    int draw_warps, capacity;  // warps that draw arrivals, 128 each at a time; entries of the list
    // Where things lie: bytes from the start of shared memory, or of the block's workspace.
    uint32_t decoder, encoder, decoder_sum, encoder_sum;  // rows [n][row]; sums [sums][n][row] and [n][row]
    uint32_t tile, hidden, code_gradient;  // [n][stride] [hidden_rows][stride] [code_parts][code_rows][stride]
    uint32_t slope;                        // [m][stride] of the codes, where no floor (common/activation.h) tells it
    uint32_t place, value, first, bits, exchange;  // the list of entries; [n][column_warps] words; SmallExchange
    uint32_t moments, rows;                        // [2][1 | 2][n][row]; [n][stride]
    bool moments_shared, rows_shared;
    uint32_t shared_bytes, workspace_bytes;

    TOYKERN_HD int threads() const { return 32 * warps; }
    TOYKERN_HD int parameter_sets() const { return tied ? 1 : 2; }
};

TOYKERN_SHARED int small_ceil(int a, int b) { return (a + b - 1) / b; }

// Hidden rows of a thread's piece for a given number of them.
TOYKERN_SHARED constexpr int small_piece_hidden(int rows) {
    return rows <= 5 ? rows : rows <= 9 ? (rows + 1) / 2 : (rows + (rows + 7) / 8 - 1) / ((rows + 7) / 8);
}

// Shapes of too many weights have shared_bytes beyond every limit.
inline SmallShape small_shape(const Network& net) {
    SmallShape s = {};
    if (net.n_features * net.n_hidden > kSmallWeights || net.n_features > kSmallWeights ||
        net.n_hidden > kSmallWeights) {
        s.shared_bytes = 0x7FFFFFFF;
        return s;
    }
    const int n = (int)net.n_features, m = (int)net.n_hidden, weights = n * m;
    s.floors = has_floors_alone(net);
    const bool fused = m <= kSmallFusedHidden && s.floors;
    s.n = n, s.m = m, s.tied = net.tied;
    s.warps = weights <= 64 ? 1 : weights <= 384 ? 2 : weights <= 2048 ? 4 : 8;
    s.column_warps = s.warps == 2 || (s.warps == 4 && n <= 40) ? 2 : 1;
    s.feature_warps = s.warps / s.column_warps;
    s.columns = 32 * s.column_warps;
    s.stride = s.columns + 4;
    s.row = small_ceil(m + 2, 4) * 4;
    s.row_magic = (uint32_t)((((uint64_t)1 << 32) + (uint64_t)s.row - 1) / (uint64_t)s.row);
    s.hidden_rows = small_ceil(m + 1, 4) * 4;
    s.code_rows = small_ceil(m, 4) * 4;
    const int code_groups = small_ceil(m, 8), spare = s.feature_warps / code_groups;
    s.code_parts = fused ? s.feature_warps : spare < 1 ? 1 : spare > 4 ? 4 : spare;
    const int rounds = small_ceil(n, 8 * s.feature_warps), together = small_ceil(n, s.feature_warps * rounds);
    s.output_features = together < 4 ? 4 : together;

    s.piece_hidden = small_piece_hidden(m + 1);
    if (!fused && s.piece_hidden < 5) s.piece_hidden = 5;  // the least that passes for any m have
    const int groups = small_ceil(m + 1, s.piece_hidden);
    s.piece_features = 2;
    if (!fused) {
        int64_t best = 0;
        for (int f = 2; f <= 4; ++f) {
            const int64_t turns = small_ceil(small_ceil(n, f) * groups, s.threads());
            const int64_t cost = turns * (4 * f * s.piece_hidden + f + s.piece_hidden);
            if (f == 2 || cost < best) best = cost, s.piece_features = f;
        }
    }
    const int copies = s.threads() / (small_ceil(n, s.piece_features) * groups);
    s.sums = weights > 512 || copies < 1 ? 1 : copies > 4 ? 4 : copies;

    s.draw_warps = s.warps < 4 ? s.warps : 4;
    s.capacity = (s.warps == 1 ? 256 : 128 * s.draw_warps) + n;

    uint64_t at = 0;
    const auto take = [&at](uint64_t bytes) {
        const uint64_t here = at;
        at += (bytes + 15) / 16 * 16;
        return (uint32_t)here;
    };
    const uint64_t rows = 4ull * (uint64_t)n * (uint64_t)s.row, tile = 4ull * (uint64_t)n * (uint64_t)s.stride;
    const uint64_t sets = (uint64_t)s.parameter_sets(), line = 4ull * (uint64_t)s.stride;
    s.decoder = take(rows);
    s.encoder = s.tied ? s.decoder : take(rows);
    s.decoder_sum = take(rows * (uint64_t)s.sums);
    s.encoder_sum = s.tied ? s.decoder_sum : take(rows);
    s.tile = take(tile);
    s.hidden = take(line * (uint64_t)s.hidden_rows);
    s.code_gradient = take(line * (uint64_t)(s.code_rows * s.code_parts));
    s.slope = take(s.floors ? 0 : line * (uint64_t)m);
    s.place = take(4ull * (uint64_t)s.capacity);
    s.value = take(4ull * (uint64_t)s.capacity);
    s.first = take(2ull * (uint64_t)s.capacity + 2);
    s.bits = take(4ull * (uint64_t)(n * s.column_warps));
    s.exchange = take(kSmallExchangeBytes);
    s.moments_shared = at + 2 * sets * rows <= kSmallShareMoments;
    if (s.moments_shared) s.moments = take(2 * sets * rows);
    s.rows_shared = at + tile <= kSmallShareRows;
    if (s.rows_shared) s.rows = take(tile);
    s.shared_bytes = (uint32_t)at;
    at = 0;
    if (!s.moments_shared) s.moments = take(2 * sets * rows);
    if (!s.rows_shared) s.rows = take(tile);
    s.workspace_bytes = (uint32_t)((at + 255) / 256 * 256);
    return s;
}

}  // namespace toykern
