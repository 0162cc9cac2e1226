// The resident step for small networks: samples across lanes.
//
//   h = f(E x), y = g(D h + b), loss = Σ_j I_j (t_j − y_j)², gradients of E, D and b, over one part of the batch
//
// Layout     weights [n][m] (all hidden units of a feature together), x [n][columns], one accumulator vector per
//            gradient entry
// Owner      one worker per part; weights are read as broadcasts from L1, accumulators stay in registers for the listed
//            shapes and in L1 otherwise
// Zeros      only non-empty samples become columns (rare units); all empty samples share one closed-form term
// Order      sums run over columns in the order of their samples, at most kSumColumns to a float, then over lanes by a
//            fixed tree: a function of the shape and the level only
// Limits     columns_fit() of forms.inl; train_tiles.inl takes the rest
// Roof       5 n m fused multiply-adds and about 7 n elementwise operations per sixteen samples
#pragma once
#include "cpu/resident/columns_model.inl"
#include "cpu/resident/columns_pass.inl"
#include "cpu/stream/stream.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// Draws one part of a batch and adds up its gradients.
class ColumnsWorker {
  public:
    void carve(Workspace& w, const Network& net, const Distribution& data, const FiniteData&) {
        tables_.carve(w, data);
        const size_t n = (size_t)net.n_features, weights = n * (size_t)net.n_hidden;
        capacity_ = (int)(16384 / n) & ~31;
        capacity_ = capacity_ < 128 ? 128 : (capacity_ > 512 ? 512 : capacity_);
        if (capacity_ < (int)n) capacity_ = ((int)n + 31) & ~31;  // a sample of n entries has to fit
        rare_.carve(w, tables_);
        frequent_.carve(w, tables_);
        rows_.carve(w, tables_);
        // Samples of many entries fill a run of columns only where the list may be longer than the run.
        entries_ = weights > kTinyWeights ? capacity_ * (int)(n < 16 ? n : 16) : capacity_;
        entries_ = entries_ < (int)n ? (int)n : entries_;
        list_.carve(w, tables_, (size_t)entries_ + n);
        stride_ = capacity_ + 16;  // rows a power of two apart would fall on the same cache sets
        x_ = w.take<float>(n * (size_t)stride_);
        clean_ = w.take<float>(data.noise > 0.0f ? n * (size_t)stride_ : 0);
        row_ = w.take<float>(2 * 32 * n);
        sums_ = w.take<F>(weights * (net.tied ? 1 : 2) + n + 16);
        residual_ = w.take<F>(2 * n);
        scratch_ = w.take<float>((weights * 2 + n + 32));
        net_ = net;
        pass_ = columns_pass_for((int)n, (int)net.n_hidden, net.tied, net.hidden_activation, net.output_activation);
    }
    void set_up(int64_t model, int64_t, int64_t) { tables_.set_up(model); }
    const StreamTables& tables_of(int64_t model) {
        tables_.set_up(model);
        return tables_;
    }
    void choose(ColumnsModel&, int64_t) const {}  // there is one form
    // Which form the model that was set up takes, of all that there are.
    Form form(int64_t batch_size) const { return pick_form(net_, tables_, batch_size, true); }

    // Sum of importance-weighted squared errors over samples first … last - 1; their gradients (half of them: the
    // factor 2 and the mean are the update's) into g [length].
    double accumulate(const ColumnsModel& model, const StreamKey& key, int64_t first, int64_t last, float* g) {
        n_sums_ = (int)model.length;
        for (int i = 0; i < n_sums_; ++i) sums_[i] = fzero();
        for (int i = 0; i < n_sums_; i += kLanes) store(g + i, fzero());
        g_ = g;
        loss_ = 0.0;
        held_ = visited_ = 0;
        pass_args(model);
        if (tables_.data->noise > 0.0f || (!tables_.plain && tables_.n_frequent))
            from_rows(key, first, last);
        else if (tables_.n_frequent)
            from_frequent(key, first, last);
        else
            from_list(key, first, last);
        put_away();
        if (last - first > visited_) loss_ += empty_columns(args_, last - first - visited_, model.bias(g));
        return loss_;
    }

