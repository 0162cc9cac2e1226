// The contract of a topology's updates (cpu/sparse/topology.cpp). A place is a key: (model · out + row) · in + column.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace toykern {

// Random words that decide between equal scores (cpu/sparse/ties.h): the entry `at` has word at - origin of (seed,
// step, tag), and of equal ones those with the smallest words are chosen; not drawn: the first.
struct TieSequence {
    bool drawn = false;
    int64_t seed = 0, origin = 0;
    uint32_t tag = 0, step = 0;
};

// The same for entries of several models, `size` each; entry 0 is number `first` of all.
struct TieSequences {
    const int64_t* seeds;  // [models], or null: nothing is drawn
    int64_t size, first;
    uint32_t tag, step;
    TieSequence of(int64_t entry) const {  // of the model that this entry belongs to
        if (!seeds) return {};
        const int64_t model = (first + entry) / size;
        return {true, seeds[model], model * size - first, tag, step};
    }
};

// The counts[g] largest of each group (part of one model) among those that are not taken; all where there are fewer.
struct LargestParams {
    const void* score;      // [groups, size] float, or double
    const int64_t* counts;  // [groups]
    const int64_t* taken;   // [n_taken] ascending indices into score that are not to be had
    int64_t n_taken, groups, size;
    bool is_double, absolute;  // absolute: the largest |score|
    TieSequences ties;
    int threads;
};
std::vector<int64_t> sparse_largest(const LargestParams& params);  // ascending indices into score

// The `count` largest of scores that come piece by piece: what has no chance is forgotten. Beside the scores themselves
// it holds some multiples of the count, and of the longest piece. The same choice as sparse_largest's, whatever the
// pieces.
class LargestStream {
  public:
    // absolute: the largest |score|.
    LargestStream(int64_t count, bool absolute, const TieSequence& ties)
        : count_(count), absolute_(absolute), ties_(ties) {}
    // Scores of the places first … first + n - 1, which come after all before; `taken` are ascending places that are
    // not to be had.
    void add(const float* score, int64_t first, int64_t n, const int64_t* taken, int64_t n_taken, int threads);
    // The places chosen, ascending, and their scores (magnitudes, with absolute); all there were where there were
    // fewer. Only once.
    void finish(std::vector<int64_t>& place, std::vector<float>& score);

  private:
    int64_t scan(const float* score, int64_t first, int64_t n, const int64_t* taken, int64_t n_taken, uint32_t least,
                 int threads);
    void raise();   // the floor, to the bin of the count-th best so far
    void forget();  // what is below the floor
    void select();  // exactly the count best, of more; leaves the bins

    int64_t count_;
    bool absolute_;
    TieSequence ties_;
    uint32_t floor_ = 0;  // the edge of a bin below which no key held is among the count best
    uint32_t least_ = 1;  // what a key must reach to come in
    std::vector<uint32_t> key_;
    std::vector<int64_t> place_;
    std::vector<int64_t> bins_, sample_;  // of the keys held; of some of a piece
    struct Slice {
        std::unique_ptr<uint32_t[]> key, at;
        int64_t room = 0, found = 0;
    };
    std::vector<Slice> slices_;
};

// counts[g] free places of each group of `size` keys at random (all of them where there are fewer).
struct RandomPlacesParams {
    const int64_t* taken;   // [n_taken] ascending keys
    const int64_t* counts;  // [groups]
    const int64_t* seeds;   // [groups]
    const int64_t* ids;     // [groups] the second counter word
    int64_t n_taken, groups, size;
    uint32_t tag, step;  // the fourth and the third
    int threads;
};
std::vector<int64_t> sparse_random_places(const RandomPlacesParams& params);  // ascending keys

