// The model in hand of train_tiles.inl: weights in both orientations, optimiser state, and the update from the parts'
// gradients.
//
// Layout     decoder [m][np] and its transpose [n][mp]; encoder [n][mp] (tied: the transpose); biases [np]; pads are
//            zeros
// Owner      the team: hidden units (and, untied, the encoder's features) are shared in blocks, so that the bits do not
//            depend on its size
#pragma once
#include "cpu/resident/connections.inl"
#include "cpu/resident/gram.inl"
#include "cpu/resident/gram_products.inl"
#include "cpu/resident/optimizer.inl"
#include "cpu/resident/products.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// Weights, optimiser state and summed gradients of the model in hand; shared by all workers of a team.
struct TilesModel {
    int64_t n, m, np, mp;
    bool tied, has_bias, sparse;
    float *d, *d1, *d2;       // decoder [m][np] and its moments
    float* dt;                // [n][mp]
    float *et, *e1, *e2;      // encoder [n][mp] (tied: et = dt, no moments of its own)
    float *b, *b1, *b2;       // [np]
    float* connected;         // [m][np] 1 or 0 (sparse), pads 0
    Connections connections;  // of a sparse model that takes that form, whose d, d1 and d2 are then [connections.count]
    bool by_connection;       // whether the model in hand takes it
    bool gram_by_connection;  // whether the products of its Gram form are over connections
    bool whole_gradient;      // the step's gradient is wanted where there is no connection, too
    const float* importance;  // [np], padded with zeros
    float* importance_room;
    Frozen frozen;

    bool has_gram, gram;   // whether there is room for the Gram form; whether the model in hand takes it
    bool has_connections;  // whether there is room for the connections' form
    float* gt;             // [n][np] Gᵀ: row i is what feature i adds to the outputs
    float* room;           // [n][np] of gram_products.inl (tied)

    // Gradients of one part.
    struct Gradient {
        float* d;      // [m][np], from dense tiles; by connection: [connections.count]
        float* dt;     // [n][mp], from sparse tiles (tied: et)
        float* et;     // [n][mp]
        float* b;      // [np]
        float* a;      // [n][np] Σ x dᵀ: in the Gram form the others, but b, follow from it
        float* whole;  // [n][mp], by connection where it is wanted: the gradient at all places
    };
    int64_t tiles_length() const { return m * np + (tied ? 1 : 2) * n * mp; }  // of d, dt and et
    int64_t gradient_length() const {
        const int64_t tiles = tiles_length(), gram = has_gram ? gram_length() : 0;
        return (gram > tiles ? gram : tiles) + (has_connections ? n * mp : 0) + np;
    }
    int64_t gram_length() const { return m * np + whole_groups(n) * np + (tied ? 0 : n * mp); }  // of d, a and et
    Gradient gradient(float* g) const {
        Gradient r;
        r.d = g;
        r.a = g + m * np;
        r.et = r.a + (gram && !tied ? whole_groups(n) * np : 0);
        r.dt = tied ? r.et : r.et + n * mp;
        r.b = g + gradient_length() - np;
        r.whole = r.b - n * mp;
        return r;
    }

    // A part's gradients before its first sample; not all of the room, which may be four times as much for a model that
    // does not take the form that it was made for.
    void clear(const Gradient& g) const {
        float* const from = gram ? g.a : g.d;
        const int64_t matrices = by_connection ? connections.count : gram ? whole_groups(n) * np : tiles_length();
        for (int64_t i = 0; i < matrices; i += kLanes) store(from + i, fzero());
        for (int64_t i = 0; i < n * mp && by_connection; i += kLanes) store(g.dt + i, fzero());
        for (int64_t i = 0; i < n * mp && by_connection && whole_gradient; i += kLanes) store(g.whole + i, fzero());
        for (int64_t i = 0; i < np; i += kLanes) store(g.b + i, fzero());
    }

    static int64_t least_samples(const Network& net) { return least_samples_of(net); }
    void carve(Workspace& w, const Network& net) {
        n = net.n_features, m = net.n_hidden, np = round_up(n), mp = round_up(m);
        tied = net.tied, has_bias = net.has_bias, sparse = net.sparse;
        has_gram = gram_fits(net), has_connections = connections_fit(net);
        gram = by_connection = gram_by_connection = whole_gradient = false;
        const size_t dense = (size_t)(m + kLanes) * np, turned = (size_t)(n + kLanes) * mp;
        d = w.take<float>(dense), d1 = w.take<float>(dense), d2 = w.take<float>(dense);
        dt = w.take<float>(turned);
        et = tied ? dt : w.take<float>(turned);
        e1 = w.take<float>(tied ? 0 : turned), e2 = w.take<float>(tied ? 0 : turned);
        b = w.take<float>((size_t)np), b1 = w.take<float>((size_t)np), b2 = w.take<float>((size_t)np);
        importance_room = w.take<float>((size_t)np);
        importance = importance_room;
        connected = w.take<float>(sparse ? (size_t)(m * np) : 0);
        connections.carve(w, n, m, has_connections);
        gt = w.take<float>(has_gram ? (size_t)((n + kLanes) * np) : 0);
        room = w.take<float>(has_gram && tied ? (size_t)((n + kLanes) * np) : 0);
    }

