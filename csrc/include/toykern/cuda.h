// The seam to the CUDA backend. Everything here exists in every build; where there are no CUDA kernels the calls raise
// a CudaError that says so.
//
// The parameter structs are those of params.h with device addresses; the stream's per-model tables are made on the host
// once a run (tables_layout, fill_tables) and copied over. Calls are asynchronous on the stream that they are given.
#pragma once
#include <string>
#include <vector>

#include "common/stream/unit_tables.h"
#include "toykern/cuda_devices.h"
#include "toykern/params.h"

namespace toykern {

// ---- the stream's tables, on the host ----

// Models 0 … n_models - 1 (or the one that serves all) of a distribution on the host into out [n_models][layout.bytes].
// Says whether any model has both rare and frequent units.
bool fill_tables(const Distribution& data, const TablesLayout& layout, int64_t n_models, char* out, int threads);

// ---- the resident trainer ----

// Where a call runs and what it needs there beside its parameters.
struct Launch {
    int device = 0;
    void* stream = nullptr;        // cudaStream_t
    TablesLayout layout;           // of `tables`
    const char* tables = nullptr;  // [K | 1][layout.bytes]
    int64_t tables_stride = 0;     // layout.bytes, or 0 when one model's tables serve all
    const double* step_scale =
        nullptr;  // [T][3] training: lr factor, lr factor / (1 - beta1^(step + 1)), 1 / sqrt(1 - beta2^(step + 1))
    bool mixed = false;                   // a model has rare and frequent units (as fill_tables says)
    bool rows_only = false;               // leave alone the models that the tiny regime trains: it does not train all
    int64_t shared_limit = kSharedLimit;  // of the device: cuda_shared_limit
    uint8_t gram = 0;  // of GramChoice: the models that the Gram form trains, which the small loop leaves alone
    int regime = -1;   // of DeviceRegime; -1: the one for the shape (tests force another)
    void* workspace = nullptr;  // of at least workspace_bytes(…), aligned to 256
    size_t workspace_bytes = 0;
};

// The [steps][3] array of Launch::step_scale, from the host's lr_factor of the parameters.
void step_scales(const TrainParams& params, double* out);

namespace cuda {

// The loop that trains this shape on devices with so much shared memory in a block.
const char* train_regime(const Network& network, int64_t batch_size, int64_t shared_limit);

size_t train_workspace(const TrainParams& params, const Launch& launch);  // bytes; reads the shapes alone
void train(const TrainParams& params, const Launch& launch);
size_t evaluate_workspace(const EvaluateParams& params, const Launch& launch);
void evaluate(const EvaluateParams& params, const Launch& launch);
void sample(const SampleParams& params, const Launch& launch);

}  // namespace cuda

// The device's own source run on the host, lanes in lock step (csrc/cuda/warp.h): for tests. `descending` runs lanes,
// warps and blocks from the last to the first.
namespace host {

void train(const TrainParams& params, const Launch& launch, bool descending);
void evaluate(const EvaluateParams& params, const Launch& launch, bool descending);
void sample(const SampleParams& params, const Launch& launch, bool descending);

}  // namespace host

}  // namespace toykern
