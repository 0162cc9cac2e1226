// The resident step for larger networks: features (or hidden units) across lanes, samples in tiles of rows.
//
//   h = f(E x), y = g(D h + b), loss = Σ_j I_j (t_j − y_j)², gradients of E, D and b, over one part of the batch
//
// Layout     decoder D [m][np] with features across lanes (np = n rounded up to lanes), its transpose Dt [n][mp] with
//            hidden units across lanes; encoder Et [n][mp] (tied: Et = Dt). A tile holds up to 32 or 64 non-empty
//            samples: their entries, codes h [rows][mp], targets and output gradients [rows][np]
// Zeros      empty samples share one closed-form term; the first product and its gradient cost only the active entries;
//            backward goes through active outputs alone where fewer than one in kFewActive is active
// Forms      linear codes of rare features may take the Gram form instead (gram.inl), which choose() decides for a model
// Owner      one worker per part; models smaller than L2 stay in cache for the whole run
// Order      entries, rows and tiles in the order of their samples, lanes by fixed trees: a function of shape, level
//            and the model's own data
// Limits     none but memory (scratch about 7 n·m floats a model, and 2 gradients a part); any shape runs here
// Roof       fused multiply-adds: n m forward, 2 n m backward when dense, a row; blocks of 8 rows × 3 lane groups in
//            registers
#pragma once
#include "common/loss.h"
#include "cpu/resident/tiles_model.inl"
#include "cpu/simd/lanes.h"
#include "cpu/stream/finite.inl"
#include "cpu/stream/stream.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// The sparse way costs 12 to 14 times as much for each output that it visits at m = 20 to 30, 6 to 7 times at m = 100
// (measured, v4).
constexpr int64_t kFewActive = 10;
constexpr int64_t kDenseEntries = 3;  // with more than one entry in three active the dense product is no slower

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

// Draws one part of a batch tile by tile and adds up its gradients.
class TilesWorker {
  public:
    void carve(Workspace& w, const Network& net, const Distribution& data, const FiniteData& finite) {
        net_ = net;
        finite_.carve(finite, net.n_features);
        tables_.carve(w, data);
        const int64_t n = net.n_features, np = round_up(n), mp = round_up(net.n_hidden);
        rows_max_ = np <= 512 ? 32 : 64;
        while (rows_max_ > 1 && rows_max_ * np > ((int64_t)1 << 22)) rows_max_ /= 2;
        // Where rows are long and products small, what a tile costs is its way through the cache.
        if (finite.rows && net.n_hidden <= kLanes)
            while (rows_max_ > kBlockRows && rows_max_ * np > 65536) rows_max_ /= 2;
        stream_rows_ = 32;
        rare_.carve(w, tables_);
        rows_.carve(w, tables_);
        const int64_t listed_rows = gram_fits(net) ? kGramTileRows : rows_max_;
        sorted_.carve(w, gram_fits(net));
        list_.carve(w, tables_, (size_t)(listed_rows * n));
        const int64_t held = rows_max_ > stream_rows_ ? rows_max_ : stream_rows_;
        x_ = w.take<float>((size_t)(held * np));
        clean_ = w.take<float>(data.noise > 0.0f || finite.target ? (size_t)(held * np) : 0);
        out_ = w.take<float>((size_t)(held * np));
        h_ = w.take<float>((size_t)(held * mp));
        dh_ = w.take<float>((size_t)(held * mp));
        slope_ = w.take<float>(is_floor(net.hidden_activation) ? 0 : (size_t)(held * mp));
        const size_t entries =
            (size_t)((listed_rows > held ? listed_rows : held) * np) + tables_.refill_room + 2 * kLanes;
        row_ = w.take<uint32_t>(entries);
        feature_ = w.take<uint32_t>(entries);
        value_ = w.take<float>(entries);
        const int64_t deepest = net.n_hidden > kPanelDepth ? net.n_hidden : kPanelDepth;
        panel_ = w.take<float>((size_t)(deepest * kBlockVectors * kLanes));
        active_rows_ = w.take<uint64_t>((size_t)(np / kLanes));
        const size_t most_active = (size_t)(held * np) / kFewActive + 2 * kLanes;
        active_row_ = w.take<uint32_t>(most_active);
        active_feature_ = w.take<uint32_t>(most_active);
        active_value_ = w.take<float>(most_active);
    }
    void set_up(int64_t model, int64_t seed, int64_t batch_size) {
        if (finite_.there())
            finite_.set_up(model, seed, batch_size);
        else
            tables_.set_up(model);
    }
    // Which form the model that was set up takes.
    void choose(TilesModel& model, int64_t batch_size) const { model.gram = model.has_gram && gram_wins(batch_size); }
    const char* form(int64_t batch_size) const { return gram_fits(net_) && gram_wins(batch_size) ? "gram" : "tiles"; }

