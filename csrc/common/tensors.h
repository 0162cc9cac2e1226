// The tensors of a network, told once: their shapes, and the table of them that a call brings, read by role.
#pragma once
#include "common/activation.h"
#include "common/loss.h"
#include "toykern/params.h"

namespace toykern {

// What the encoder sees of a sample, and what the decoder gives: of P and Q's dimension where there are those.
TOYKERN_SHARED int64_t encoder_columns(const Network& net) {
    return net.n_embedding > 0 ? net.n_embedding : net.n_features;
}
TOYKERN_SHARED int64_t decoder_rows(const Network& net) { return net.unembedded ? net.n_embedding : net.n_outputs; }

TOYKERN_SHARED bool has_role(const Network& net, Role role) {
    switch (role) {
        case Role::kEncoder: return true;
        case Role::kDecoder: return !net.tied;
        case Role::kBias: return net.has_bias;
        case Role::kHiddenBias: return net.has_hidden_bias;
        case Role::kEmbedding: return net.n_embedding > 0;
        case Role::kUnembedding: return net.unembedded;
    }
    return false;
}

// What the special loops take: y = g(D f(E x) + b), x in and out, elementwise and f(0) = 0, a loss that is a sum.
// The rest is the general loop's.
TOYKERN_SHARED bool is_autoencoder(const Network& net) {
    const int32_t f = net.hidden_activation;
    return net.n_outputs == net.n_features && net.n_embedding == 0 && !net.unembedded && !net.residual &&
           !net.centered && !net.has_hidden_bias && !is_rowwise(f) && activation_at_zero(f) == 0.0 &&
           is_elementwise(net.loss) && net.target != (int32_t)Target::kProjection;
}

// A model's part. The encoder is m × n and the decoder n × m (none where D = Eᵀ), n being the embedding's where there is
// one; a bias has its place without one too. What is fixed is no parameter and begins at 0 of an array of its own.
TOYKERN_SHARED TensorShape tensor_shape(const Network& net, Role role) {
    const int64_t m = net.n_hidden, in = encoder_columns(net), out = decoder_rows(net), decoder = net.tied ? 0 : m;
    const int64_t weights = m * in + out * decoder, bias = net.n_outputs;
    switch (role) {
        case Role::kEncoder: return {m, in, 0};
        case Role::kDecoder: return {out, decoder, m * in};
        case Role::kBias: return {1, bias, weights};
        case Role::kHiddenBias: return {1, net.has_hidden_bias ? m : 0, weights + (net.has_bias ? bias : 0)};
        case Role::kEmbedding: return {net.n_embedding, net.n_features, 0};
        case Role::kUnembedding: return {net.n_outputs, net.n_embedding, 0};
    }
    return {0, 0, 0};
}
TOYKERN_MATHS int64_t elements(const TensorShape& shape) { return shape.rows * shape.columns; }

template <class Params>
TOYKERN_MATHS const TensorView& tensor_of(const Params& p, Role role) {
    return p.tensors[(int32_t)role];
}

}  // namespace toykern
