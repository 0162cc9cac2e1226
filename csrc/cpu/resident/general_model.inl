// The model in hand of train_general.inl: its tensors as the caller lays them out, and the network that follows from them.
//
//   y = g(Q (e + D f(E (e − b) + c)) + b), e = P x      is      y = g(S x + D̂ f(Ê x + ĉ) + b)
//   with Ê = E P, D̂ = Q D, S = Q P, ĉ = c − E b, each of P, Q, the residual e and −b where the network has it
//
// so that the passes do not know Q, nor P where it is folded: an entry of x costs a row of Êᵀ whatever the embedding's
// dimension, and with
// dÊ and dD̂ summed over the batch, dE = dÊ Pᵀ − dĉ bᵀ, dD = Qᵀ dD̂, dc = dĉ, db += −Eᵀ dĉ.
//
// Folded     P is, unless it has more features than the batch has samples: folding costs d n m multiply-adds forward and back,
//            leaving it with the samples d m for each of them
// Layout     tensors, states and their gradients flat, [rows][columns] as the caller has them; Êᵀ [n][mp], D̂ᵀ as D [m][op]
//            and its transpose [o][mp], Sᵀ and Tᵀ (projected targets) [n][op], biases padded; pads are zeros
// Owner      the team: matrices are shared in blocks of rows, so that the bits do not depend on its size
// Order      products over k in order; parts of the batch in order
// Limits     none but memory
// Roof       d n m and d o m multiply-adds a step, forward and back, where there is a P and a Q; else the transposes
#pragma once
#include "common/tensors.h"
#include "cpu/resident/general_update.inl"
#include "cpu/resident/optimizer.inl"
#include "cpu/resident/products.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// to [cols][to_row], its columns row0 … row1 - 1, = transpose of rows row0 … row1 - 1 of from [..][from_row]. Nothing is
// read or written beyond rows and columns: neither matrix needs pads.
inline void transpose_exact(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t row0, int64_t row1,
                            int64_t cols) {
    for (int64_t i = row0; i < row1; i += kLanes)
        for (int64_t j = 0; j < cols; j += kLanes) {
            const int64_t rows = row1 - i < kLanes ? row1 - i : kLanes, many = cols - j < kLanes ? cols - j : kLanes;
            F block[kLanes];
            for (int r = 0; r < kLanes; ++r)
                block[r] = r < rows ? load_first(from + (i + r) * from_row + j, mask_first((int)many)) : fzero();
            transpose(block);
            for (int r = 0; r < many; ++r) store_first(to + (j + r) * to_row + i, block[r], mask_first((int)rows));
        }
}

struct GeneralModel {
    Network net;
    int64_t n, m, o, in, out;    // in, out: the dimension of E's columns and of D's rows
    int64_t np, mp, op, ip, qp;  // ip, qp: `in`, `out` in whole lane groups
    FlatTensor flat[kRoles];     // those that are trained, by role
    int count;
    int at[kRoles];  // where a role stands among them; -1: nowhere
    Frozen frozen;

    float *et, *d, *dt, *c, *b;  // the network that follows
    float* narrow;               // [in][mp] Eᵀ before P, then P dÊᵀ
    float* wide;                 // [m][qp] dD̂ᵀ Q
    float *q, *qt;               // [o][qp] Q and [out][op] Qᵀ
    float* pt;                   // [n][ip] Pᵀ
    float *skip, *projection;    // [n][op] Sᵀ and Tᵀ; null: none
    float* importance;           // [op]
    const float* embedding;      // [in][n] the caller's; null: none
    const uint8_t* connected;    // [m][n] the caller's; null: all
    double l1;
    double* room;          // of the optimiser
    bool residual_itself;  // S = 1: no P, no Q
    bool folded;

