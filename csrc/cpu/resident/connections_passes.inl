// The passes of a sparse model's step over the connections that there are: samples across lanes, a connection a number.
//
//   h = f(W x), y = g(Wᵀ h + b), loss = Σ_j I_j (t_j − y_j)², and Σ_s d_j h_k + x_j u_k for every connection (k, j) and
//   Σ_s d over one part of the batch, with d = dL/dz and u = f′ ⊙ W d
//
// Layout     a block of kBlockSamples samples: x, targets and outputs [n][kBlockSamples], codes and u [m][kBlockSamples];
//            connections as connections.inl lists them, their weights and gradients [count]
// Zeros      no connection, no work; features that no sample of the block has, and outputs that are off in all of its
//            samples, cost nothing but their place in a list
// Owner      one worker a part
// Order      connections of an output by panel and hidden unit; of a code by feature; samples of a block by lane groups,
//            lanes by the fixed tree, blocks in order: a function of shape, connections, level and the model's own data
// Limits     tied autoencoders
// Roof       five multiply-adds a connection of a sample when x is dense (three where it is rare), each with a load from L1;
//            beside them a sum over lanes a connection and block, and the elementwise pass over the outputs
#pragma once
#include "common/loss.h"
#include "cpu/resident/connections.inl"
#include "cpu/resident/entry_rows.inl"
#include "cpu/resident/tile_source.inl"
#include "cpu/resident/tiles_model.inl"
#include "cpu/simd/lanes.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kBlockGroups = 4;  // lane groups of samples side by side: a weight is loaded once for all of them
constexpr int64_t kBlockSamples = kBlockGroups * kLanes;

// to[i] += the sum over lanes of held[i], i < count ≤ 16. By a call: it stands in every loop.
__attribute__((noinline)) static void add_lane_sums(const F* held, int count, float* to) {
    float sums[16];
    sum_lanes(held, count, sums);
    for (int i = 0; i < count; i += kLanes) {
        const M m = mask_first(count - i < kLanes ? count - i : kLanes);
        store_first(to + i, load_first(to + i, m) + load(sums + i), m);
    }
}

// Sums over lanes of one vector after another, added to consecutive numbers; sixteen at a time.
struct LaneSums {
    F held[16];
    float* to;
    int count = 0;

    TOYKERN_INLINE void begin_at(float* place) {
        if (to + count == place) return;
        finish();
        to = place;
    }
    TOYKERN_INLINE void push(F sum) {
        held[count] = sum;
        if (++count == 16) finish();
    }
    TOYKERN_INLINE void finish() {
        add_lane_sums(held, count, to);
        to += count;
        count = 0;
    }
};

// One block.
struct ConnectionsBlock {
    const Connections* lists;
    const float *w, *b, *importance;
    float *gradient, *bias_gradient;
    const float *x, *target;  // [n][kBlockSamples]; the target before the sign is taken off
    float *y, *h, *u;         // [n] and [m][kBlockSamples]: y becomes d
    uint32_t* on;             // [n + 1] outputs that are on in a sample of the block
    int64_t rows, n_on;
    AnyLoss loss_function;
    uint32_t target_bits;
    double loss;
};

template <int kV>
TOYKERN_INLINE void load_groups(const float* from, F (&to)[kV]) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) to[v] = load(from + v * kLanes);
}
template <int kV>
TOYKERN_INLINE void store_groups(float* to, const F (&from)[kV]) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) store(to + v * kLanes, from[v]);
}

