// What the kernels are told, checked where it comes in: that their loops end and stay within the sizes they are given,
// whatever Python says by mistake. Whether an address leads to memory of that size is for Python to know
// (toykern/native/address.py).
//
// Cheap: no array of a model is read. ValueError says what is wrong.
#pragma once
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/activation.h"
#include "common/optimizer_step.h"
#include "common/tensors.h"
#include "toykern/params.h"

namespace toykern {

constexpr int64_t kMostFeatures = (int64_t)1 << 24, kMostSamples = ((int64_t)1 << 31) - 1,
                  kMostSteps = ((int64_t)1 << 32) - 1;
// A table of names beside an enum has one for each of its numbers, from 0.
template <class Names>
constexpr int64_t last_number(const Names& names) {
    return (int64_t)(sizeof(names) / sizeof(*names)) - 1;
}
constexpr int64_t kMostElements = (int64_t)1 << 60;  // of any one array

[[noreturn]] inline void refuse(const char* name, int64_t value, const std::string& allowed) {
    throw std::invalid_argument(std::string(name) + " must be " + allowed + ", not " + std::to_string(value));
}
inline void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
        refuse(name, value, "from " + std::to_string(least) + " to " + std::to_string(most));
}
inline void check_stride(const char* name, int64_t value, int64_t row) {
    if (value != 0 && value != row) refuse(name, value, "0 or " + std::to_string(row));
}
inline void check_address(const char* name, const void* address, bool wanted = true) {
    if ((address != nullptr) != wanted)
        throw std::invalid_argument(std::string(name) + (wanted ? " must have an address" : " must have none"));
}
// The number of elements of an array of these lengths, each at least 1, is one that can be counted with.
template <class... Lengths>
void check_elements(const char* name, Lengths... lengths) {
    int64_t product = 1;
    for (const int64_t length : {(int64_t)lengths...}) {
        if (length < 1 || length > kMostElements / product)
            refuse(name, length, "at least 1, and all lengths together at most 2^60");
        product *= length;
    }
}

// `on_host`: its arrays are host memory, else device memory that cannot be looked into.
inline void check(const Distribution& d, bool on_host) {
    check_range("n_features", d.n_features, 1, kMostFeatures);
    check_range("n_units", d.n_units, 1, d.n_features);
    check_stride("probability_stride", d.probability_stride, d.n_features);
    check_range("magnitude", d.magnitude, 0, last_number(kMagnitudeNames));
    if (!(std::isfinite(d.noise) && d.noise >= 0.0f))
        throw std::invalid_argument("noise must be finite and at least 0");
    check_address("unit_start", d.unit_start);
    check_address("unit_member", d.unit_member);
    check_address("unit_kind", d.unit_kind);
    check_range("joint", d.joint, 0, last_number(kJointNames));
    const Joint joint = (Joint)d.joint;
    if (!on_host) {
        if (joint != Joint::kUnits) refuse("joint", d.joint, "0 on a device, whose kernels know units alone");
        return;
    }
    if (joint != Joint::kUnits) check_range("n_units", d.n_units, d.n_features, d.n_features);
    if (joint == Joint::kSubset) check_range("n_active", d.n_active, 1, d.n_features);
    if (joint == Joint::kHierarchy) {
        check_address("parent", d.parent);
        check_address("order", d.order);
        for (int64_t j = 0; j < d.n_features; ++j) {
            check_range("parent", d.parent[j], 0, d.n_features);
            check_range("order", d.order[j], 0, d.n_features - 1);
        }
    }
    if (joint == Joint::kCopula) {
        check_range("n_factors", d.n_factors, 0, kMostFeatures);
        check_address("loading", d.loading, d.n_factors > 0);
        check_address("loading_end", d.loading_end);
        check_address("threshold", d.threshold);
        for (int64_t j = 0; j < d.n_features; ++j) check_range("loading_end", d.loading_end[j], 0, d.n_factors);
    }
    check_address("probability", d.probability);
    if (d.unit_start[0] != 0 || d.unit_start[d.n_units] != d.n_features)
        refuse("unit_start", d.unit_start[d.n_units], "from 0 to n_features = " + std::to_string(d.n_features));
}

