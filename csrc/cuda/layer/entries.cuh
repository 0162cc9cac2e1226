// Inputs given as entries, for cuda/layer/large.cuh: the first product and its gradients cost them alone.
//
//   LargeEncodeEntries    a += Σ over the sample's entries in the tile, value · Eᵀ[j]
//   LargeEncoderEntries   dE[k][j] (+)= Σ over the feature's entries, value · da[r][k]
//   LargeValueGradient    dvalue += Σ_k da[r][k] Eᵀ[j][k]
//
// Owner      LargeEncodeEntries, LargeValueGradient: a block to a sample; LargeEncoderEntries: a block to 32 features ×
//            128 hidden units
// Order      entries in their own order, which by feature is that of the samples; Σ_k: a lane's units rising, then a
//            butterfly
// Entries    what lies outside its bounds makes the sample NaN and touches nothing else
// Roof       a row of E for each entry, mostly from the caches; not measured on a GPU
#pragma once
#include "cuda/layer/tile.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

template <class T>
struct LargeEncodeEntries {
    static constexpr const char* kName = "layer_encode_entries";
    static constexpr int kThreads = kLargeThreads;
    static constexpr int64_t kShared = 0;

    TOYKERN_HD static int64_t blocks(const LayerTileParams& t) { return t.models * t.rows; }
    static TOYKERN_DEVICE void run(const Block& b, const LayerTileParams& t, int64_t block, char*) {
        const int64_t m = t.p.n_hidden, local = block / t.rows, row = t.first_row + block % t.rows;
        const int64_t model = t.first_model + local;
        const EntryRange in = entries_among(t, model, row, t.first_feature, t.features);
        const EntryRange all = entries_of(t.p.row_start + model * t.p.row_stride, row, t.entries);
        // They rise, so that the first and the last tell of all whether they are features.
        const bool bad = all.broken || (all.first < all.last &&
                                        (t.p.feature[all.first] < 0 || t.p.feature[all.last - 1] >= t.p.n_features));
        const T* encoder = static_cast<const T*>(t.encoder_rows) + local * t.features * m;
        float* a = t.codes + block * m;
        b.each([&](int thread) {
            for (int64_t k = thread; k < m; k += b.threads) {
                float sum = bad ? not_a_number() : a[k];
                for (int64_t e = in.first; e < in.last; ++e) {
                    const int64_t j = t.p.feature[e] - t.first_feature;
                    const bool there = j >= 0 && j < t.features;
                    const float value = there ? number(static_cast<const T*>(t.p.value)[e]) : not_a_number();
                    sum = fused(value, number(encoder[(there ? j : 0) * m + k]), sum);
                }
                a[k] = sum;
            }
        });
    }
};

template <class T>
struct LargeEncoderEntries {
    static constexpr const char* kName = "layer_encoder_entries";
    static constexpr int kThreads = 128;
    static constexpr int64_t kShared = FeatureTile<T>::kShared;

    TOYKERN_HD static int64_t blocks(const LayerTileParams& t) {
        return t.models * blocks_for(t.features, kEntryFeatures) * blocks_for(t.p.n_hidden, kEntryUnits);
    }
    static TOYKERN_DEVICE void run(const Block& b, const LayerTileParams& t, int64_t block, char* shared) {
        const int64_t n = t.p.n_features, m = t.p.n_hidden;
        const LargeGrid at(block, blocks_for(t.features, kEntryFeatures), blocks_for(m, kEntryUnits));
        const int64_t model = t.first_model + at.model, j0 = t.first_feature + at.row_block * kEntryFeatures;
        const int64_t k0 = at.column_block * kEntryUnits;
        const int features = (int)min_of<int64_t>(kEntryFeatures, t.first_feature + t.features - j0);
        const int units = (int)min_of<int64_t>(kEntryUnits, m - k0);
        float* tile = reinterpret_cast<float*>(shared);
        FeatureTile<T>::clear(b, tile);
        const int64_t* start = t.feature_start + (t.p.row_stride ? model * n : 0) + j0;
        const int64_t first_row = (t.p.row_stride ? model * t.p.batch : 0) + t.first_row;
        const float* da = t.code_grad + at.model * t.rows * m + k0;
        b.each([&](int thread) {  // a thread has a unit: rows of da are read whole
            if (thread >= units) return;
            for (int j = 0; j < features; ++j) {
                float sum = 0.0f;
                for (int64_t i = start[j]; i < start[j + 1]; ++i) {
                    const int64_t e = t.by_feature[i], r = t.entry_row[e] - first_row;
                    if (r < 0 || r >= t.rows) continue;  // of another segment of rows
                    sum = fused(number(static_cast<const T*>(t.p.value)[e]), da[r * m + thread], sum);
                }
                tile[j * kEntryPitch + thread] = sum;
            }
        });
        b.sync();  // the tile's sums are there before other threads write them out
        FeatureTile<T>::write(b, t, tile, model, j0, features, k0, units, false);
    }
};

template <class T>
struct LargeValueGradient {
    static constexpr const char* kName = "layer_value_gradient";
    static constexpr int kThreads = 128;
    static constexpr int64_t kShared = 0;

    TOYKERN_HD static int64_t blocks(const LayerTileParams& t) { return t.models * t.rows; }
    static TOYKERN_DEVICE void run(const Block& b, const LayerTileParams& t, int64_t block, char*) {
        const int64_t m = t.p.n_hidden, local = block / t.rows, row = t.first_row + block % t.rows;
        const int64_t model = t.first_model + local;
        const EntryRange in = entries_among(t, model, row, t.first_feature, t.features);
        const T* encoder = static_cast<const T*>(t.encoder_rows) + local * t.features * m;
        const float* da = t.code_grad + block * m;
        T* to = static_cast<T*>(t.p.value_grad) + model * t.p.value_grad_stride;
        b.each_warp([&](const Warp& w) {
            for (int64_t e = in.first + w.number; e < in.last; e += b.warps()) {
                const int64_t j = t.p.feature[e] - t.first_feature;
                const bool there = j >= 0 && j < t.features;
                Lane<float> sum;
                w.each([&](int lane) {
                    sum[lane] = there ? 0.0f : not_a_number();
                    for (int64_t k = lane; k < m && there; k += kWarpLanes)
                        sum[lane] = fused(da[k], number(encoder[j * m + k]), sum[lane]);
                });
                sum = sum_of_lanes(w, sum);
                w.each([&](int lane) {
                    if (lane == 0) to[e] = stored<T>(number(to[e]) + sum[lane]);
                });
            }
        });
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
