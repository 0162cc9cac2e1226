// Where the samples of a step come from, tile by tile: the stream or a finite dataset, each as entries and as dense rows.
//
//   each_tile(key, first, last, …, sink)    sink.take(tile) for samples first … last - 1 of a batch, in order
//
// Layout     a tile holds up to so many samples: their entries by row, the same as dense rows x [rows][np], and what targets
//            are made from, [rows][np] (where they are of another length than the inputs, [rows][op])
// Source     the stream, as a list of entries (rare features without noise) or as dense rows, or a finite dataset
// Zeros      samples of no entries are left out where nothing but the input makes their targets: whoever takes the tiles
//            counts the rows that came
// Owner      one worker
// Order      entries, rows and tiles in the order of their samples: a function of shape, level and the model's own data
// Limits     none but memory
// Roof       that of the draw, or the copy of a row
#pragma once
#include "common/tensors.h"
#include "cpu/resident/forms.inl"
#include "cpu/resident/products.inl"
#include "cpu/stream/finite.inl"
#include "cpu/stream/stream.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

struct Tile {
    int64_t rows, entries;
    const uint32_t *row, *feature;  // [entries]; not filled where is_dense()
    const float* value;             // [entries], likewise
    const float* x;                 // [rows][np]; not filled where the taker wants entries alone
    const float* target;            // [rows][np] before the sign is taken off, or [rows][op]
};

// With more than one entry in so many places the dense products are no slower, and nobody reads the list of entries.
constexpr int64_t kDenseEntries = 3;
inline bool is_dense(int64_t entries, int64_t rows, int64_t n) { return entries * kDenseEntries > rows * n; }

class TileSource {
  public:
    // Tiles of up to `rows` samples; of entries alone up to `listed_rows`; of drawn dense rows `drawn_rows`, a multiple
    // of 32.
    void carve(Workspace& w, const Network& net, const Distribution& data, const FiniteData& finite, int64_t rows,
               int64_t listed_rows, int64_t drawn_rows) {
        finite_.carve(finite);
        tables_.carve(w, data);
        n_ = net.n_features, np_ = round_up(n_);
        outputs_ = net.n_outputs, op_ = round_up(outputs_);
        rows_max_ = rows, drawn_rows_ = drawn_rows;
        rare_.carve(w, tables_);
        rows_.carve(w, tables_);
        list_.carve(w, tables_, (size_t)(listed_rows * n_));
        const int64_t held = rows > drawn_rows ? rows : drawn_rows;
        x_ = w.take<float>((size_t)(held * np_));
        const bool own_target = data.noise > 0.0f || finite.target || finite.label;
        clean_ = w.take<float>(own_target ? (size_t)(held * (np_ > op_ ? np_ : op_)) : 0);
        const size_t entries =
            (size_t)((listed_rows > held ? listed_rows : held) * np_) + tables_.refill_room + 2 * kLanes;
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
    // From now on; within the room.
    void set_drawn_rows(int64_t rows) { drawn_rows_ = rows; }
    bool of_stream() const { return !finite_.there(); }
    bool listed() const { return of_stream() && is_listed(tables_); }
    const StreamTables& tables() const { return tables_; }

    // Lists in tiles of `listed_rows`; `dense`: x is wanted.
    template <class Sink>
    void each_tile(const StreamKey& key, int64_t first, int64_t last, int64_t listed_rows, bool dense, Sink& sink) {
        if (finite_.there())
            from_dataset(key, first, last, sink);
        else if (listed())
            from_list(key, first, last, listed_rows, dense, sink);
        else
            from_rows(key, first, last, sink);
    }

  private:
    // Rare units only: tiles of non-empty samples, cut from the list of entries.
    template <class Sink>
    void from_list(const StreamKey& key, int64_t first, int64_t last, int64_t rows_max, bool dense, Sink& sink) {
        rare_.begin(key, first, last);
        list_.count = 0;
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
            listed_tile(used, dense, sink);
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
            rows = last_lane(row);
            before = left < kLanes ? ubcast(list_.sample[list_.count - 1]) : sample;
            labelled += many;
        }
    }
    // The first `entries` of the list as one tile.
    template <class Sink>
    void listed_tile(int64_t entries, bool dense, Sink& sink) {
        const int64_t rows = (int64_t)row_[entries - 1] + 1;
        for (int64_t i = 0; i < rows * np_ && dense; i += kLanes) store(x_ + i, fzero());
        for (int64_t i = 0; i < entries && dense; ++i) x_[row_[i] * np_ + list_.feature[i]] = list_.value[i];
        sink.take(Tile{rows, entries, row_, list_.feature, list_.value, x_, x_});
    }

