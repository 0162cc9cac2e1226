// Sizes and memory of the layer kernel: what a team shares, what a worker has to itself.
//
// The batch is taken in segments of rows (samples, all-zero ones merged where they may be), the features in chunks, so
// that memory does not grow with the batch, and with n by a few words a feature only. Measured: 50 MiB in all at n =
// 262,144, m = 512, batch 1024.
#pragma once
#include "common/activation.h"
#include "cpu/layer/lists.inl"
#include "cpu/threads/workspace.h"
#include "toykern/layer.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kRowBlock = 64;                  // rows that one worker takes together
constexpr int64_t kLargestChunk = 1024;            // features
constexpr size_t kKeptBytes = (size_t)32 << 20;    // weights by feature are kept where they take no more
constexpr int64_t kHeldValues = (int64_t)1 << 22;  // codes of a segment
constexpr int64_t kWordBytes = (int64_t)64 << 20;  // marks of the non-zero inputs of a segment

TOYKERN_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
TOYKERN_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
TOYKERN_INLINE int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

struct LayerSizes {
    int64_t n, m, mp;      // features; hidden units, in whole lane groups
    int64_t n_words;       // of 64 features
    int64_t rows;          // of a segment, at most
    int64_t blocks;        // of kRowBlock rows
    int64_t chunk, z_row;  // features of a chunk, a multiple of 64; stride of the rows of z
    bool keep;             // weights by feature kept for all features
    bool separate;         // decoder rows apart from encoder rows (untied)
};

template <class T>
inline LayerSizes layer_sizes(const LayerParams& p) {
    constexpr int64_t kStep = Lane<T>::kCount;
    LayerSizes s;
    s.n = p.n_features, s.m = p.n_hidden;
    s.mp = blocks_of(s.m, kStep) * kStep;
    s.n_words = blocks_of(s.n, kWordBits);
    const int64_t by_codes = kHeldValues / s.mp, by_words = p.x ? kWordBytes / (8 * s.n_words) : p.batch;
    const int64_t rows = least(least(by_codes, by_words), 8192) / kRowBlock * kRowBlock;
    s.rows = least(most(rows, kRowBlock), blocks_of(p.batch, 8) * 8);
    s.blocks = blocks_of(s.rows, kRowBlock);
    s.chunk = least(s.n_words * kWordBits, s.rows > 2048 ? kLargestChunk / 2 : kLargestChunk);
    s.z_row = s.chunk + kStep;
    s.keep = (size_t)s.n_words * kWordBits * (size_t)s.mp * sizeof(T) <= kKeptBytes;
    s.separate = !p.tied;
    return s;
}

// Whether the slope of the hidden activation has to be remembered: where the code does not tell it.
inline bool keeps_gate(const LayerParams& p) {
    return p.hidden_activation == (int32_t)Activation::kTopK || !slope_from_output(p.hidden_activation);
}

template <class T>
struct LayerShared {
    LayerSizes s;
    T *encoder_rows, *decoder_rows;     // [chunk or all][mp] weights by feature; the same when tied
    T* decoder_lanes;                   // [m][chunk] packed
    T *h, *dh, *gate;                   // [rows][mp]; gate (where keeps_gate): slope of the hidden activation
    T *h_packed, *dh_packed;            // [rows][mp] packed
    T* z;                               // [rows][z_row]
    uint64_t* active;                   // [rows][chunk / 64]
    uint64_t* words;                    // [rows][n_words] non-zero inputs, by sample
    int64_t* found;                     // [rows] non-zero inputs of a sample
    int64_t* sample;                    // [rows] sample of a row, from the start of the segment
    T* weight;                          // [rows] samples that the row stands for
    T *bias, *importance;               // [chunk]
    T *bias_sum, *hidden_sum;           // [blocks][chunk], [blocks][mp]
    double *row_loss, *row_l1;          // [rows]
    int64_t* block_active;              // [blocks]
    int64_t* cursor;                    // [rows] entries of a row already behind
    int64_t *column_start, *column_at;  // [n + 1], [entries] entries by feature
    int32_t* column_row;                // [entries]
    int64_t* n_rows;                    // [1]

