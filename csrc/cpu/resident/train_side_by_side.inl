// The resident run of several tiny models at once, a model to a lane: many steps of them together.
//
// Why        a step of one tiny model is latency: a logarithm, a running sum, a product across lanes, the optimiser's
//            square root and division, one after the other. Here each is made for all models, and none is across lanes
// Layout     weights, moments and gradients [length][kLanes]; arrivals and passes of rare_side_by_side.inl and
//            side_by_side_pass.inl
// Own bits   a model has those that the columns' loop gives it: it may be taken either way, alone or among others
// Shares     models of one run that stand together in the order of the queue, costliest first, so that lanes end alike.
//            Too few of them, and runs with a model that is not for lanes, go by the columns' loop one after another
// Owner      one worker
// Limits     models_side_by_side, side_by_side_arrivals, kSideBySideArrivals. A batch with more than kSideBySideRows
//            arrivals is done by the columns' loop, for its model alone
#pragma once
#include "common/records.h"
#include "cpu/resident/side_by_side_pass.inl"
#include "cpu/stream/rare_side_by_side.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// The most arrivals of a model, which are as many as the columns' loop takes in one run, and the most on average.
constexpr int kSideBySideRows = 512;
constexpr double kSideBySideArrivals = 480.0;

// UpdateConstants of kLanes models.
struct SideBySideConstants {
    Optimizer kind;
    bool nesterov, first, momentum;
    F lr, decay, l2;
    float mix1, beta2, mix2, inverse_bc2, eps;
    float mu, undamped;
};

// So many of kLanes models are needed for a step of all lanes to cost less than theirs one after another.
constexpr int kLeastSideBySide = kLanes == 16 ? 11 : kLanes == 8 ? 6 : 4;

// How many models of a run a thread should take together: its share of them, up to the lanes that there are.
inline int64_t models_side_by_side(const TrainParams& p) {
    const Distribution& d = p.data;
    if (!side_by_side_pass_for(p.network) || d.joint != (int32_t)Joint::kUnits || d.noise > 0.0f) return 1;
    const int64_t share = (p.n_models + p.threads - 1) / (p.threads > 0 ? p.threads : 1);
    return share < kLeastSideBySide ? 1 : share < kLanes ? share : kLanes;
}

class SideBySide {
  public:
    void carve(Workspace& w, const Network& net) {
        run_ = side_by_side_pass_for(net);
        if (!run_) return;
        n_ = net.n_features, m_ = net.n_hidden, length_ = n_ * m_ + n_;
        const size_t all = (size_t)length_ * kLanes;
        p_ = w.take<float>(all);
        s1_ = w.take<float>(all);
        s2_ = w.take<float>(all);
        g_ = w.take<float>(all);
        importance_ = w.take<float>((size_t)n_ * kLanes);
        rates_ = w.take<float>(3 * kLanes);
        room_ = w.take<F>(7 * (size_t)(length_ + n_));
        arrivals_.carve(w, n_, kSideBySideRows);
        pass_.n = (int)n_;
        pass_.weights = p_;
        pass_.bias = p_ + n_ * m_ * kLanes;
        pass_.importance = importance_;
        pass_.gradient = g_;
        pass_.room = room_;
        pass_.hidden_activation = net.hidden_activation;
        pass_.output_activation = net.output_activation;
        pass_.loss_function = {net.loss};
        pass_.target_bits = target_bits(net.target);
    }

    // Trains models of[0 … count - 1], count <= kLanes; false (and nothing done) if one of them is not for this loop.
    // `model` and `worker` are those of the columns' loop.
    bool train(const TrainParams& p, const int64_t* of, int count, ColumnsModel& model, ColumnsWorker& worker) {
        int lanes = 0;
        for (int i = 0; i < count; ++i) {
            if (p.diverged_at[of[i]] >= 0) continue;
            const StreamTables& tables = worker.tables_of(of[i]);
            if (worker.form(p.batch_size) != Form::kColumns || !side_by_side_arrivals(tables, p.batch_size))
                return false;
            arrivals_.set_lane(lanes, p.seed[of[i]], tables.rare, p.batch_size);
            if (tables.rare_rate * (double)p.batch_size > kSideBySideArrivals) return false;
            of_[lanes++] = of[i];
        }
        if (lanes < kLeastSideBySide) return false;
        for (int l = lanes; l < kLanes; ++l) arrivals_.set_lane(l, 0, rare_process(0, 0.0, true), 0);
        arrivals_.begin(p.data.magnitude, (uint32_t)Purpose::kTraining);
        const size_t all = (size_t)length_ * kLanes;
        for (size_t i = 0; i < all; ++i) p_[i] = s1_[i] = s2_[i] = 0.0f;
        for (size_t i = 0; i < (size_t)n_ * kLanes; ++i) importance_[i] = 0.0f;
        for (int l = 0; l < lanes; ++l) {
            model.load_model(model_arrays(p, of_[l]));
            into_lane(p_, model.p, l), into_lane(s1_, model.s1, l), into_lane(s2_, model.s2, l);
            for (int64_t j = 0; j < n_; ++j) importance_[j * kLanes + l] = model.importance[j];
        }
        LossRecord record[kLanes];
        for (int l = 0; l < lanes; ++l) record[l] = LossRecord(p, of_[l]);
        uint32_t alive = lanes == 32 ? ~0u : (1u << lanes) - 1u;
        const double factor = mean_factor(p.network, p.batch_size);
        const float scale = gradient_factor(p.network, p.batch_size);
        for (int64_t step = p.first_step; step < p.first_step + p.steps && alive; ++step) {
            double loss[kLanes];
            batch(p, (uint32_t)step, loss, model, worker);
            for (int l = 0; l < lanes; ++l) {
                if (!(alive >> l & 1u) || record[l].add(p, of_[l], step, loss[l] * factor, true)) continue;
                alive &= ~(1u << l);
                close(p, l, record[l], model);
            }
            update(p, lanes, step, scale);
        }
        for (int l = 0; l < lanes; ++l)
            if (alive >> l & 1u) close(p, l, record[l], model);
        return true;
    }

