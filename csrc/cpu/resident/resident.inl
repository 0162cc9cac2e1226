// The resident run: many steps of one model without leaving the worker (or the team of workers) that holds it.
//
// The batch is cut into parts, a number that follows from the shape and the form; each part's gradient is summed by one worker
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
// `work`: multiply-adds of a batch, about.
inline int parts_of(double work) { return work < 2e6 ? 1 : work < 16e6 ? 2 : work < 64e6 ? 4 : work < 512e6 ? 8 : 16; }

// The most that a model of the network has.
template <class Model>
int batch_parts(const Network& net, int64_t batch_size) {
    if (net.loss == (int32_t)Loss::kBatchCrossEntropy) return 1;  // which looks at the batch twice, as a whole
    const int64_t widest = net.n_features > net.n_outputs ? net.n_features : net.n_outputs;
    const double work = 3.0 * (double)batch_size * (double)widest * (double)net.n_hidden;
    const int64_t parts = parts_of(work);
    const int64_t least = Model::least_samples(net);
    const int64_t most = (batch_size + least - 1) / least;
    return (int)(parts < most ? parts : most);
}

// Those of the model in hand: a batch of the Gram form is shorter.
template <class Model>
int parts_in_hand(const Model&, int most, int64_t) {
    return most;
}
inline int parts_in_hand(const TilesModel& model, int most, int64_t batch_size) {
    if (model.by_connection) {
        const double work = 3.0 * (double)batch_size * ((double)model.connections.count + 8.0 * (double)model.n);
        const int wanted = parts_of(work);
        return wanted < most ? wanted : most;
    }
    if (!model.gram) return most;
    const int wanted = parts_of(8.0 * (double)batch_size * (double)model.n);
    return wanted < most ? wanted : most;
}

// What a sparse model's form follows from, and whether a step's gradient is wanted at all places.
template <class Model>
void count_connections(Model&, const uint8_t*) {}
inline void count_connections(TilesModel& model, const uint8_t* connected) { model.count(connected); }
template <class Model>
void want_whole_gradient(Model&, bool) {}
inline void want_whole_gradient(TilesModel& model, bool wanted) { model.whole_gradient = wanted; }