    // As ColumnsWorker::accumulate; g is a TilesModel::Gradient array.
    double accumulate(const TilesModel& model, const StreamKey& key, int64_t first, int64_t last, float* g) {
        model_ = &model;
        g_ = model.gradient(g);
        model.clear(g_);
        loss_ = 0.0;
        visited_ = 0;
        if (finite_.there())
            from_dataset(key, first, last);
        else if (tables_.n_frequent || tables_.data->noise > 0.0f)
            from_rows(key, first, last);
        else
            from_list(key, first, last);
        if (last - first > visited_) add_empty(last - first - visited_);
        return loss_;
    }

  private:
    bool gram_wins(int64_t batch_size) const {
        const bool listed = !finite_.there() && !tables_.n_frequent && !(tables_.data->noise > 0.0f);
        return listed && gram_pays(net_, batch_size, tables_.rare_entries, tables_.rare_rate);
    }
    // Rare units only: tiles of non-empty samples, cut from the list of entries.
    void from_list(const StreamKey& key, int64_t first, int64_t last) {
        rare_.begin(key, first, last);
        list_.count = 0;
        const int64_t rows_max = model_->gram ? kGramTileRows : rows_max_;
        int64_t labelled = 0;  // entries that have a row already
        U rows = ubcast(0xFFFFFFFFu), before = ubcast(0xFFFFFFFFu);
        for (;;) {
            while (!rare_.done() && (labelled == 0 || row_[labelled - 1] < (uint32_t)rows_max)) {
                rare_.refill(list_);
                label(labelled, rows, before);
            }
            if (list_.count == 0) return;
            int64_t used = list_.count;  // entries of the first rows_max rows
            if (row_[used - 1] >= (uint32_t)rows_max) {
                int64_t low = 0;
                while (low < used) {
                    const int64_t middle = (low + used) / 2;
                    if (row_[middle] < (uint32_t)rows_max)
                        low = middle + 1;
                    else
                        used = middle;
                }
            }
            tile(used);
            list_.drop(used);
            labelled = 0;
            rows = before = ubcast(0xFFFFFFFFu);
            label(labelled, rows, before);
        }
    }
    // Rows of the entries from `labelled` on: a new one wherever the sample changes.
    void label(int64_t& labelled, U& rows, U& before) {
        while (labelled < list_.count) {
            const int64_t left = list_.count - labelled;
            const M lanes = mask_first((int)(left < kLanes ? left : kLanes));
            const U sample = load(list_.sample + labelled);
            const U row = rows + count_upto(and_not(lanes, eq(sample, shift_in(sample, before))));
            store(row_ + labelled, row);
            const int64_t many = left < kLanes ? left : kLanes;
            rows = ubcast(row_[labelled + many - 1]);
            before = ubcast(list_.sample[labelled + many - 1]);
            labelled += many;
        }
    }
    // The first `entries` of the list as one tile.
    void tile(int64_t entries) {
        const int64_t np = model_->np, rows = (int64_t)row_[entries - 1] + 1;
        if (model_->gram) return gram_tile(rows, entries);
        for (int64_t i = 0; i < rows * np; i += kLanes) store(x_ + i, fzero());
        for (int64_t i = 0; i < entries; ++i) x_[row_[i] * np + list_.feature[i]] = list_.value[i];
        tile(rows, entries, row_, list_.feature, list_.value, x_, x_);
    }

