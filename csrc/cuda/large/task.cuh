// What the kernels of train_large.cuh are handed, and how a model's scratch memory is laid out.
//
// Layout     a slot a model, one after the other behind a header; models are taken in groups of as many as there are
//            slots:
//              encoder [n][mp], untied also decoder [n][mp], each with two moments (and its gradient where a batch is
//              longer than kChain) bias, moments, gradient, importance [np] what an empty sample's gradient is at the
//              outputs [np] the samples of one piece of the batch: x [P][np], d [P][np], h [P][mp], dh [P][mp], partial
//              sums [splits][P][mp]; where the activation is no floor (common/activation.h) also its pre-outputs z
//              [P][np], its codes' slopes [P][mp] of sparse models: active [P][nw] and by_feature [n][pw] (a bit an
//              entry), sample_of_row [P], row_of_sample [P], used [pw] (a bit a sample)
//            np, mp = n, m rounded up to whole vectors, the rest zeros; nw, pw = words of n, P bits. P, splits follow
//            from the shape.
// Modes      sparse: x is written where a bit of `active` is set and nowhere else; rows are the samples that are not
//            all zero. dense (with noise, or more than one entry in kDenseShare expected to be active): x is whole,
//            every sample is a row. With noise x is the noisy input, and d holds the targets until it is overwritten by
//            the gradient at the output.
#pragma once
#include "common/activation.h"
#include "common/loss.h"
#include "common/optimizer_step.h"
#include "common/records.h"
#include "common/tensors.h"
#include "cuda/regimes.h"
#include "cuda/stream/entries.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

TOYKERN_HD constexpr int64_t tiles(int64_t length, int64_t of) { return (length + of - 1) / of; }

constexpr int64_t kChain = 1024;  // samples whose gradients are summed in one run; longer batches add such sums
constexpr int64_t kSplit = 512;   // features whose share of a hidden unit is summed in one run
constexpr double kDenseShare =
    16.0;  // gathering a row of the encoder costs that many times a dense product's share of it
constexpr int64_t kPieceBytes = (int64_t)256 << 20;
constexpr uint64_t kHeaderBytes = 256;

struct alignas(16) Float4 {
    float v[4];
};

// Sizes and offsets into a slot: a function of network and batch size.
struct LargeSizes {
    int64_t n, m, np, mp, nw, pw;
    int64_t batch, piece, pieces, splits;
    bool tied, has_gradient;
    // Offsets in bytes. A tied network's decoder is where its encoder is.
    struct Tensor {
        uint64_t value, moment[kMostStates], gradient;
    };
    Tensor tensors[kRoles];  // by Role
    uint64_t importance, at_empty, x, d, h, dh, parts, z, slope;
    uint64_t active, by_feature, sample_of_row, row_of_sample, used, loss;
    uint64_t slot_bytes;

    TOYKERN_HD const Tensor& operator[](Role role) const { return tensors[(int32_t)role]; }
};

// What changes from step to step of one model, at the start of its slot.
struct LargeState {
    int32_t dense, rows;
    double loss;    // sum of the losses of outputs: of this step so far, or of all batches of an evaluation
    int64_t empty;  // all-zero samples of this step so far
};

inline LargeSizes large_sizes(const Network& net, int64_t batch) {
    const auto up = [](int64_t x, int64_t to) { return (x + to - 1) / to * to; };
    LargeSizes s = {};
    s.n = net.n_features, s.m = net.n_hidden;
    s.np = up(s.n, 8), s.mp = up(s.m, 4), s.nw = up(s.n, 32) / 32;
    s.batch = batch;
    s.splits = (s.n + kSplit - 1) / kSplit;
    s.tied = net.tied;
    s.has_gradient = batch > kChain;
    const int64_t z = is_floor(net.output_activation) ? 0 : s.np, slopes = is_floor(net.hidden_activation) ? 0 : s.mp;
    const int64_t row_bytes = 8 * s.np + 4 * s.mp * (2 + s.splits) + 4 * (z + slopes) + 4 * s.nw + s.n / 8 + 9;
    s.piece = up(batch, 32);
    if (s.piece * row_bytes > kPieceBytes) s.piece = kPieceBytes / row_bytes / 32 * 32;
    if (s.piece < 32) s.piece = 32;
    s.pieces = (batch + s.piece - 1) / s.piece;
    s.pw = s.piece / 32;

    uint64_t at = sizeof(LargeState);
    const auto take = [&](int64_t count, int64_t size) {
        at = (at + 255) / 256 * 256;
        const uint64_t here = at;
        at += (uint64_t)(count * size);
        return here;
    };
    for (int32_t role = 0; role < kRoles; ++role) {
        LargeSizes::Tensor& tensor = s.tensors[role];
        if ((Role)role == Role::kDecoder && s.tied) {
            tensor.value = s[Role::kEncoder].value;
            continue;
        }
        const int64_t length = (Role)role == Role::kBias ? s.np : s.n * s.mp;
        tensor.value = take(length, 4);
        for (uint64_t& moment : tensor.moment) moment = take(length, 4);
        tensor.gradient = take(s.has_gradient ? length : 0, 4);
    }
    s.importance = take(s.np, 4), s.at_empty = take(s.np, 4);
    s.x = take(s.piece * s.np, 4), s.d = take(s.piece * s.np, 4);
    s.h = take(s.piece * s.mp, 4), s.dh = take(s.piece * s.mp, 4);
    s.parts = take(s.splits > 1 ? s.splits * s.piece * s.mp : 0, 4);
    s.z = take(s.piece * z, 4), s.slope = take(s.piece * slopes, 4);
    s.active = take(s.piece * s.nw, 4), s.by_feature = take(s.n * s.pw, 4);
    s.sample_of_row = take(s.piece, 4), s.row_of_sample = take(s.piece, 4), s.used = take(s.pw, 4);
    s.loss = take((s.piece + 63) / 64 * ((s.np + 63) / 64), 8);
    s.slot_bytes = (at + 255) / 256 * 256;
    return s;
}

