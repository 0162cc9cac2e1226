// The passes of the general loop for networks of a few units: samples stand side by side in lanes.
//
//   a = Ê x + ĉ, h = f(a), z = b + D̂ h + S x, y = g(z), and with d = dL/dz: Σ h dᵀ, Σ d, u = D̂ᵀ d ⊙ f′(a), Σ x uᵀ, Σ u
//
// In rows, as train_general.inl has them, a layer of five units fills five of sixteen lanes, and every pass is a loop of its
// own over the tile; here every lane is a sample, and a tile is passed over once, forward and back.
//
// Layout     inputs and targets of a tile [n][rows], [o][rows], filled up to whole steps; weights as GeneralModel lays them out,
//            read one by one; gradients in lanes [n][m], [m][o], [m], [o], added up at the end of a part
// Owner      one worker; codes, outputs and what goes back of kSide lane groups of samples stay in L1
// Zeros      inactive inputs are computed: with so few features an entry's bookkeeping costs more
// Order      sums over units and features in order; a lane adds its samples in order, lanes by the fixed tree
// Limits     lanes_fit: up to kFew features, hidden units and outputs and kFewWeights weights, an activation of each code by
//            itself, squared error; an embedding that is folded. train_general.inl's rows take the rest
// Twin       train_general.inl's passes in rows
// Roof       n m + m o fused multiply-adds a sample forward, twice that back, sixteen samples each; beside them three
//            operations for a loaded weight or sum
#pragma once
#include "common/tensors.h"
#include "cpu/resident/general_model.inl"
#include "cpu/resident/general_outputs.inl"
#include "cpu/resident/tile_source.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kFew = 16;          // with so many units rows fill their lanes as well
constexpr int kFewWeights = 160;  // beyond them rows are quicker: a sample's inactive features cost nothing there
constexpr int kSide = 2;          // lane groups of samples side by side: a weight is loaded once for all of them

inline bool lanes_fit(const Network& net) {
    return net.n_features <= kFew && net.n_hidden <= kFew && net.n_outputs <= kFew &&
           net.n_hidden * (net.n_features + net.n_outputs) <= kFewWeights && is_elementwise(net.loss) &&
           net.hidden_activation != (int32_t)Activation::kSolu && net.hidden_activation != (int32_t)Activation::kTopK;
}

class GeneralLanes {
  public:
    // For tiles of up to `rows` samples.
    void carve(Workspace& w, const Network& net, const FiniteData& finite, int64_t rows) {
        fits_ = lanes_fit(net);
        if (!fits_) return;
        n_ = net.n_features, m_ = net.n_hidden, o_ = net.n_outputs;
        np_ = round_up(n_), mp_ = round_up(m_), op_ = round_up(o_);
        room_ = (rows + kStep - 1) / kStep * kStep;
        const int64_t widest = n_ > o_ ? n_ : o_;
        x_ = w.take<float>((size_t)((widest + kLanes) * room_));
        target_ = w.take<float>((size_t)((widest + kLanes) * room_));
        sums_ = w.take<float>((size_t)((n_ * m_ + m_ * o_ + m_ + o_) * kLanes));
        hidden_ = AnyActivation<F>::of(net.hidden_activation, net.hidden_option);
        output_ = AnyActivation<F>::of(net.output_activation, net.output_option);
        loss_ = {net.loss};
        target_bits_ = target_bits(net.target);
        of_inputs_ = !finite.target && !finite.label;
    }
    bool fits() const { return fits_; }

