// Rows of a sparse matrix times a panel: out[s][r] = act(bias[r] + Σ_i value[i] · panel[index[i]][s]).
//
// The forward pass over rows, and the gradient of the input over columns (value, index: the same connections by
// column).
//
// Layout     panel [features][64 samples]; out as stored, a sample's rows side by side
// Owner      a row's 64 sums stay in registers over the whole row; 64 rows leave together, transposed
// Order      each sum runs over the row's connections in order, in kSlots interleaved chains (8 / vectors in hand) that
//            are added as a binary tree: it follows from the level, the row and the samples of the tile, nothing else
// Limits     none; a tile of few samples uses fewer vectors
// Roof       a connection costs one load and one multiply-add for each vector of samples, from L2 where the panel does
//            not fit L1
#pragma once
#include "cpu/sparse/pack.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kInFlight = 8;  // vectors summed side by side: the latency of the multiply-add, twice a cycle

// One row, kV vectors of samples from panel[.][0] on. Written to out[0 … kV · kN).
template <class A, int kV, bool kBySlot>
TOYKERN_INLINE void product_row(const int32_t* index, const A* value, const int32_t* slot, int64_t count,
                                const A* panel, A first, bool relu, A* out) {
    using V = typename Lane<A>::Vector;
    constexpr int kN = Lane<A>::kCount, kSlots = kInFlight / kV;
    V sum[kSlots][kV];
#pragma GCC unroll 8
    for (int k = 0; k < kSlots; ++k)
#pragma GCC unroll 8
        for (int v = 0; v < kV; ++v) sum[k][v] = bcast(k ? (A)0 : first);
    int64_t i = 0;
    for (; i + kSlots <= count; i += kSlots) {
#pragma GCC unroll 8
        for (int k = 0; k < kSlots; ++k) {
            const A* x = panel + (int64_t)index[i + k] * kPanelSamples;
            const V w = bcast(value[kBySlot ? slot[i + k] : i + k]);
#pragma GCC unroll 8
            for (int v = 0; v < kV; ++v) sum[k][v] = fmadd(w, load(x + v * kN), sum[k][v]);
        }
    }
    for (; i < count; ++i) {
        const A* x = panel + (int64_t)index[i] * kPanelSamples;
        const V w = bcast(value[kBySlot ? slot[i] : i]);
#pragma GCC unroll 8
        for (int v = 0; v < kV; ++v) sum[0][v] = fmadd(w, load(x + v * kN), sum[0][v]);
    }
#pragma GCC unroll 3
    for (int half = kSlots / 2; half; half /= 2)
#pragma GCC unroll 4
        for (int k = 0; k < half; ++k)
#pragma GCC unroll 8
            for (int v = 0; v < kV; ++v) sum[k][v] = sum[k][v] + sum[k + half][v];
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) store(out + v * kN, relu ? fmax(bcast((A)0), sum[0][v]) : sum[0][v]);
}

template <class T, int kV, bool kBySlot>
inline void product_rows(const SparseProduct& p, int64_t row0, int64_t row1) {
    using A = typename Stored<T>::Computed;
    constexpr int64_t kSamples = kV * Lane<A>::kCount;
    alignas(64) A rows[kRowsOut * kPanelSamples];
    const A* value = static_cast<const A*>(p.value);
    const bool past_caches = p.past_caches && p.out_stride * sizeof(T) % 64 == 0 && (uintptr_t)p.out % 64 == 0;
    const T* bias = static_cast<const T*>(p.bias);
    for (int64_t r0 = row0; r0 < row1; r0 += kRowsOut) {
        const int64_t count = row1 - r0 < kRowsOut ? row1 - r0 : kRowsOut;
        for (int64_t r = r0; r < r0 + count; ++r) {
            const int64_t start = p.start[r], length = p.start[r + 1] - start;
            const A first = bias ? Stored<T>::get(bias[r]) : (A)0;
            for (int64_t s = 0; s < p.samples; s += kSamples)
                product_row<A, kV, kBySlot>(
                    p.index + start, kBySlot ? value : value + start, kBySlot ? p.slot + start : nullptr, length,
                    static_cast<const A*>(p.panel) + s, first, p.relu, rows + (r - r0) * kPanelSamples + s);
        }
        unpack_rows<T>(rows, count, p.samples, static_cast<T*>(p.out) + r0, p.out_stride, past_caches);
    }
    if (past_caches) fence_streams();
}

template <class T, bool kBySlot>
inline void product_samples(const SparseProduct& p, int64_t row0, int64_t row1) {
    constexpr int kN = Lane<typename Stored<T>::Computed>::kCount;
    constexpr int kMost = kPanelSamples / kN < kInFlight ? kPanelSamples / kN : kInFlight;
    const int64_t vectors = (p.samples + kN - 1) / kN;
    if (vectors == 1)
        product_rows<T, 1, kBySlot>(p, row0, row1);
    else if (vectors == 2)
        product_rows<T, 2, kBySlot>(p, row0, row1);
    else if (vectors <= 4 || kMost == 4)
        product_rows<T, 4, kBySlot>(p, row0, row1);
    else
        product_rows<T, kMost, kBySlot>(p, row0, row1);
}

template <class T>
void sparse_product(const SparseProduct& p, int64_t row0, int64_t row1) {
    if constexpr (sizeof(T) == sizeof(typename Stored<T>::Computed))
        if (p.slot) {
            product_samples<T, true>(p, row0, row1);
            return;
        }
    product_samples<T, false>(p, row0, row1);
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