  private:
    void pass_args(const ColumnsModel& model) {
        args_.n = (int)model.n;
        args_.stride = stride_;
        args_.x = x_;
        args_.clean = tables_.data->noise > 0.0f ? clean_ : x_;
        args_.encoder = model.encoder(model.p);
        args_.decoder = model.decoder(model.p);
        args_.bias = model.bias(model.p);
        args_.importance = model.importance;
        args_.hidden_activation = net_.hidden_activation;
        args_.output_activation = net_.output_activation;
        args_.hidden_option = net_.hidden_option;
        args_.output_option = net_.output_option;
        args_.loss_function = {net_.loss};
        args_.target_bits = target_bits(net_.target);
        args_.encoder_sum = sums_;
        args_.decoder_sum = model.decoder(sums_);
        args_.bias_sum = model.bias(sums_);
        args_.residual = residual_;
        args_.loss = fzero();
    }
    // Adds the lanes' sums to the gradient and begins them anew, so that long batches lose no digits.
    void put_away() {
        sum_lanes(sums_, n_sums_, scratch_);
        for (int i = 0; i < n_sums_; i += kLanes) store(g_ + i, load(g_ + i) + load(scratch_ + i));
        for (int i = 0; i < n_sums_; ++i) sums_[i] = fzero();
        held_ = 0;
    }
    // Pass over the first `count` columns. The ones from `filled` to the end of the run are made zeros here.
    void run(int count, int filled) {
        if (count <= 0) return;
        for (int j = 0; j < args_.n; ++j)
            for (int c = filled; c < (count + kColumnRun - 1) / kColumnRun * kColumnRun; ++c) {
                x_[(size_t)j * stride_ + c] = 0.0f;
                if (args_.clean != x_) clean_[(size_t)j * stride_ + c] = 0.0f;
            }
        args_.count = count;
        pass_(args_);
        visited_ += count;
        loss_ += (double)fsum(args_.loss);
        args_.loss = fzero();
        if ((held_ += count) >= kSumColumns) put_away();
    }
    void clear(int columns) {
        const int64_t stride = stride_, n = args_.n;
        for (int c = 0; c < columns; c += kColumnRun)
            for (float *x = x_ + c, *end = x + n * stride; x < end; x += stride)
                for (int v = 0; v < kColumnRun; v += kLanes) store(x + v, fzero());
    }

    // Rare units only: the non-empty samples become columns.
    void from_list(const StreamKey& key, int64_t first, int64_t last) {
        rare_.begin(key, first, last);
        list_.count = 0;
        while (!rare_.done() || list_.count) {
            while (!rare_.done() && list_.count <= entries_) rare_.refill(list_);
            int64_t used = list_.count < entries_ ? list_.count : entries_;
            if (used < list_.count || !rare_.done())  // leave a sample that may go on for the next round
                while (used > 0 && (used == list_.count || list_.sample[used] == list_.sample[used - 1])) --used;
            clear((int)(used < capacity_ ? used : capacity_));
            run(fill_columns(used), capacity_);
            list_.drop(used);
        }
    }
    // Columns of up to capacity_ samples among the first `entries` of the list, which become as many as were used;
    // returns how many columns.
    int fill_columns(int64_t& entries) {
        U before = ubcast(0xFFFFFFFFu), columns = ubcast(0xFFFFFFFFu);
        const U stride = ubcast((uint32_t)stride_);
        const EntryList list = list_;
        float* x = x_;
        const U nowhere = ubcast((uint32_t)capacity_);  // past the last column: what lanes without an entry write to
        uint32_t last[kLanes];
        for (int64_t i = 0; i < entries; i += kLanes) {
            const U sample = load(list.sample + i);
            const M lanes = mask_first((int)(entries - i < kLanes ? entries - i : kLanes)),
                    opens = and_not(lanes, eq(sample, shift_in(sample, before)));
            before = sample;
            const U column = columns + count_upto(opens);
            columns = last_lane(column);
            if (i > capacity_ - kLanes) {  // from here on there may be more samples than columns
                store(last, columns);
                if (last[0] + 1u > (uint32_t)capacity_) {
                    const M within = lanes & lt(column, nowhere);
                    const U place = mullo(load(list.feature + i), stride) + column;
                    scatter_all(x, select(within, place, nowhere), load(list.value + i));
                    entries = i + __builtin_popcount(bits(within));
                    return capacity_;
                }
            }
            const U place = mullo(load(list.feature + i), stride) + column;
            scatter_all(x, select(lanes, place, nowhere), load(list.value + i));
        }
        store(last, columns);
        return (int)(last[0] + 1u);
    }

