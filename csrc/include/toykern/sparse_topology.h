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

// A topology without the slots in `drop` and with the keys in `grown`. std::invalid_argument "clash <key>" or "crowded <connections>"
// where a grown place stays connected or a model has too few slots; what was written then is meaningless.
struct MergeParams {
    int64_t n_models, out_features, in_features, capacity, n_grown;
    const int64_t* row_start;  // [K, out + 1]
    const int32_t* column;     // [K · capacity]
    const uint8_t* drop;       // [K · capacity]
    const int64_t* grown;      // [n_grown] ascending, without repeats
    int64_t* new_row_start;
    int32_t* new_column;
    int64_t* old_slot;  // [K · capacity] absolute slot before, or -1
    int threads;
};
void sparse_merge(const MergeParams& params);

// Keys of all connections in the order of the slots; row_start [K, out + 1] and column [K · capacity] are trusted.
void sparse_keys(int64_t n_models, int64_t out_features, int64_t in_features, int64_t capacity,
                 const int64_t* row_start, const int32_t* column, int64_t* keys);

// to[i] = from[old_slot[i]], 0 where that is negative; elements of 2, 4 or 8 bytes. The slots are trusted.
struct MoveParams {
    void* to;
    const void* from;
    const int64_t* old_slot;  // [count]
    int64_t count, bytes;
    int threads;
};
void sparse_move(const MoveParams& params);

}  // namespace toykern
