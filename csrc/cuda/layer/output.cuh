// The outputs of a tile, for cuda/layer/large.cuh.
//
//   LargeOutput   z → y; or loss sums, dz, Σ_r dz, and what goes straight to x or a target, in one pass over the tile
//
// Owner      a block to 32 rows × 256 columns, a thread to a column; entries of x (and their gradient) pass through
//            shared memory
// Order      by row within 32 rows; the blocks' sums are LargeSums'
// Roof       device memory: z and x are read and dz is written once; not measured on a GPU
#pragma once
#include "cuda/layer/tile.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

template <class T>
struct LargeOutput {
    static constexpr const char* kName = "layer_output";
    static constexpr int kThreads = kLargeThreads;
    static constexpr int64_t kShared = (kTileRows * kTileColumns + 32) * (int64_t)sizeof(float);

    TOYKERN_HD static int64_t blocks(const LayerTileParams& t) {
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
        const bool tensor = p.target == (int32_t)Target::kTensor;
        const bool by_entries = loss && !p.x && !tensor;
        if (by_entries) {
            b.each([&](int thread) {
                for (int i = thread; i < rows * kTileColumns; i += b.threads) tile[i] = 0.0f;
            });
            b.sync();  // the tile is cleared before entries come into it
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
        const auto activation = output_of(p);
        const bool saved = output && slope_from_output(p.output_activation);
        PerThread<float> losses, active;
        b.each([&](int thread) {
            losses[thread] = active[thread] = 0.0f;
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
                    const OutputLoss found = output_loss(p, activation, activation.at(z), given, weight);
                    losses[thread] += found.own;
                    dz = found.dz;
                    if (target_grad) target_grad[there] = stored<T>(found.direct);
                    if (x_grad) x_grad[there] = stored<T>(tensor ? 0.0f : found.direct);
                    if (by_entries) tile[r * kTileColumns + c] = found.direct;
                } else if (backward) {
                    const float slope = saved ? activation.slope_of(number(output[there])) : activation.at(z).slope;
                    dz = number(output_grad[there]) * slope;
                    if (x_grad) x_grad[there] = stored<T>(0.0f);
                } else {
                    output[there] = stored<T>(activation.at(z).y);
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
            b.sync();  // the gradients of a tile are there before entries gather them
            over_entries(b, t, model, row0, rows, feature0, columns, [&](int r, int column, int64_t e) {
                static_cast<T*>(p.value_grad)[model * p.value_grad_stride + e] =
                    stored<T>(by_entries ? tile[r * kTileColumns + column] : 0.0f);
            });
        }
        if (loss && t.loss_sums) {
            sum_of_block(b, losses, sums);
            b.each([&](int thread) {
                if (thread == 0) t.loss_sums[block] = sums[0];
            });
        }  // No barrier: thread 0 alone reads the sum, and writes the next one there.
        if (t.active) {  // at most 8,192 a block: exact
            sum_of_block(b, active, sums);
            b.each([&](int thread) {
                if (thread == 0) t.active[block] = (int32_t)sums[0];
            });
        }
    }

  private:
    // body(row of the tile, column, entry); entries out of their order or bounds are passed over: LargeEncodeEntries
    // makes their sample NaN.
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
        b.sync();  // the tile is there for those who read it next
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
