// One instruction-set level's sparse kernels, by stored type.
#pragma once
#include "cpu/sparse/pack.inl"
#include "cpu/sparse/product.inl"
#include "cpu/sparse/values_gradient.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

template <class T>
constexpr SparseKernels sparse_kernels_of() {
    return {sizeof(T),
            sizeof(typename Stored<T>::Computed),
            sparse_pack<T>,
            sparse_product<T>,
            sparse_values_gradient<T>,
            sparse_widen<T>,
            sparse_narrow<T>,
            sparse_within,
            sparse_gather<T>};
}

// In the order of Scalar.
inline const SparseKernels* sparse_kernels() {
    static constexpr SparseKernels table[3] = {sparse_kernels_of<float>(), sparse_kernels_of<BFloat16>(),
                                               sparse_kernels_of<double>()};
    return table;
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