// A finite dataset, whose arrays are host memory. Entries and numbers of samples are looked at, the only arrays of this
// file that grow with the data: kernels write where a feature says.
inline void check(const FiniteData& f, int64_t n_models, int64_t batch_size, int64_t n_features, int64_t n_outputs,
                  bool on_host) {
    if (f.rows == 0) return;
    if (!on_host) refuse("the dataset's rows", f.rows, "0 on a device, whose kernels draw streams alone");
    check_range("the dataset's rows", f.rows, 1, kMostSamples);
    const int64_t held = f.per_model ? n_models : 1;
    check_elements("the dataset's models, rows and n_features", held, f.rows, n_features);
    if (f.full) check_range("batch_size", batch_size, f.rows, f.rows);
    for (int64_t i = 0; f.samples && i < n_models; ++i) check_range("samples", f.samples[i], 1, f.rows);
    if (f.target && f.label) throw std::invalid_argument("a dataset has targets or labels, not both");
    for (int64_t r = 0; f.label && r < (f.label_per_model ? n_models : 1) * f.rows; ++r)
        check_range("label", f.label[r], 0, n_outputs - 1);
    check_address("row_start", f.row_start, f.input == nullptr);
    if (f.input) return;
    check_range("row_start", f.row_start[0], 0, 0);
    check_address("feature", f.feature, f.feature != nullptr || f.row_start[held * f.rows] > 0);
    check_address("value", f.value, f.value != nullptr || f.row_start[held * f.rows] > 0);
    for (int64_t r = 0; r < held * f.rows; ++r) {
        check_range("row_start", f.row_start[r + 1] - f.row_start[r], 0, n_features);
        for (int64_t e = f.row_start[r]; e < f.row_start[r + 1]; ++e)
            check_range("feature", f.feature[e], 0, n_features - 1);
    }
}

// What an activation takes beside its argument. LeakyRelu's slope is told by its output, so it must not turn it about.
inline void check_option(const char* name, int32_t activation, double option) {
    if (activation == (int32_t)Activation::kLeakyRelu && !(std::isfinite(option) && option >= 0.0))
        throw std::invalid_argument(std::string(name) + " must have a finite option of at least 0");
}

inline void check_activation(const char* name, int32_t activation, double option) {
    check_range(name, activation, 0, last_number(kActivationNames));
    check_option(name, activation, option);
}

inline void check(const Network& net, const Distribution& d, int64_t n_models, int64_t batch_size) {
    check_range("the network's n_features", net.n_features, d.n_features, d.n_features);
    check_elements("n_models, n_hidden, n_features", n_models, net.n_hidden, net.n_features);
    check_range("batch_size", batch_size, 1, kMostSamples);
    check_activation("the network's hidden_activation", net.hidden_activation, net.hidden_option);
    check_activation("the network's output_activation", net.output_activation, net.output_option);
    if (is_rowwise(net.output_activation))
        refuse("the network's output_activation", net.output_activation, "one that is elementwise");
    if (net.hidden_activation == (int32_t)Activation::kTopK &&
        !(net.hidden_option >= 1.0 && net.hidden_option <= (double)net.n_hidden))
        throw std::invalid_argument("the network's hidden_option must be from 1 to n_hidden with top-k");
    check_range("the network's loss", net.loss, 0, last_number(kLossNames));
    if (!is_elementwise(net.loss) && net.output_activation != (int32_t)Activation::kNone)
        refuse("the network's output_activation", net.output_activation, "0 with a cross-entropy");
    check_range("the network's target", net.target, 0, last_number(kTargetNames));
    if (net.target == (int32_t)Target::kTensor) refuse("the network's target", net.target, "one that training knows");
    check_range("the network's reduction", net.reduction, 0, last_number(kReductionNames));
    check_range("the network's n_embedding", net.n_embedding, 0, kMostFeatures);
    check_elements("n_models, n_hidden, n_outputs", n_models, net.n_hidden, net.n_outputs);
    check_elements("n_models, n_outputs, n_features", n_models, net.n_outputs, net.n_features);
    const int64_t in = encoder_columns(net), out = decoder_rows(net);
    check_elements("n_models, n_hidden, n_embedding", n_models, net.n_hidden, in);
    if (net.unembedded && net.n_embedding == 0) throw std::invalid_argument("an unembedding needs an embedding");
    if (net.tied || net.residual) check_range("what the decoder gives", out, in, in);
    if (net.centered) {
        if (net.unembedded || !net.has_bias)
            throw std::invalid_argument("a centered network has a bias and no unembedding");
        check_range("the network's n_outputs", net.n_outputs, in, in);
    }
    if (net.sparse && !is_autoencoder(net)) throw std::invalid_argument("a sparse network must be an autoencoder");
}

