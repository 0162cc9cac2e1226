// The resident step of every member of the family, in any shape and with any option: what no special loop takes.
//
//   h = f(Ê x + ĉ), y = g(S x + D̂ h + b) (general_model.inl), any loss, L1 on h, and the gradients of Ê, D̂, b and ĉ over
//   one part of the batch
//
// Layout     Êᵀ [n][mp], D̂ [m][op] and D̂ᵀ [o][mp]; a tile holds samples: entries and rows x [rows][np], codes, what their
//            slopes need and dL/dh [rows][mp], outputs and what goes back in their place [rows][op], targets
// Source     tile_source.inl
// Zeros      empty samples are one row that counts as many; the first product and its gradient cost active entries alone
//            where these are few; hidden units that are off cost nothing in the readout, its gradient and the way back
//            where fewer than kFewCodes of them are on (active_codes.inl)
// Owner      one worker a part
// Order      entries, rows and tiles in the order of their samples, lanes by fixed trees: a function of shape, level and the
//            model's own data
// Lanes      networks of a few units have samples in them instead, and one pass over a tile (general_lanes.inl)
// Limits     none but memory: it is what all others may fall back to
// Twin       none on a device, where toykern/training/batched.py does the same by products of torch's library
// Roof       fused multiply-adds: o m forward and 2 o m backward a row when dense, three times o for a unit that is on else
#pragma once
#include "cpu/resident/active_codes.inl"
#include "cpu/resident/entry_rows.inl"
#include "cpu/resident/general_lanes.inl"
#include "cpu/resident/general_model.inl"
#include "cpu/resident/general_outputs.inl"
#include "cpu/resident/tile_source.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr double kFewCodes = 0.45;  // the share of units that are on, from which the dense products are no slower

class GeneralWorker {
  public:
    void carve(Workspace& w, const Network& net, const Distribution& data, const FiniteData& finite) {
        net_ = net;
        n_ = net.n_features, m_ = net.n_hidden;
        np_ = round_up(n_), mp_ = round_up(m_), op_ = round_up(net.n_outputs);
        // As many rows as let codes and outputs stay in L2: a tile reads the weights once.
        int64_t rows = ((int64_t)1 << 19) / (3 * mp_ + 2 * op_ + np_) & ~(int64_t)31;
        rows = rows < 32 ? 32 : (rows > 256 ? 256 : rows);
        rows_max_ = rows;
        source_.carve(w, net, data, finite, rows, rows, rows);
        h_ = w.take<float>((size_t)(rows * mp_)), kept_ = w.take<float>((size_t)(rows * mp_));
        dh_ = w.take<float>((size_t)(rows * mp_)), z_ = w.take<float>((size_t)(rows * op_));
        target_ = w.take<float>(net.target == (int32_t)Target::kProjection ? (size_t)(rows * op_) : 0);
        in_ = encoder_columns(net), ip_ = round_up(in_);
        embedded_ = w.take<float>(net.n_embedding > 0 ? (size_t)(rows * ip_) : 0);
        longest_ = np_ > op_ ? np_ : op_;
        longest_ = longest_ > ip_ ? longest_ : ip_;
        zeros_ = w.take<float>((size_t)longest_);
        lanes_.carve(w, net, finite, rows);
        int64_t deepest = m_ > net.n_outputs ? m_ : net.n_outputs;
        deepest = deepest > in_ ? deepest : in_;
        panel_ = w.take<float>((size_t)((deepest > n_ ? deepest : n_) + kPanelDepth) * kBlockVectors * kLanes);
        codes_ = {m_, mp_, net.hidden_activation, net.hidden_option, w.take<int32_t>((size_t)m_)};
        outputs_ = {};
        outputs_.o = net.n_outputs, outputs_.op = op_;
        outputs_.activation = net.output_activation, outputs_.option = net.output_option;
        outputs_.loss = net.loss, outputs_.target_bits = target_bits(net.target);
        outputs_.room = w.take<float>((size_t)op_);
        // Of narrow layers a row of codes is a few lane groups, and a list of them costs more than it leaves out.
        selects_ = m_ >= 4 * kLanes && (net.hidden_activation == (int32_t)Activation::kRelu ||
                                        net.hidden_activation == (int32_t)Activation::kTopK);
        active_.carve(w, rows, m_, selects_ ? (int64_t)((double)(rows * m_) * kFewCodes) : 0);
    }
    void set_up(int64_t model, int64_t seed, int64_t batch_size) { source_.set_up(model, seed, batch_size); }
    void choose(GeneralModel& model, int64_t batch_size) {
        batch_size_ = batch_size;
        model.choose(batch_size);
        in_lanes_ = lanes_.fits() && model.folded;
    }
    Form form(int64_t) const { return Form::kGeneral; }

