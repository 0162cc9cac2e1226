// The autoencoder layer for large models: what happens between the matrix products, tile by tile (tk's Python plans the tiles and calls
// torch's products). Per kernel, with r a sample, j a feature of the tile, k a hidden unit:
//
//   LargeOutput          z → y; or loss sums, dz, Σ_r dz, and what goes straight to x or a target, in one pass over the tile
//   LargeCodes           a → h = f(a + c), top-k by a search for the k-th largest rank; Σ_k |h|
//   LargeCodeGradient    dh → da = f′ (dh + l1 sign h), Σ_r da
//   LargeEncodeEntries   a += Σ over the sample's entries in the tile, value · Eᵀ[j]
//   LargeEncoderEntries  dE[k][j] (+)= Σ over the feature's entries, value · da[r][k]
//   LargeValueGradient   dvalue += Σ_k da[r][k] Eᵀ[j][k]
//   LargeActiveCodes     dh += Σ_j dz D[j] over outputs that have a gradient
//   LargeActiveDecoder   dD[j] (+)= Σ_r dz h[r] over outputs that have a gradient
//
// Owner      LargeOutput, LargeCodeGradient: a block to 32 rows × 256 columns, a thread to a column; LargeCodes, Large…Entries, LargeActiveCodes: a
//            block to a sample; LargeEncoderEntries, LargeActiveDecoder: a block to 32 features × 128 hidden units
// Order      by row within 32 rows, then by block of rows (LargeSums); lists in their own order: bits follow from shapes and data alone
// Entries    what lies outside its bounds makes the sample NaN and touches nothing else
// Roof       device memory: LargeOutput reads z and x and writes dz once; not measured on a GPU
#pragma once
#include "cuda/layer_values.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

constexpr int kLargeThreads = 256;
constexpr int kEntryFeatures = 32, kEntryUnits = 128, kEntryPitch = kEntryUnits + 1;

TOYKERN_DEVICE int64_t blocks_for(int64_t count, int64_t each) { return (count + each - 1) / each; }

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

template <class T>
struct LargeOutput {
    static constexpr int kThreads = kLargeThreads;
    static constexpr int64_t kShared = (kTileRows * kTileColumns + 32) * (int64_t)sizeof(float);

