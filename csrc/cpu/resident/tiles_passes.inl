// What the tiles of train_tiles.inl go through: from the rows of a tile to the gradients that they add.
//
//   h = f(E x), y = g(D h + b), loss = Σ_j I_j (t_j − y_j)², gradients of E, D and b
//
// Layout     as in train_tiles.inl: decoder D [m][np] and its transpose Dt [n][mp], encoder Et [n][mp]; codes h [rows][mp],
//            targets and output gradients [rows][np]
// Zeros      the first product and its gradient cost only the active entries; backward goes through active outputs alone
//            where fewer than one in kFewActive is active
// Owner      one worker; the gradients are those of the part in hand
// Order      entries and rows in their order, lanes by fixed trees
// Roof       fused multiply-adds: n m forward, 2 n m backward when dense, a row; blocks of 8 rows × 3 lane groups in
//            registers
#pragma once
#include "common/loss.h"
#include "cpu/resident/entry_rows.inl"
#include "cpu/resident/narrow.inl"
#include "cpu/resident/tile_source.inl"
#include "cpu/resident/tiles_model.inl"
#include "cpu/simd/lanes.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// The sparse way costs 12 to 14 times as much for each output that it visits at m = 20 to 30, 6 to 7 times at m = 100
// (measured, v4).
constexpr int64_t kFewActive = 10;

// Output block: y = D h + b, residual, loss, and the gradient at the output. Other activations than these take
// outputs() below.
struct OutputPass {
    const float *h, *b, *importance, *target;
    Panel panel;  // of the decoder
    float* out;
    int64_t mp, np;
    FloorActivation<F> activation;
    AnyLoss loss_function;
    uint32_t target_bits;
    F loss;
    int64_t active;
    uint64_t* active_rows;  // [np / kLanes] bit r: row r has an active output in the lane group; rows <= 64
};

template <int kR, int kV>
struct OutputBlock {
    static void run(OutputPass& p, int64_t row, int64_t lane) {
        F c[kBlockRows][kBlockVectors];
        F bias[kV], weight[kV];
#pragma GCC unroll 3
        for (int v = 0; v < kV; ++v) bias[v] = load(p.b + lane + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kR; ++r)
#pragma GCC unroll 3
            for (int v = 0; v < kV; ++v) c[r][v] = bias[v];
        multiply<kR, kV>(p.h + row * p.mp, p.mp, 1, p.panel.at, p.panel.at_k, p.panel.depth, c);
#pragma GCC unroll 3
        for (int v = 0; v < kV; ++v) weight[v] = load(p.importance + lane + v * kLanes);
        F loss = p.loss;
        int64_t active = 0;
        uint64_t rows[kV] = {};
#pragma GCC unroll 8
        for (int r = 0; r < kR; ++r)
#pragma GCC unroll 3
            for (int v = 0; v < kV; ++v) {
                const int64_t at = (row + r) * p.np + lane + v * kLanes;
                F slope;
                const F error = p.activation.value(c[r][v], slope) - and_bits(load(p.target + at), p.target_bits);
                const F weighted = p.loss_function.add_to(loss, error, weight[v]);
                const M on = p.activation.on(c[r][v], slope);
                active += __builtin_popcount(bits(on));
                rows[v] |= (uint64_t)(bits(on) != 0) << r;
                store(p.out + at, keep(on, weighted));
            }
        for (int v = 0; v < kV; ++v) p.active_rows[lane / kLanes + v] |= rows[v] << row;
        p.loss = loss;
        p.active += active;
    }
};

// The passes and what they need of memory; where the rows come from, a derived class says.
class TilesPasses {
  protected:
    // Room for tiles of up to `rows` rows; `narrow`: few hidden units may take the pass of narrow.inl.
    void carve(Workspace& w, const Network& net, int64_t rows, bool narrow) {
        net_ = net;
        narrow_ = narrow && net.n_hidden <= kNarrowHidden && is_floor(net.output_activation);
        back_ = w.take<float>(narrow_ ? (size_t)(rows * net.n_hidden * kLanes) : 0);
        const int64_t np = round_up(net.n_features), mp = round_up(net.n_hidden);
        out_ = w.take<float>((size_t)(rows * np));
        h_ = w.take<float>((size_t)(rows * mp));
        dh_ = w.take<float>((size_t)(rows * mp));
        slope_ = w.take<float>(is_floor(net.hidden_activation) ? 0 : (size_t)(rows * mp));
        const int64_t deepest = net.n_hidden > kPanelDepth ? net.n_hidden : kPanelDepth;
        panel_ = w.take<float>((size_t)(deepest * kBlockVectors * kLanes));
        active_rows_ = w.take<uint64_t>((size_t)(np / kLanes));
        const size_t most_active = (size_t)(rows * np) / kFewActive + 2 * kLanes;
        active_row_ = w.take<uint32_t>(most_active);
        active_feature_ = w.take<uint32_t>(most_active);
        active_value_ = w.take<float>(most_active);
    }
    // A part of a batch, of no samples yet; g is a TilesModel::Gradient array.
    void begin(const TilesModel& model, float* g) {
        model_ = &model;
        g_ = model.gradient(g);
        model.clear(g_);
        loss_ = 0.0;
        visited_ = 0;
    }