template <int kV, class A>
struct ConnectionsPass {
    // to [m] = W from, from [n].
    static void encode(const ConnectionsBlock& q, const float* from, float* to) {
        const Connections& c = *q.lists;
        for (int64_t panel = 0; panel < c.feature_panels; ++panel) {
            const float* const x = from + c.first_feature(panel) * kBlockSamples;
            const uint32_t* const start = c.unit_start + panel * (c.m + 1);
            for (int64_t k = 0; k < c.m; ++k) {
                F sum[kV];
#pragma GCC unroll 4
                for (int v = 0; v < kV; ++v) sum[v] = panel ? load(to + k * kBlockSamples + v * kLanes) : fzero();
                add_products(c.unit_weight, c.feature, start[k], start[k + 1], x, sum);
                store_groups(to + k * kBlockSamples, sum);
            }
        }
    }
    // d from h, and the loss.
    static void outputs(ConnectionsBlock& q, const A& activation) {
        const Connections& c = *q.lists;
        M there[kV];
        for (int v = 0; v < kV; ++v) {
            const int64_t left = q.rows - v * kLanes;
            there[v] = mask_first((int)(left < kLanes ? left : kLanes));
        }
        F loss = fzero();
        LaneSums sums;
        sums.to = q.bias_gradient;
        q.n_on = 0;
        for (int64_t panel = 0; panel < c.panels; ++panel) {
            const float* const h = q.h + c.first_unit(panel) * kBlockSamples;
            const uint32_t* const start = c.start + panel * (c.n + 1);
            const bool last = panel + 1 == c.panels;
            for (int64_t i = 0; i < c.n; ++i) {
                float* const place = q.y + i * kBlockSamples;
                F y[kV];
#pragma GCC unroll 4
                for (int v = 0; v < kV; ++v) y[v] = panel ? load(place + v * kLanes) : bcast(q.b[i]);
                add_products(q.w, c.hidden, start[i], start[i + 1], h, y);
                if (!last) {
                    store_groups(place, y);
                    continue;
                }
                const F importance = bcast(q.importance[i]);
                F total = fzero();
                uint32_t any = 0;
#pragma GCC unroll 4
                for (int v = 0; v < kV; ++v) {
                    const F t = and_bits(load(q.target + i * kBlockSamples + v * kLanes), q.target_bits);
                    F slope;
                    const F error = keep(there[v], activation.value(y[v], slope) - t);
                    const F d = activation.back(y[v], slope, q.loss_function.add_to(loss, error, importance));
                    any |= bits(nonzero(d));
                    total = total + d;
                    store(place + v * kLanes, d);
                }
                sums.push(total);
                q.on[q.n_on] = (uint32_t)i;
                q.n_on += any != 0;
            }
        }
        sums.finish();
        q.loss = (double)fsum(loss);
    }
    // The gradients: Σ d h, and Σ x u where the samples' inputs go by lanes, too.
    template <bool kInputs>
    static void gradients(const ConnectionsBlock& q) {
        const Connections& c = *q.lists;
        LaneSums sums;
        sums.to = q.gradient;
        const int64_t many = kInputs ? c.n : q.n_on;
        for (int64_t panel = 0; panel < c.panels; ++panel) {
            const int64_t unit = c.first_unit(panel) * kBlockSamples;
            const float *const h = q.h + unit, *const u = q.u + unit;
            const uint32_t* const start = c.start + panel * (c.n + 1);
            for (int64_t at = 0; at < many; ++at) {
                const int64_t i = kInputs ? at : q.on[at];
                F d[kV], x[kV];
                load_groups(q.y + i * kBlockSamples, d);
                if (kInputs) load_groups(q.x + i * kBlockSamples, x);
                if (!kInputs) sums.begin_at(q.gradient + start[i]);
                for (uint32_t e = start[i]; e < start[i + 1]; ++e) {
                    const int64_t k = c.hidden[e] * kBlockSamples;
                    F sum = d[0] * load(h + k);
                    if (kInputs) sum = fmadd(x[0], load(u + k), sum);
#pragma GCC unroll 4
                    for (int v = 1; v < kV; ++v) {
                        sum = fmadd(d[v], load(h + k + v * kLanes), sum);
                        if (kInputs) sum = fmadd(x[v], load(u + k + v * kLanes), sum);
                    }
                    sums.push(sum);
                }
            }
        }
        sums.finish();
    }

  private:
    TOYKERN_INLINE static void add_products(const float* weight, const uint32_t* other, int64_t first, int64_t last,
                                            const float* from, F (&sum)[kV]) {
        for (int64_t e = first; e < last; ++e) {
            const F w = bcast(weight[e]);
            const float* const at = from + other[e] * kBlockSamples;
#pragma GCC unroll 4
            for (int v = 0; v < kV; ++v) sum[v] = fmadd(w, load(at + v * kLanes), sum[v]);
        }
    }
};

