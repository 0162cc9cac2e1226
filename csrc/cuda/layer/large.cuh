// The autoencoder layer for large models: what happens between the matrix products, tile by tile (tk's Python plans the
// tiles and calls torch's products). Per kernel, with r a sample, j a feature of the tile, k a hidden unit:
//
//   LargeOutput          z → y; or loss sums, dz, Σ_r dz, and what goes straight to x or a target, in one pass over the
//                        tile
//   LargeCodes           a → h = f(a + c), top-k by a search for the k-th largest rank; Σ_k |h|
//   LargeCodeGradient    dh → da = f′ (dh + l1 sign h), Σ_r da
//   LargeEncodeEntries   a += Σ over the sample's entries in the tile, value · Eᵀ[j]
//   LargeEncoderEntries  dE[k][j] (+)= Σ over the feature's entries, value · da[r][k]
//   LargeValueGradient   dvalue += Σ_k da[r][k] Eᵀ[j][k]
//   LargeActiveCodes     dh += Σ_j dz D[j] over outputs that have a gradient
//   LargeActiveDecoder   dD[j] (+)= Σ_r dz h[r] over outputs that have a gradient
//
// Order      each file says its own; sums of blocks of rows are LargeSums', in order: bits follow from shapes and data
//            alone
// Limits     float and bfloat16; any size
#pragma once
#include "cuda/layer/active.cuh"
#include "cuda/layer/codes.cuh"
#include "cuda/layer/entries.cuh"
#include "cuda/layer/output.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// LayerSums, a thread to an element; or, `whole`, a block to a model.
struct LargeSums {
    static constexpr const char* kName = "layer_sums";
    static constexpr int kThreads = kLargeThreads;
    static constexpr int64_t kShared = kLargeThreads * (int64_t)sizeof(double);
    TOYKERN_HD static int64_t blocks(const LayerSums& s) {
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
        b.sync();  // every thread's sum is there
        for (int half = b.threads / 2; half > 0; half /= 2) {
            b.each([&](int thread) {
                if (thread < half) sums[thread] += sums[thread + half];
            });
            b.sync();  // and so is every pair's
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