    // One tile: its entries by row, the same as dense rows x [rows][np], and the targets before the sign is taken off.
    // Loops over entries are flat where rows have few of them: a core would mispredict the end of every row.
    void tile(int64_t rows, int64_t entries, const uint32_t* row, const uint32_t* feature, const float* value,
              const float* x, const float* target) {
        const TilesModel& w = *model_;
        const int64_t mp = w.mp, np = w.np;
        visited_ += rows;
        const bool dense = is_dense(entries, rows, w.n);
        if (dense) {
            multiply_all({x, np, 1, {w.et, mp, w.n, nullptr}, h_, mp, false}, rows, mp, panel_);
        } else if (entries > 4 * rows) {
            sum_rows(rows, entries, row, feature, value, w.et, h_, mp);
        } else {
            for (int64_t i = 0; i < rows * mp; i += kLanes) store(h_ + i, fzero());
            add_rows(entries, row, feature, value, w.et, h_, mp);
        }
        activate_codes(rows);
        if (narrow_)
            narrow(rows, target);
        else if (const int64_t active = outputs(rows, target);
                 net_.output_activation == (int32_t)Activation::kRelu && active * kFewActive < rows * w.n)
            backward_active(rows);
        else
            backward_dense(rows);
        gate_codes(rows);
        if (dense) {
            multiply_all({x, 1, np, {dh_, mp, rows, nullptr}, g_.et, mp, true}, w.n, mp, panel_);
        } else {
            add_rows(entries, feature, row, value, dh_, g_.et, mp);
        }
    }

    // So many samples without entries and with targets of 0, whose codes are 0.
    void add_empty(int64_t count) {
        const auto output = AnyActivation<F>::of(net_.output_activation, net_.output_option);
        const F times = bcast((float)count);
        const AnyLoss loss_function = {net_.loss};
        F loss = fzero();
        for (int64_t j = 0; j < model_->np; j += kLanes) {
            const F b = load(model_->b + j);
            const Activated<F> a = output.at(b);
            const F d = output.back(b, a.slope, loss_function.add_to(loss, a.y, load(model_->importance + j)));
            store(g_.b + j, fmadd(d, times, load(g_.b + j)));
        }
        loss_ += (double)fsum(loss) * (double)count;
    }

    Network net_;
    const TilesModel* model_;
    TilesModel::Gradient g_;
    int64_t visited_;  // samples that were rows of a tile
    double loss_;

  private:
    // h = f(a), in place.
    void activate_codes(int64_t rows) {
        const int64_t values = rows * model_->mp;
        if (is_floor(net_.hidden_activation)) {
            const auto hidden = FloorActivation<F>::of(net_.hidden_activation, net_.hidden_option);
            F slope;
            for (int64_t i = 0; i < values; i += kLanes) store(h_ + i, hidden.value(load(h_ + i), slope));
            return;
        }
        const auto hidden = AnyActivation<F>::of(net_.hidden_activation, net_.hidden_option);
        for (int64_t i = 0; i < values; i += kLanes) {
            const Activated<F> a = hidden.at(load(h_ + i));
            store(h_ + i, a.y);
            store(slope_ + i, a.slope);
        }
    }
    // dL/da from dL/dh, in place.
    void gate_codes(int64_t rows) {
        const int64_t values = rows * model_->mp;
        if (is_floor(net_.hidden_activation)) {
            const auto hidden = FloorActivation<F>::of(net_.hidden_activation, net_.hidden_option);
            const F none = fzero();
            for (int64_t i = 0; i < values; i += kLanes) store(dh_ + i, hidden.back(load(h_ + i), none, load(dh_ + i)));
            return;
        }
        const auto hidden = AnyActivation<F>::of(net_.hidden_activation, net_.hidden_option);
        for (int64_t i = 0; i < values; i += kLanes)
            store(dh_ + i, hidden.back(load(h_ + i), load(slope_ + i), load(dh_ + i)));
    }

