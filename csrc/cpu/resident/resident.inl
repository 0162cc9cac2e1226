// The resident run: many steps of one model without leaving the worker (or the team of workers) that holds it.
//
// The batch is cut into parts, a number that follows from the shape alone; each part's gradient is summed by one worker
// and the parts are added in order. A team of one does all parts itself: the same bits whoever does what.
#pragma once
#include "common/records.h"
#include "cpu/resident/train_columns.inl"
#include "cpu/resident/train_general.inl"
#include "cpu/resident/train_side_by_side.inl"
#include "cpu/resident/train_tiles.inl"
#include "toykern/api.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// Parts of a batch: enough that cores can share a large model, one where a step is shorter than a meeting of threads.
template <class Model>
int batch_parts(const Network& net, int64_t batch_size) {
    if (net.loss == (int32_t)Loss::kBatchCrossEntropy) return 1;  // which looks at the batch twice, as a whole
    const int64_t widest = net.n_features > net.n_outputs ? net.n_features : net.n_outputs;
    const double work = 3.0 * (double)batch_size * (double)widest * (double)net.n_hidden;
    int64_t parts = work < 2e6 ? 1 : work < 16e6 ? 2 : work < 64e6 ? 4 : work < 512e6 ? 8 : 16;
    const int64_t least = Model::least_samples(net);
    const int64_t most = (batch_size + least - 1) / least;
    return (int)(parts < most ? parts : most);
}

inline int64_t part_start(int64_t batch_size, int parts, int part) {
    const int64_t blocks = (batch_size + 31) / 32, at = part * blocks / parts * 32;
    return at < batch_size ? at : batch_size;
}

// What a team shares.
template <class Model>
struct Shared {
    Model model;
    float* gradients;  // [parts][stride]
    double* loss;      // [parts]
    int64_t stride;
    int parts;

    // Room for batches of up to `batch_size` samples.
    void carve(Workspace& w, const Network& net, int64_t batch_size) {
        model.carve(w, net);
        parts = batch_parts<Model>(net, batch_size);
        stride = (model.gradient_length() + 63) / 16 * 16;
        gradients = w.take<float>((size_t)(stride * parts));
        loss = w.take<double>((size_t)parts);
    }

    // The samples of a model's batch, which is cut into parts of its own. Of a finite dataset that a step sees as a
    // whole they are the rows that the model has.
    template <class Params>
    int64_t open(const Params& p, int64_t i) {
        const FiniteData& finite = p.finite;
        const int64_t samples = finite.rows && finite.full && finite.samples ? finite.samples[i] : p.batch_size;
        parts = batch_parts<Model>(p.network, samples);
        return samples;
    }

    // Sum of the losses of one batch, after the team has met.
    template <class Worker>
    double batch(Worker& worker, const StreamKey& key, int64_t batch_size, const Team& team) {
        for (int part = team.rank; part < parts; part += team.size)
            loss[part] = worker.accumulate(model, key, part_start(batch_size, parts, part),
                                           part_start(batch_size, parts, part + 1), gradients + part * stride);
        team.meet();
        double sum = 0.0;
        for (int part = 0; part < parts; ++part) sum += loss[part];
        return sum;
    }
};

template <class Model, class Worker>
void train_one(const TrainParams& p, int64_t i, Shared<Model>& shared, Worker& worker, const Team& team) {
    if (p.diverged_at[i] >= 0) return;
    const int64_t weights = p.network.n_features * p.network.n_hidden;
    ModelArrays arrays = model_arrays(p, i);
    arrays.connected = p.connected ? p.connected + i * weights : nullptr;
    for (int32_t role = 0; role < kRoles; ++role)
        shared.model.frozen.of[role] = p.tensors[role].frozen;  // every rank has a model of its own in that

    const int64_t batch_size = shared.open(p, i);
    worker.set_up(i, p.seed[i], p.batch_size);
    worker.choose(shared.model, batch_size);
    shared.model.attach(arrays);
    if (team.rank == 0) shared.model.load_model(arrays);
    team.meet();
    shared.model.prepare(team);
    const double factor = mean_factor(p.network, batch_size);
    const float gradient = gradient_factor(p.network, batch_size);
    LossRecord record(p, i);
    for (int64_t step = p.first_step; step < p.first_step + p.steps; ++step) {
        const StreamKey key = stream_key(p.seed[i], (uint32_t)step, (uint32_t)Purpose::kTraining);
        const double loss = shared.batch(worker, key, batch_size, team) * factor;
        if (!record.add(p, i, step, loss, team.rank == 0)) break;  // every rank sees the same sum and leaves
        const bool last = step + 1 == p.first_step + p.steps;
        shared.model.update(p, i, step, gradient, shared.gradients, shared.stride, shared.parts, team,
                            last && p.gradient ? p.gradient + i * weights : nullptr);
        team.meet();
        if (!last) shared.model.prepare(team);
    }
    if (team.rank == 0) {
        record.close(p, i, true);
        shared.model.store_model(arrays);
    }
    team.meet();
}