    // Frequent single units, perhaps with rare ones among them: every sample is a column.
    void from_frequent(const StreamKey& key, int64_t first, int64_t last) {
        frequent_.begin(key, first);
        rare_.begin(key, first, last);
        list_.count = 0;
        for (int64_t s = first; s < last; s += capacity_) {
            const int columns = (int)(last - s < capacity_ ? last - s : capacity_);
            if (tables_.n_frequent < (uint32_t)args_.n) clear(columns);
            for (int c = 0; c < columns; c += 16) {
                frequent_.next16();
                fill_frequent(c);
            }
            fill_rare(s, columns);
            run(columns, (columns + 15) & ~15);
        }
    }
    TOYKERN_INLINE void fill_frequent(int column) {
        const float* values = frequent_.values(0) + frequent_.offset();
        const int64_t stride = stride_;
        if (tables_.all_always && tables_.n_frequent == (uint32_t)args_.n) {
            for (int j = 0; j < args_.n; ++j)
                for (int v = 0; v < 16; v += kLanes) store(x_ + j * stride + column + v, load(values + 16 * j + v));
            return;
        }
        const uint32_t* gates = frequent_.gates();
        const int shift = frequent_.shift();
        for (uint32_t d = 0; d < tables_.n_frequent; ++d) {
            float* to = x_ + (int64_t)tables_.frequent_feature[d] * stride + column;
            for (int v = 0; v < 16; v += kLanes) {
                const M m = mask_bits(gates[d] >> (shift + v));
                store(to + v, load_dealt(values, m));
                values += __builtin_popcount(bits(m));
            }
        }
    }
    void fill_rare(int64_t start, int columns) {
        for (;;) {
            int64_t used = 0;
            for (; used < list_.count && list_.sample[used] < start + columns; ++used)
                x_[(size_t)list_.feature[used] * stride_ + (list_.sample[used] - start)] = list_.value[used];
            const bool more = used == list_.count && !rare_.done();
            list_.drop(used);
            if (!more) return;
            rare_.refill(list_);
        }
    }

    // Groups among frequent units, or noise: through dense rows.
    void from_rows(const StreamKey& key, int64_t first, int64_t last) {
        const size_t n = (size_t)args_.n;
        rows_.begin(key, first, last);
        int column = 0;
        while (!rows_.done()) {
            float *clean = row_, *noisy = row_ + 32 * n;
            const int rows = rows_.next32(clean, n);
            const bool noise = tables_.data->noise > 0.0f;
            if (noise) rows_.add_noise(clean, noisy, n, rows);
            for (int s = 0; s < rows; ++s)
                for (size_t j = 0; j < n; ++j) {
                    x_[j * stride_ + column + s] = (noise ? noisy : clean)[s * n + j];
                    if (noise) clean_[j * stride_ + column + s] = clean[s * n + j];
                }
            column += rows;
            if (column + 32 > capacity_ || rows_.done()) {
                run(column, column);
                column = 0;
            }
        }
    }

    Network net_;
    StreamTables tables_;
    RareCursor rare_;
    FrequentCursor frequent_;
    RowCursor rows_;
    EntryList list_;
    int capacity_, entries_, stride_;  // columns of a run, entries of it, and between rows of x_
    float *x_, *clean_, *row_, *scratch_;
    F *sums_, *residual_;
    ColumnsPassFunction pass_;
    ColumnsPass args_;
    int64_t visited_, held_;  // columns of this part so far; those in sums_
    int n_sums_;
    double loss_;
    float* g_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
