// In the place of layer.cu in a build without CUDA kernels.
#include "toykern/layer_cuda.h"

namespace toykern {
namespace cuda {

void layer_stacked(const LayerParams&, const LayerLaunch&) { throw CudaNotBuilt(); }
void layer_tile(const LayerTileParams&, int, int, void*) { throw CudaNotBuilt(); }
void layer_sums(const LayerSums&, int, void*) { throw CudaNotBuilt(); }

}  // namespace cuda
}  // namespace toykern