    // What follows from the weights once a batch.
    void prepare(const Team& team) const {
        if (by_connection) {
            connections.order_by_unit(d, team.rank, team.size);
            if (team.rank == 0)
                connections.each([&](int64_t c, int64_t unit, int64_t feature) { et[feature * mp + unit] = d[c]; });
            team.meet();
        }
        if (!gram) return;
        if (gram_by_connection)
            gram_of_connections(connections, d, n, np, gt, team);
        else
            gram_of_weights(et, d, tied, n, m, np, mp, gt, team);
        team.meet();
    }

    // Nothing stays with the caller.
    void attach(const ModelArrays&) {
        if (sparse) connections.divide(gram);
        gram_by_connection = gram && sparse && gram_takes_connections(n * m, connections.count);
    }
    // How many connections a sparse model has: before its form is chosen.
    void count(const uint8_t* marks) { connections.count_all(marks); }
    void load_model(const ModelArrays& a) {
        for (int64_t j = 0; j < np; ++j) importance_room[j] = j < n ? a.importance[j] : 0.0f;
        if (by_connection) {
            for (float* bias : {b, b1, b2})
                for (int64_t j = 0; j < np; ++j) bias[j] = 0.0f;
            connections.list(a.connected);
            for (int64_t i = 0; i < n * mp; i += kLanes) store(et + i, fzero());
            each_by_connection(a, [](float& ours, float* theirs) { ours = theirs ? *theirs : 0.0f; });
            return;
        }
        import(a.parameter, d, et, b);
        import(a.state[0], d1, e1, b1);
        import(a.state[1], d2, e2, b2);
        transpose_into(d, np, dt, mp, 0, m, n, false);
        if (gram_by_connection) connections.list(a.connected);
        for (int64_t k = 0; k < m && sparse; ++k)
            for (int64_t j = 0; j < np; ++j) connected[k * np + j] = j < n ? (float)a.connected[k * n + j] : 0.0f;
    }
    void store_model(const ModelArrays& a) const {
        if (by_connection) {
            // Steps over what is not there would leave moments of +0, whatever the sign of the zeros that came.
            for (const ModelArrays::Of& state : a.state)
                for (int64_t i = 0; i < m * n && state[Role::kEncoder] && !frozen[Role::kEncoder]; ++i)
                    state[Role::kEncoder][i] = 0.0f;
            each_by_connection(a, [](float& ours, float* theirs) {
                if (theirs) *theirs = ours;
            });
            return;
        }
        export_to(a.parameter, d, et, b);
        export_to(a.state[0], d1, e1, b1);
        export_to(a.state[1], d2, e2, b2);
    }

    // One optimiser step from the gradients of all parts, [parts][stride], added in order. The team shares the hidden
    // units (and, untied, the encoder's features) in blocks, so the result does not depend on its size. The (tied)
    // weights' gradient goes to `gradient_out` [m][n] too, unless that is null.
    void update(const TrainParams& p, int64_t model, int64_t step, float scale, float* g, int64_t stride, int parts,
                const Team& team, float* gradient_out) const {
        const UpdateConstants c = step_constants(p, model, step);
        const Gradient first = gradient(g);
        const int64_t b_offset = first.b - g;
        if (by_connection) update_connections(c, scale, g, stride, parts, team, gradient_out);
        if (gram) {
            if (tied)
                gram_tied_gradient(first.a, stride, parts, d, gram_by_connection ? &connections : nullptr, n, m, np,
                                   room, first.d, team);
            else
                gram_untied_gradients(first.a, stride, parts, et, dt, n, m, np, mp, first.d, first.et, team);
            team.meet();  // the gradients are there before a weight moves
        }
        for (int64_t k = team.rank * kLanes; k < m && !by_connection; k += team.size * kLanes) {
            const int64_t rows = m - k < kLanes ? m - k : kLanes;
            if (!gram) add_parts(g, stride, parts, k, rows);
            for (int64_t r = k; r < k + rows && gradient_out; ++r)
                for (int64_t j = 0; j < n; ++j) gradient_out[r * n + j] = first.d[r * np + j] * scale;
            if (sparse) mask_gradient(first.d + k * np, connected + k * np, rows * np);
            if (frozen[tied ? Role::kEncoder : Role::kDecoder]) continue;
            optimizer_step(c, d + k * np, first.d + k * np, d1 + k * np, d2 + k * np, rows * np, scale);
            transpose_into(d, np, dt, mp, k, k + rows, n, false);
        }
        if (!tied && !frozen[Role::kEncoder]) {
            const int64_t j0 = team.rank * n / team.size, j1 = (team.rank + 1) * n / team.size;
            for (int part = 1; part < parts && !gram; ++part)
                add(first.et + j0 * mp, g + part * stride + (first.et - g) + j0 * mp, (j1 - j0) * mp);
            optimizer_step(c, et + j0 * mp, first.et + j0 * mp, e1 + j0 * mp, e2 + j0 * mp, (j1 - j0) * mp, scale);
        }
        if (team.rank == 0 && has_bias && !frozen[Role::kBias]) {
            for (int part = 1; part < parts; ++part) add(first.b, g + part * stride + b_offset, np);
            optimizer_step(c, b, first.b, b1, b2, np, scale);
        }
    }