    // Gradients of one part.
    struct Gradient {
        float *d, *b, *c, *et;  // [m][op] [op] [mp] [n][mp] (not folded: [in][mp], of e)
    };
    int64_t gradient_length() const { return m * op + op + mp + (n > in ? n : in) * mp; }
    int64_t used_length() const { return m * op + op + mp + (folded ? n : in) * mp; }
    Gradient gradient(float* g) const { return {g, g + m * op, g + m * op + op, g + m * op + op + mp}; }
    void clear(const Gradient& g) const {
        for (int64_t i = 0; i < used_length(); i += kLanes) store(g.d + i, fzero());
    }
    // By what a batch of so many samples costs less. Without a P there is nothing to fold, and the inputs are e.
    void choose(int64_t samples) { folded = net.n_embedding == 0 || samples >= n; }

    // Of a part, so that clearing and adding up its gradients, which wide models have in no cache, is little beside what
    // its samples cost even where most hidden units are off.
    static int64_t least_samples(const Network& net) {
        const int64_t gradients = net.n_hidden * (net.n_features + net.n_outputs);
        return gradients > 262144 ? 1024 : gradients > 65536 ? 256 : 32;
    }
    void carve(Workspace& w, const Network& network) {
        net = network;
        n = net.n_features, m = net.n_hidden, o = net.n_outputs, in = encoder_columns(net), out = decoder_rows(net);
        np = round_up(n), mp = round_up(m), op = round_up(o), ip = round_up(in), qp = round_up(out);
        count = 0;
        for (int32_t role = 0; role < kRoles; ++role) {
            at[role] = -1;
            if (!has_role(net, (Role)role) || (Role)role == Role::kEmbedding || (Role)role == Role::kUnembedding)
                continue;
            const TensorShape shape = tensor_shape(net, (Role)role);
            const size_t length = (size_t)elements(shape);
            at[role] = count;
            FlatTensor& t = flat[count++];
            t = {};
            t.role = (Role)role, t.rows = shape.rows, t.columns = shape.columns;
            t.value = w.take<float>(length), t.gradient = w.take<float>(length);
            for (int s = 0; s < kMostStates; ++s) t.state[s] = w.take<float>(length);
        }
        const bool embedded = net.n_embedding > 0, unembedded = net.unembedded;
        et = w.take<float>((size_t)(((n > in ? n : in) + kLanes) * mp)), d = w.take<float>((size_t)((m + kLanes) * op));
        dt = w.take<float>((size_t)((o + kLanes) * mp));
        c = w.take<float>((size_t)mp), b = w.take<float>((size_t)op), importance = w.take<float>((size_t)op);
        narrow = w.take<float>(embedded ? (size_t)((in + kLanes) * mp) : 0);
        pt = w.take<float>(embedded ? (size_t)((n + kLanes) * ip) : 0);
        wide = w.take<float>(unembedded ? (size_t)((m + kLanes) * qp) : 0);
        q = w.take<float>(unembedded ? (size_t)((o + kLanes) * qp) : 0);
        qt = w.take<float>(unembedded ? (size_t)((out + kLanes) * op) : 0);
        residual_itself = net.residual && !embedded;
        const bool skips = net.residual && embedded, projects = net.target == (int32_t)Target::kProjection;
        skip = w.take<float>(skips ? (size_t)((n + kLanes) * op) : 0);
        projection = w.take<float>(projects ? (size_t)((n + kLanes) * op) : 0);
        if (!skips) skip = nullptr;
        if (!projects) projection = nullptr;
        room = w.take<double>((size_t)step_room(net));
    }

