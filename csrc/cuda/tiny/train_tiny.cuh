// The resident run of tiny models: half a warp to a model, weights, gradients and moments in registers.
//
//   tied networks (n_features, n_hidden) = (2,1), (3,1), (3,2), (4,2), (5,2), (6,2); any options
//
// Layout     every lane holds the weights and its own sums of the gradients; lane l holds the moments of parameters l
//            and l + 16. Parameters are numbered as [N][M] weights, then N biases. Shared memory of a warp: TinyRoom.
// Owner      a warp holds two models; they know nothing of each other
// Zeros      rare units: only samples that are not empty become columns; all empty samples share one closed-form term
// Order      a lane sums its samples in order; the lanes' sums are added from lane 0 to lane 15. What falls to which
//            lane depends on the model's own data alone, so neighbours, launches and devices of one compute capability
//            change no bit
// Limits     batches up to kTinyBatch (a lane's float sums run over at most 4,096 samples); models of single features,
//            all rare or all frequent, without noise. train_small.cuh takes the rest, models of the same launch too
// Roof       instruction issue; docs/gpu_trainer.md counts a step
#pragma once
#include "common/optimizer_step.h"
#include "common/records.h"
#include "common/tensors.h"
#include "cuda/tiny/frequent.cuh"
#include "cuda/tiny/pass.cuh"
#include "cuda/tiny/rare.cuh"
#include "toykern/cuda.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

template <int N, int M>
struct TinyShape {
    static constexpr int kParameters = N * M + N;
    static constexpr int kOwned = (kParameters + 1 + kHalf - 1) / kHalf;  // by a lane, the loss among them
    // A lane's row of sums: gradients and loss. An odd number of four-float groups keeps rows off one another's banks.
    static constexpr int kRow = ((kParameters + 1 + 3) / 4 | 1) * 4;
};

// Shared memory of a warp.
template <int N, int M>
struct TinyRoom {
    union {
        TinyRareRoom<N> sparse[2];
        TinyFrequentRoom<N> frequent[2];
        float sums[kWarpLanes][TinyShape<N, M>::kRow];
    };
    float parameter[2][TinyShape<N, M>::kRow];
    LossRecord record[2];    // the first lane of a half keeps it
    TinyProcess process[2];  // its features are those of the units that are drawn
    PhiloxRounds rounds[2];
};

// What training and evaluation have in common.
struct TinyTask {
    Network network;
    Distribution data;
    TablesLayout layout;
    const char* tables;
    int64_t tables_stride;
    int64_t n_models, batch_size;
    const int64_t* seed;
    const float* importance;
    int64_t importance_stride;
    const int64_t* order;  // [K] or null
    PassOptions options;
    double mean_factor;     // a batch's loss is its sum of losses times this
    float gradient_factor;  // its gradient is the sum of what goes back times this
};

template <class Params>
TinyTask tiny_task(const Params& p, const Launch& l, const int64_t* order) {
    return {p.network,
            p.data,
            l.layout,
            l.tables,
            l.tables_stride,
            p.n_models,
            p.batch_size,
            p.seed,
            p.importance,
            p.importance_stride,
            order,
            pass_options(p.network),
            toykern::mean_factor(p.network, p.batch_size),
            toykern::gradient_factor(p.network, p.batch_size)};
}

// How a model's batches are drawn. Those of other distributions are left alone: the small regime trains them.
enum class TinyDraw { kNone, kRare, kFrequent };

TOYKERN_DEVICE TinyDraw tiny_draw(const TinyTask& task, const UnitTables& head) {
    if (drawn_as_rows(task.layout, task.data.noise, head)) return TinyDraw::kNone;
    return head.n_frequent ? TinyDraw::kFrequent : TinyDraw::kRare;
}

// Sums over a model's lanes: those of the parameters that a lane owns, and the loss.
template <int N, int M>
struct Totals {
    float value[TinyShape<N, M>::kOwned];
};

