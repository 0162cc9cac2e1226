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
#include "cpu/resident/tile_source.inl"
#include "cpu/resident/tiles_model.inl"
#include "cpu/simd/lanes.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kBlockGroups = 4;  // lane groups of samples side by side: a weight is loaded once for all of them
constexpr int64_t kBlockSamples = kBlockGroups * kLanes;

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
    void finish() {
        float sums[16];
        sum_lanes(held, count, sums);
        for (int i = 0; i < count; i += kLanes) {
            const M m = mask_first(count - i < kLanes ? count - i : kLanes);
            store_first(to + i, load_first(to + i, m) + load(sums + i), m);
        }
        to += count;
        count = 0;
    }
};

// One block, whose lists of features may be shorter than all.
struct ConnectionsBlock {
    const Connections* lists;
    const float *w, *b, *importance;
    float *gradient, *bias_gradient;
    const float *x, *target;    // [n][kBlockSamples]; the target before the sign is taken off
    float *y, *h, *u;           // [n] and [m][kBlockSamples]: y becomes d
    const uint32_t* present;    // features that a sample of the block has
    int64_t n_present, rows;
    uint32_t* on;  // outputs that are on in a sample of the block
    int64_t n_on;
    AnyLoss loss_function;
    uint32_t target_bits;
    double loss;
};