    // What the caller holds and the model only looks at: every rank has a model of its own in that.
    void attach(const ModelArrays& a) {
        embedding = a.parameter[Role::kEmbedding];
        connected = a.connected;
        l1 = a.l1;
    }
    void load_model(const ModelArrays& a) {
        for (int i = 0; i < count; ++i) {
            FlatTensor& t = flat[i];
            const int64_t length = t.rows * t.columns;
            copy(a.parameter[t.role], t.value, length);
            for (int s = 0; s < kMostStates; ++s) copy(a.state[s][t.role], t.state[s], length);
        }
        zero(et, ((n > in ? n : in) + kLanes) * mp), zero(d, (m + kLanes) * op), zero(dt, (o + kLanes) * mp);
        zero(c, mp), zero(b, op), zero(importance, op);
        for (int64_t j = 0; j < o; ++j) importance[j] = a.importance[j];
        if (embedding) {
            zero(narrow, (in + kLanes) * mp), zero(pt, (n + kLanes) * ip);
            transpose_exact(embedding, n, pt, ip, 0, in, n);
        }
        if (const float* given = a.parameter[Role::kUnembedding]) {
            zero(q, (o + kLanes) * qp), zero(qt, (out + kLanes) * op);
            for (int64_t j = 0; j < o; ++j)
                for (int64_t i = 0; i < out; ++i) q[j * qp + i] = qt[i * op + j] = given[j * out + i];
        }
        if (skip) {
            zero(skip, (n + kLanes) * op);
            if (net.unembedded)
                multiply_all<float>({embedding, 1, n, {qt, op, out, nullptr}, skip, op, false}, n, op, nullptr);
            else
                transpose_exact(embedding, n, skip, op, 0, o, n);
        }
        if (projection) {
            zero(projection, (n + kLanes) * op);
            transpose_exact(a.projection, n, projection, op, 0, o, n);
        }
    }
    void store_model(const ModelArrays& a) const {
        for (int i = 0; i < count; ++i) {
            const FlatTensor& t = flat[i];
            const int64_t length = t.rows * t.columns;
            copy(t.value, a.parameter[t.role], length);
            for (int s = 0; s < kMostStates; ++s) copy(t.state[s], a.state[s][t.role], length);
        }
    }

    // What follows from the tensors once a batch.
    void prepare(const Team& team) const {
        const float *encoder = value(Role::kEncoder), *decoder = value(Role::kDecoder);
        const Share units = share(team, m), features = share(team, n), outputs = share(team, o);
        float* const first = embedding && folded ? narrow : et;
        transpose_exact(encoder, in, first, mp, units.first, units.last, in);
        if (net.unembedded) {  // D̂ᵀ [m][op] = Dᵀ Qᵀ
            const float* from = net.tied ? encoder : decoder;
            const int64_t row = net.tied ? in : 1, k = net.tied ? 1 : m;
            multiply_all<float>(
                {from + units.first * row, row, k, {qt, op, out, nullptr}, d + units.first * op, op, false},
                units.last - units.first, op, nullptr);
        } else if (net.tied) {
            for (int64_t i = units.first; i < units.last; ++i) copy(encoder + i * in, d + i * op, in);
        } else {
            transpose_exact(decoder, m, d, op, outputs.first, outputs.last, m);
        }
        const float* const bias = value(Role::kBias);
        for (int64_t k = units.first; k < units.last; ++k) {
            float sum = value(Role::kHiddenBias) ? value(Role::kHiddenBias)[k] : 0.0f;
            for (int64_t i = 0; i < in && net.centered; ++i) sum -= encoder[k * in + i] * bias[i];
            c[k] = sum;
        }
        if (team.rank == 0 && bias) copy(bias, b, o);
        team.meet();
        if (embedding && folded)
            multiply_all<float>(
                {embedding + features.first, 1, n, {narrow, mp, in, nullptr}, et + features.first * mp, mp, false},
                features.last - features.first, mp, nullptr);
        transpose_exact(d, op, dt, mp, units.first, units.last, o);
        team.meet();
    }

    // One optimiser step from the gradients of all parts, [parts][stride], added in order.
    void update(const TrainParams& p, int64_t model, int64_t step, float scale, float* g, int64_t stride, int parts,
                const Team& team, float* gradient_out) {
        const Share lanes = share(team, (used_length() + kLanes - 1) / kLanes);
        for (int64_t i = lanes.first * kLanes; i < lanes.last * kLanes; i += kLanes) {
            F sum = load(g + i);
            for (int part = 1; part < parts; ++part) sum = sum + load(g + part * stride + i);
            store(g + i, sum);
        }
        team.meet();
        to_tensors(gradient(g), team);
        team.meet();
        if (sparse_gradient(p, gradient_out, scale, team)) team.meet();
        for (int i = 0; i < count; ++i) flat[i].frozen = frozen[flat[i].role];
        general_step(p, model, step, scale, flat, count, team, room);
    }