// Two models in a warp.
template <int N, int M>
class TinyPair {
    using Shape = TinyShape<N, M>;

  public:
    TOYKERN_DEVICE TinyPair(const Warp& w, const TinyTask& task, TinyRoom<N, M>& room, uint32_t pair)
        : w_(w), task_(task), room_(room) {
        w.each([&](int lane) {
            const int64_t i = 2 * (int64_t)pair + lane / kHalf;
            alive_[lane] = i < task_.n_models;
            model_[lane] = alive_[lane] ? (uint32_t)(task_.order ? task_.order[i] : i) : 0u;
            tables_[lane] = TablesView{task_.tables + model(lane) * task_.tables_stride, &task_.layout};
            const UnitTables& head = tables_[lane].head();
            draw_[lane] = alive_[lane] ? tiny_draw(task_, head) : TinyDraw::kNone;
            alive_[lane] = draw_[lane] != TinyDraw::kNone;
            if (lane % kHalf == 0) {
                TinyProcess& process = room_.process[lane / kHalf];
                process = TinyProcess::of(tables_[lane]);
                if (draw_[lane] == TinyDraw::kFrequent)
                    process.features = pack_features(tables_[lane].frequent_feature(), head.n_frequent);
            }
            if (lane % kHalf < (int)kPhiloxRounds)
                room_.rounds[lane / kHalf].round[lane % kHalf] =
                    philox_key(task_.seed[model_[lane]]).of((uint32_t)lane % kHalf);
            TOYKERN_UNROLL
            for (int j = 0; j < N; ++j)
                weights_[lane].importance[j] = task_.importance[model(lane) * task_.importance_stride + j];
        });
    }

    TOYKERN_DEVICE int64_t model(int lane) const { return model_[lane]; }
    TOYKERN_DEVICE bool alive(int lane) const { return alive_[lane]; }
    TOYKERN_DEVICE void drop(int lane) {
        alive_[lane] = false;
        draw_[lane] = TinyDraw::kNone;
    }

    // Where parameter number i of the lane's model lies in the caller's arrays: weights [m][n], biases [n]; null where
    // there is none.
    TOYKERN_DEVICE float* at(int lane, int i, float* weights, float* biases) const {
        if (i < N * M) return weights ? weights + model(lane) * N * M + (i % M) * N + i / M : nullptr;
        return i < Shape::kParameters && biases ? biases + model(lane) * N + i - N * M : nullptr;
    }

    // Every lane's weights from the parameters that lie in shared memory.
    TOYKERN_DEVICE void read_weights() {
        w_.each([&](int lane) {
            const float* p = room_.parameter[lane / kHalf];
            TOYKERN_UNROLL
            for (int j = 0; j < N; ++j) {
                TOYKERN_UNROLL
                for (int k = 0; k < M; ++k) weights_[lane].w[j][k] = p[j * M + k];
                weights_[lane].b[j] = p[N * M + j];
            }
        });
    }
    TOYKERN_DEVICE float& parameter(int lane, int i) { return room_.parameter[lane / kHalf][i]; }

