// The resident step for shapes whose weights do not fit one block's shared memory: a fixed sequence of kernels over all
// blocks of a device.
//
//   h = f(E x), y = g(D h + b), loss = Σ_j I_j (t_j − y_j)², gradients of E, D and b over the whole batch, update
//
//   draw       ClearLarge, DrawLarge, [NoiseLarge,] RowsLarge            cuda/large/draw.cuh
//   forward    GatherLarge or FeaturesLarge [and JoinLarge] [, CodesLarge], OutputLarge [, ResidualLarge]
//              cuda/large/samples.cuh
//   loss       LossLarge: record, or the mark of divergence
//   backward   FeaturesLarge [and JoinLarge] [, CodesLarge]
//   update     WeightsLarge                                              cuda/large/weights.cuh
//
// Layout     all models of a group side by side in each launch, a slot of scratch memory each (cuda/large/task.cuh);
//            groups and the pieces of a long batch one after the other. Nothing of a step's sequence depends on the
//            step: its number is read from memory, so that the same launches can be repeated
// Zeros      empty samples share one closed-form term; the first product and its gradient cost only the active entries
//            where these are few
// Owner      a block to a tile of an output; no float atomics, and no gradient in memory unless a batch is longer than
//            kChain
// Order      every element is one chain over samples (at most kChain), features (at most kSplit) or hidden units, or a
//            sum of such chains in order: a function of the shape and of the model's own data. Which tiles compute it,
//            and how many models share a launch, changes nothing, but for the loss, whose tile follows from the shape
// Limits     any shape; sums over hidden units are not cut. A diverged model keeps its slot and is skipped
// Roof       3 n m multiply-adds a row (5 where dense); see docs/gpu_trainer.md
// Twin       cpu/resident/train_tiles.inl, which also skips inactive outputs on the way back: here they are multiplied
//            as zeros
#pragma once
#include "cuda/large/draw.cuh"
#include "cuda/large/weights.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// Scratch for one group: of as many models as fit in kGroupBytes, at least one.
constexpr uint64_t kGroupBytes = (uint64_t)1 << 30;

inline int64_t large_group(const LargeSizes& s, uint64_t bytes, int64_t n_models) {
    const uint64_t fit = bytes < kHeaderBytes ? 0 : (bytes - kHeaderBytes) / s.slot_bytes;
    return fit < (uint64_t)n_models ? (int64_t)fit : n_models;
}
inline uint64_t large_bytes(const LargeSizes& s, int64_t n_models) {
    const int64_t fit = large_group(s, kGroupBytes, n_models);
    return kHeaderBytes + (uint64_t)(fit > 1 ? fit : 1) * s.slot_bytes;
}

inline LargeTask large_task(const TrainParams& p, const Launch& l) {
    LargeTask t = {};
    t.p = p;
    t.layout = l.layout;
    t.tables = l.tables;
    t.tables_stride = l.tables_stride;
    t.step_scale = l.step_scale;
    t.workspace = static_cast<char*>(l.workspace);
    t.size = large_sizes(p.network, p.batch_size);
    t.first_step = p.first_step;
    t.purpose = (uint32_t)Purpose::kTraining;
    return t;
}
inline LargeTask large_task(const EvaluateParams& p, const Launch& l) {
    TrainParams common = {};
    common.network = p.network;
    common.data = p.data;
    common.n_models = p.n_models, common.batch_size = p.batch_size;
    common.seed = p.seed;
    common.importance = p.importance, common.importance_stride = p.importance_stride;
    for (int32_t role = 0; role < kRoles; ++role) common.tensors[role] = p.tensors[role];
    common.steps = p.batches;
    LargeTask t = large_task(common, l);
    t.purpose = (uint32_t)Purpose::kEvaluation;
    t.mean_loss = p.loss;
    t.batches = p.batches;
    return t;
}