    // Outputs and the way back through them in one pass: loss, dh, and the decoder's and the bias's gradient.
    void narrow(int64_t rows, const float* target) {
        const TilesModel& w = *model_;
        NarrowPass pass = {w.d,          w.b,
                           w.importance, h_,
                           target,       g_.d,
                           g_.b,         back_,
                           rows,         w.mp,
                           w.np,         FloorActivation<F>::of(net_.output_activation, net_.output_option),
                           {net_.loss},  target_bits(net_.target),
                           fzero()};
        narrow_outputs(pass, w.m, dh_);
        loss_ += (double)fsum(pass.loss);
    }

    // out_ = the gradients at the outputs of a tile, and their loss; returns how many outputs are active (all, unless
    // it is ReLU).
    int64_t outputs(int64_t rows, const float* target) {
        const TilesModel& w = *model_;
        const int64_t np = w.np;
        const Panel decoder = {w.d, np, w.m, far_apart(np, w.m) && rows > kBlockRows ? panel_ : nullptr};
        if (is_floor(net_.output_activation)) {
            for (int64_t j = 0; j < np / kLanes; ++j) active_rows_[j] = 0;
            OutputPass pass = {h_,
                               w.b,
                               w.importance,
                               target,
                               decoder,
                               out_,
                               w.mp,
                               np,
                               FloorActivation<F>::of(net_.output_activation, net_.output_option),
                               {net_.loss},
                               target_bits(net_.target),
                               fzero(),
                               0,
                               active_rows_};
            for_blocks<OutputBlock>(rows, np, pass);
            loss_ += (double)fsum(pass.loss);
            return pass.active;
        }
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < np; j += kLanes) store(out_ + r * np + j, load(w.b + j));
        multiply_all({h_, w.mp, 1, {w.d, np, w.m, nullptr}, out_, np, true}, rows, np, panel_);
        const auto output = AnyActivation<F>::of(net_.output_activation, net_.output_option);
        const AnyLoss loss_function = {net_.loss};
        F loss = fzero();
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < np; j += kLanes) {
                const F z = load(out_ + r * np + j);
                const Activated<F> a = output.at(z);
                const F error = a.y - and_bits(load(target + r * np + j), target_bits(net_.target));
                const F weighted = loss_function.add_to(loss, error, load(w.importance + j));
                store(out_ + r * np + j, output.back(z, a.slope, weighted));
            }
        loss_ += (double)fsum(loss);
        return rows * w.n;
    }

    // dh, and the decoder's and the bias's gradient, as products of whole tiles.
    void backward_dense(int64_t rows) {
        const TilesModel& w = *model_;
        for (int64_t j = 0; j < w.np; j += kLanes) {
            F sum = load(g_.b + j);
            for (int64_t r = 0; r < rows; ++r) sum = sum + load(out_ + r * w.np + j);
            store(g_.b + j, sum);
        }
        multiply_all({out_, w.np, 1, {w.dt, w.mp, w.n, nullptr}, dh_, w.mp, false}, rows, w.mp, panel_);
        multiply_all({h_, 1, w.mp, {out_, w.np, rows, nullptr}, g_.d, w.np, true}, w.m, w.np, panel_);
    }

    // The same through the active outputs alone, listed by lane group of features and then by row, so that neighbours
    // in the list rarely add to the same row.
    void backward_active(int64_t rows) {
        const int64_t np = model_->np, mp = model_->mp;
        int64_t count = 0;
        for (int64_t j = 0; j < np; j += kLanes)
            for (uint64_t left = active_rows_[j / kLanes]; left; left &= left - 1) {
                const int r = __builtin_ctzll(left);
                const F d = load(out_ + r * np + j);
                const M m = nonzero(d);
                store(active_row_ + count, ubcast((uint32_t)r));
                store_packed(active_feature_ + count, ulane() + ubcast((uint32_t)j), m);
                store_packed((uint32_t*)(active_value_ + count), as_words(d), m);
                count += __builtin_popcount(bits(m));
            }
        for (int64_t i = 0; i < rows * mp; i += kLanes) store(dh_ + i, fzero());
        add_rows(count, active_row_, active_feature_, active_value_, model_->dt, dh_, mp);
        add_rows(count, active_feature_, active_row_, active_value_, h_, g_.dt, mp);
        for (int64_t i = 0; i < count; ++i) g_.b[active_feature_[i]] += active_value_[i];
    }

    uint32_t *active_row_, *active_feature_;
    uint64_t* active_rows_;
    float *out_, *h_, *dh_, *active_value_, *panel_;
    bool narrow_;
    float* back_;   // [rows][m][lanes] of the narrow pass
    float* slope_;  // [rows][mp] of the codes, where h does not tell it
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
