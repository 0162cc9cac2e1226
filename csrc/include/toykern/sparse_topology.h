// The contract of a topology's updates (cpu/sparse_topology.cpp). A place is a key: (model · out + row) · in + column.
#pragma once
#include <cstdint>
#include <vector>

namespace toykern {

// The counts[g] largest of each group, of equal ones the first, among those that are not taken; all where there are fewer.
struct LargestParams {
    const void* score;      // [groups, size] float, or double
    const int64_t* counts;  // [groups]
    const int64_t* taken;   // [n_taken] ascending indices into score that are not to be had
    int64_t n_taken, groups, size;
    bool is_double, absolute;  // absolute: the largest |score|
    int threads;
};
std::vector<int64_t> sparse_largest(const LargestParams& params);  // ascending indices into score

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

// The counts[k] lowest scores among a model's connections, of equal ones the first slots; NaN counts as lowest, -0 equals 0.
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
    uint8_t* drop;     // [K · capacity], 1 where chosen; fewer where fewer are allowed
    int64_t* dropped;  // [K]
    int threads;
};
void sparse_lowest(const LowestParams& params);

// A topology without the slots in `drop` and with the keys in `grown`. std::invalid_argument "unordered 0" where the keys do not ascend or
// leave the matrices, "clash <key>" or "crowded <connections>" where a grown place stays connected or a model has too few
// slots; what was written then is meaningless.
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

// Each tensor t becomes t[old_slot], 0 where that is negative, in place; elements of 2, 4 or 8 bytes. std::invalid_argument, and nothing is
// changed, where a slot is not below `count` or below -1.
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

// ---- between the entry points (cpu/sparse_choice.cpp) and the kernels of a level ----

struct ChoiceKernels {
    // 64-bit words number 32·chunk … 32·(chunk + chunks) - 1 of the sequence of (seed, group, step, tag).
    void (*draw)(int64_t seed, uint32_t group, uint32_t step, uint32_t tag, uint32_t chunk, int64_t chunks,
                 uint64_t* words);
};

}  // namespace toykern