    // Draws a batch and adds up its loss and gradients, lane by lane, into shared memory.
    template <bool kGradient>
    TOYKERN_DEVICE void batch(uint32_t step, Purpose purpose) {
        Lane<TinySums<N, M>> sums;
        Lane<TinyKey> key;
        Lane<bool> sparse, frequent;
        w_.each([&](int lane) {
            sums[lane] = {};
            key[lane] = {{&room_.rounds[lane / kHalf]}, step, (uint32_t)purpose};
            sparse[lane] = draw_[lane] == TinyDraw::kRare;
            frequent[lane] = draw_[lane] == TinyDraw::kFrequent;
        });
        w_.sync();
        const auto pass = [&](int lane, bool valid, const float (&x)[N]) {
            tiny_pass<kGradient>(weights_[lane], task_.options, x, x, valid, sums[lane]);
        };
        const uint32_t batch_size = (uint32_t)task_.batch_size;
        if (w_.any(sparse)) {
            Lane<uint32_t> seen;
            Lane<TinyProcess> process;
            w_.each([&](int lane) { process[lane] = room_.process[lane / kHalf]; });
            tiny_rare_batch<N>(w_, room_.sparse, process, tables_, key, task_.data.magnitude, batch_size, sparse, seen,
                               pass);
            w_.each([&](int lane) {
                if (sparse[lane] && lane % kHalf == 0)
                    tiny_empty<kGradient>(weights_[lane], task_.options, (float)(batch_size - seen[lane]), sums[lane]);
            });
        }
        w_.sync();
        if (w_.any(frequent)) {
            Lane<PackedFeatures> features;
            w_.each([&](int lane) { features[lane] = room_.process[lane / kHalf].features; });
            tiny_frequent_batch<N>(w_, room_.frequent, tables_, features, key, task_.data.magnitude, batch_size,
                                   frequent, pass);
        }
        w_.sync();
        w_.each([&](int lane) {
            float* row = room_.sums[lane];
            TOYKERN_UNROLL
            for (int j = 0; kGradient && j < N; ++j) {
                TOYKERN_UNROLL
                for (int k = 0; k < M; ++k) row[j * M + k] = sums[lane].w[j][k];
                row[N * M + j] = sums[lane].b[j];
            }
            row[Shape::kParameters] = sums[lane].loss;
        });
        w_.sync();
    }

    // The sum over a model's lanes of what batch() left: the gradient of parameter i, or the loss at kParameters.
    TOYKERN_DEVICE float total(int lane, int i) const {
        float sum = 0.0f;
        TOYKERN_UNROLL
        for (int l = 0; l < kHalf; ++l) sum += room_.sums[lane / kHalf * kHalf + l][i];
        return sum;
    }

  private:
    const Warp& w_;
    const TinyTask& task_;
    TinyRoom<N, M>& room_;
    Lane<uint32_t> model_;  // of 64 bits there is no need: so many models fit no memory
    Lane<bool> alive_;
    Lane<TinyDraw> draw_;
    Lane<TablesView> tables_;
    Lane<TinyWeights<N, M>> weights_;
};