// The counts[k] lowest scores among a model's connections; NaN counts as lowest, -0 equals 0. Ties are between slots.
struct LowestParams {
    const void* score;  // [K · capacity] float, or double
    const void*
        sign;  // shaped and typed as score, or null: negative connections and the others are chosen from by themselves
    const uint8_t* allowed;    // [K · capacity] which may go, or null: all connections
    const int64_t* counts;     // [K], or null: floor(fraction · connections), of each sign where there is one
    const int64_t* row_start;  // [K, out + 1]
    double fraction;
    int64_t n_models, out_features, capacity;
    bool is_double;
    TieSequences ties;
    uint8_t* drop;     // [K · capacity], 1 where chosen; fewer where fewer are allowed
    int64_t* dropped;  // [K]
    int threads;
};
void sparse_lowest(const LowestParams& params);

// A topology without the slots in `drop` and with the keys in `grown`. std::invalid_argument "unordered 0" where the
// keys do not ascend or leave the matrices, "clash <key>" or "crowded <connections>" where a grown place stays
// connected or a model has too few slots; what was written then is meaningless.
struct MergeParams {
    int64_t n_models, out_features, in_features, capacity, n_grown;
    const int64_t* row_start;  // [K, out + 1]
    const int32_t* column;     // [K · capacity]
    const uint8_t* drop;       // [K · capacity]
    const int64_t* grown;      // [n_grown] ascending, without repeats
    bool keep_returning;       // what is dropped and grown stays as it was; otherwise it counts as new
    int64_t* new_row_start;
    int32_t* new_column;
    int64_t* old_slot;        // [K · capacity] absolute slot before, or -1
    int64_t* fresh;           // [n_grown] the keys grown that do not return
    int64_t* dropped;         // [K] connections that went, without those that return
    int64_t* came;            // [K] those that came, likewise
    int64_t* active_rows;     // [K] with a connection
    int64_t* active_columns;  // [K]
    int threads;
};
int64_t sparse_merge(const MergeParams& params);  // how many of `fresh`

// Keys of the connections in the order of the slots; row_start [K, out + 1] and column [K · capacity] are trusted.
struct KeysParams {
    int64_t n_models, out_features, in_features, capacity, room;
    const int64_t* row_start;
    const int32_t* column;
    const uint8_t* drop;  // [K · capacity] which to leave out, or null
    int64_t* keys;        // [room]
    int threads;
};
int64_t sparse_keys(const KeysParams& params);  // how many

// Each tensor t becomes t[old_slot], 0 where that is negative, in place; elements of 2, 4 or 8 bytes.
// std::invalid_argument, and nothing is changed, where a slot is not below `count` or below -1.
struct MoveParams {
    void* const* data;     // [tensors], each [count]
    const int32_t* bytes;  // [tensors]
    const int64_t* old_slot;
    int64_t tensors, count;
    int threads;
};
void sparse_move(const MoveParams& params);

// Marks the keys, and counts the marks of each model.
struct ExploreParams {
    uint8_t* explored;    // [K · positions]
    const int64_t* keys;  // [n_keys] ascending
    int64_t n_keys, n_models, positions;
    int64_t* counts;  // [K]
    int threads;
};
void sparse_explore(const ExploreParams& params);

// ---- between the entry points (cpu/sparse/choice.cpp) and the kernels of a level ----

struct ChoiceKernels {
    // 64-bit words number 32·chunk … 32·(chunk + chunks) - 1 of the sequence of (seed, group, step, tag).
    void (*draw)(int64_t seed, uint32_t group, uint32_t step, uint32_t tag, uint32_t chunk, int64_t chunks,
                 uint64_t* words);
    // Of `count` scores (below 2^32), the keys (cpu/sparse/scores.h; with `absolute`, of magnitudes) that are at least
    // `least` (>= 1) and where they stand, in order; returns how many. `taken` are ascending places first + i that are
    // not to be had. Both outputs have room for count + 64.
    int64_t (*scan)(const float* score, int64_t count, bool absolute, const int64_t* taken, int64_t n_taken,
                    int64_t first, uint32_t least, uint32_t* found_key, uint32_t* found_at);
};

}  // namespace toykern