    static TOYKERN_DEVICE int64_t blocks(const LayerTileParams& t) {
        return t.models * blocks_for(t.rows, kTileRows) * blocks_for(t.features, kTileColumns);
    }
    static TOYKERN_DEVICE void run(const Block& b, const LayerTileParams& t, int64_t block, char* shared) {
        const LayerParams& p = t.p;
        const int64_t row_blocks = blocks_for(t.rows, kTileRows), column_blocks = blocks_for(t.features, kTileColumns);
        const LargeGrid at(block, row_blocks, column_blocks);
        const int64_t model = t.first_model + at.model, n = p.n_features;
        const int64_t first_row = at.row_block * kTileRows, first_column = at.column_block * kTileColumns;
        const int rows = (int)min_of(kTileRows, t.rows - first_row);
        const int columns = (int)min_of(kTileColumns, t.features - first_column);
        const int64_t feature0 = t.first_feature + first_column, row0 = t.first_row + first_row;
        float* tile = reinterpret_cast<float*>(shared);  // of entries: x, then what goes straight to it
        float* sums = tile + kTileRows * kTileColumns;
        const bool loss = p.task == (int32_t)LayerTask::kLoss, backward = p.task == (int32_t)LayerTask::kBackward;
        const bool tensor = p.target == (int32_t)LayerTarget::kTensor;
        const bool by_entries = loss && !p.x && !tensor;
        if (by_entries) {
            b.each([&](int thread) {
                for (int i = thread; i < rows * kTileColumns; i += b.threads) tile[i] = 0.0f;
            });
            b.sync();
            over_entries(b, t, model, row0, rows, feature0, columns, [&](int r, int column, int64_t e) {
                tile[r * kTileColumns + column] = number(static_cast<const T*>(p.value)[e]);
            });
        }
        const T* bias = array_at<T>(p.bias, model * n + feature0);
        const float* importance = array_at<float>(p.importance, model * p.importance_stride + feature0);
        const T* x = array_at<T>(p.x, model * p.x_stride + feature0);
        const T* target = array_at<T>(p.target_values, model * p.target_stride + feature0);
        const int64_t values = (model * p.batch) * n + feature0,
                      local = (at.model * t.rows + first_row) * t.features + first_column;
        T* output = array_at<T>(p.output, values);
        const T* output_grad = array_at<T>(p.output_grad, values);
        T* x_grad = array_at<T>(p.x_grad, values);
        T* target_grad = array_at<T>(p.target_grad, values);
        PerThread<float> squares, active;
        b.each([&](int thread) {
            squares[thread] = active[thread] = 0.0f;
            if (thread >= columns) return;
            const int c = thread;
            const float offset = bias ? number(bias[c]) : 0.0f, weight = importance ? importance[c] : 1.0f;
            float column_sum = 0.0f;
            TOYKERN_NO_UNROLL
            for (int r = 0; r < rows; ++r) {
                const int64_t there = (row0 + r) * n + c, here = local + (int64_t)r * t.features + c;
                const float z = t.z ? t.z[here] + offset : 0.0f;
                float dz;
                if (loss) {
                    const float given = tensor       ? number(target[there])
                                        : by_entries ? tile[r * kTileColumns + c]
                                                     : number(x[there]);
                    const OutputLoss found = output_loss(p, z, given, weight);
                    squares[thread] += found.square;
                    dz = found.dz;
                    if (target_grad) target_grad[there] = stored<T>(found.direct);
                    if (x_grad) x_grad[there] = stored<T>(tensor ? 0.0f : found.direct);
                    if (by_entries) tile[r * kTileColumns + c] = found.direct;
                } else if (backward) {
                    const bool saved = output && p.output_activation != (int32_t)OutputActivation::kGelu;
                    const float y = saved ? number(output[there]) : 0.0f;
                    const bool relu = p.output_activation == (int32_t)OutputActivation::kRelu;
                    const float slope = !saved                      ? activate(p.output_activation, z).slope
                                        : !relu || slope_of_relu(y) ? 1.0f
                                                                    : 0.0f;
                    dz = number(output_grad[there]) * slope;
                    if (x_grad) x_grad[there] = stored<T>(0.0f);
                } else {
                    output[there] = stored<T>(activate(p.output_activation, z).y);
                    continue;
                }
                if (t.dz) static_cast<T*>(t.dz)[here] = stored<T>(dz);
                column_sum += dz;
                active[thread] += dz != 0.0f;
            }
            if (t.column_sums)
                t.column_sums[(at.model * row_blocks + at.row_block) * t.features + first_column + c] = column_sum;
        });
        if (p.value_grad) {
            b.sync();
            over_entries(b, t, model, row0, rows, feature0, columns, [&](int r, int column, int64_t e) {
                static_cast<T*>(p.value_grad)[model * p.value_grad_stride + e] =
                    stored<T>(by_entries ? tile[r * kTileColumns + column] : 0.0f);
            });
        }
        if (loss && t.loss_sums) {
            sum_of_block(b, squares, sums);
            b.each([&](int thread) {
                if (thread == 0) t.loss_sums[block] = sums[0];
            });
            b.sync();
        }
        if (t.active) {  // at most 8,192 a block: exact
            sum_of_block(b, active, sums);
            b.each([&](int thread) {
                if (thread == 0) t.active[block] = (int32_t)sums[0];
            });
        }
    }