// What the network's outputs are compared with is as long as they are.
template <class Params>
void check_target(const Params& p, bool on_host) {
    const Network& net = p.network;
    const bool projected = net.target == (int32_t)Target::kProjection;
    check_address("projection", p.projection.matrix, projected);
    if (!on_host) {
        if (!is_autoencoder(net))
            throw std::invalid_argument("a device's kernels know tied and untied autoencoders alone");
        if (p.l1) throw std::invalid_argument("a device's kernels know no l1");
    }
    const bool own = p.finite.rows > 0 && (p.finite.target || p.finite.label);
    if (projected && own) throw std::invalid_argument("a dataset's own targets are not projected");
    if (!projected && !own) check_range("the network's n_outputs", net.n_outputs, net.n_features, net.n_features);
    for (int64_t i = 0; p.l1 && on_host && i < p.n_models; ++i)
        if (!(std::isfinite(p.l1[i]) && p.l1[i] >= 0.0))
            throw std::invalid_argument("l1 must be finite and at least 0");
}

// The table of tensors has what the network has, in the shapes that follow from it.
template <class Params>
void check_tensors(const Params& p) {
    const Network& net = p.network;
    for (int32_t role = 0; role < kRoles; ++role) {
        const TensorView& view = p.tensors[role];
        const bool there = has_role(net, (Role)role);
        check_address(kRoleNames[role], view.data, there);
        if (!there) continue;
        const TensorShape shape = tensor_shape(net, (Role)role);
        const std::string name = kRoleNames[role];
        check_range((name + "'s rows").c_str(), view.shape.rows, shape.rows, shape.rows);
        check_range((name + "'s columns").c_str(), view.shape.columns, shape.columns, shape.columns);
        check_range((name + "'s offset").c_str(), view.shape.offset, shape.offset, shape.offset);
    }
}

// Numbers of each model that lie on the host: finite, and at least 0 (or above it); null: there are none.
inline void check_rates(const std::string& name, const double* rates, int64_t n_models, bool above_zero = false) {
    for (int64_t i = 0; rates && i < n_models; ++i)
        if (!(std::isfinite(rates[i]) && (above_zero ? rates[i] > 0.0 : rates[i] >= 0.0)))
            throw std::invalid_argument(name + " must be finite and " + (above_zero ? "above 0" : "at least 0") +
                                        ", not " + std::to_string(rates[i]) + " (model " + std::to_string(i) + ")");
}

