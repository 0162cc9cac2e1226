// The layer's device source run on the host, for the tests: blocks one after the other, each with shared memory of
// exactly the size it asks for, in which nothing is a number at first.
#include <cstring>
#include <memory>

#include "cuda/layer/large.cuh"
#include "cuda/layer/stacked.cuh"

namespace toykern {

using namespace host_side;

namespace {

template <class Body>
void over_blocks(int64_t blocks, int64_t shared_bytes, const Body& body) {
    for (int64_t i = 0; i < blocks; ++i) {
        const size_t words = (size_t)(shared_bytes + 7) / 8;
        const std::unique_ptr<double[]> shared(new double[words]);
        std::memset(shared.get(), 0xFF, 8 * words);
        body(host_descending() ? blocks - 1 - i : i, reinterpret_cast<char*>(shared.get()));
    }
}

template <class T>
void run_stacked(const StackedTask& t) {
    over_blocks(t.l.models * t.s.slices, 4 * (int64_t)t.s.floats,
                [&](int64_t block, char* shared) { Stacked<T>(t, block, shared).run(Block{0, t.s.threads}); });
    if (t.s.slices == 1 || t.p.task == (int32_t)LayerTask::kForward) return;
    for (int64_t i = 0; i < t.l.models * t.s.partial; ++i) add_stacked_slices<T>(t, i);
}

}  // namespace

int64_t stacked_partial_floats(const LayerParams& p) {
    const StackedShape s = stacked_shape(p);
    return s.slices > 1 && p.task != (int32_t)LayerTask::kForward ? s.slices * s.partial : 0;
}

bool layer_is_stacked(int64_t n, int64_t m, bool tied, bool given, bool direct, int32_t hidden_activation,
                      int64_t shared_limit) {
    return stacked_fits(n, m, tied, given, direct, hidden_activation, shared_limit);
}

namespace host {

void layer_stacked(const LayerParams& p, const LayerLaunch& l, bool descending) {
    const HostOrder order(descending);
    const StackedTask task = {p, l, stacked_shape(p)};
    l.bf16 ? run_stacked<Bf16>(task) : run_stacked<float>(task);
}

void layer_tile(const LayerTileParams& t, int kernel, bool descending) {
    const HostOrder order(descending);
    with_layer_kernel(t.bf16, kernel, [&](auto chosen) {
        using Kernel = decltype(chosen);
        over_blocks(Kernel::blocks(t), Kernel::kShared,
                    [&](int64_t block, char* shared) { Kernel::run(Block{0, Kernel::kThreads}, t, block, shared); });
    });
}

void layer_sums(const LayerSums& s, bool descending) {
    const HostOrder order(descending);
    over_blocks(LargeSums::blocks(s), LargeSums::kShared,
                [&](int64_t block, char* shared) { LargeSums::run(Block{0, LargeSums::kThreads}, s, block, shared); });
}

}  // namespace host
}  // namespace toykern
