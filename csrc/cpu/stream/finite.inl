// Rows of a finite dataset in the order in which a step sees them (docs/data_stream.md §11).
//
// Owner      one worker; nothing survives a batch but the order of the epoch in hand
// Order      of a full batch that of the dataset; else place step · batch_size + s of the epochs laid end to end, each in
//            an order of its own (common/stream/shuffle.h): a pure function of version, seed, step and s
// Limits     none; a batch may be longer than the dataset, and then sees rows again
// Roof       the copy of a row; a place costs some twenty integer operations, a new epoch six blocks of random words
#pragma once
#include "common/stream/shuffle.h"
#include "cpu/stream/words.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

class FiniteRows {
  public:
    void carve(const FiniteData& data) { data_ = data; }
    bool there() const { return data_.rows > 0; }
    const FiniteData& data() const { return data_; }

    void set_up(int64_t model, int64_t seed, int64_t batch_size) {
        model_ = model;
        batch_ = batch_size;
        rows_ = data_.samples ? data_.samples[model] : data_.rows;
        key_ = philox_key(seed);
    }
    // From sample `first` of the step's batch on.
    void begin(const StreamKey& key, int64_t first) {
        if (data_.full) {
            place_ = first;
            return;
        }
        const uint64_t at = (uint64_t)key.step * (uint64_t)batch_ + (uint64_t)first;
        epoch_ = at / (uint64_t)rows_;
        place_ = (int64_t)(at % (uint64_t)rows_);
        order_ = shuffle_of(key_, epoch_, (uint32_t)rows_);
    }
    // The next row's number in the model's dataset.
    int64_t next() {
        if (data_.full) return place_++;
        if (place_ == rows_) {
            place_ = 0;
            order_ = shuffle_of(key_, ++epoch_, (uint32_t)rows_);
        }
        return order_.row((uint32_t)place_++);
    }
    // Where it stands among the rows that are held of all models.
    int64_t input_row(int64_t row) const { return data_.per_model ? model_ * data_.rows + row : row; }
    int64_t target_row(int64_t row) const { return data_.target_per_model ? model_ * data_.rows + row : row; }

    int64_t label_row(int64_t row) const { return data_.label_per_model ? model_ * data_.rows + row : row; }

    // to [padded] = row number `row` of `from` [rows][width], padded with zeros.
    static void fill(const float* from, int64_t row, int64_t width, float* to, int64_t padded) {
        const float* x = from + row * width;
        int64_t j = 0;
        for (; j + kLanes <= width; j += kLanes) store(to + j, load(x + j));
        for (; j < padded; j += kLanes) {
            const int64_t left = width - j;
            store(to + j, left > 0 ? load_first(x + j, mask_first((int)left)) : fzero());
        }
    }

  private:
    FiniteData data_;
    PhiloxKey key_;
    Shuffle order_;
    uint64_t epoch_;
    int64_t batch_, model_, rows_, place_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
