// The gradient of the values at the connections alone: dvalue[i] = Σ_s dy[s][row[i]] · x[s][column[i]]. The CPU's twin
// is cpu/sparse/values_gradient.inl.
//
//   SlotsGradient          the sums over one share of the samples, a thread to four connections
//   SlotsGradientCombine   the shares added up, where there are several
//
// Layout     x [K | 1][B][in], dy [K][B][out]; shares [splits][K · C] in the type of the computation
// Owner      a block to 1,024 consecutive slots of a model and one share of the samples. Its samples' inputs are copied
//            to shared memory, some at a time; neighbouring slots mostly share a row, so their loads of dy mostly
//            coincide
// Order      a share's samples in order, one fused multiply-add after the other; then the shares in order. How many
//            there are follows from the shape (slots_splits)
// Limits     more inputs than fit 48 KiB are read from global memory instead
// Roof       a connection and sample costs a gathered load from shared memory (some three ways of bank conflict) and
//            one of dy
#pragma once
#include "cuda/sparse/stored.cuh"

namespace toykern {

// Shares of the samples: enough blocks for a large GPU from one model alone, none of fewer than 64 samples. By the
// shape of one model, so that a model has the same bits alone and among others.
constexpr int64_t kGradientSlotsOfBlock = 1024;
inline int64_t slots_splits(int64_t capacity, int64_t batch_size) {
    const int64_t blocks = pieces_of(capacity, kGradientSlotsOfBlock);
    const int64_t wanted = blocks > 0 ? pieces_of(256, blocks) : 1, samples = pieces_of(batch_size, 64);
    const int64_t most = samples < 32 ? samples : 32;
    return wanted < most ? wanted : most > 0 ? most : 1;
}

namespace TOYKERN_DEVICE_SPACE {

struct SlotsGradientTask {
    int64_t n_models, out_features, in_features, capacity, batch_size;
    const int64_t* row_start;
    const int32_t* column;
    const void *x, *dy;
    int64_t x_model_stride;
    void* shares;  // of the type of the computation, or null: one share, and dvalues is written
    void* dvalues;
    int64_t splits, split_samples;
    int64_t staged;  // samples in shared memory at a time; 0: none
};

template <class T>
struct SlotsGradient {
    static constexpr const char* kName = "sparse_slots_gradient";
    using A = typename Stored<T>::Computed;
    static constexpr int kThreads = 256, kEach = (int)(kGradientSlotsOfBlock / kThreads);
    static constexpr int64_t kStagedBytes = 48 * 1024;

    static TOYKERN_DEVICE void run(const Block& b, const SlotsGradientTask& t, int64_t block, char* shared) {
        const int64_t parts = (t.capacity + kGradientSlotsOfBlock - 1) / kGradientSlotsOfBlock;
        const int64_t split = block % t.splits, part = block / t.splits % parts, model = block / t.splits / parts;
        const int64_t* start = t.row_start + model * (t.out_features + 1);
        const int32_t* column = t.column + model * t.capacity;
        const T* x = static_cast<const T*>(t.x) + model * t.x_model_stride;
        const T* dy = static_cast<const T*>(t.dy) + model * t.batch_size * t.out_features;
        A* panel = reinterpret_cast<A*>(shared);  // [staged][in]
        const int64_t first = part * kGradientSlotsOfBlock, connections = start[t.out_features];

        PerThread<int> row[kEach], col[kEach];
        PerThread<A> sum[kEach];
        b.each([&](int thread) {
            TOYKERN_UNROLL
            for (int j = 0; j < kEach; ++j) {
                const int64_t i = first + j * kThreads + thread;
                sum[j][thread] = (A)0;
                row[j][thread] = -1;
                col[j][thread] = 0;
                if (i >= connections) continue;
                int64_t low = 0, high = t.out_features;  // start[low] <= i < start[high]
                while (high - low > 1) {
                    const int64_t middle = (low + high) / 2;
                    (start[middle] <= i ? low : high) = middle;
                }
                row[j][thread] = (int)low;
                col[j][thread] = column[i];
            }
        });
        const int64_t end = least(t.batch_size, (split + 1) * t.split_samples);
        const int64_t step = t.staged ? t.staged : t.split_samples;
        for (int64_t s0 = split * t.split_samples; s0 < end; s0 += step) {
            const int64_t samples = least(step, end - s0);
            if (t.staged) {
                const T* from = x + s0 * t.in_features;
                const int count = (int)(samples * t.in_features);
                b.each([&](int thread) {
                    for (int i = thread; i < count; i += kThreads) panel[i] = Stored<T>::get(from[i]);
                });
                b.sync();  // the panel is there for all
            }
            b.each([&](int thread) {
                for (int64_t s = 0; s < samples; ++s) {
                    const T* delta = dy + (s0 + s) * t.out_features;
                    const T* input = x + (s0 + s) * t.in_features;
                    TOYKERN_UNROLL
                    for (int j = 0; j < kEach; ++j) {
                        if (row[j][thread] < 0) continue;
                        const A in = t.staged ? panel[s * t.in_features + col[j][thread]]
                                              : Stored<T>::get(input[col[j][thread]]);
                        sum[j][thread] = fused(Stored<T>::get(delta[row[j][thread]]), in, sum[j][thread]);
                    }
                }
            });
            b.sync();  // the panel has been read before the next one comes
        }
        b.each([&](int thread) {
            TOYKERN_UNROLL
            for (int j = 0; j < kEach; ++j) {
                const int64_t i = first + j * kThreads + thread;
                if (i >= t.capacity) continue;
                const int64_t at = model * t.capacity + i;
                if (t.shares)
                    static_cast<A*>(t.shares)[split * t.n_models * t.capacity + at] = sum[j][thread];
                else
                    static_cast<T*>(t.dvalues)[at] = Stored<T>::put(sum[j][thread]);
            }
        });
    }
};

template <class T>
struct SlotsGradientCombine {
    static constexpr const char* kName = "sparse_slots_gradient_combine";
    using A = typename Stored<T>::Computed;
    static constexpr int kThreads = 256;

    static TOYKERN_DEVICE void run(const Block& b, const SlotsGradientTask& t, int64_t block, char*) {
        const int64_t slots = t.n_models * t.capacity;
        b.each([&](int thread) {
            const int64_t i = block * kThreads + thread;
            if (i >= slots) return;
            const A* share = static_cast<const A*>(t.shares) + i;
            A sum = share[0];
            for (int64_t k = 1; k < t.splits; ++k) sum = sum + share[k * slots];
            static_cast<T*>(t.dvalues)[i] = Stored<T>::put(sum);
        });
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
