// Launching the large regime: train_large.cuh.
#include "cuda/large/train_large.cuh"

#include "cuda/launch.h"

namespace toykern {

using namespace device_side;

namespace {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kResident) large(const __grid_constant__ LargeTask t) {
    extern __shared__ __align__(16) char shared[];
    Kernel::run(Block{(int)threadIdx.x, Kernel::kThreads}, t, (int64_t)blockIdx.x, shared);
}

// A step's launches recorded once, to be repeated without the cost of each.
class RecordedStep {
  public:
    // record(stream) launches on a stream of our own: the default stream cannot be recorded.
    template <class Record>
    explicit RecordedStep(const Record& record) {
        try {
            check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
            check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "recording a step");
            record(stream_);
            check_cuda(cudaStreamEndCapture(stream_, &graph_), "recording a step");
            // By this name CUDA 11 has it with the same arguments as later versions.
            check_cuda(cudaGraphInstantiateWithFlags(&step_, graph_, 0), "preparing the recorded step");
        } catch (...) {
            release();
            throw;
        }
    }
    ~RecordedStep() { release(); }  // a step under way ends first
    RecordedStep(const RecordedStep&) = delete;
    RecordedStep& operator=(const RecordedStep&) = delete;

    void launch(cudaStream_t stream) const { check_cuda(cudaGraphLaunch(step_, stream), "launching a recorded step"); }

  private:
    void release() {
        cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
        if (stream_) cudaStreamIsCapturing(stream_, &status);
        if (status != cudaStreamCaptureStatusNone) cudaStreamEndCapture(stream_, &graph_);
        if (step_) cudaGraphExecDestroy(step_);
        if (graph_) cudaGraphDestroy(graph_);
        if (stream_) cudaStreamDestroy(stream_);
    }

    cudaStream_t stream_ = nullptr;
    cudaGraph_t graph_ = nullptr;
    cudaGraphExec_t step_ = nullptr;
};

struct DeviceQueue {
    cudaStream_t stream;

    template <class Kernel>
    void put(const LargeTask& t) const {
        LaunchShape shape;
        shape.grid = Kernel::blocks(t) * t.models;
        shape.block = Kernel::kThreads;
        shape.shared_bytes = Kernel::kShared;
        launch(Kernel::kName, large<Kernel>, shape, stream, t);
    }
    template <class Step>
    void repeat(int64_t times, const Step& step) const {
        if (times == 0) return;
        const RecordedStep recorded([&](cudaStream_t recording) { step(DeviceQueue{recording}); });
        for (int64_t i = 0; i < times; ++i) recorded.launch(stream);
    }
};

void run(const LargeTask& task, const Launch& l) {
    const DeviceGuard guard(l.device);
    const int64_t group = large_group(task.size, l.workspace_bytes, task.p.n_models);
    if (group < 1 && task.p.n_models > 0)
        throw CudaOutOfMemory("one model of this shape and batch size needs " +
                              std::to_string(large_bytes(task.size, 1)) + " bytes of workspace, not " +
                              std::to_string(l.workspace_bytes));
    queue_large(task, group, DeviceQueue{static_cast<cudaStream_t>(l.stream)});
}

}  // namespace

namespace cuda {

void train_large(const TrainParams& p, const Launch& l) { run(large_task(p, l), l); }
void evaluate_large(const EvaluateParams& p, const Launch& l) { run(large_task(p, l), l); }

}  // namespace cuda
}  // namespace toykern