template <int kV, class A>
struct ConnectionsPass {
    // h += W x of the features that are there.
    static void codes(const ConnectionsBlock& q) {
        const Connections& c = *q.lists;
        for (int64_t k = 0; k < c.m; ++k)
            for (int v = 0; v < kV; ++v) store(q.h + k * kBlockSamples + v * kLanes, fzero());
        for (int64_t panel = 0; panel < c.panels; ++panel) {
            float* const h = q.h + c.first_unit(panel) * kBlockSamples;
            const uint32_t* const start = c.start + panel * (c.n + 1);
            for (int64_t at = 0; at < q.n_present; ++at) {
                const uint32_t i = q.present[at];
                F x[kV];
#pragma GCC unroll 4
                for (int v = 0; v < kV; ++v) x[v] = load(q.x + i * kBlockSamples + v * kLanes);
                for (uint32_t e = start[i]; e < start[i + 1]; ++e) {
                    const F w = bcast(q.w[e]);
                    float* const to = h + c.hidden[e] * kBlockSamples;
#pragma GCC unroll 4
                    for (int v = 0; v < kV; ++v) store(to + v * kLanes, fmadd(w, x[v], load(to + v * kLanes)));
                }
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
                for (uint32_t e = start[i]; e < start[i + 1]; ++e) {
                    const F w = bcast(q.w[e]);
                    const float* const from = h + c.hidden[e] * kBlockSamples;
#pragma GCC unroll 4
                    for (int v = 0; v < kV; ++v) y[v] = fmadd(w, load(from + v * kLanes), y[v]);
                }
                if (!last) {
#pragma GCC unroll 4
                    for (int v = 0; v < kV; ++v) store(place + v * kLanes, y[v]);
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
                    const F d =
                        activation.back(y[v], slope, q.loss_function.add_to(loss, error, importance));
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
    // u = W d, and the decoder's part of the gradient.
    static void back(const ConnectionsBlock& q) {
        const Connections& c = *q.lists;
        for (int64_t k = 0; k < c.m; ++k)
            for (int v = 0; v < kV; ++v) store(q.u + k * kBlockSamples + v * kLanes, fzero());
        LaneSums sums;
        sums.to = q.gradient;
        for (int64_t panel = 0; panel < c.panels; ++panel) {
            const int64_t unit = c.first_unit(panel);
            const float* const h = q.h + unit * kBlockSamples;
            float* const u = q.u + unit * kBlockSamples;
            const uint32_t* const start = c.start + panel * (c.n + 1);
            for (int64_t at = 0; at < q.n_on; ++at) {
                const uint32_t i = q.on[at];
                F d[kV];
#pragma GCC unroll 4
                for (int v = 0; v < kV; ++v) d[v] = load(q.y + i * kBlockSamples + v * kLanes);
                sums.begin_at(q.gradient + start[i]);
                for (uint32_t e = start[i]; e < start[i + 1]; ++e) {
                    const F w = bcast(q.w[e]);
                    const int64_t k = c.hidden[e] * kBlockSamples;
                    F sum = d[0] * load(h + k);
                    store(u + k, fmadd(w, d[0], load(u + k)));
#pragma GCC unroll 4
                    for (int v = 1; v < kV; ++v) {
                        sum = fmadd(d[v], load(h + k + v * kLanes), sum);
                        store(u + k + v * kLanes, fmadd(w, d[v], load(u + k + v * kLanes)));
                    }
                    sums.push(sum);
                }
            }
        }
        sums.finish();
    }
    // The encoder's part of the gradient, from what goes back through f.
    static void inputs(const ConnectionsBlock& q) {
        const Connections& c = *q.lists;
        LaneSums sums;
        sums.to = q.gradient;
        for (int64_t panel = 0; panel < c.panels; ++panel) {
            const float* const u = q.u + c.first_unit(panel) * kBlockSamples;
            const uint32_t* const start = c.start + panel * (c.n + 1);
            for (int64_t at = 0; at < q.n_present; ++at) {
                const uint32_t i = q.present[at];
                F x[kV];
#pragma GCC unroll 4
                for (int v = 0; v < kV; ++v) x[v] = load(q.x + i * kBlockSamples + v * kLanes);
                sums.begin_at(q.gradient + start[i]);
                for (uint32_t e = start[i]; e < start[i + 1]; ++e) {
                    const float* const from = u + c.hidden[e] * kBlockSamples;
                    F sum = x[0] * load(from);
#pragma GCC unroll 4
                    for (int v = 1; v < kV; ++v) sum = fmadd(x[v], load(from + v * kLanes), sum);
                    sums.push(sum);
                }
            }
        }
        sums.finish();
    }
};

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
        present_ = w.take<uint32_t>(there ? n : 0), on_ = w.take<uint32_t>(there ? n + 1 : 0);
        seen_ = w.take<uint8_t>(there ? n : 0);
        turned_ = w.take<float>(there ? (size_t)(kBlockSamples + kLanes) * mp : 0);
        panel_ = w.take<float>((size_t)(kBlockSamples + kPanelDepth) * kBlockVectors * kLanes);
    }
    // A part of a batch, of no samples yet.
    void begin(const TilesModel& model, const TilesModel::Gradient& g) {
        model_ = &model, g_ = g;
        for (int64_t i = 0; i < model.n * kBlockSamples; i += kLanes) store(x_ + i, fzero());
        for (int64_t i = 0; i < model.n; ++i) seen_[i] = 0;
    }
    // `listed`: the tile is a list of entries alone, of up to kBlockSamples rows. Returns its loss.
    double tile(const Tile& t, bool listed) {
        if (listed) return listed_tile(t);
        double loss = 0.0;
        const int64_t n = model_->n, np = model_->np;
        for (int64_t r = 0; r < t.rows; r += kBlockSamples) {
            const int64_t rows = t.rows - r < kBlockSamples ? t.rows - r : kBlockSamples;
            turn_rows(t.x + r * np, np, rows, n, x_);
            if (t.target != t.x) turn_rows(t.target + r * np, np, rows, n, target_);
            for (int64_t i = 0; i < n; ++i) present_[i] = (uint32_t)i;
            loss += block(rows, n, t.target != t.x ? target_ : x_);
        }
        return loss;
    }

  private:
    double listed_tile(const Tile& t) {
        for (int64_t e = 0; e < t.entries; ++e) {
            x_[t.feature[e] * kBlockSamples + t.row[e]] = t.value[e];
            seen_[t.feature[e]] = 1;
        }
        int64_t count = 0;
        for (int64_t i = 0; i < model_->n; ++i) {
            present_[count] = (uint32_t)i;
            count += seen_[i];
        }
        const double loss = block(t.rows, count, x_);
        for (int64_t e = 0; e < t.entries; ++e) x_[t.feature[e] * kBlockSamples + t.row[e]] = 0.0f;
        for (int64_t at = 0; at < count; ++at) seen_[present_[at]] = 0;
        return loss;
    }
    // rows [rows][from_row] to [width][kBlockSamples], zeros past the last of them; `from` may be read to whole lane groups.
    static void turn_rows(const float* from, int64_t from_row, int64_t rows, int64_t width, float* to) {
        for (int64_t r = 0; r < kBlockSamples; r += kLanes)
            for (int64_t j = 0; j < width; j += kLanes) {
                F block[kLanes];
                for (int i = 0; i < kLanes; ++i)
                    block[i] = r + i < rows ? load(from + (r + i) * from_row + j) : fzero();
                transpose(block);
                const int64_t many = width - j < kLanes ? width - j : kLanes;
                for (int64_t i = 0; i < many; ++i) store(to + (j + i) * kBlockSamples + r, block[i]);
            }
    }
    double block(int64_t rows, int64_t n_present, const float* target) {
        ConnectionsBlock q = {};
        q.lists = &model_->connections;
        q.w = model_->d, q.b = model_->b, q.importance = model_->importance;
        q.gradient = g_.d, q.bias_gradient = g_.b;
        q.x = x_, q.target = target, q.y = y_, q.h = h_, q.u = u_;
        q.present = present_, q.n_present = n_present, q.rows = rows, q.on = on_;
        q.loss_function = {net_.loss}, q.target_bits = target_bits(net_.target);
        if (is_floor(net_.hidden_activation) && is_floor(net_.output_activation))
            pass<FloorActivation<F>>(q);
        else
            pass<CalledActivation>(q);
        return q.loss;
    }
    template <class A>
    void pass(ConnectionsBlock& q) {
        switch ((q.rows + kLanes - 1) / kLanes) {
            case 1: return pass<1, A>(q);
            case 2: return pass<2, A>(q);
            case 3: return pass<3, A>(q);
            default: return pass<kBlockGroups, A>(q);
        }
    }
    template <int kV, class A>
    void pass(ConnectionsBlock& q) {
        using Pass = ConnectionsPass<kV, A>;
        const A hidden = A::of(net_.hidden_activation, net_.hidden_option);
        Pass::codes(q);
        for (int64_t k = 0; k < model_->m; ++k)
            for (int v = 0; v < kV; ++v) {
                const int64_t at = k * kBlockSamples + v * kLanes;
                F slope = fzero();
                store(h_ + at, hidden.value(load(h_ + at), slope));
                store(slope_ + at, slope);
            }
        Pass::outputs(q, A::of(net_.output_activation, net_.output_option));
        Pass::back(q);
        for (int64_t k = 0; k < model_->m; ++k)
            for (int v = 0; v < kV; ++v) {
                const int64_t at = k * kBlockSamples + v * kLanes;
                store(u_ + at, hidden.back(load(h_ + at), load(slope_ + at), load(u_ + at)));
            }
        Pass::inputs(q);
        if (model_->whole_gradient) whole_gradient(q.rows);
    }
    // The gradient at all places, whether there is a connection or not, to g.dt [n][mp].
    void whole_gradient(int64_t rows) {
        const int64_t n = model_->n, m = model_->m, mp = model_->mp;
        const auto add = [&](const float* of_features, const float* of_units) {
            for (int64_t k = 0; k < m; k += kLanes)
                for (int64_t r = 0; r < kBlockSamples; r += kLanes) {
                    F block[kLanes];
                    for (int i = 0; i < kLanes; ++i)
                        block[i] = k + i < m ? load(of_units + (k + i) * kBlockSamples + r) : fzero();
                    transpose(block);
                    for (int i = 0; i < kLanes; ++i) store(turned_ + (r + i) * mp + k, block[i]);
                }
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t k = (m + kLanes - 1) / kLanes * kLanes; k < mp; k += kLanes)
                    store(turned_ + r * mp + k, fzero());
            multiply_all({of_features, kBlockSamples, 1, {turned_, mp, rows, nullptr}, g_.dt, mp, true}, n, mp, panel_);
        };
        add(y_, h_);
        add(x_, u_);
    }

    Network net_;
    const TilesModel* model_;
    TilesModel::Gradient g_;
    float *x_, *y_, *target_, *h_, *u_, *slope_, *turned_, *panel_;
    uint32_t *present_, *on_;
    uint8_t* seen_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