    // Frequent units or noise: every sample is a row; its entries are read off the dense row.
    template <class Sink>
    void from_rows(const StreamKey& key, int64_t first, int64_t last, Sink& sink) {
        const bool noise = tables_.data->noise > 0.0f;
        float* const clean = noise ? clean_ : x_;
        rows_.begin(key, first, last);
        while (!rows_.done()) {
            int64_t rows = 0;
            while (rows < drawn_rows_ && !rows_.done()) {
                float *from = clean + rows * np_, *to = x_ + rows * np_;
                const int64_t drawn = rows_.next32(from, (size_t)np_);
                if (noise) {
                    for (int64_t i = 0; i < drawn * np_; i += kLanes) store(to + i, fzero());
                    rows_.add_noise(from, to, (size_t)np_, (int)drawn);
                }
                rows += drawn;
            }
            sink.take(Tile{rows, list_entries(rows), row_, feature_, value_, x_, clean});
        }
    }
    // The entries of the dense rows in x_, unless is_dense(); returns how many.
    int64_t list_entries(int64_t rows) {
        int64_t count = 0;
        for (int64_t i = 0; i < rows * np_; i += kLanes) count += __builtin_popcount(bits(nonzero(load(x_ + i))));
        if (is_dense(count, rows, n_)) return count;
        count = 0;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < np_; j += kLanes) {
                const F x = load(x_ + r * np_ + j);
                const M m = nonzero(x);
                store(row_ + count, ubcast((uint32_t)r));
                store_packed(feature_ + count, ulane() + ubcast((uint32_t)j), m);
                store_packed((uint32_t*)(value_ + count), as_words(x), m);
                count += __builtin_popcount(bits(m));
            }
        return count;
    }
    // Rows of a finite dataset. Those of no entries are left out where the target is made from them.
    template <class Sink>
    void from_dataset(const StreamKey& key, int64_t first, int64_t last, Sink& sink) {
        const FiniteData& d = finite_.data();
        const bool own_target = d.target || d.label;
        const float* target = own_target ? clean_ : x_;
        finite_.begin(key, first);
        if (!d.input) {  // entries are written into rows of zeros, and taken out again
            const int64_t most = last - first < rows_max_ ? last - first : rows_max_;
            for (int64_t i = 0; i < most * np_; i += kLanes) store(x_ + i, fzero());
        }
        for (int64_t s = first; s < last;) {
            int64_t rows = 0, count = 0;
            if (d.input) {
                for (; rows < rows_max_ && s < last; ++rows, ++s) {
                    const int64_t at = finite_.next();
                    finite_.fill(d.input, finite_.input_row(at), n_, x_ + rows * np_, np_);
                    if (own_target) fill_target(at, rows);
                }
                count = list_entries(rows);
            } else {
                for (; rows < rows_max_ && s < last; ++s) {
                    const int64_t at = finite_.next(), row = finite_.input_row(at);
                    const int64_t start = d.row_start[row], end = d.row_start[row + 1];
                    if (start == end && !own_target) continue;
                    float* x = x_ + rows * np_;
                    for (int64_t e = start; e < end; ++e, ++count) {
                        row_[count] = (uint32_t)rows;
                        feature_[count] = (uint32_t)d.feature[e];
                        value_[count] = d.value[e];
                        x[d.feature[e]] = d.value[e];
                    }
                    if (own_target) fill_target(at, rows);
                    ++rows;
                }
            }
            if (rows) sink.take(Tile{rows, count, row_, feature_, value_, x_, target});
            for (int64_t i = 0; i < count && !d.input; ++i) x_[row_[i] * np_ + feature_[i]] = 0.0f;
        }
    }
    // The target of the dataset's row `at` as row number `row` of the tile: its own, or 1 at its label.
    void fill_target(int64_t at, int64_t row) {
        const FiniteData& d = finite_.data();
        float* const to = clean_ + row * op_;
        if (d.target) return finite_.fill(d.target, finite_.target_row(at), outputs_, to, op_);
        for (int64_t j = 0; j < op_; j += kLanes) store(to + j, fzero());
        to[d.label[finite_.label_row(at)]] = 1.0f;
    }

    StreamTables tables_;
    RareCursor rare_;
    RowCursor rows_;
    FiniteRows finite_;
    EntryList list_;
    int64_t n_, np_, outputs_, op_, rows_max_, drawn_rows_;
    uint32_t *row_, *feature_;
    float *x_, *clean_, *value_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