    // The same in the Gram form.
    void gram_tile(int64_t rows, int64_t entries) {
        visited_ += rows;
        sorted_.sort(rows, entries, row_);
        GramPass pass = {
            model_->gt,    model_->b,   model_->importance,       g_.a, g_.b, model_->np, list_.feature, list_.value,
            sorted_.start, {net_.loss}, target_bits(net_.target), 0,    0.0};
        if (is_floor(net_.output_activation))
            sorted_.pass(pass, FloorActivation<F>::of(net_.output_activation, net_.output_option));
        else
            sorted_.pass(pass, CalledActivation::of(net_.output_activation, net_.output_option));
        loss_ += pass.loss;
    }

    // Frequent units or noise: every sample is a row; its entries are read off the dense row.
    void from_rows(const StreamKey& key, int64_t first, int64_t last) {
        const int64_t np = model_->np;
        const bool noise = tables_.data->noise > 0.0f;
        rows_.begin(key, first, last);
        while (!rows_.done()) {
            float* clean = noise ? clean_ : x_;
            const int64_t rows = rows_.next32(clean, (size_t)np);
            if (noise) {
                for (int64_t i = 0; i < rows * np; i += kLanes) store(x_ + i, fzero());
                rows_.add_noise(clean, x_, (size_t)np, (int)rows);
            }
            tile(rows, list_entries(rows), row_, feature_, value_, x_, clean);
        }
    }
    // The entries of the dense rows in x_; returns how many.
    int64_t list_entries(int64_t rows) {
        const int64_t np = model_->np;
        int64_t count = 0;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < np; j += kLanes) {
                const F x = load(x_ + r * np + j);
                const M m = nonzero(x);
                store(row_ + count, ubcast((uint32_t)r));
                store_packed(feature_ + count, ulane() + ubcast((uint32_t)j), m);
                store_packed((uint32_t*)(value_ + count), as_words(x), m);
                count += __builtin_popcount(bits(m));
            }
        return count;
    }
    // Rows of a finite dataset. Those of no entries are left to the closed form where the target is made from them.
    void from_dataset(const StreamKey& key, int64_t first, int64_t last) {
        const int64_t np = model_->np;
        const FiniteData& d = finite_.data();
        const float* target = d.target ? clean_ : x_;
        finite_.begin(key, first);
        for (int64_t s = first; s < last;) {
            int64_t rows = 0, count = 0;
            if (d.input) {
                for (; rows < rows_max_ && s < last; ++rows, ++s) {
                    const int64_t at = finite_.next();
                    finite_.fill(d.input, finite_.input_row(at), x_ + rows * np, np);
                    if (d.target) finite_.fill(d.target, finite_.target_row(at), clean_ + rows * np, np);
                }
                count = list_entries(rows);
            } else {
                for (; rows < rows_max_ && s < last; ++s) {
                    const int64_t at = finite_.next(), row = finite_.input_row(at);
                    const int64_t start = d.row_start[row], end = d.row_start[row + 1];
                    if (start == end && !d.target) continue;
                    float* x = x_ + rows * np;
                    for (int64_t j = 0; j < np; j += kLanes) store(x + j, fzero());
                    for (int64_t e = start; e < end; ++e, ++count) {
                        row_[count] = (uint32_t)rows;
                        feature_[count] = (uint32_t)d.feature[e];
                        value_[count] = d.value[e];
                        x[d.feature[e]] = d.value[e];
                    }
                    if (d.target) finite_.fill(d.target, finite_.target_row(at), clean_ + rows * np, np);
                    ++rows;
                }
            }
            if (rows) tile(rows, count, row_, feature_, value_, x_, target);
        }
    }

    // One tile: its entries by row, the same as dense rows x [rows][np], and the targets before the sign is taken off.
    // Loops over entries are flat where rows have few of them: a core would mispredict the end of every row.
    void tile(int64_t rows, int64_t entries, const uint32_t* row, const uint32_t* feature, const float* value,
              const float* x, const float* target) {
        const TilesModel& w = *model_;
        const int64_t mp = w.mp, np = w.np;
        visited_ += rows;
        const bool dense = entries * kDenseEntries > rows * w.n;
        if (dense) {
            multiply_all({x, np, 1, {w.et, mp, w.n, nullptr}, h_, mp, false}, rows, mp, panel_);
        } else if (entries > 4 * rows) {
            sum_rows(rows, entries, row, feature, value);
        } else {
            for (int64_t i = 0; i < rows * mp; i += kLanes) store(h_ + i, fzero());
            add_rows(entries, row, feature, value, w.et, h_);
        }
        activate_codes(rows);
        const int64_t active = outputs(rows, target);
        if (net_.output_activation == (int32_t)Activation::kRelu && active * kFewActive < rows * w.n)
            backward_active(rows);
        else
            backward_dense(rows);
        gate_codes(rows);
        if (dense) {
            multiply_all({x, 1, np, {dh_, mp, rows, nullptr}, g_.et, mp, true}, w.n, mp, panel_);
        } else {
            add_rows(entries, feature, row, value, dh_, g_.et);
        }
    }

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

    // h of rows with many entries: a row's sum stays in registers.
    void sum_rows(int64_t rows, int64_t count, const uint32_t* row, const uint32_t* feature, const float* value) {
        const int64_t mp = model_->mp;
        for (int64_t i = 0; i < rows * mp; i += kLanes) store(h_ + i, fzero());  // a row may have no entry at all
        for (int64_t i = 0, end; i < count; i = end) {
            for (end = i + 1; end < count && row[end] == row[i]; ++end) {
            }
            for (int64_t k = 0; k < mp; k += 2 * kLanes) {
                const bool two = k + kLanes < mp;
                F a = fzero(), b = fzero();
                for (int64_t e = i; e < end; ++e) {
                    const float* from = model_->et + (int64_t)feature[e] * mp + k;
                    const F x = bcast(value[e]);
                    a = fmadd(x, load(from), a);
                    if (two) b = fmadd(x, load(from + kLanes), b);
                }
                store(h_ + row[i] * mp + k, a);
                if (two) store(h_ + row[i] * mp + k + kLanes, b);
            }
        }
    }

    // to[index[i]] += value[i] · from[other[i]], rows of mp lanes.
    void add_rows(int64_t count, const uint32_t* index, const uint32_t* other, const float* value, const float* from,
                  float* to) const {
        const int64_t mp = model_->mp, vectors = mp / kLanes;
        if (vectors == 1)
            add_row_lanes<1>(count, index, other, value, from, to);
        else if (vectors == 2)
            add_row_lanes<2>(count, index, other, value, from, to);
        else
            for (int64_t i = 0; i < count; ++i) {
                const F x = bcast(value[i]);
                const float* f = from + other[i] * mp;
                float* t = to + index[i] * mp;
                for (int64_t k = 0; k < mp; k += kLanes) store(t + k, fmadd(x, load(f + k), load(t + k)));
            }
    }
    template <int kV>
    static void add_row_lanes(int64_t count, const uint32_t* index, const uint32_t* other, const float* value,
                              const float* from, float* to) {
        for (int64_t i = 0; i < count; ++i) {
            const F x = bcast(value[i]);
            const float* f = from + (int64_t)other[i] * kV * kLanes;
            float* t = to + (int64_t)index[i] * kV * kLanes;
#pragma GCC unroll 2
            for (int v = 0; v < kV; ++v) store(t + v * kLanes, fmadd(x, load(f + v * kLanes), load(t + v * kLanes)));
        }
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
        add_rows(count, active_row_, active_feature_, active_value_, model_->dt, dh_);
        add_rows(count, active_feature_, active_row_, active_value_, h_, g_.dt);
        for (int64_t i = 0; i < count; ++i) g_.b[active_feature_[i]] += active_value_[i];
    }

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
    StreamTables tables_;
    RareCursor rare_;
    RowCursor rows_;
    FiniteRows finite_;
    EntryList list_;
    const TilesModel* model_;
    TilesModel::Gradient g_;
    int64_t rows_max_, stream_rows_, visited_;
    uint32_t *row_, *feature_, *active_row_, *active_feature_;
    GramTile sorted_;
    uint64_t* active_rows_;
    float *x_, *clean_, *out_, *h_, *dh_, *value_, *active_value_, *panel_;
    float* slope_;  // [rows][mp] of the codes, where h does not tell it
    double loss_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