  private:
    // body(row of the tile, column, entry); one whose place is impossible makes the tile's first column NaN.
    template <class Body>
    static TOYKERN_DEVICE void over_entries(const Block& b, const LayerTileParams& t, int64_t model, int64_t row0,
                                            int rows, int64_t feature0, int columns, const Body& body) {
        b.each([&](int thread) {
            for (int r = thread; r < rows; r += b.threads) {
                const EntryRange in = entries_among(t, model, row0 + r, feature0, columns);
                for (int64_t e = in.first; e < in.last; ++e) {
                    const int64_t column = t.p.feature[e] - feature0;
                    if (column >= 0 && column < columns) body(r, (int)column, e);
                }
            }
        });
        b.sync();
    }
};

template <class T>
struct LargeCodes {
    static constexpr int kThreads = kLargeThreads;
    static constexpr int64_t kShared = (kLargeThreads + 64) * (int64_t)sizeof(float);

    static TOYKERN_DEVICE int64_t blocks(const LayerTileParams& t) { return t.models * t.rows; }
    static TOYKERN_DEVICE void run(const Block& b, const LayerTileParams& t, int64_t block, char* shared) {
        const LayerParams& p = t.p;
        const int64_t m = p.n_hidden, model = t.first_model + block / t.rows;
        float* h = t.codes + block * m;
        T* copy = array_at<T>(t.stored_codes, block * m);
        const float* c = t.code_bias ? t.code_bias + model * m : nullptr;
        uint32_t* counts = reinterpret_cast<uint32_t*>(shared);  // [threads]
        float* sums = reinterpret_cast<float*>(shared) + kLargeThreads;
        b.each([&](int thread) {
            for (int64_t k = thread; k < m; k += b.threads) {
                const float a = c ? h[k] + c[k] : h[k];
                h[k] = p.hidden_activation == (int32_t)HiddenActivation::kRelu ? floored(0.0f, a) : a;
            }
        });
        b.sync();
        if (p.hidden_activation == (int32_t)HiddenActivation::kTopK) keep_largest(b, h, m, p.top_k, counts);
        PerThread<float> magnitudes;
        b.each([&](int thread) {
            magnitudes[thread] = 0.0f;
            for (int64_t k = thread; k < m; k += b.threads) {
                if (copy) copy[k] = stored<T>(h[k]);
                magnitudes[thread] += magnitude_of(h[k]);
            }
        });
        if (!p.l1) return;
        sum_of_block(b, magnitudes, sums);
        b.each([&](int thread) {
            if (thread == 0) t.loss_sums[block] = sums[0];
        });
    }

  private:
    // Codes that are not among the top_k become −0, those that are and are −0 become 0. The lowest rank that stays is found bit by bit from
    // the top: it is the largest that at least top_k ranks reach. Of equal ones the first stay.
    static TOYKERN_DEVICE void keep_largest(const Block& b, float* h, int64_t m, int64_t top_k, uint32_t* counts) {
        const int64_t each = blocks_for(m, b.threads);  // neighbouring codes of a thread
        const auto count = [&](const auto& holds) {     // how many codes do, into counts[0]
            b.each([&](int thread) {
                uint32_t found = 0;
                for (int64_t k = thread; k < m; k += b.threads) found += holds(rank_of(h[k]));
                counts[thread] = found;
            });
            b.sync();
            for (int half = b.threads / 2; half > 0; half /= 2) {
                b.each([&](int thread) {
                    if (thread < half) counts[thread] += counts[thread + half];
                });
                b.sync();
            }
            const uint32_t total = counts[0];
            b.sync();
            return total;
        };
        uint32_t border = 0;
        for (int bit = 31; bit >= 0; --bit) {
            const uint32_t higher = border | 1u << bit;
            if (count([&](uint32_t rank) { return rank >= higher; }) >= (uint64_t)top_k) border = higher;
        }
        const uint32_t above = count([&](uint32_t rank) { return rank > border; });
        b.each([&](int thread) {
            uint32_t equal = 0;
            for (int64_t k = thread * each; k < min_of(m, (thread + 1) * each); ++k) equal += rank_of(h[k]) == border;
            counts[thread] = equal;
        });
        b.sync();
        b.each([&](int thread) {
            if (thread > 0) return;
            uint32_t before = above;
            for (int i = 0; i < b.threads; ++i) {
                const uint32_t own = counts[i];
                counts[i] = before;
                before += own;
            }
        });
        b.sync();
        b.each([&](int thread) {
            uint32_t before = counts[thread];
            for (int64_t k = thread * each; k < min_of(m, (thread + 1) * each); ++k) {
                const uint32_t rank = rank_of(h[k]);
                const bool stays = rank > border || (rank == border && before++ < (uint64_t)top_k);
                h[k] = !stays ? float_of(0x80000000u) : h[k] == 0.0f ? 0.0f : h[k];
            }
        });
        b.sync();
    }
};