// Turns: rows [rows][from_row], whose samples are rows, to [width][kBlockSamples], zeros past the last sample; `from` may be
// read to whole lane groups. And back, to [kBlockSamples][to_row], whose pads become zeros.
inline void to_lanes(const float* from, int64_t from_row, int64_t rows, int64_t width, float* to) {
    for (int64_t r = 0; r < kBlockSamples; r += kLanes)
        for (int64_t j = 0; j < width; j += kLanes) {
            F block[kLanes];
            for (int i = 0; i < kLanes; ++i) block[i] = r + i < rows ? load(from + (r + i) * from_row + j) : fzero();
            transpose(block);
            const int64_t many = width - j < kLanes ? width - j : kLanes;
            for (int64_t i = 0; i < many; ++i) store(to + (j + i) * kBlockSamples + r, block[i]);
        }
}
inline void to_rows(const float* from, int64_t width, float* to, int64_t to_row) {
    for (int64_t j = 0; j < to_row; j += kLanes)
        for (int64_t r = 0; r < kBlockSamples; r += kLanes) {
            F block[kLanes];
            for (int i = 0; i < kLanes; ++i)
                block[i] = j + i < width ? load(from + (j + i) * kBlockSamples + r) : fzero();
            transpose(block);
            for (int i = 0; i < kLanes; ++i) store(to + (r + i) * to_row + j, block[i]);
        }
}

// Takes tiles of rows in blocks, and adds up their gradients.
class ConnectionsPasses {
  public:
    void carve(Workspace& w, const Network& net, bool own_target) {
        const bool there = connections_fit(net);
        net_ = net;
        const size_t n = (size_t)net.n_features, m = (size_t)net.n_hidden, mp = (size_t)round_up(net.n_hidden);
        const size_t wide = there ? n * (size_t)kBlockSamples : 0, narrow = there ? m * (size_t)kBlockSamples : 0;
        x_ = w.take<float>(wide), y_ = w.take<float>(wide), target_ = w.take<float>(own_target ? wide : 0);
        h_ = w.take<float>(narrow), u_ = w.take<float>(narrow), slope_ = w.take<float>(narrow);
        on_ = w.take<uint32_t>(there ? n + 1 : 0);
        turned_ = w.take<float>(there ? (size_t)kBlockSamples * mp : 0);
        panel_ = w.take<float>((size_t)(kBlockSamples + kPanelDepth) * kBlockVectors * kLanes);
    }
    // A part of a batch, of no samples yet.
    void begin(const TilesModel& model, const TilesModel::Gradient& g) {
        model_ = &model, g_ = g, by_entries_ = false;
        for (int64_t i = 0; i < model.n * kBlockSamples; i += kLanes) store(x_ + i, fzero());
    }
    // `listed`: the tile is a list of entries alone, of up to kBlockSamples rows. Returns its loss.
    double tile(const Tile& t, bool listed) {
        if (listed) return listed_tile(t);
        double loss = 0.0;
        const int64_t n = model_->n, np = model_->np;
        for (int64_t r = 0; r < t.rows; r += kBlockSamples) {
            const int64_t rows = t.rows - r < kBlockSamples ? t.rows - r : kBlockSamples;
            to_lanes(t.x + r * np, np, rows, n, x_);
            if (t.target != t.x) to_lanes(t.target + r * np, np, rows, n, target_);
            loss += block(rows, nullptr, t.target != t.x ? target_ : x_);
        }
        return loss;
    }
    // After the part's last tile.
    void finish() {
        const int64_t n = model_->n, mp = model_->mp;
        if (!by_entries_) return;
        model_->connections.each([&](int64_t c, int64_t unit, int64_t i) { g_.d[c] += g_.dt[i * mp + unit]; });
        for (int64_t i = 0; i < n * mp && model_->whole_gradient; i += kLanes)
            store(g_.whole + i, load(g_.whole + i) + load(g_.dt + i));
    }