// The output's tile decides the order of its losses: the shape alone.
inline bool large_output_tile(const LargeSizes& s) {
    return tiles(s.piece, LargeTile::kRows) * tiles(s.np, LargeTile::kColumns) >= kBlocksEnough;
}

// The tile of a product with hidden units as columns: no bit depends on it.
enum class HiddenTile { kNarrow, kMiddle, kLarge };
inline HiddenTile hidden_tile(const LargeTask& t, int64_t rows, int64_t repeats) {
    if (t.size.mp <= 32) return HiddenTile::kNarrow;
    const int64_t blocks = tiles(rows, LargeTile::kRows) * tiles(t.size.mp, LargeTile::kColumns) * repeats * t.models;
    return blocks >= kBlocksEnough ? HiddenTile::kLarge : HiddenTile::kMiddle;
}

template <template <class> class Kernel, class Queue>
void queue_hidden(const LargeTask& t, HiddenTile tile, const Queue& queue) {
    switch (tile) {
        case HiddenTile::kNarrow: return queue.template put<Kernel<NarrowTile>>(t);
        case HiddenTile::kMiddle: return queue.template put<Kernel<MiddleTile>>(t);
        default: return queue.template put<Kernel<LargeTile>>(t);
    }
}

template <class Queue>
void queue_features(LargeTask t, bool back, const Queue& queue) {
    t.back = back;
    queue_hidden<FeaturesLarge>(t, hidden_tile(t, t.samples(), t.size.splits), queue);
    if (t.size.splits > 1) queue.template put<JoinLarge>(t);
    if (!is_floor(t.p.network.hidden_activation)) queue.template put<CodesLarge>(t);
}

template <class T, class Queue>
void queue_output(const LargeTask& t, const Queue& queue) {
    if (is_floor(t.p.network.output_activation)) {
        queue.template put<OutputLarge<T, true>>(t);
    } else {
        queue.template put<OutputLarge<T, false>>(t);
        queue.template put<ResidualLarge<T>>(t);
    }
    queue.template put<LossLarge<T>>(t);
}

// One step of a group; queue.put<Kernel>(task) runs Kernel::run in Kernel::blocks(task) blocks for each model.
template <class Queue>
void queue_large_step(LargeTask t, const Queue& queue) {
    const LargeSizes& s = t.size;
    for (int64_t piece = 0; piece < s.pieces; ++piece) {
        t.first = piece * s.piece;
        t.last = t.first + s.piece < s.batch ? t.first + s.piece : s.batch;
        t.starts = piece == 0, t.finishes = piece + 1 == s.pieces;
        queue.template put<ClearLarge>(t);
        queue.template put<DrawLarge>(t);
        if (t.p.data.noise > 0.0f) queue.template put<NoiseLarge>(t);
        queue.template put<RowsLarge>(t);
        queue.template put<GatherLarge>(t);
        queue_features(t, false, queue);
        large_output_tile(s) ? queue_output<LargeTile>(t, queue) : queue_output<MiddleTile>(t, queue);
        if (t.purpose == (uint32_t)Purpose::kEvaluation) continue;
        queue_features(t, true, queue);
        queue_hidden<WeightsLarge>(t, hidden_tile(t, s.n, s.tied ? 1 : 2), queue);
    }
}

// All of a call: groups of at most `group` models one after the other. queue.repeat(steps, step) runs step(queue) that
// many times.
template <class Queue>
void queue_large(LargeTask t, int64_t group, const Queue& queue) {
    for (t.first_model = 0; t.first_model < t.p.n_models; t.first_model += group) {
        t.models = t.p.n_models - t.first_model < group ? t.p.n_models - t.first_model : group;
        queue.template put<StartLarge>(t);
        queue.template put<LoadLarge>(t);
        queue.repeat(t.p.steps, [&](const auto& again) { queue_large_step(t, again); });
        if (t.purpose == (uint32_t)Purpose::kTraining) queue.template put<StoreLarge>(t);
    }
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