template <class T>
struct LargeCodeGradient {
    static constexpr int kThreads = kLargeThreads;
    static constexpr int64_t kShared = 0;

    static TOYKERN_DEVICE int64_t blocks(const LayerTileParams& t) {
        return t.models * blocks_for(t.rows, kTileRows) * blocks_for(t.p.n_hidden, kTileColumns);
    }
    static TOYKERN_DEVICE void run(const Block& b, const LayerTileParams& t, int64_t block, char*) {
        const LayerParams& p = t.p;
        const int64_t m = p.n_hidden, row_blocks = blocks_for(t.rows, kTileRows);
        const LargeGrid at(block, row_blocks, blocks_for(m, kTileColumns));
        const int64_t model = t.first_model + at.model, first_row = at.row_block * kTileRows;
        const int rows = (int)min_of(kTileRows, t.rows - first_row);
        const float l1 = p.l1 ? array_at<float>(p.l1, model * p.l1_stride)[0] * (float)p.l1_scale : 0.0f;
        b.each([&](int thread) {
            const int64_t k = at.column_block * kTileColumns + thread;
            if (k >= m) return;
            float sum = 0.0f;
            for (int r = 0; r < rows; ++r) {
                const int64_t here = (at.model * t.rows + first_row + r) * m + k;
                const float h = t.codes[here];
                const float da = code_is_on(p.hidden_activation, h) ? fused(l1, sign_of(h), t.code_grad[here]) : 0.0f;
                t.code_grad[here] = da;
                if (t.stored_code_grad) static_cast<T*>(t.stored_code_grad)[here] = stored<T>(da);
                sum += da;
            }
            if (t.column_sums) t.column_sums[(at.model * row_blocks + at.row_block) * m + k] = sum;
        });
    }
};

template <class T>
struct LargeEncodeEntries {
    static constexpr int kThreads = kLargeThreads;
    static constexpr int64_t kShared = 0;

    static TOYKERN_DEVICE int64_t blocks(const LayerTileParams& t) { return t.models * t.rows; }
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

// What two kernels share: 32 features × 128 units gathered in shared memory and added to encoder_grad [m][n] or decoder_grad [n][m].
template <class T>
struct FeatureTile {
    static constexpr int64_t kShared = kEntryFeatures * kEntryPitch * (int64_t)sizeof(float);
    static TOYKERN_DEVICE void clear(const Block& b, float* tile) {
        b.each([&](int thread) {
            for (int i = thread; i < kEntryFeatures * kEntryPitch; i += b.threads) tile[i] = 0.0f;
        });
        b.sync();
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

template <class T>
struct LargeEncoderEntries {
    static constexpr int kThreads = 128;
    static constexpr int64_t kShared = FeatureTile<T>::kShared;

    static TOYKERN_DEVICE int64_t blocks(const LayerTileParams& t) {
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
        b.sync();
        FeatureTile<T>::write(b, t, tile, model, j0, features, k0, units, false);
    }
};

template <class T>
struct LargeValueGradient {
    static constexpr int kThreads = 128;
    static constexpr int64_t kShared = 0;

    static TOYKERN_DEVICE int64_t blocks(const LayerTileParams& t) { return t.models * t.rows; }
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

template <class T>
struct LargeActiveCodes {
    static constexpr int kThreads = kLargeThreads;
    static constexpr int kStretch = 1024;  // features looked through at a time: values, then places
    static constexpr int64_t kShared = (2 * kStretch + 64) * (int64_t)sizeof(float);

    static TOYKERN_DEVICE int64_t blocks(const LayerTileParams& t) { return t.models * t.rows; }
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
            b.sync();
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
            b.sync();
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
            b.sync();
        }
    }
};

template <class T>
struct LargeActiveDecoder {
    static constexpr int kThreads = 128;
    static constexpr int64_t kShared = FeatureTile<T>::kShared;