  private:
    double listed_tile(const Tile& t) {
        for (int64_t e = 0; e < t.entries; ++e) x_[t.feature[e] * kBlockSamples + t.row[e]] = t.value[e];
        const bool by_entries = codes_by_entries(t.entries, model_->mp, model_->connections.count);
        const double loss = block(t.rows, by_entries ? &t : nullptr, x_);
        for (int64_t e = 0; e < t.entries; ++e) x_[t.feature[e] * kBlockSamples + t.row[e]] = 0.0f;
        return loss;
    }
    // `entries`: the first product and its gradient go by them.
    double block(int64_t rows, const Tile* entries, const float* target) {
        ConnectionsBlock q = {};
        q.lists = &model_->connections;
        q.w = model_->d, q.b = model_->b, q.importance = model_->importance;
        q.gradient = g_.d, q.bias_gradient = g_.b;
        q.x = x_, q.target = target, q.y = y_, q.h = h_, q.u = u_, q.on = on_, q.rows = rows;
        q.loss_function = {net_.loss}, q.target_bits = target_bits(net_.target);
        if (is_floor(net_.hidden_activation) && is_floor(net_.output_activation))
            pass<FloorActivation<F>>(q, entries);
        else
            pass<CalledActivation>(q, entries);
        return q.loss;
    }
    template <class A>
    void pass(ConnectionsBlock& q, const Tile* entries) {
        switch ((q.rows + kLanes - 1) / kLanes) {
            case 1: return pass<1, A>(q, entries);
            case 2: return pass<2, A>(q, entries);
            case 3: return pass<3, A>(q, entries);
            default: return pass<kBlockGroups, A>(q, entries);
        }
    }
    template <int kV, class A>
    void pass(ConnectionsBlock& q, const Tile* entries) {
        using Pass = ConnectionsPass<kV, A>;
        const A hidden = A::of(net_.hidden_activation, net_.hidden_option);
        if (entries)
            encode_entries(*entries);
        else
            Pass::encode(q, x_, h_);
        for (int64_t k = 0; k < model_->m; ++k)
            for (int v = 0; v < kV; ++v) {
                const int64_t at = k * kBlockSamples + v * kLanes;
                F slope = fzero();
                store(h_ + at, hidden.value(load(h_ + at), slope));
                store(slope_ + at, slope);
            }
        Pass::outputs(q, A::of(net_.output_activation, net_.output_option));
        Pass::encode(q, y_, u_);  // dL/dh: W is tied
        for (int64_t k = 0; k < model_->m; ++k)
            for (int v = 0; v < kV; ++v) {
                const int64_t at = k * kBlockSamples + v * kLanes;
                store(u_ + at, hidden.back(load(h_ + at), load(slope_ + at), load(u_ + at)));
            }
        if (entries) {
            Pass::template gradients<false>(q);
            entries_gradient(*entries);
        } else {
            Pass::template gradients<true>(q);
        }
        if (!model_->whole_gradient) return;
        whole_product(y_, h_, q.rows);
        if (!entries) whole_product(x_, u_, q.rows);
    }
    void encode_entries(const Tile& t) {
        const int64_t mp = model_->mp;
        if (t.entries > 4 * t.rows) {
            sum_rows(t.rows, t.entries, t.row, t.feature, t.value, model_->et, turned_, mp);
        } else {
            for (int64_t i = 0; i < t.rows * mp; i += kLanes) store(turned_ + i, fzero());
            add_rows(t.entries, t.row, t.feature, t.value, model_->et, turned_, mp);
        }
        to_lanes(turned_, mp, t.rows, model_->m, h_);
    }
    void entries_gradient(const Tile& t) {
        by_entries_ = true;
        to_rows(u_, model_->m, turned_, model_->mp);
        add_rows(t.entries, t.feature, t.row, t.value, turned_, g_.dt, model_->mp);
    }
    // The gradient at all places, whether there is a connection or not: Σ of_features of_unitsᵀ over the samples.
    void whole_product(const float* of_features, const float* of_units, int64_t rows) {
        const int64_t mp = model_->mp;
        to_rows(of_units, model_->m, turned_, mp);
        multiply_all({of_features, kBlockSamples, 1, {turned_, mp, rows, nullptr}, g_.whole, mp, true}, model_->n, mp,
                     panel_);
    }

    Network net_;
    const TilesModel* model_;
    TilesModel::Gradient g_;
    bool by_entries_;
    float *x_, *y_, *target_, *h_, *u_, *slope_, *turned_, *panel_;
    uint32_t* on_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
