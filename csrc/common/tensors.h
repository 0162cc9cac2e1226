// The tensors of a network, told once: their shapes, and the table of them that a call brings, read by role.
#pragma once
#include "common/lanes.h"
#include "toykern/params.h"

namespace toykern {

// A model's part. The encoder is m × n and the decoder n × m (none where D = Eᵀ); a bias has its place without one too.
TOYKERN_SHARED TensorShape tensor_shape(const Network& net, Role role) {
    const int64_t n = net.n_features, m = net.n_hidden, decoder = net.tied ? 0 : m;
    switch (role) {
        case Role::kEncoder: return {m, n, 0};
        case Role::kDecoder: return {n, decoder, m * n};
        case Role::kBias: return {1, n, m * n + n * decoder};
    }
    return {0, 0, 0};
}
TOYKERN_MATHS int64_t elements(const TensorShape& shape) { return shape.rows * shape.columns; }

template <class Params>
TOYKERN_MATHS const TensorView& tensor_of(const Params& p, Role role) {
    return p.tensors[(int32_t)role];
}

}  // namespace toykern
