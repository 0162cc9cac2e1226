// The model in hand of train_columns.inl and train_side_by_side.inl: weights, optimiser state, and the update from the
// parts' gradients.
//
// Layout     all tensors one after another, the weights as [n][m] (all hidden units of a feature together)
// Owner      the first worker of a team does the update; all of them read
// Order      parts in order, then element by element
#pragma once
#include "cpu/resident/optimizer.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// Weights and optimiser state of the model in hand; shared by all workers of a team.
struct ColumnsModel {
    int64_t n, m, weights, length;  // weights = n m; length = all tensors, one after another
    bool tied, has_bias, sparse;
    float *p, *s1, *s2;       // [length] by role; the encoder as [n][m]
    float* connected;         // [weights] 1 or 0 (sparse)
    const float* importance;  // [n]
    float* importance_room;
    TensorShape shape[kRoles];
    Frozen frozen;

    static int64_t least_samples(const Network& net) { return least_samples_of(net); }
    void carve(Workspace& w, const Network& net) {
        n = net.n_features, m = net.n_hidden, weights = n * m;
        tied = net.tied, has_bias = net.has_bias, sparse = net.sparse;
        length = 0;
        for (int32_t role = 0; role < kRoles; ++role) {
            shape[role] = tensor_shape(net, (Role)role);
            length += elements(shape[role]);
        }
        p = w.take<float>((size_t)length + 16);
        s1 = w.take<float>((size_t)length + 16);
        s2 = w.take<float>((size_t)length + 16);
        importance_room = w.take<float>((size_t)n);
        importance = importance_room;
        connected = w.take<float>(sparse ? (size_t)weights : 0);
    }
    template <class T>
    T* tensor(T* a, Role role) const {
        return a + shape[(int32_t)role].offset;
    }
    template <class T>
    T* encoder(T* a) const {
        return tensor(a, Role::kEncoder);
    }
    template <class T>
    T* decoder(T* a) const {
        return tensor(a, tied ? Role::kEncoder : Role::kDecoder);
    }
    template <class T>
    T* bias(T* a) const {
        return tensor(a, Role::kBias);
    }

    void attach(const ModelArrays&) {}  // nothing stays with the caller
    void load_model(const ModelArrays& a) {
        import(p, a.parameter);
        import(s1, a.state[0]);
        import(s2, a.state[1]);
        for (int64_t j = 0; j < n; ++j) importance_room[j] = a.importance[j];
        for (int64_t j = 0; j < n && sparse; ++j)
            for (int64_t k = 0; k < m; ++k) connected[j * m + k] = (float)a.connected[k * n + j];
    }
    void store_model(const ModelArrays& a) const {
        export_to(p, a.parameter);
        export_to(s1, a.state[0]);
        export_to(s2, a.state[1]);
    }

    // Between the caller's arrays and the resident ones; absent arrays are zeros.
    void import(float* to, const ModelArrays::Of& from) const {
        const float *encoder_from = from[Role::kEncoder], *decoder_from = from[Role::kDecoder],
                    *bias_from = from[Role::kBias];
        for (int64_t j = 0; j < n; ++j)
            for (int64_t k = 0; k < m; ++k) encoder(to)[j * m + k] = encoder_from ? encoder_from[k * n + j] : 0.0f;
        if (!tied)
            for (int64_t i = 0; i < weights; ++i) decoder(to)[i] = decoder_from ? decoder_from[i] : 0.0f;
        for (int64_t j = 0; j < n; ++j) bias(to)[j] = bias_from ? bias_from[j] : 0.0f;
    }
    void export_to(const float* from, const ModelArrays::Of& to) const {
        float *encoder_to = to[Role::kEncoder], *decoder_to = to[Role::kDecoder], *bias_to = to[Role::kBias];
        for (int64_t j = 0; j < n && encoder_to; ++j)
            for (int64_t k = 0; k < m; ++k) encoder_to[k * n + j] = encoder(from)[j * m + k];
        if (!tied && decoder_to)
            for (int64_t i = 0; i < weights; ++i) decoder_to[i] = decoder(from)[i];
        for (int64_t j = 0; j < n && bias_to; ++j) bias_to[j] = bias(from)[j];
    }

    int64_t gradient_length() const { return length; }
    void prepare(const Team&) const {}  // nothing follows from the weights before a batch

    // One optimiser step from the gradients of all parts, [parts][stride], added in order. The weights' gradient goes
    // to `gradient_out` [m][n] too, unless that is null.
    void update(const TrainParams& params, int64_t model, int64_t step, float scale, float* g, int64_t stride,
                int parts, const Team& team, float* gradient_out) const {
        if (team.rank) return;
        const UpdateConstants constants = step_constants(params, model, step);
        for (int part = 1; part < parts; ++part)
            for (int64_t i = 0; i < length; i += kLanes) store(g + i, load(g + i) + load(g + part * stride + i));
        for (int64_t j = 0; j < n && gradient_out; ++j)
            for (int64_t k = 0; k < m; ++k) gradient_out[k * n + j] = g[j * m + k] * scale;
        if (sparse) mask_gradient(g, connected, weights);
        const int64_t trained = has_bias ? length : shape[(int32_t)Role::kBias].offset;
        if (!frozen.any()) return optimizer_step(constants, p, g, s1, s2, trained, scale);
        for (int32_t role = 0; role < kRoles; ++role) {
            const int64_t from = shape[role].offset, many = elements(shape[role]);
            if (!frozen.of[role] && from + many <= trained)
                optimizer_step(constants, p + from, g + from, s1 + from, s2 + from, many, scale);
        }
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