    // As ColumnsWorker::accumulate; g is a GeneralModel::Gradient array.
    double accumulate(const GeneralModel& model, const StreamKey& key, int64_t first, int64_t last, float* g) {
        model_ = &model;
        g_ = model.gradient(g);
        model.clear(g_);
        outputs_.importance = model.importance;
        outputs_.begin();
        // What the sums are multiplied by in the end, taken off again: L1's mean is over the batch alone.
        l1_ = model.l1 / ((double)batch_size_ * mean_factor(net_, batch_size_));
        l1_back_ = (float)(model.l1 / ((double)batch_size_ * (double)gradient_factor(net_, batch_size_)));
        for (int64_t i = 0; i < longest_; i += kLanes) store(zeros_ + i, fzero());
        if (outputs_.surveys()) round(key, first, last, true);
        if (in_lanes_) lanes_.begin();
        loss_ = 0.0;
        round(key, first, last, false);
        if (in_lanes_) lanes_.finish(g_);
        return loss_;
    }
    void take(const Tile& tile) {
        visited_ += tile.rows;
        pass(tile, 1.0);
    }

  private:
    // All samples once, those without entries as one row; `survey`: for normalisers alone.
    void round(const StreamKey& key, int64_t first, int64_t last, bool survey) {
        survey_ = survey;
        visited_ = 0;
        source_.each_tile(key, first, last, rows_max_, !in_lanes_, *this);
        if (last - first > visited_)
            pass(Tile{1, 0, nullptr, nullptr, nullptr, zeros_, zeros_}, (double)(last - first - visited_));
    }
    // `pass` with samples in lanes.
    void pass_in_lanes(const Tile& tile, double times) {
        double norm = 0.0;
        loss_ += lanes_.pass(*model_, tile, source_.listed() || times != 1.0, times, l1_back_, norm);
        loss_ += norm * l1_;
    }
    // A tile, whose rows count `times` each (more than once: there is one row).
    void pass(const Tile& tile, double times) {
        if (in_lanes_) return pass_in_lanes(tile, times);
        const GeneralModel& w = *model_;
        const int64_t rows = tile.rows;
        const bool dense = is_dense(tile.entries, rows, n_);
        if (w.folded) {
            add_inputs_to(w.c, tile, dense, w.et, mp_, h_);
        } else {
            add_inputs_to(zeros_, tile, dense, w.pt, ip_, embedded_);
            fill_rows(w.c, mp_, rows, h_);
            multiply_all({embedded_, ip_, 1, {w.et, mp_, in_, nullptr}, h_, mp_, true}, rows, mp_, panel_);
        }
        codes_.forward(rows, h_, kept_);
        const bool few = selects_ && active_.list(rows, h_, kept_, mp_);
        if (w.skip)
            add_inputs_to(w.b, tile, dense, w.skip, op_, z_);
        else
            fill_rows(w.b, op_, rows, z_);
        if (w.residual_itself)
            for (int64_t i = 0; i < rows * op_; i += kLanes) store(z_ + i, load(z_ + i) + load(tile.x + i));
        if (few)
            active_.forward(w.d, op_, z_);
        else
            multiply_all({h_, mp_, 1, {w.d, op_, m_, nullptr}, z_, op_, true}, rows, op_, panel_);
        const float* target = targets(tile, dense);
        if (survey_) return outputs_.survey(rows, z_, target, times);
        loss_ += outputs_.loss_of(rows, z_, target, times);
        sum_rows_into(z_, op_, rows, g_.b);
        if (few) {
            active_.backward(z_, w.d, op_, g_.d);
            if (w.l1 != 0.0) loss_ += active_.add_l1((float)((double)l1_back_ * times)) * l1_ * times;
            if (w.folded && !dense && active_.rare(mp_)) {
                active_.bias_gradient(g_.c);
                active_.input_gradient(tile.entries, tile.row, tile.feature, tile.value, g_.et, mp_);
                return;
            }
            active_.spread(dh_, mp_);
        } else {
            multiply_all({z_, op_, 1, {w.dt, mp_, net_.n_outputs, nullptr}, dh_, mp_, false}, rows, mp_, panel_);
            multiply_all({h_, 1, mp_, {z_, op_, rows, nullptr}, g_.d, op_, true}, m_, op_, panel_);
            if (w.l1 != 0.0) add_l1(rows, times);
            codes_.backward(rows, h_, kept_, dh_);
        }
        sum_rows_into(dh_, mp_, rows, g_.c);
        if (!w.folded)
            multiply_all({embedded_, 1, ip_, {dh_, mp_, rows, nullptr}, g_.et, mp_, true}, in_, mp_, panel_);
        else if (dense)
            multiply_all({tile.x, 1, np_, {dh_, mp_, rows, nullptr}, g_.et, mp_, true}, n_, mp_, panel_);
        else
            add_rows(tile.entries, tile.feature, tile.row, tile.value, dh_, g_.et, mp_);
    }
    // to [rows][width] = row + x A, A [n][width].
    void add_inputs_to(const float* first, const Tile& tile, bool dense, const float* a, int64_t width, float* to) {
        if (!dense && width >= 4 * kLanes)
            return sum_rows_onto(first, tile.rows, tile.entries, tile.row, tile.feature, tile.value, a, to, width);
        fill_rows(first, width, tile.rows, to);
        if (dense)
            multiply_all({tile.x, np_, 1, {a, width, n_, nullptr}, to, width, true}, tile.rows, width, panel_);
        else
            add_rows(tile.entries, tile.row, tile.feature, tile.value, a, to, width);
    }
    // What the outputs are compared with.
    const float* targets(const Tile& tile, bool dense) {
        const float* a = model_->projection;
        if (!a) return tile.target;
        // Noise is on x alone; without it the target is made from the entries.
        if (tile.target != tile.x)
            multiply_all({tile.target, np_, 1, {a, op_, n_, nullptr}, target_, op_, false}, tile.rows, op_, panel_);
        else
            add_inputs_to(zeros_, tile, dense, a, op_, target_);
        return target_;
    }
    // loss += λ Σ |h|, and its slope to dL/dh.
    void add_l1(int64_t rows, double times) {
        const F up = bcast((float)((double)l1_back_ * times)), down = bcast(-(float)((double)l1_back_ * times));
        F sum = fzero();
        for (int64_t i = 0; i < rows * mp_; i += kLanes) {
            const F h = load(h_ + i);
            sum = sum + and_bits(h, 0x7FFFFFFFu);
            store(dh_ + i, load(dh_ + i) + keep(gt(h, fzero()), up) + keep(gt(fzero(), h), down));
        }
        loss_ += (double)fsum(sum) * l1_ * times;
    }
    static void fill_rows(const float* row, int64_t width, int64_t rows, float* to) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < width; j += kLanes) store(to + r * width + j, load(row + j));
    }
    // Four sums of the tile's rows, so that none waits for the addition before; a long batch would lose digits in one.
    static void sum_rows_into(const float* from, int64_t width, int64_t rows, float* to) {
        for (int64_t j = 0; j < width; j += kLanes) {
            F sum[4] = {fzero(), fzero(), fzero(), fzero()};
            int64_t r = 0;
            for (; r + 4 <= rows; r += 4)
                for (int v = 0; v < 4; ++v) sum[v] = sum[v] + load(from + (r + v) * width + j);
            for (; r < rows; ++r) sum[0] = sum[0] + load(from + r * width + j);
            store(to + j, load(to + j) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
        }
    }

    Network net_;
    TileSource source_;
    GeneralCodes codes_;
    GeneralOutputs outputs_;
    ActiveCodes active_;
    GeneralLanes lanes_;
    const GeneralModel* model_;
    GeneralModel::Gradient g_;
    int64_t n_, m_, in_, np_, mp_, op_, ip_, longest_, rows_max_, batch_size_, visited_;
    bool selects_, survey_, in_lanes_;
    double loss_, l1_;
    float l1_back_;
    float *embedded_, *h_, *kept_, *dh_, *z_, *target_, *zeros_, *panel_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
