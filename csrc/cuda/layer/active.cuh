// The products behind an output where few outputs have a gradient, for cuda/layer/large.cuh: those alone are taken.
//
//   LargeActiveCodes     dh += Σ_j dz D[j]
//   LargeActiveDecoder   dD[j] (+)= Σ_r dz h[r]
//
// Owner      LargeActiveCodes: a block to a sample; LargeActiveDecoder: a block to 32 features × 128 hidden units, a
//            warp to 32 of the units
// Order      features rising; rows rising
// Roof       dz is read once, and a row of D or h for each output that has a gradient; not measured on a GPU
#pragma once
#include "cuda/layer/tile.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

template <class T>
struct LargeActiveCodes {
    static constexpr const char* kName = "layer_active_codes";
    static constexpr int kThreads = kLargeThreads;
    static constexpr int kStretch = 1024;  // features looked through at a time: values, then places
    static constexpr int64_t kShared = (2 * kStretch + 64) * (int64_t)sizeof(float);

    TOYKERN_HD static int64_t blocks(const LayerTileParams& t) { return t.models * t.rows; }
    static TOYKERN_DEVICE void run(const Block& b, const LayerTileParams& t, int64_t block, char* shared) {
        const int64_t m = t.p.n_hidden, local = block / t.rows;
        const T* decoder = static_cast<const T*>(t.encoder_rows) + local * t.features * m;
        const T* dz = static_cast<const T*>(t.dz) + block * t.features;
        float* dh = t.code_grad + block * m;
        float* value = reinterpret_cast<float*>(shared);
        int32_t* place = reinterpret_cast<int32_t*>(value + kStretch);
        int32_t* counts = place + kStretch;
        for (int64_t first = 0; first < t.features; first += kStretch) {
            const int many = (int)min_of<int64_t>(kStretch, t.features - first);
            const int each =
                (int)blocks_for(blocks_for(many, b.warps()), kWarpLanes) * kWarpLanes;  // of a warp, whole words
            b.each_warp([&](const Warp& w) {  // count, then fill: the list is in the order of features
                int found = 0;
                for (int i = w.number * each; i < min_of(many, (w.number + 1) * each); i += kWarpLanes) {
                    Lane<bool> on;
                    w.each([&](int lane) { on[lane] = i + lane < many && number(dz[first + i + lane]) != 0.0f; });
                    found += count_bits(w.ballot(on));
                }
                w.each([&](int lane) {
                    if (lane == 0) counts[w.number] = found;
                });
            });
            b.sync();  // the warps' counts are there
            b.each_warp([&](const Warp& w) {
                int at = 0;
                for (int i = 0; i < w.number; ++i) at += counts[i];
                for (int i = w.number * each; i < min_of(many, (w.number + 1) * each); i += kWarpLanes) {
                    Lane<bool> on;
                    w.each([&](int lane) { on[lane] = i + lane < many && number(dz[first + i + lane]) != 0.0f; });
                    const uint32_t word = w.ballot(on);
                    w.each([&](int lane) {
                        if (!on[lane]) return;
                        const int to = at + count_bits(word & ((1u << lane) - 1));
                        value[to] = number(dz[first + i + lane]);
                        place[to] = i + lane;
                    });
                    at += count_bits(word);
                }
            });
            b.sync();  // so is the list of what is active
            int total = 0;
            for (int i = 0; i < b.warps(); ++i) total += counts[i];
            b.each([&](int thread) {
                for (int64_t k = thread; k < m; k += b.threads) {
                    float sum = dh[k];
                    for (int i = 0; i < total; ++i)
                        sum = fused(value[i], number(decoder[(first + place[i]) * m + k]), sum);
                    dh[k] = sum;
                }
            });
            b.sync();  // the list has been read before the next one is made
        }
    }
};

template <class T>
struct LargeActiveDecoder {
    static constexpr const char* kName = "layer_active_decoder";
    static constexpr int kThreads = 128;
    static constexpr int64_t kShared = FeatureTile<T>::kShared;

    TOYKERN_HD static int64_t blocks(const LayerTileParams& t) {
        return t.models * blocks_for(t.features, kEntryFeatures) * blocks_for(t.p.n_hidden, kEntryUnits);
    }
    static TOYKERN_DEVICE void run(const Block& b, const LayerTileParams& t, int64_t block, char* shared) {
        const int64_t m = t.p.n_hidden;
        const LargeGrid at(block, blocks_for(t.features, kEntryFeatures), blocks_for(m, kEntryUnits));
        const int64_t model = t.first_model + at.model, c0 = at.row_block * kEntryFeatures,
                      k0 = at.column_block * kEntryUnits;
        const int features = (int)min_of<int64_t>(kEntryFeatures, t.features - c0);
        const int units = (int)min_of<int64_t>(kEntryUnits, m - k0);
        float* tile = reinterpret_cast<float*>(shared);
        FeatureTile<T>::clear(b, tile);
        const T* dz = static_cast<const T*>(t.dz) + at.model * t.rows * t.features + c0;
        const float* h = t.codes + at.model * t.rows * m + k0;
        b.each_warp([&](const Warp& w) {  // a warp has 32 units, lanes look at 32 features
            for (int64_t r = 0; r < t.rows; ++r) {
                Lane<float> value;
                Lane<bool> on;
                w.each([&](int lane) {
                    value[lane] = lane < features ? number(dz[r * t.features + lane]) : 0.0f;
                    on[lane] = value[lane] != 0.0f;
                });
                for (uint32_t word = w.ballot(on); word;) {
                    const int j = 31 - leading_zeros(word);
                    word ^= 1u << j;
                    const Lane<float> one = w.broadcast(value, j);
                    w.each([&](int lane) {
                        const int k = w.number * kWarpLanes + lane;
                        if (k >= units) return;
                        float& sum = tile[j * kEntryPitch + k];
                        sum = fused(one[lane], h[r * m + k], sum);
                    });
                }
            }
        });
        b.sync();  // the tile's sums are there before other threads write them out
        FeatureTile<T>::write(b, t, tile, model, t.first_feature + c0, features, k0, units, !t.p.tied);
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