template <class Worker>
Form form_of(const Worker& worker, int64_t batch_size, int64_t) {
    return worker.form(batch_size);
}
inline Form form_of(const TilesWorker& worker, int64_t batch_size, int64_t connections) {
    return worker.form_of(batch_size, connections);
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
    template <class Params, class Worker>
    int64_t open(const Params& p, int64_t i, Worker& worker) {
        const FiniteData& finite = p.finite;
        const int64_t samples = finite.rows && finite.full && finite.samples ? finite.samples[i] : p.batch_size;
        worker.choose(model, samples);
        parts = parts_in_hand(model, batch_parts<Model>(p.network, samples), samples);
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

// A model's stretch, with a worker that is set up for it.
template <class Model, class Worker>
void train_one(const TrainParams& p, int64_t i, Shared<Model>& shared, Worker& worker, const Team& team) {
    const int64_t weights = p.network.n_features * p.network.n_hidden;
    ModelArrays arrays = model_arrays(p, i);
    arrays.connected = p.connected ? p.connected + i * weights : nullptr;
    for (int32_t role = 0; role < kRoles; ++role)
        shared.model.frozen.of[role] = p.tensors[role].frozen;  // every rank has a model of its own in that

    count_connections(shared.model, arrays.connected);
    const int64_t batch_size = shared.open(p, i, worker);
    shared.model.attach(arrays);
    if (team.rank == 0) shared.model.load_model(arrays);
    team.meet();
    shared.model.prepare(team);
    const double factor = mean_factor(p.network, batch_size);
    const float gradient = gradient_factor(p.network, batch_size);
    LossRecord record(p, i);
    for (int64_t step = p.first_step; step < p.first_step + p.steps; ++step) {
        const StreamKey key = stream_key(p.seed[i], (uint32_t)step, (uint32_t)Purpose::kTraining);
        const bool last = step + 1 == p.first_step + p.steps;
        want_whole_gradient(shared.model, last && p.gradient);
        const double loss = shared.batch(worker, key, batch_size, team) * factor;
        if (!record.add(p, i, step, loss, team.rank == 0)) break;  // every rank sees the same sum and leaves
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
    const int64_t batch_size = shared.open(p, i, worker);
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

// Calls train(i) for the models of a queue that have not diverged.
template <class Train>
void each_to_train(const TrainParams& p, const Queue& queue, const Train& train) {
    for (int64_t at; (at = queue.next()) >= 0;) {
        const int64_t i = p.order ? p.order[at] : at;
        if (p.diverged_at[i] < 0) train(i);
    }
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
    static Form form(const Network& net, const Distribution& data, int64_t batch_size, int64_t model,
                     int64_t connections, void* worker_memory) {
        Workspace w(worker_memory);
        Worker worker;
        worker.carve(w, net, data, FiniteData{});
        worker.set_up(model, 0, batch_size);
        return form_of(worker, batch_size, connections);
    }
    static void train(const TrainParams& p, void* shared_memory, void* worker_memory, const Team& team,
                      const Queue& queue) {
        Workspace sw(shared_memory), ww(worker_memory);
        Shared<Model> shared;
        Worker worker;
        shared.carve(sw, p.network, p.batch_size);
        worker.carve(ww, p.network, p.data, p.finite);
        each_to_train(p, queue, [&](int64_t i) {
            worker.set_up(i, p.seed[i], p.batch_size);
            train_one(p, i, shared, worker, team);
        });
    }
    static void evaluate(const EvaluateParams& p, void* shared_memory, void* worker_memory, const Queue& queue) {
        Workspace sw(shared_memory), ww(worker_memory);
        Shared<Model> shared;
        Worker worker;
        shared.carve(sw, p.network, p.batch_size);
        worker.carve(ww, p.network, p.data, p.finite);
        for (int64_t i; (i = queue.next()) >= 0;) {
            worker.set_up(i, p.seed[i], p.batch_size);
            evaluate_one(p, i, shared, worker);
        }
    }
};

// Networks of few hidden units on a stream: a model takes columns or tiles, as its form is. Of the smallest that take
// columns, as many as there are lanes are taken together (train_side_by_side.inl).
struct ColumnsRegime {
    struct Loops {
        Shared<ColumnsModel> columns_shared;
        Shared<TilesModel> tiles_shared;
        ColumnsWorker columns;
        TilesWorker tiles;
        SideBySide side_by_side;

        void carve_shared(Workspace& w, const Network& net, int64_t batch_size) {
            columns_shared.carve(w, net, batch_size);
            tiles_shared.carve(w, net, batch_size);
        }
        void carve_workers(Workspace& w, const Network& net, const Distribution& data) {
            columns.carve(w, net, data, FiniteData{});
            tiles.carve(w, net, data, FiniteData{});
            side_by_side.carve(w, net);
        }
        // Calls take(shared, worker) with the loop that model i takes, set up for it.
        template <class Params, class Take>
        void with_model(const Params& p, int64_t i, const Take& take) {
            columns.set_up(i, p.seed[i], p.batch_size);
            if (columns.form(p.batch_size) == Form::kColumns) return take(columns_shared, columns);
            tiles.set_up(i, p.seed[i], p.batch_size);
            take(tiles_shared, tiles);
        }
    };

    static TrainRegime table() {
        return {"columns", batch_parts<ColumnsModel>, form, together, shared_bytes, worker_bytes, train, evaluate};
    }
    static int64_t together(const TrainParams& p) {
        return batch_parts<ColumnsModel>(p.network, p.batch_size) == 1 ? models_side_by_side(p) : 1;
    }
    static size_t shared_bytes(const Network& net, int64_t batch_size) {
        Workspace w;
        Loops().carve_shared(w, net, batch_size);
        return w.bytes();
    }
    static size_t worker_bytes(const Network& net, const Distribution& data, const FiniteData&) {
        Workspace w;
        Loops().carve_workers(w, net, data);
        return w.bytes();
    }
    static Form form(const Network& net, const Distribution& data, int64_t batch_size, int64_t model,
                     int64_t connections, void* worker_memory) {
        using Columns = Regime<ColumnsModel, ColumnsWorker>;
        if (Columns::form(net, data, batch_size, model, -1, worker_memory) == Form::kColumns) return Form::kColumns;
        return Regime<TilesModel, TilesWorker>::form(net, data, batch_size, model, connections, worker_memory);
    }
    static void train(const TrainParams& p, void* shared_memory, void* worker_memory, const Team& team,
                      const Queue& queue) {
        Workspace sw(shared_memory), ww(worker_memory);
        Loops loops;
        loops.carve_shared(sw, p.network, p.batch_size);
        loops.carve_workers(ww, p.network, p.data);
        const auto train_alone = [&](int64_t i) {
            loops.with_model(p, i, [&](auto& shared, auto& worker) { train_one(p, i, shared, worker, team); });
        };
        if (p.together == 1) return each_to_train(p, queue, train_alone);
        for (int64_t run; (run = queue.next()) >= 0;) {
            const int64_t first = run * p.together, left = p.n_models - first;
            const int count = (int)(left < p.together ? left : p.together);
            int64_t of[kLanes];
            for (int i = 0; i < count; ++i) of[i] = p.order ? p.order[first + i] : first + i;
            if (loops.side_by_side.train(p, of, count, loops.columns_shared.model, loops.columns)) continue;
            for (int i = 0; i < count; ++i)
                if (p.diverged_at[of[i]] < 0) train_alone(of[i]);
        }
    }
    static void evaluate(const EvaluateParams& p, void* shared_memory, void* worker_memory, const Queue& queue) {
        Workspace sw(shared_memory), ww(worker_memory);
        Loops loops;
        loops.carve_shared(sw, p.network, p.batch_size);
        loops.carve_workers(ww, p.network, p.data);
        for (int64_t i; (i = queue.next()) >= 0;)
            loops.with_model(p, i, [&](auto& shared, auto& worker) { evaluate_one(p, i, shared, worker); });
    }
};

using TilesRegime = Regime<TilesModel, TilesWorker>;
using GeneralRegime = Regime<GeneralModel, GeneralWorker>;

// The one place where the loop is picked. `plain`: of data, loss and optimiser the run asks for nothing that the general
// loop alone has (no l1, and plain_update of common/optimizer_step.h).
inline TrainRegime pick_regime(const Network& net, bool finite, bool plain) {
    if (!plain || !is_autoencoder(net)) return GeneralRegime::table("general");
    if (!finite && columns_fit(net)) return ColumnsRegime::table();
    return TilesRegime::table("tiles");
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