    void begin() {
        for (int64_t i = 0; i < (n_ * m_ + m_ * o_ + m_ + o_) * kLanes; i += kLanes) store(sums_ + i, fzero());
    }
    // A tile, whose rows count `times` each; `listed`: its rows are in the entries alone. `l1`: the slope of |h|. Returns
    // the sum of its losses, and adds that of |h| to `norm`.
    double pass(const GeneralModel& w, const Tile& tile, bool listed, double times, float l1, double& norm) {
        place(tile, listed);
        const float* targets = tile.target == tile.x ? x_ : target_;
        F loss = fzero(), codes = fzero();
        for (int64_t s = 0; s < tile.rows; s += kStep)
            step(w, x_ + s, targets + s, tile.rows - s, bcast((float)times), l1 * (float)times, loss, codes);
        norm += (double)fsum(codes) * times;
        return (double)fsum(loss) * times;
    }
    // The sums to the gradients of the part, which are zeros.
    void finish(const GeneralModel::Gradient& g) const {
        const float* from = sums_;
        const auto add_up = [&](float* to, int64_t row, int64_t rows, int64_t columns) {
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = 0; c < columns; ++c, from += kLanes) to[r * row + c] = fsum(load(from));
        };
        add_up(g.et, mp_, n_, m_), add_up(g.d, op_, m_, o_), add_up(g.c, mp_, 1, m_), add_up(g.b, op_, 1, o_);
    }

  private:
    static constexpr int kStep = kSide * kLanes;

    // Inputs and, where they are not the same, targets with a sample to a lane.
    void place(const Tile& tile, bool listed) {
        const int64_t rows = (tile.rows + kStep - 1) / kStep * kStep;
        const auto clear = [&](float* to, int64_t count, int64_t first) {
            for (int64_t i = 0; i < count; ++i)
                for (int64_t s = first / kLanes * kLanes; s < rows; s += kLanes) store(to + i * room_ + s, fzero());
        };
        if (listed) {
            clear(x_, n_, 0);
            for (int64_t e = 0; e < tile.entries; ++e) x_[tile.feature[e] * room_ + tile.row[e]] = tile.value[e];
        } else {
            clear(x_, n_, tile.rows);
            transpose_exact(tile.x, np_, x_, room_, 0, tile.rows, n_);
        }
        if (tile.target == tile.x) return;
        // What targets are made from: clean inputs, or outputs that the dataset gives.
        const int64_t width = of_inputs_ ? n_ : o_;
        clear(target_, width, tile.rows);
        transpose_exact(tile.target, of_inputs_ ? np_ : op_, target_, room_, 0, tile.rows, width);
    }
    // kStep samples, of which `left` are there.
    TOYKERN_INLINE void step(const GeneralModel& w, const float* x, const float* target, int64_t left, F times,
                             float l1, F& loss, F& norm) {
        M there[kSide];
        F h[kFew][kSide], slope[kFew][kSide], back[kFew][kSide];
        for (int v = 0; v < kSide; ++v) {
            const int64_t more = left - v * kLanes;
            there[v] = mask_first((int)(more < 0 ? 0 : more < kLanes ? more : kLanes));
        }
        for (int64_t k = 0; k < m_; ++k) {
            F a[kSide];
            for (int v = 0; v < kSide; ++v) a[v] = bcast(w.c[k]);
            add_products(w.et + k, mp_, x, n_, a);
            activate(hidden_, a, slope[k]);
            // Of samples that are not there too, so that f(c) of theirs, which may be infinite, meets no sum.
            for (int v = 0; v < kSide; ++v) h[k][v] = keep(there[v], a[v]), slope[k][v] = keep(there[v], slope[k][v]);
        }
        float* const d_sums = sums_ + n_ * m_ * kLanes;
        float* const c_sums = d_sums + m_ * o_ * kLanes;
        float* const b_sums = c_sums + m_ * kLanes;
        for (int64_t j = 0; j < o_; ++j) {
            F z[kSide], t[kSide];
            for (int v = 0; v < kSide; ++v) z[v] = bcast(w.b[j]);
            for (int64_t k = 0; k < m_; ++k) {
                const F weight = bcast(w.d[k * op_ + j]);
                for (int v = 0; v < kSide; ++v) z[v] = fmadd(weight, h[k][v], z[v]);
            }
            if (w.skip) add_products(w.skip + j, op_, x, n_, z);
            for (int v = 0; v < kSide && w.residual_itself; ++v) z[v] = z[v] + load(x + j * room_ + v * kLanes);
            if (w.projection) {
                for (int v = 0; v < kSide; ++v) t[v] = fzero();
                add_products(w.projection + j, op_, target, n_, t);
            } else {
                for (int v = 0; v < kSide; ++v) t[v] = load(target + j * room_ + v * kLanes);
            }
            F sum = load(b_sums + j * kLanes), y[kSide], slope_y[kSide];
            const F importance = bcast(w.importance[j]);
            for (int v = 0; v < kSide; ++v) y[v] = z[v];
            activate(output_, y, slope_y);
            for (int v = 0; v < kSide; ++v) {
                const F error = keep(there[v], y[v] - and_bits(t[v], target_bits_));
                back[j][v] = output_.back(z[v], slope_y[v], loss_.add_to(loss, error, importance)) * times;
                sum = sum + back[j][v];
            }
            store(b_sums + j * kLanes, sum);
        }
        const F up = bcast(l1), down = bcast(-l1);
        for (int64_t k = 0; k < m_; ++k) {
            F u[kSide];
            for (int v = 0; v < kSide; ++v) u[v] = fzero();
            for (int64_t j = 0; j < o_; ++j) {
                const F weight = bcast(w.d[k * op_ + j]);
                F sum = load(d_sums + (k * o_ + j) * kLanes);
                for (int v = 0; v < kSide; ++v) {
                    u[v] = fmadd(weight, back[j][v], u[v]);
                    sum = fmadd(h[k][v], back[j][v], sum);
                }
                store(d_sums + (k * o_ + j) * kLanes, sum);
            }
            F total = load(c_sums + k * kLanes);
            for (int v = 0; v < kSide; ++v) {
                if (l1 != 0.0f) {
                    norm = norm + and_bits(h[k][v], 0x7FFFFFFFu);
                    u[v] = u[v] + keep(gt(h[k][v], fzero()), up) + keep(gt(fzero(), h[k][v]), down);
                }
                u[v] = hidden_.back(h[k][v], slope[k][v], u[v]);
                total = total + u[v];
            }
            store(c_sums + k * kLanes, total);
            for (int64_t i = 0; i < n_; ++i) {
                F sum = load(sums_ + (i * m_ + k) * kLanes);
                for (int v = 0; v < kSide; ++v) sum = fmadd(load(x + i * room_ + v * kLanes), u[v], sum);
                store(sums_ + (i * m_ + k) * kLanes, sum);
            }
        }
    }
    // z becomes f(z), with its slope. By a call: inlined, every activation would stand in the loop at each place.
    __attribute__((noinline)) static void activate(const AnyActivation<F>& f, F (&z)[kSide], F (&slope)[kSide]) {
        for (int v = 0; v < kSide; ++v) {
            const Activated<F> a = f.at(z[v]);
            z[v] = a.y, slope[v] = a.slope;
        }
    }
    // to += Σ_i a[i · row] x_i
    TOYKERN_INLINE void add_products(const float* a, int64_t row, const float* x, int64_t count, F (&to)[kSide]) const {
        for (int64_t i = 0; i < count; ++i) {
            const F weight = bcast(a[i * row]);
            for (int v = 0; v < kSide; ++v) to[v] = fmadd(weight, load(x + i * room_ + v * kLanes), to[v]);
        }
    }

    bool fits_, of_inputs_;
    int64_t n_, m_, o_, np_, mp_, op_, room_;
    AnyActivation<F> hidden_, output_;
    AnyLoss loss_;
    uint32_t target_bits_;
    float *x_, *target_, *sums_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
