// A model of the small regime between the caller's arrays and shared memory, and the optimiser's step on it.
//
// Layout     parameter set 0: decoder rows with their biases (tied networks: the only one); set 1: encoder rows;
//            [n][row] each, as the sums of their gradients and their moments
// Owner      a block; parameter i belongs to thread i modulo the threads
// Sparse     (tied) where there is no connection the optimiser sees a gradient of 0, so that weight and moments stay 0
// Order      copies of a sum are added upwards, empty samples last
#pragma once
#include "common/optimizer_step.h"
#include "common/records.h"
#include "common/tensors.h"
#include "cuda/gram/shape.h"
#include "cuda/small/room.cuh"
#include "toykern/cuda.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// What training and evaluation have in common.
struct SmallTask {
    SmallShape shape;
    Network network;
    Distribution data;
    TablesLayout layout;
    const char* tables;
    int64_t tables_stride;
    int64_t n_models, batch_size;
    const int64_t* seed;
    const float* importance;
    int64_t importance_stride;
    const float *encoder, *decoder, *bias;
    bool rows_only;         // leave models alone whose batches are not drawn as rows
    GramChoice gram;        // which are the Gram form's
    double mean_factor;     // the loss is the sum over samples and features times this
    float gradient_factor;  // the gradient is the sum of what goes back times this
};

template <class Params>
SmallTask small_task(const Params& p, const Launch& launch) {
    return {small_shape(p.network),
            p.network,
            p.data,
            launch.layout,
            launch.tables,
            launch.tables_stride,
            p.n_models,
            p.batch_size,
            p.seed,
            p.importance,
            p.importance_stride,
            tensor_of(p, Role::kEncoder).data,
            tensor_of(p, Role::kDecoder).data,
            tensor_of(p, Role::kBias).data,
            launch.rows_only,
            (GramChoice)launch.gram,
            toykern::mean_factor(p.network, p.batch_size),
            toykern::gradient_factor(p.network, p.batch_size)};
}

// Parameters and importance into shared memory; everything else there that a step relies on. Behind the barrier all
// threads may read it, and exchange().workspace, which was set before.
TOYKERN_DEVICE_CALL void load_model(Block b, SmallRoom room, const SmallTask& task, int64_t model) {
    const SmallShape& s = room.s;
    const int64_t n = s.n, weights = n * s.m;
    b.each([&](int t) {
        for (int i = t; i < s.n * s.row; i += s.threads()) {
            const int j = room.row_of(i), k = i - j * s.row;
            float d = 0.0f, e = 0.0f;
            if (k < s.m) {
                e = task.encoder[model * weights + k * n + j];
                d = s.tied ? e : task.decoder[model * weights + j * s.m + k];
            } else if (k == s.m) {
                d = task.bias ? task.bias[model * n + j] : 0.0f;
            } else if (k == s.m + 1) {
                d = task.importance[model * task.importance_stride + j];
            }
            room.decoder()[i] = d;
            if (!s.tied) {
                room.encoder()[i] = e;
                room.encoder_sum()[i] = 0.0f;
            }
            for (int copy = 0; copy < s.sums; ++copy) room.decoder_sum()[copy * s.n * s.row + i] = 0.0f;
        }
        for (int i = t; i < s.hidden_rows * s.stride; i += s.threads())
            room.hidden()[i] = i >= s.m * s.stride && i < (s.m + 1) * s.stride ? 1.0f : 0.0f;
        for (int i = t; i < s.code_parts * s.code_rows * s.stride; i += s.threads()) room.code_gradient()[i] = 0.0f;
    });
    b.sync();
}

// Every parameter: its place in the rows of its set, in the caller's array, and which of the caller's tensors.
template <class F>
TOYKERN_DEVICE void each_parameter(const Block& b, const SmallRoom& room, int64_t model, const F& f) {
    const SmallShape& s = room.s;
    const int64_t n = s.n, weights = n * s.m;
    b.each([&](int t) {
        for (int i = t; i < s.n * s.row; i += s.threads()) {
            const int j = room.row_of(i), k = i - j * s.row;
            if (k > s.m) continue;
            if (k == s.m) {
                f(i, model * n + j, Role::kBias, 0);
                continue;
            }
            f(i, model * weights + k * n + j, Role::kEncoder, s.tied ? 0 : 1);
            if (!s.tied) f(i, model * weights + j * s.m + k, Role::kDecoder, 0);
        }
    });
}

// Absent moments are zeros. A moment is read and written by the thread that puts it there, whatever the step.
TOYKERN_DEVICE_CALL void load_moments(Block b, SmallRoom room, const TrainParams& p, int64_t model) {
    each_parameter(b, room, model, [&](int i, int64_t at, Role role, int set) {
        for (int moment = 0; moment < kMostStates; ++moment) {
            const float* from = tensor_of(p, role).state[moment];
            room.moments(moment, set)[i] = from ? from[at] : 0.0f;
        }
    });
    b.sync();  // for ptxas alone: see train_small.cuh
}