    void carve(Workspace& w, const LayerParams& p, int64_t entries) {
        s = layer_sizes<T>(p);
        const size_t rows = (size_t)blocks_of(s.rows, kRowBlock) * kRowBlock, mp = (size_t)s.mp;
        const size_t chunk = (size_t)s.chunk, blocks = (size_t)s.blocks;
        const bool gradients = p.task != (int32_t)LayerTask::kForward;
        const size_t held = s.keep ? (size_t)s.n_words * kWordBits : chunk;
        encoder_rows = w.take<T>(held * mp);
        decoder_rows = s.separate ? w.take<T>(chunk * mp) : encoder_rows;
        decoder_lanes = w.take<T>(chunk * (size_t)s.m);
        h = w.take<T>(rows * mp);
        dh = w.take<T>(gradients ? rows * mp : 0);
        gate = w.take<T>(keeps_gate(p) ? rows * mp : 0);
        h_packed = w.take<T>(gradients ? rows * mp : 0);
        dh_packed = w.take<T>(gradients ? rows * mp : 0);
        z = w.take<T>(rows * (size_t)s.z_row);
        active = w.take<uint64_t>(rows * chunk / kWordBits);
        words = w.take<uint64_t>(p.x ? rows * (size_t)s.n_words : 0);
        found = w.take<int64_t>(rows);
        sample = w.take<int64_t>(rows);
        weight = w.take<T>(rows);
        bias = w.take<T>(chunk);
        importance = w.take<T>(chunk);
        bias_sum = w.take<T>(blocks * chunk);
        hidden_sum = w.take<T>(blocks * mp);
        row_loss = w.take<double>(rows);
        row_l1 = w.take<double>(rows);
        block_active = w.take<int64_t>(blocks);
        cursor = w.take<int64_t>(rows);
        column_start = w.take<int64_t>(p.x ? 0 : (size_t)s.n + 2);
        column_at = w.take<int64_t>(p.x ? 0 : (size_t)entries);
        column_row = w.take<int32_t>(p.x ? 0 : (size_t)entries);
        n_rows = w.take<int64_t>(1);
    }
};

template <class T>
struct LayerRoom {
    T *tile, *weights;   // [64][mp] gradients and weights of 64 features
    T* x;                // [kRowBlock][chunk] or [rows][64]: inputs of rows that are not side by side
    T *target, *direct;  // [chunk] a row's target from entries; its gradient
    T* panel;            // room of PanelOf
    List<T> list;        // [most]
    ColumnLists<T> columns;

    void carve(Workspace& w, const LayerParams& p) {
        const LayerSizes s = layer_sizes<T>(p);
        const size_t mp = (size_t)s.mp, rows = (size_t)blocks_of(s.rows, kRowBlock) * kRowBlock;
        tile = w.take<T>(kWordBits * mp);
        weights = w.take<T>(kWordBits * mp);
        x = w.take<T>((size_t)most(kRowBlock * s.chunk, (int64_t)rows * kWordBits));
        target = w.take<T>((size_t)s.chunk);
        direct = w.take<T>((size_t)s.chunk);
        panel = w.take<T>((size_t)(most(kPanelDepth, s.chunk) * kBlockVectors * Lane<T>::kCount));
        list.index = w.take<int32_t>((size_t)most(s.chunk, s.mp));
        list.value = w.take<T>((size_t)most(s.chunk, s.mp));
        columns.index = w.take<int32_t>(rows * kWordBits);
        columns.value = w.take<T>(rows * kWordBits);
        columns.words = w.take<uint64_t>(rows);
        columns.rows = w.take<int32_t>(rows);
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