// What every kernel of the sequence is handed. Passed by value; `model` counts from 0 within the group.
struct LargeTask {
    TrainParams p;  // evaluation: what it has in common with training
    TablesLayout layout;
    const char* tables;
    int64_t tables_stride;
    const double* step_scale;
    char* workspace;
    LargeSizes size;
    int64_t first_model, models;  // the group
    int64_t first_step;           // of the stretch
    uint32_t purpose;
    bool back;              // a product over features: false the encoder's, true the decoder's backwards
    int64_t first, last;    // samples of the piece
    bool starts, finishes;  // the piece is the batch's first, its last
    double* mean_loss;      // evaluation: [K]
    int64_t batches;

    // ---- where things are ----
    TOYKERN_DEVICE int64_t& step() const { return *reinterpret_cast<int64_t*>(workspace); }
    TOYKERN_DEVICE LargeState& state(int64_t model) const { return *at<LargeState>(model, 0); }
    template <class T = float>
    TOYKERN_DEVICE T* at(int64_t model, uint64_t offset) const {
        return reinterpret_cast<T*>(workspace + kHeaderBytes + (uint64_t)model * size.slot_bytes + offset);
    }

    // ---- what holds for a model ----
    TOYKERN_DEVICE bool training() const { return purpose == (uint32_t)Purpose::kTraining; }
    TOYKERN_DEVICE bool skips(int64_t model) const { return training() && p.diverged_at[first_model + model] >= 0; }
    TOYKERN_DEVICE bool noisy() const { return p.data.noise > 0.0f; }
    TOYKERN_HD int64_t samples() const { return last - first; }
    // What the products' epilogues do: a floor. Other activations come after them, in kernels of their own; here they
    // are none.
    TOYKERN_DEVICE FloorActivation<float> hidden_floor() const { return floor_of(p.network.hidden_activation); }
    TOYKERN_DEVICE FloorActivation<float> output_floor() const { return floor_of(p.network.output_activation); }
    TOYKERN_DEVICE AnyActivation<float> hidden() const {
        return AnyActivation<float>::of(p.network.hidden_activation, p.network.hidden_option);
    }
    TOYKERN_DEVICE AnyActivation<float> output() const {
        return AnyActivation<float>::of(p.network.output_activation, p.network.output_option);
    }
    TOYKERN_DEVICE TablesView view(int64_t model) const {
        return {tables + (first_model + model) * tables_stride, &layout};
    }
    TOYKERN_DEVICE StepKey key(int64_t model) const {
        return {philox_key(p.seed[first_model + model]), (uint32_t)step(), purpose};
    }
    TOYKERN_DEVICE AnyLoss loss() const { return {p.network.loss}; }
    TOYKERN_DEVICE double mean_factor() const { return toykern::mean_factor(p.network, p.batch_size); }
    TOYKERN_DEVICE float gradient_factor() const { return toykern::gradient_factor(p.network, p.batch_size); }

  private:
    static TOYKERN_DEVICE FloorActivation<float> floor_of(int32_t activation) {
        return FloorActivation<float>::of(activation, 0.0);
    }
};

TOYKERN_DEVICE Float4 load4(const float* from) { return *reinterpret_cast<const Float4*>(from); }
TOYKERN_DEVICE void store4(float* to, const Float4& x) { *reinterpret_cast<Float4*>(to) = x; }

// A block's model and its number among those of the model.
struct BlockOf {
    int64_t model, part;
    TOYKERN_DEVICE BlockOf(int64_t block, int64_t parts) : model(block / parts), part(block % parts) {}
};

// The sum over a block's threads (a multiple of 32, at most 1024), the same in all: warps by butterflies, then in
// order. Shared: 32 doubles, which all threads may still be reading when it returns: a barrier must come before they
// are used for anything else.
TOYKERN_DEVICE double sum_of_threads(const Block& b, const PerThread<double>& v, char* shared) {
    double* of_warp = reinterpret_cast<double*>(shared);
    b.each_warp([&](const Warp& w) {
        Lane<double> lanes;
        w.each([&](int lane) { lanes[lane] = v[w.number * kWarpLanes + lane]; });
        lanes = sum_of_lanes(w, lanes);
        w.each([&](int lane) {
            if (lane == 0) of_warp[w.number] = lanes[lane];
        });
    });
    b.sync();  // every warp's sum is there
    double sum = 0.0;
    for (int i = 0; i < b.warps(); ++i) sum += of_warp[i];
    return sum;
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
