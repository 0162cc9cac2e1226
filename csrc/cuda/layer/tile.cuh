// What the kernels of cuda/layer/large.cuh share: where a block stands, a sample's entries among a tile's features, and
// a tile of a weights' gradient.
//
// Layout     a tile of LayerTileParams: some models, rows (samples) and features; scratch holds it alone,
//            [models][rows][…]
#pragma once
#include "common/stream/stream.h"
#include "cuda/layer/values.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

constexpr int kLargeThreads = 256;
constexpr int kEntryFeatures = 32, kEntryUnits = 128, kEntryPitch = kEntryUnits + 1;

TOYKERN_HD inline int64_t blocks_for(int64_t count, int64_t each) { return (count + each - 1) / each; }

struct LargeGrid {  // of a tile of 32 rows × 256 columns, or of rows
    int64_t model, row_block, column_block;
    TOYKERN_DEVICE LargeGrid(int64_t block, int64_t row_blocks, int64_t column_blocks) {
        column_block = block % column_blocks;
        row_block = block / column_blocks % row_blocks;
        model = block / column_blocks / row_blocks;
    }
};

// The sample's entries among features first … first + count: they rise within it.
TOYKERN_DEVICE EntryRange entries_among(const LayerTileParams& t, int64_t model, int64_t row, int64_t first,
                                        int64_t count) {
    EntryRange in = entries_of(t.p.row_start + model * t.p.row_stride, row, t.entries);
    int64_t low = in.first, high = in.last;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (t.p.feature[middle] < first)
            low = middle + 1;
        else
            high = middle;
    }
    in.first = low;
    int64_t last = in.last;
    while (low < last) {
        const int64_t middle = (low + last) / 2;
        if (t.p.feature[middle] < first + count)
            low = middle + 1;
        else
            last = middle;
    }
    in.last = low;
    return in;
}

// 32 features × 128 units gathered in shared memory and added to encoder_grad [m][n] or decoder_grad [n][m].
template <class T>
struct FeatureTile {
    static constexpr int64_t kShared = kEntryFeatures * kEntryPitch * (int64_t)sizeof(float);
    static TOYKERN_DEVICE void clear(const Block& b, float* tile) {
        b.each([&](int thread) {
            for (int i = thread; i < kEntryFeatures * kEntryPitch; i += b.threads) tile[i] = 0.0f;
        });
        b.sync();  // the tile is cleared before entries come into it
    }
    static TOYKERN_DEVICE void write(const Block& b, const LayerTileParams& t, const float* tile, int64_t model,
                                     int64_t j0, int features, int64_t k0, int units, bool decoder) {
        const int64_t n = t.p.n_features, m = t.p.n_hidden;
        T* to = static_cast<T*>(decoder ? t.p.decoder_grad : t.p.encoder_grad) + model * n * m;
        b.each([&](int thread) {
            for (int i = thread; i < kEntryFeatures * kEntryUnits; i += b.threads) {
                // neighbouring threads write neighbouring elements
                const int j = decoder ? i / kEntryUnits : i % kEntryFeatures,
                          k = decoder ? i % kEntryUnits : i / kEntryFeatures;
                if (j >= features || k >= units) continue;
                T& element = to[decoder ? (j0 + j) * m + k0 + k : (k0 + k) * n + j0 + j];
                const float sum = tile[j * kEntryPitch + k];
                element = stored<T>(t.add ? number(element) + sum : sum);
            }
        });
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