  private:
    void into_lane(float* to, const float* from, int lane) const {
        for (int64_t i = 0; i < length_; ++i) to[i * kLanes + lane] = from[i];
    }
    void out_of_lane(float* to, const float* from, int lane) const {
        for (int64_t i = 0; i < length_; ++i) to[i] = from[i * kLanes + lane];
    }
    void close(const TrainParams& p, int l, const LossRecord& record, ColumnsModel& model) const {
        record.close(p, of_[l], true);
        out_of_lane(model.p, p_, l), out_of_lane(model.s1, s1_, l), out_of_lane(model.s2, s2_, l);
        model.store_model(model_arrays(p, of_[l]));
    }

    // The sum of each model's losses and its gradients.
    void batch(const TrainParams& p, uint32_t step, double* loss, ColumnsModel& model, ColumnsWorker& worker) {
        const uint32_t more = arrivals_.draw(step);
        const uint32_t* columns = arrivals_.columns();
        float of_columns[kLanes], of_empty[kLanes];
        pass_.x = arrivals_.x();
        pass_.columns = load(columns);
        pass_.rows = 0;
        for (int l = 0; l < kLanes; ++l) pass_.rows = (int)columns[l] > pass_.rows ? (int)columns[l] : pass_.rows;
        run_(pass_);
        store(of_columns, pass_.loss);
        store(of_empty, empty(ubcast((uint32_t)p.batch_size) - load(columns)));
        for (int l = 0; l < kLanes; ++l) {
            const int64_t left = p.batch_size - columns[l];
            loss[l] = (double)of_columns[l] + (left ? (double)of_empty[l] * (double)left : 0.0);
        }
        for (uint32_t left = more; left; left &= left - 1) {
            const int l = __builtin_ctz(left);
            worker.set_up(of_[l], p.seed[of_[l]], p.batch_size);
            const StreamKey key = stream_key(p.seed[of_[l]], step, (uint32_t)Purpose::kTraining);
            out_of_lane(model.p, p_, l);
            for (int64_t j = 0; j < n_; ++j) model.importance_room[j] = importance_[j * kLanes + l];
            loss[l] = worker.accumulate(model, key, 0, p.batch_size, model.s1);
            into_lane(g_, model.s1, l);
        }
    }
    // All-zero samples, as empty_columns.
    F empty(U samples) {
        F lost[kLanes], slope;
        for (int q = 0; q < kLanes; ++q) lost[q] = fzero();
        const F times = to_float(samples);
        const M some = and_not(mask_first(kLanes), eq(samples, ubcast(0u)));
        const FloorActivation<F> output = FloorActivation<F>::of(pass_.output_activation, 0.0);
        for (int64_t j = 0; j < n_; ++j) {
            float* g = g_ + (n_ * m_ + j) * kLanes;
            const F b = load(pass_.bias + j * kLanes), y = output.value(b, slope);
            const F d =
                output.back(b, slope, pass_.loss_function.add_to(lost[j % kLanes], y, load(importance_ + j * kLanes)));
            store(g, fmadd(keep(some, d), times, load(g)));
        }
        return fsum_of(lost);
    }

    void update(const TrainParams& p, int lanes, int64_t step, float scale) {
        UpdateConstants one = step_constants(p, of_[0], step);
        for (int l = 0; l < kLanes; ++l) {
            if (l && l < lanes) one = step_constants(p, of_[l], step);
            rates_[l] = one.lr, rates_[kLanes + l] = one.decay, rates_[2 * kLanes + l] = one.l2;
        }
        const SideBySideConstants c = {one.kind,
                                       one.nesterov,
                                       one.first,
                                       one.momentum,
                                       load(rates_),
                                       load(rates_ + kLanes),
                                       load(rates_ + 2 * kLanes),
                                       one.mix1,
                                       one.beta2,
                                       one.mix2,
                                       one.inverse_bc2,
                                       one.eps,
                                       one.mu,
                                       one.undamped};
        const F k = bcast(scale);
        for (int32_t role = 0; role < kRoles; ++role) {
            if (!has_role(p.network, (Role)role) || p.tensors[role].frozen) continue;
            const TensorShape shape = tensor_shape(p.network, (Role)role);
            const int64_t from = shape.offset * kLanes, to = from + elements(shape) * kLanes;
            if (c.kind == Optimizer::kSGD)
                for (int64_t i = from; i < to; i += kLanes) {
                    F b = c.momentum && !c.first ? load(s1_ + i) : fzero();
                    const F w = sgd_step(c, load(p_ + i), load(g_ + i) * k, b);
                    if (c.momentum) store(s1_ + i, b);
                    store(p_ + i, w);
                }
            else
                for (int64_t i = from; i < to; i += kLanes) {
                    F a = load(s1_ + i), v = load(s2_ + i);
                    const F w = adam_step(c, load(p_ + i), load(g_ + i) * k, a, v);
                    store(s1_ + i, a), store(s2_ + i, v), store(p_ + i, w);
                }
        }
    }

    int64_t n_, m_, length_;
    int64_t of_[kLanes];
    float *p_, *s1_, *s2_, *g_;  // [length][kLanes]
    float* importance_;          // [n][kLanes]
    float* rates_;               // [3][kLanes]
    F* room_;
    SideBySideArrivals arrivals_;
    SideBySidePass pass_;
    SideBySidePassFunction run_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