  private:
    // Calls take(ours, theirs) for every weight, moment and bias; theirs is null where the caller has none.
    template <class Take>
    void each_by_connection(const ModelArrays& a, const Take& take) const {
        const ModelArrays::Of* const of[] = {&a.parameter, &a.state[0], &a.state[1]};
        float *const weights[] = {d, d1, d2}, *const biases[] = {b, b1, b2};
        for (int s = 0; s < 3; ++s) {
            float *const weight = (*of[s])[Role::kEncoder], *const bias = (*of[s])[Role::kBias];
            connections.each([&](int64_t c, int64_t unit, int64_t feature) {
                take(weights[s][c], weight ? weight + unit * n + feature : nullptr);
            });
            for (int64_t j = 0; j < n; ++j) take(biases[s][j], bias ? bias + j : nullptr);
        }
    }
    // The connections' share of update(): ranks take runs of them.
    void update_connections(const UpdateConstants& constants, float scale, float* g, int64_t stride, int parts,
                            const Team& team, float* gradient_out) const {
        const Gradient first = gradient(g);
        const int64_t groups = (connections.count + kLanes - 1) / kLanes;
        const int64_t from = team.rank * groups / team.size * kLanes;
        int64_t to = (team.rank + 1) * groups / team.size * kLanes;
        to = to < connections.count ? to : connections.count;
        for (int part = 1; part < parts; ++part) add(first.d + from, g + part * stride + from, to - from);
        if (!frozen[Role::kEncoder])
            optimizer_step(constants, d + from, first.d + from, d1 + from, d2 + from, to - from, scale);
        if (!gradient_out) return;
        for (int64_t j = team.rank * n / team.size; j < (team.rank + 1) * n / team.size; ++j)
            for (int64_t k = 0; k < m; ++k) {
                float sum = 0.0f;
                for (int part = 0; part < parts; ++part) sum += g[part * stride + (first.whole - g) + j * mp + k];
                gradient_out[k * n + j] = sum * scale;
            }
    }
    // The decoder's gradient of all parts into the first one's, hidden units k … k + rows - 1: what dense tiles left in
    // its own layout, and what entries left transposed.
    void add_parts(float* g, int64_t stride, int parts, int64_t k, int64_t rows) const {
        const Gradient first = gradient(g);
        for (int part = 1; part < parts; ++part) add(first.d + k * np, g + part * stride + k * np, rows * np);
        for (int64_t j = 0; j < np; j += kLanes) {
            F block[kLanes];
            const int64_t many = n - j < kLanes ? n - j : kLanes;
            for (int r = 0; r < kLanes; ++r) {
                block[r] = fzero();
                for (int part = 0; part < parts && r < many; ++part)
                    block[r] = block[r] + load(g + part * stride + (first.dt - g) + (j + r) * mp + k);
            }
            transpose(block);
            for (int64_t r = 0; r < rows; ++r) {
                float* at = first.d + (k + r) * np + j;
                store(at, load(at) + block[r]);
            }
        }
    }
    static void add(float* to, const float* from, int64_t length) {
        for (int64_t i = 0; i < length; i += kLanes) store(to + i, load(to + i) + load(from + i));
    }
    // From the caller's arrays to the padded ones; absent ones become zeros.
    void import(const ModelArrays::Of& from, float* to_d, float* to_et, float* to_b) const {
        const float *encoder = from[Role::kEncoder], *decoder = from[Role::kDecoder], *bias = from[Role::kBias];
        for (int64_t k = 0; k < m; ++k)
            for (int64_t j = 0; j < np; ++j) {
                float value = 0.0f;
                if (j < n && tied && encoder) value = encoder[k * n + j];
                if (j < n && !tied && decoder) value = decoder[j * m + k];
                to_d[k * np + j] = value;
            }
        for (int64_t j = 0; j < n && !tied; ++j)
            for (int64_t k = 0; k < mp; ++k) to_et[j * mp + k] = k < m && encoder ? encoder[k * n + j] : 0.0f;
        for (int64_t j = 0; j < np; ++j) to_b[j] = j < n && bias ? bias[j] : 0.0f;
    }
    void export_to(const ModelArrays::Of& to, const float* from_d, const float* from_et, const float* from_b) const {
        float *encoder = to[Role::kEncoder], *decoder = to[Role::kDecoder], *bias = to[Role::kBias];
        for (int64_t k = 0; k < m; ++k)
            for (int64_t j = 0; j < n; ++j) {
                if (tied && encoder) encoder[k * n + j] = from_d[k * np + j];
                if (!tied && decoder) decoder[j * m + k] = from_d[k * np + j];
                if (!tied && encoder) encoder[k * n + j] = from_et[j * mp + k];
            }
        for (int64_t j = 0; j < n && bias; ++j) bias[j] = from_b[j];
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