template <int N, int M>
TOYKERN_DEVICE void train_tiny_pair(const Warp& w, const TrainParams& p, const TinyTask& task, const double* step_scale,
                                    TinyRoom<N, M>& room, uint32_t number) {
    using Shape = TinyShape<N, M>;
    TinyPair<N, M> pair(w, task, room, number);
    struct Owned {
        float s1[Shape::kOwned], s2[Shape::kOwned];
    };
    Lane<Owned> owned;
    Lane<bool> running;
    // The last pair may have one model. Its other half goes along with what never changes of model 0; it must not read
    // what its owner writes.
    const TensorView &weights = tensor_of(p, Role::kEncoder), &biases = tensor_of(p, Role::kBias);
    const auto exists = [&](int lane) { return 2 * (int64_t)number + lane / kHalf < p.n_models; };
    w.each([&](int lane) {
        if (pair.alive(lane) && p.diverged_at[pair.model(lane)] >= 0) pair.drop(lane);
        running[lane] = pair.alive(lane);
        if (exists(lane) && lane % kHalf == 0) room.record[lane / kHalf] = LossRecord(p, pair.model(lane));
        TOYKERN_UNROLL
        for (int o = 0; o < Shape::kOwned; ++o) {
            const int i = o * kHalf + lane % kHalf;
            const auto load = [&](float* of_weights, float* of_biases) {
                const float* from = pair.at(lane, i, of_weights, of_biases);
                return exists(lane) && from && i < Shape::kParameters ? *from : 0.0f;
            };
            if (i < Shape::kRow)
                pair.parameter(lane, i) = load(weights.data, biases.data);  // past the last, which vectors reach, zeros
            owned[lane].s1[o] = load(weights.state[0], biases.state[0]);
            owned[lane].s2[o] = load(weights.state[1], biases.state[1]);
        }
    });
    w.sync();
    pair.read_weights();
    const int parameters = p.network.has_bias ? Shape::kParameters : N * M;
    for (uint32_t done = 0; done < (uint32_t)p.steps && w.any(running); ++done) {
        pair.template batch<true>((uint32_t)p.first_step + done, Purpose::kTraining);
        Lane<Totals<N, M>> totals;
        Lane<float> loss_sum;
        w.each([&](int lane) {
            TOYKERN_UNROLL
            for (int o = 0; o < Shape::kOwned; ++o) {
                const int i = o * kHalf + lane % kHalf;
                totals[lane].value[o] = i <= Shape::kParameters ? pair.total(lane, i) : 0.0f;
            }
            loss_sum[lane] = totals[lane].value[Shape::kParameters / kHalf];
        });
        loss_sum = w.broadcast(loss_sum, Shape::kParameters % kHalf, kHalf);
        w.each([&](int lane) {
            if (!running[lane]) return;
            const double loss = (double)loss_sum[lane] * task.mean_factor;
            const int64_t step = p.first_step + done;
            if (lane % kHalf == 0) room.record[lane / kHalf].add(p, pair.model(lane), step, loss, true);
            if (!(loss - loss == 0.0)) {  // has diverged: the weights stay what they are
                running[lane] = false;
                pair.drop(lane);
                return;
            }
            const UpdateConstants c = update_constants(p, pair.model(lane), step, step_scale + 3 * (int64_t)done);
            TOYKERN_UNROLL
            for (int o = 0; o < Shape::kOwned; ++o) {
                const int i = o * kHalf + lane % kHalf;
                if (i >= parameters || (i < N * M ? weights : biases).frozen) continue;
                const float g = totals[lane].value[o] * task.gradient_factor;
                float& parameter = pair.parameter(lane, i);
                parameter = updated(c, parameter, g, owned[lane].s1[o], owned[lane].s2[o]);
            }
        });
        w.sync();
        pair.read_weights();
    }
    w.each([&](int lane) {
        if (!exists(lane)) return;
        if (lane % kHalf == 0) room.record[lane / kHalf].close(p, pair.model(lane), true);
        TOYKERN_UNROLL
        for (int o = 0; o < Shape::kOwned; ++o) {
            const int i = o * kHalf + lane % kHalf;
            if (i >= Shape::kParameters) continue;
            const auto store = [&](float* of_weights, float* of_biases, float value) {
                if (float* to = pair.at(lane, i, of_weights, of_biases)) *to = value;
            };
            store(weights.data, biases.data, pair.parameter(lane, i));
            store(weights.state[0], biases.state[0], owned[lane].s1[o]);
            store(weights.state[1], biases.state[1], owned[lane].s2[o]);
        }
    });
}

template <int N, int M>
TOYKERN_DEVICE void evaluate_tiny_pair(const Warp& w, const EvaluateParams& p, const TinyTask& task,
                                       TinyRoom<N, M>& room, uint32_t number) {
    using Shape = TinyShape<N, M>;
    TinyPair<N, M> pair(w, task, room, number);
    Lane<double> sum;
    w.each([&](int lane) {
        sum[lane] = 0.0;
        for (int i = lane % kHalf; i < Shape::kRow; i += kHalf) {
            const float* from = pair.at(lane, i, tensor_of(p, Role::kEncoder).data, tensor_of(p, Role::kBias).data);
            pair.parameter(lane, i) = from ? *from : 0.0f;
        }
    });
    w.sync();
    pair.read_weights();
    for (int64_t step = 0; step < p.batches; ++step) {
        pair.template batch<false>((uint32_t)step, Purpose::kEvaluation);
        w.each([&](int lane) { sum[lane] += (double)pair.total(lane, Shape::kParameters); });
        w.sync();
    }
    w.each([&](int lane) {
        if (pair.alive(lane) && lane % kHalf == 0)
            p.loss[pair.model(lane)] = sum[lane] * task.mean_factor / (double)p.batches;
    });
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