    static TOYKERN_DEVICE int64_t blocks(const LayerTileParams& t) {
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
        b.sync();
        FeatureTile<T>::write(b, t, tile, model, t.first_feature + c0, features, k0, units, !t.p.tied);
    }
};

// LayerSums, a thread to an element; or, `whole`, a block to a model.
struct LargeSums {
    static constexpr int kThreads = kLargeThreads;
    static constexpr int64_t kShared = kLargeThreads * (int64_t)sizeof(double);
    static TOYKERN_DEVICE int64_t blocks(const LayerSums& s) {
        return s.whole ? s.models : blocks_for(s.models * s.count, kThreads);
    }
    static TOYKERN_DEVICE void run(const Block& b, const LayerSums& s, int64_t block, char* shared) {
        if (!s.whole) {
            b.each([&](int thread) {
                const int64_t i = block * b.threads + thread, model = i / s.count, column = i % s.count;
                if (model >= s.models) return;
                float sum = 0.0f;
                for (int64_t r = 0; r < s.blocks; ++r) sum += s.from[(model * s.blocks + r) * s.count + column];
                s.to[model * s.to_stride + s.first + column] += sum;
            });
            return;
        }
        double* sums = reinterpret_cast<double*>(shared);
        const int64_t many = s.blocks * s.count;
        b.each([&](int thread) {
            double sum = 0.0;
            for (int64_t i = thread; i < many; i += b.threads) sum += (double)s.from[block * many + i];
            sums[thread] = sum;
        });
        b.sync();
        for (int half = b.threads / 2; half > 0; half /= 2) {
            b.each([&](int thread) {
                if (thread < half) sums[thread] += sums[thread + half];
            });
            b.sync();
        }
        b.each([&](int thread) {
            if (thread > 0) return;
            const double scale = s.scale ? (double)s.scale[block * s.scale_stride] : 1.0;
            s.to[block * s.to_stride] += (float)(sums[0] * scale * s.factor);
        });
    }
};

// Calls run(Kernel of the storage's type) for a kernel by number.
template <class T, class Run>
void with_layer_kernel_of(int kernel, const Run& run) {
    switch ((LayerKernel)kernel) {
        case LayerKernel::kOutput: return run(LargeOutput<T>{});
        case LayerKernel::kCodes: return run(LargeCodes<T>{});
        case LayerKernel::kCodeGradient: return run(LargeCodeGradient<T>{});
        case LayerKernel::kEncodeEntries: return run(LargeEncodeEntries<T>{});
        case LayerKernel::kEncoderEntries: return run(LargeEncoderEntries<T>{});
        case LayerKernel::kValueGradient: return run(LargeValueGradient<T>{});
        case LayerKernel::kActiveCodes: return run(LargeActiveCodes<T>{});
        case LayerKernel::kActiveDecoder: return run(LargeActiveDecoder<T>{});
    }
}
template <class Run>
void with_layer_kernel(bool bf16, int kernel, const Run& run) {
    if (bf16)
        with_layer_kernel_of<Bf16>(kernel, run);
    else
        with_layer_kernel_of<float>(kernel, run);
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