// Parameters and moments back to where they came from.
TOYKERN_DEVICE_CALL void store_model(Block b, SmallRoom room, const TrainParams& p, int64_t model) {
    each_parameter(b, room, model, [&](int i, int64_t at, Role role, int set) {
        const TensorView& to = tensor_of(p, role);
        if (to.data) to.data[at] = (set ? room.encoder() : room.decoder())[i];
        for (int moment = 0; moment < kMostStates; ++moment)
            if (float* state = to.state[moment]) state[at] = room.moments(moment, set)[i];
    });
}

// An empty sample: x = 0, h = f(0) = 0, y = g(b). Adds its loss at output j, and returns the gradient there.
template <class A>
TOYKERN_DEVICE float empty_output(const SmallRoom& room, const SmallOptions<A>& o, int j, float& loss) {
    const float* row = room.decoder() + j * room.s.row + room.s.m;  // bias, importance
    float slope;
    const float y = o.output.value(row[0], slope);
    return o.output.back(row[0], slope, o.loss.add_to(loss, y, row[1]));
}

// Of `count` empty samples: their loss.
template <class A>
TOYKERN_DEVICE void add_empty(const Block& b, const SmallRoom& room, const SmallOptions<A>& o, int64_t count,
                              PerThread<double>& loss) {
    if (count <= 0) return;
    b.each([&](int t) {
        float sum = 0.0f;
        for (int j = t; j < room.s.n; j += room.s.threads()) empty_output(room, o, j, sum);
        loss[t] += (double)sum * (double)count;
    });
}

// The sum of the threads' losses, the same for all. A barrier is behind it.
TOYKERN_DEVICE double total_loss(const Block& b, const SmallRoom& room, const PerThread<double>& loss) {
    SmallExchange& x = room.exchange();
    b.each_warp([&](const Warp& w) {
        Lane<double> sum;
        w.each([&](int lane) { sum[lane] = loss[32 * w.number + lane]; });
        sum = sum_of_lanes(w, sum);
        w.each([&](int lane) {
            if (lane == 0) x.loss[w.number] = sum[lane];
        });
    });
    b.sync();  // the warps' sums are there
    double total = 0.0;
    TOYKERN_NO_UNROLL
    for (int v = 0; v < room.s.warps; ++v) total += x.loss[v];
    b.sync();  // an evaluation's next batch, or the next model, may come to its own sums without another barrier
    return total;
}

TOYKERN_DEVICE void update_parameter(const SmallRoom& room, const UpdateConstants& c, float& w, float g, int set,
                                     int i) {
    float &s1 = room.moments(0, set)[i], &s2 = room.moments(1, set)[i];
    float first = s1, second = s2;
    w = updated(c, w, g, first, second);
    s1 = first;
    s2 = second;
}

// Records the loss of a step and updates the parameters by the sums of its gradients, with `empty` empty samples; makes
// the sums zero. False if the loss is not finite: the model is left as it was before the step.
template <class A>
TOYKERN_DEVICE_CALL bool finish_step(Block b, SmallRoom room, const TrainParams& p, const SmallTask& task,
                                     LossRecord& record, int64_t model, int64_t step, const double* step_scale,
                                     double loss, float empty) {
    if (!record.add(p, model, step, loss * task.mean_factor, b.thread == 0)) return false;
    const SmallShape& s = room.s;
    const SmallOptions<A> o(p.network);
    const int size = s.n * s.row;
    const UpdateConstants c = update_constants(p, model, step, step_scale + 3 * (step - p.first_step));
    const float scale = task.gradient_factor;
    b.each([&](int t) {
        for (int i = t; i < size; i += s.threads()) {
            const int j = room.row_of(i), k = i - j * s.row;
            if (k > s.m) continue;
            float g = 0.0f;
            for (int copy = 0; copy < s.sums; ++copy) {
                float& sum = room.decoder_sum()[copy * size + i];
                g += sum;
                sum = 0.0f;
            }
            if (k == s.m && !task.bias) continue;
            if (k == s.m && empty > 0.0f) {
                float unused = 0.0f;  // the loss has them already
                g = fused(empty_output(room, o, j, unused), empty, g);
            }
            g *= scale;
            if (p.connected && k < s.m) g = connected_gradient(p, step, (model * s.m + k) * (int64_t)s.n + j, g);
            const Role role = k == s.m ? Role::kBias : s.tied ? Role::kEncoder : Role::kDecoder;
            if (!tensor_of(p, role).frozen) update_parameter(room, c, room.decoder()[i], g, 0, i);
            if (s.tied || k == s.m) continue;
            const float encoder_g = room.encoder_sum()[i];
            room.encoder_sum()[i] = 0.0f;
            if (!tensor_of(p, Role::kEncoder).frozen)
                update_parameter(room, c, room.encoder()[i], encoder_g * scale, 1, i);
        }
    });
    b.sync();  // a batch without any active unit has no other barrier before its empty samples read all biases
    return true;
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
