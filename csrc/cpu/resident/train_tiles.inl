// The resident step for larger networks: features (or hidden units) across lanes, samples in tiles of rows.
//
//   h = f(E x), y = g(D h + b), loss = Σ_j I_j (t_j − y_j)², gradients of E, D and b, over one part of the batch
//
// Layout     decoder D [m][np] with features across lanes (np = n rounded up to lanes), its transpose Dt [n][mp] with
//            hidden units across lanes; encoder Et [n][mp] (tied: Et = Dt). A tile holds up to 32 or 64 non-empty
//            samples: their entries, codes h [rows][mp], targets and output gradients [rows][np]
// Source     the stream, as a list of entries or as dense rows, or a finite dataset
// Zeros      empty samples share one closed-form term; the passes cost only active entries and outputs where these are few
// Forms      linear codes of rare features may take the Gram form instead (gram.inl), which choose() decides for a model
// Owner      one worker per part; models smaller than L2 stay in cache for the whole run
// Order      entries, rows and tiles in the order of their samples, lanes by fixed trees: a function of shape, level
//            and the model's own data
// Limits     none but memory (scratch about 7 n·m floats a model, and 2 gradients a part); any shape runs here
// Roof       that of the passes (tiles_passes.inl)
#pragma once
#include "cpu/resident/tiles_passes.inl"
#include "cpu/stream/finite.inl"
#include "cpu/stream/stream.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// Draws one part of a batch tile by tile and adds up its gradients.
class TilesWorker : TilesPasses {
  public:
    void carve(Workspace& w, const Network& net, const Distribution& data, const FiniteData& finite) {
        finite_.carve(finite, net.n_features);
        tables_.carve(w, data);
        const int64_t n = net.n_features, np = round_up(n);
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
        TilesPasses::carve(w, net, held, finite.rows > 0);
        const size_t entries =
            (size_t)((listed_rows > held ? listed_rows : held) * np) + tables_.refill_room + 2 * kLanes;
        row_ = w.take<uint32_t>(entries);
        feature_ = w.take<uint32_t>(entries);
        value_ = w.take<float>(entries);
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
        begin(model, g);
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
            listed_tile(used);
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
    void listed_tile(int64_t entries) {
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
        if (!d.input) {  // entries are written into rows of zeros, and taken out again
            const int64_t most = last - first < rows_max_ ? last - first : rows_max_;
            for (int64_t i = 0; i < most * np; i += kLanes) store(x_ + i, fzero());
        }
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
            for (int64_t i = 0; i < count && !d.input; ++i) x_[row_[i] * np + feature_[i]] = 0.0f;
        }
    }

    StreamTables tables_;
    RareCursor rare_;
    RowCursor rows_;
    FiniteRows finite_;
    EntryList list_;
    GramTile sorted_;
    int64_t rows_max_, stream_rows_;
    uint32_t *row_, *feature_;
    float *x_, *clean_, *value_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
