// In the place of sparse_linear.cu in a build without CUDA kernels.
#include "toykern/sparse_device.h"

namespace toykern {
namespace cuda {

void sparse_scatter(const SparseDense&, const SparseLaunch&) { throw CudaNotBuilt(); }
void sparse_gather(const SparseDense&, const SparseLaunch&) { throw CudaNotBuilt(); }
void sparse_group_inputs(const SparseGroups&, const SparseLaunch&) { throw CudaNotBuilt(); }
void sparse_group_inputs_gradient(const SparseGroups&, const SparseLaunch&) { throw CudaNotBuilt(); }
void sparse_slots_forward(const SparseLinearParams&, const SparseLaunch&) { throw CudaNotBuilt(); }
void sparse_slots_input_gradient(const SparseLinearParams&, const SparseLaunch&) { throw CudaNotBuilt(); }
void sparse_slots_values_gradient(const SparseLinearParams&, const SparseLaunch&) { throw CudaNotBuilt(); }

}  // namespace cuda
}  // namespace toykern