template <class Model, class Worker>
void evaluate_one(const EvaluateParams& p, int64_t i, Shared<Model>& shared, Worker& worker) {
    const int64_t batch_size = shared.open(p, i);
    worker.set_up(i, p.seed[i], p.batch_size);
    worker.choose(shared.model, batch_size);
    const ModelArrays arrays = model_arrays(p, i);
    shared.model.attach(arrays);
    shared.model.load_model(arrays);
    shared.model.prepare(Team());
    double sum = 0.0;
    for (int64_t step = 0; step < p.batches; ++step) {
        if (p.stop.now()) return;
        sum += shared.batch(worker, stream_key(p.seed[i], (uint32_t)step, (uint32_t)Purpose::kEvaluation), batch_size,
                            Team());
    }
    p.loss[i] = sum * mean_factor(p.network, batch_size) / (double)p.batches;
}

template <class Model, class Worker>
struct Regime {
    static TrainRegime table(const char* name) {
        return {name, batch_parts<Model>, form, together, shared_bytes, worker_bytes, train, evaluate};
    }
    static int64_t together(const TrainParams&) { return 1; }
    static size_t shared_bytes(const Network& net, int64_t batch_size) {
        Workspace w;
        Shared<Model> shared;
        shared.carve(w, net, batch_size);
        return w.bytes();
    }
    static size_t worker_bytes(const Network& net, const Distribution& data, const FiniteData& finite) {
        Workspace w;
        Worker worker;
        worker.carve(w, net, data, finite);
        return w.bytes();
    }
    static const char* form(const Network& net, const Distribution& data, int64_t batch_size, int64_t model,
                            void* worker_memory) {
        Workspace w(worker_memory);
        Worker worker;
        worker.carve(w, net, data, FiniteData{});
        worker.set_up(model, 0, batch_size);
        return worker.form(batch_size);
    }
    static void train(const TrainParams& p, void* shared_memory, void* worker_memory, const Team& team,
                      const Queue& queue) {
        Workspace sw(shared_memory), ww(worker_memory);
        Shared<Model> shared;
        Worker worker;
        shared.carve(sw, p.network, p.batch_size);
        worker.carve(ww, p.network, p.data, p.finite);
        for (int64_t i; (i = queue.next()) >= 0;) train_one(p, p.order ? p.order[i] : i, shared, worker, team);
    }
    static void evaluate(const EvaluateParams& p, void* shared_memory, void* worker_memory, const Queue& queue) {
        Workspace sw(shared_memory), ww(worker_memory);
        Shared<Model> shared;
        Worker worker;
        shared.carve(sw, p.network, p.batch_size);
        worker.carve(ww, p.network, p.data, p.finite);
        for (int64_t i; (i = queue.next()) >= 0;) evaluate_one(p, i, shared, worker);
    }
};

// Of the smallest models, as many as there are lanes are taken together (train_side_by_side.inl).
struct ColumnsRegime : Regime<ColumnsModel, ColumnsWorker> {
    using Alone = Regime<ColumnsModel, ColumnsWorker>;
    static TrainRegime table(const char* name) {
        TrainRegime regime = Alone::table(name);
        regime.together = together;
        regime.worker_bytes = worker_bytes;
        regime.train = train;
        return regime;
    }
    static int64_t together(const TrainParams& p) {
        return batch_parts<ColumnsModel>(p.network, p.batch_size) == 1 ? models_side_by_side(p) : 1;
    }
    static size_t worker_bytes(const Network& net, const Distribution& data, const FiniteData& finite) {
        Workspace w;
        ColumnsWorker worker;
        SideBySide side_by_side;
        worker.carve(w, net, data, finite);
        side_by_side.carve(w, net);
        return w.bytes();
    }
    static void train(const TrainParams& p, void* shared_memory, void* worker_memory, const Team& team,
                      const Queue& queue) {
        if (p.together == 1) return Alone::train(p, shared_memory, worker_memory, team, queue);
        Workspace sw(shared_memory), ww(worker_memory);
        Shared<ColumnsModel> shared;
        ColumnsWorker worker;
        SideBySide side_by_side;
        shared.carve(sw, p.network, p.batch_size);
        worker.carve(ww, p.network, p.data, p.finite);
        side_by_side.carve(ww, p.network);
        for (int64_t run; (run = queue.next()) >= 0;) {
            const int64_t first = run * p.together, left = p.n_models - first;
            const int count = (int)(left < p.together ? left : p.together);
            int64_t of[kLanes];
            for (int i = 0; i < count; ++i) of[i] = p.order ? p.order[first + i] : first + i;
            if (side_by_side.train(p, of, count, shared.model, worker)) continue;
            for (int i = 0; i < count; ++i) train_one(p, of[i], shared, worker, team);
        }
    }
};
using TilesRegime = Regime<TilesModel, TilesWorker>;
using GeneralRegime = Regime<GeneralModel, GeneralWorker>;

// The one place where the loop is picked. `plain`: of data, loss and optimiser the run asks for nothing that the general
// loop alone has (no l1, and plain_update of common/optimizer_step.h).
inline TrainRegime pick_regime(const Network& net, bool finite, bool plain) {
    if (!plain || !is_autoencoder(net)) return GeneralRegime::table("general");
    if (!finite && columns_fit(net)) return ColumnsRegime::table("columns");
    return TilesRegime::table("tiles");
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
