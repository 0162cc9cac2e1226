// The resident run of small tied models with linear codes and rare features by the Gram form: a block to a model.
//
//   G = W Wᵀ once a batch, y = g(G x + b), A = Σ x dᵀ (d the gradient at y), dW = (A + Aᵀ) W; the optimiser's step
//
// Layout     cuda/gram/shape.h; parameters, their sums and moments, and the list of entries as in the small loop
// Owner      a block of one warp goes through a model's steps alone
// Zeros      only samples that are not empty, and of them only their entries' rows of G and A; empty samples share one
//            closed-form term
// Order      cuda/gram/passes.cuh. A function of the shape and the model's own data: neighbours, launches, blocks and
//            devices of one compute capability change no bit
// Limits     tied, f = none, g = none or ReLU; gram_fits() by shape and batch, gram_takes() by a model's own data: the
//            small loop trains the rest, models of the same launch too, and evaluates all. The CPU's twin is
//            cpu/resident/gram.inl
// Roof       instruction issue; docs/gpu_trainer.md counts a step
#pragma once
#include "cuda/gram/passes.cuh"
#include "cuda/small/draw.cuh"
#include "cuda/small/model.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

struct GramTask {
    SmallTask task;
    GramShape shape;
};

inline GramTask gram_task(const TrainParams& p, const Launch& launch) {
    GramTask g = {small_task(p, launch), gram_shape(p.network)};
    g.task.shape = g.shape.small;
    return g;
}

// What called functions work on, and so lies in memory.
struct GramSource {
    int64_t model, step;
    SmallArrivals arrivals;
    int64_t visited;  // samples of the batch so far
    PerThread<double> loss;
    LossRecord record;
};

TOYKERN_DEVICE void gram_batch(const Block& b, const GramRoom& room, const SmallTask& task, GramSource& from) {
    const SmallOptions<FloorActivation<float>> options(task.network);
    SmallArrivals& arrivals = from.arrivals;
    b.each([&](int t) { from.loss[t] = 0.0; });
    arrivals.begin({philox_key(task.seed[from.model]), (uint32_t)from.step, (uint32_t)Purpose::kTraining});
    from.visited = 0;
    make_gram(b, room);
    b.sync();  // G is there, and the sums are cleared
    TOYKERN_NO_UNROLL
    while (!arrivals.done()) {
        arrivals.keep_last_column();
        fill_arrivals(arrivals);
        const int complete = arrivals.columns() - (arrivals.done() || arrivals.columns() == 0 ? 0 : 1);
        gram_columns(b, room, options, complete, from.loss);
        from.visited += complete;
        b.sync();  // the list has been read before it is filled again; at last, A is there for all
    }
    gram_gradient(b, room);
    add_empty(b, room, options, task.batch_size - from.visited, from.loss);
}

TOYKERN_DEVICE void train_gram_model(const Block& b, const TrainParams& p, const SmallTask& task,
                                     const double* step_scale, const GramRoom& room, int64_t model) {
    using A = FloorActivation<float>;
    const TablesView tables = {task.tables + model * task.tables_stride, &task.layout};
    if (p.diverged_at[model] >= 0 ||
        !gram_takes(task.gram, task.network, task.layout, task.data.noise, tables.head(), task.batch_size))
        return;
    GramSource source = {model, 0, SmallArrivals(b, room, tables, task.data, task.batch_size, true), 0, {}, {}};
    load_model(b, room, task, model);
    load_moments(b, room, p, model);
    source.record = LossRecord(p, model);
    for (source.step = p.first_step; source.step < p.first_step + p.steps; ++source.step) {
        gram_batch(b, room, task, source);
        const double loss = total_loss(b, room, source.loss);
        if (!finish_step<A>(b, room, p, task, source.record, source.model, source.step, step_scale, loss,
                            (float)(task.batch_size - source.visited)))
            break;
    }
    source.record.close(p, model, b.thread == 0);
    // No barrier: what store_model reads is written for the next model by the same threads, and all else was read before
    // total_loss.
    store_model(b, room, p, model);
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