  private:
    struct Share {
        int64_t first, last;
    };
    // A rank's part of so many rows.
    static Share share(const Team& team, int64_t rows) {
        return {team.rank * rows / team.size, (team.rank + 1) * rows / team.size};
    }
    float* value(Role role) const { return at[(int32_t)role] < 0 ? nullptr : flat[at[(int32_t)role]].value; }
    float* slope(Role role) const { return at[(int32_t)role] < 0 ? nullptr : flat[at[(int32_t)role]].gradient; }
    static void zero(float* to, int64_t length) {
        for (int64_t i = 0; i < length; ++i) to[i] = 0.0f;
    }
    // Absent arrays are zeros, and are left alone.
    static void copy(const float* from, float* to, int64_t length) {
        for (int64_t i = 0; i < length && to; ++i) to[i] = from ? from[i] : 0.0f;
    }

    // The tensors' gradients from those of the network that follows from them.
    void to_tensors(const Gradient& g, const Team& team) const {
        const Share inputs = share(team, in), units = share(team, m);
        const float* from = g.et;
        if (embedding && folded) {  // [in][mp] = P dÊᵀ
            from = narrow;
            multiply_all<float>(
                {embedding + inputs.first * n, n, 1, {g.et, mp, n, nullptr}, narrow + inputs.first * mp, mp, false},
                inputs.last - inputs.first, mp, nullptr);
        }
        const float* decoder = g.d;
        if (net.unembedded) {  // [m][qp] = dD̂ᵀ Q
            decoder = wide;
            multiply_all<float>(
                {g.d + units.first * op, op, 1, {q, qp, o, nullptr}, wide + units.first * qp, qp, false},
                units.last - units.first, qp, nullptr);
        }
        const int64_t decoder_row = net.unembedded ? qp : op;
        float *const encoder_slope = slope(Role::kEncoder), *const bias_slope = slope(Role::kBias);
        transpose_exact(from, mp, encoder_slope, in, inputs.first, inputs.last, m);
        team.meet();
        if (net.tied)
            for (int64_t k = units.first; k < units.last; ++k)
                for (int64_t i = 0; i < in; ++i) encoder_slope[k * in + i] += decoder[k * decoder_row + i];
        else
            transpose_exact(decoder, decoder_row, slope(Role::kDecoder), m, units.first, units.last, out);
        if (net.centered)
            for (int64_t k = units.first; k < units.last; ++k)
                for (int64_t i = 0; i < in; ++i) encoder_slope[k * in + i] -= g.c[k] * b[i];
        if (team.rank) return;
        if (float* hidden = slope(Role::kHiddenBias)) copy(g.c, hidden, m);
        if (bias_slope) copy(g.b, bias_slope, o);
        const float* const encoder = value(Role::kEncoder);
        for (int64_t k = 0; k < m && net.centered; ++k)
            for (int64_t i = 0; i < in; ++i) bias_slope[i] -= g.c[k] * encoder[k * in + i];
    }
    // A sparse model's: 0 where there is no connection; the whole of it to gradient_out [m][n], unless that is null.
    bool sparse_gradient(const TrainParams&, float* gradient_out, float scale, const Team& team) const {
        if (!connected) return false;
        const Share units = share(team, m);
        float* const g = slope(Role::kEncoder);
        for (int64_t i = units.first * n; i < units.last * n; ++i) {
            if (gradient_out) gradient_out[i] = g[i] * scale;
            if (!connected[i]) g[i] = 0.0f;
        }
        return true;
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