// What goes beyond the plain update: the general loop's, on the host alone.
inline void check_update(const TrainParams& p, bool on_host) {
    check_range("optimizer", p.optimizer, 0, last_number(kOptimizerNames));
    const auto kind = (Optimizer)p.optimizer;
    check_address("nbeta", p.nbeta, kind == Optimizer::kSGLD);
    if (kind != Optimizer::kSGLD) check_address("localization", p.localization, false);
    if (plain_update(p)) return;
    if (!on_host)
        throw std::invalid_argument(
            "the update must be a plain one of SGD, Adam or AdamW on a device: without clip_norm, and without scales, "
            "shrinking or unit norm of tensors");
    if (kind == Optimizer::kLAMB && !(p.norm_clamp > 0.0)) throw std::invalid_argument("norm_clamp must be above 0");
    if (p.debias_step && p.debias_moments)
        throw std::invalid_argument("debias_step and debias_moments must not both be true");
    if (kind == Optimizer::kSGLD && p.network.sparse)
        throw std::invalid_argument(
            "the optimizer must not be SGLD for a sparse network, which has no place for noise");
    check_range("shrink_until", p.shrink_until, 0, kMostSteps);
    check_rates("clip_norm", p.clip_norm, p.n_models, true);
    check_rates("nbeta", p.nbeta, p.n_models);
    check_rates("localization", p.localization, p.n_models);
    const bool keeps_first = kind == Optimizer::kSGD    ? p.beta1 != 0.0
                             : kind == Optimizer::kSGLD ? p.localization != nullptr
                                                        : true;
    for (int32_t role = 0; role < kRoles; ++role) {
        const TensorView& view = p.tensors[role];
        if (!has_role(p.network, (Role)role) || role > (int32_t)Role::kHiddenBias) continue;
        const std::string name = kRoleNames[role];
        check_rates(name + "'s lr_scale", view.lr_scale, p.n_models);
        check_rates(name + "'s weight_decay_scale", view.weight_decay_scale, p.n_models);
        check_rates(name + "'s shrink", view.shrink, p.n_models);
        if (view.unit_norm && role > (int32_t)Role::kDecoder)
            throw std::invalid_argument(name + "'s unit_norm must be false: it is for the encoder and the decoder");
        for (int s = 0; s < kMostStates; ++s)
            check_address((name + "'s state").c_str(), view.state[s],
                          kStateNames[p.optimizer][s] != nullptr && keeps_first);
    }
}

inline void check(const TrainParams& p, bool on_host) {
    check(p.data, on_host);
    check(p.network, p.data, p.n_models, p.batch_size);
    check(p.finite, p.n_models, p.batch_size, p.network.n_features, p.network.n_outputs, on_host);
    check_target(p, on_host);
    check_update(p, on_host);
    check_stride("importance_stride", p.importance_stride, p.network.n_outputs);
    check_range("total_steps", p.total_steps, 1, kMostSteps);
    check_range("first_step", p.first_step, 0, p.total_steps);
    check_range("steps", p.steps, 0, p.total_steps - p.first_step);
    check_range("record_every", p.record_every, 1, INT64_MAX);
    if (p.loss_records) {
        const int64_t records = (p.total_steps - 1) / p.record_every + 1;
        check_range("n_records", p.n_records, records, records);
        check_elements("n_models, n_records", p.n_models, p.n_records);
    }
    if (p.network.sparse && !p.network.tied) throw std::invalid_argument("a sparse network must be tied");
    check_address("seed", p.seed);
    check_address("importance", p.importance);
    check_tensors(p);
    check_address("connected", p.connected, p.network.sparse);
    check_address("lr", p.lr);
    check_address("weight_decay", p.weight_decay);
    check_address("loss_carry", p.loss_carry);
    check_address("diverged_at", p.diverged_at);
    if (on_host) {
        check_address("lr_factor", p.lr_factor);
        for (int64_t i = 0; p.order && i < p.n_models; ++i) check_range("order", p.order[i], 0, p.n_models - 1);
    }
}

inline void check(const EvaluateParams& p, bool on_host) {
    check(p.data, on_host);
    check(p.network, p.data, p.n_models, p.batch_size);
    check(p.finite, p.n_models, p.batch_size, p.network.n_features, p.network.n_outputs, on_host);
    check_target(p, on_host);
    check_range("batches", p.batches, 1, kMostSteps);
    check_stride("importance_stride", p.importance_stride, p.network.n_outputs);
    check_address("seed", p.seed);
    check_address("importance", p.importance);
    check_tensors(p);
    check_address("loss", p.loss);
}

// `dense`: rows are written, into `clean` or `noisy`.
inline void check(const SampleParams& p, bool on_host, bool dense) {
    check(p.data, on_host);
    check_range("batch_size", p.batch_size, 1, kMostSamples);
    check_elements("n_models, batch_size, n_features", p.n_models, p.batch_size, p.data.n_features);
    check_stride("seed_stride", p.seed_stride, 1);
    check_range("purpose", p.purpose, 0, last_number(kPurposeNames));
    check_address("seed", p.seed);
    if (dense && !p.clean) check_address("clean or noisy", p.noisy);
}

}  // namespace toykern
