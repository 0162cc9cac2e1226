// The hidden codes between the products, for cuda/layer/large.cuh.
//
//   LargeCodes          a → h = f(a + c), top-k by a search for the k-th largest rank; Σ_k |h|; slopes where h does not
//                       tell them
//   LargeCodeGradient   dh → da = f′ (dh + l1 sign h), Σ_r da
//
// Owner      LargeCodes: a block to a sample; LargeCodeGradient: a block to 32 rows × 256 units, a thread to a unit
// Order      Σ_k: a thread's codes rising, then sum_of_block; Σ_r: by row within 32 rows, the blocks' sums are
//            LargeSums'
// Roof       device memory; top-k reads the codes, which the caches hold, 34 times; not measured on a GPU
#pragma once
#include "cuda/layer/tile.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

template <class T>
struct LargeCodes {
    static constexpr const char* kName = "layer_codes";
    static constexpr int kThreads = kLargeThreads;
    static constexpr int64_t kShared = (kLargeThreads + 64) * (int64_t)sizeof(float);

    TOYKERN_HD static int64_t blocks(const LayerTileParams& t) { return t.models * t.rows; }
    static TOYKERN_DEVICE void run(const Block& b, const LayerTileParams& t, int64_t block, char* shared) {
        const LayerParams& p = t.p;
        const int64_t m = p.n_hidden, model = t.first_model + block / t.rows;
        float* h = t.codes + block * m;
        float* slopes = array_at<float>(t.slopes, block * m);
        T* copy = array_at<T>(t.stored_codes, block * m);
        const float* c = t.code_bias ? t.code_bias + model * m : nullptr;
        uint32_t* counts = reinterpret_cast<uint32_t*>(shared);  // [threads]
        float* sums = reinterpret_cast<float*>(shared) + kLargeThreads;
        const auto hidden = hidden_of(p);
        b.each([&](int thread) {
            TOYKERN_NO_UNROLL
            for (int64_t k = thread; k < m; k += b.threads) {
                const Activated<float> a = hidden.at(c ? h[k] + c[k] : h[k]);
                h[k] = a.y;
                if (slopes) slopes[k] = a.slope;
            }
        });
        // No barrier: a thread's own codes are all that is read before those of count().
        if (p.hidden_activation == (int32_t)Activation::kTopK) keep_largest(b, h, m, p.top_k, counts);
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
    // Codes that are not among the top_k become −0, those that are and are −0 become 0. The lowest rank that stays is
    // found bit by bit from the top: it is the largest that at least top_k ranks reach. Of equal ones the first stay.
    static TOYKERN_DEVICE void keep_largest(const Block& b, float* h, int64_t m, int64_t top_k, uint32_t* counts) {
        const int64_t each = blocks_for(m, b.threads);  // neighbouring codes of a thread
        const auto count = [&](const auto& holds) {     // how many codes do, into counts[0]
            b.each([&](int thread) {
                uint32_t found = 0;
                for (int64_t k = thread; k < m; k += b.threads) found += holds(rank_of(h[k]));
                counts[thread] = found;
            });
            b.sync();  // every thread's count is there
            for (int half = b.threads / 2; half > 0; half /= 2) {
                b.each([&](int thread) {
                    if (thread < half) counts[thread] += counts[thread + half];
                });
                b.sync();  // and so is every pair's
            }
            const uint32_t total = counts[0];
            b.sync();  // all have the total before the next count begins
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
        b.sync();  // every thread's count is there for the first one
        b.each([&](int thread) {
            if (thread > 0) return;
            uint32_t before = above;
            for (int i = 0; i < b.threads; ++i) {
                const uint32_t own = counts[i];
                counts[i] = before;
                before += own;
            }
        });
        b.sync();  // its sums are there for all
        b.each([&](int thread) {
            uint32_t before = counts[thread];
            for (int64_t k = thread * each; k < min_of(m, (thread + 1) * each); ++k) {
                const uint32_t rank = rank_of(h[k]);
                const bool stays = rank > border || (rank == border && before++ < (uint64_t)top_k);
                h[k] = !stays ? float_of(0x80000000u) : h[k] == 0.0f ? 0.0f : h[k];
            }
        });
        b.sync();  // codes were put by the owners of neighbours, and are read by those of every so many
    }
};

template <class T>
struct LargeCodeGradient {
    static constexpr const char* kName = "layer_code_gradient";
    static constexpr int kThreads = kLargeThreads;
    static constexpr int64_t kShared = 0;

    TOYKERN_HD static int64_t blocks(const LayerTileParams& t) {
        return t.models * blocks_for(t.rows, kTileRows) * blocks_for(t.p.n_hidden, kTileColumns);
    }
    static TOYKERN_DEVICE void run(const Block& b, const LayerTileParams& t, int64_t block, char*) {
        const LayerParams& p = t.p;
        const int64_t m = p.n_hidden, row_blocks = blocks_for(t.rows, kTileRows);
        const LargeGrid at(block, row_blocks, blocks_for(m, kTileColumns));
        const int64_t model = t.first_model + at.model, first_row = at.row_block * kTileRows;
        const int rows = (int)min_of(kTileRows, t.rows - first_row);
        const float l1 = p.l1 ? array_at<float>(p.l1, model * p.l1_stride)[0] * (float)p.l1_scale : 0.0f;
        const auto hidden = hidden_of(p);
        const bool top = p.hidden_activation == (int32_t)Activation::kTopK;
        b.each([&](int thread) {
            const int64_t k = at.column_block * kTileColumns + thread;
            if (k >= m) return;
            float sum = 0.0f;
            for (int r = 0; r < rows; ++r) {
                const int64_t here = (at.model * t.rows + first_row + r) * m + k;
                const float h = t.codes[here];
                const bool dropped = top && word_of(h) == 0x80000000u;  // −0: see keep_largest
                const float slope = dropped ? 0.0f : t.slopes ? t.slopes[here] : hidden.slope_of(h);
                const float da = hidden.back(h, slope, fused(l1, sign_of(h), t.code_grad[here]));
                t.code_grad[here] = da;
                if (t.stored_code_grad) static_cast<T*>(t.stored_code_grad)[here] = stored<T>(da);
                sum += da;
            }
            if (t.column_sums) t.column_sums[(at.model * row_blocks + at.row_block) * m + k] = sum;
        });
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
