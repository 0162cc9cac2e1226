// Updates of a topology: merging what came with what stayed, moving slots, keeping account.
//
// Integers and comparisons, so one build serves every instruction-set level. Every result is defined without reference
// to threads or to the order of work, and equals what toykern/sparse computes in PyTorch elsewhere. Loops over
// connections have no branches that depend on which go and which come: those are random, and a processor that guesses
// them wrong waits longer than the work takes.
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/threads/shares.h"
#include "toykern/sparse_topology.h"

namespace toykern {
namespace {

// Rows of one model that one worker takes; shares of a model have nearly equal numbers of connections and rows.
struct RowShare {
    int64_t model, row0, row1;
};

std::vector<RowShare> shares_of_rows(int64_t n_models, int64_t rows, const int64_t* row_start, int threads) {
    std::vector<RowShare> shares;
    const int64_t each = threads == 1 || n_models >= 4 * threads ? 1 : 4 * threads;
    for (int64_t k = 0; k < n_models; ++k) {
        const int64_t* start = row_start + k * (rows + 1);
        int64_t row = 0;
        for (int64_t i = 1; i <= each; ++i) {
            const int64_t wanted = (start[rows] + rows) * i / each;
            int64_t low = row, high = rows;
            while (low < high) {
                const int64_t middle = (low + high) / 2;
                if (start[middle] + middle < wanted)
                    low = middle + 1;
                else
                    high = middle;
            }
            const int64_t end = i == each ? rows : low;
            if (end > row) shares.push_back({k, row, end});
            row = end;
        }
    }
    return shares;
}

// A share of a merge: what it reads and where it writes.
struct MergeShare {
    RowShare rows;
    int64_t kept, grown0, grown1;  // connections that are not dropped; which of the keys to grow are its own
    int64_t at;                    // its first slot, counted from the model's
    int64_t fresh, returned;       // keys grown that were not dropped at once, and the others
    int64_t active;                // rows with a connection
    int64_t clash;                 // a key that is connected and not dropped, or -1
    std::vector<uint8_t> seen;     // [in] columns with a connection
};

void merge_rows(const MergeParams& p, MergeShare& share) {
    const int64_t model = share.rows.model, first = model * p.capacity;
    const int64_t* start = p.row_start + model * (p.out_features + 1);
    int64_t* new_start = p.new_row_start + model * (p.out_features + 1);
    int32_t* column = p.new_column + first;
    int64_t* old_slot = p.old_slot + first;
    int64_t longest = 0;
    for (int64_t r = share.rows.row0; r < share.rows.row1; ++r) longest = std::max(longest, start[r + 1] - start[r]);
    const int64_t most = std::min(p.in_features, share.grown1 - share.grown0);
    std::vector<uint8_t> grows((size_t)p.in_features);  // columns that the row at hand grows
    std::vector<int32_t> stay((size_t)longest + 1), come((size_t)most + 1);
    std::vector<int64_t> stay_slot((size_t)longest + 1);
    share.seen.assign((size_t)p.in_features, 0);
    const int64_t* grown = p.grown + share.grown0;
    const int64_t* end = p.grown + share.grown1;
    int64_t* fresh = p.fresh + share.grown0;
    int64_t at = share.at;
    for (int64_t r = share.rows.row0; r < share.rows.row1; ++r) {
        const int64_t row_key = (model * p.out_features + r) * p.in_features, row_end = row_key + p.in_features;
        const int64_t* own = grown;
        for (; grown < end && *grown < row_end; ++grown) grows[(size_t)(*grown - row_key)] = 1;
        int64_t stays = 0, comes = 0;
        bool clash = false;
        for (int64_t i = start[r]; i < start[r + 1]; ++i) {
            const int32_t c = p.column[first + i];
            const bool gone = p.drop[first + i] != 0, back = grows[(size_t)c] != 0,
                       returns = gone & back & p.keep_returning;
            clash |= !gone & back;
            grows[(size_t)c] = (uint8_t)(back & !returns);
            stay[(size_t)stays] = c;
            stay_slot[(size_t)stays] = first + i;
            stays += !gone | returns;
            share.returned += returns;
        }
        for (const int64_t* key = own; key < grown; ++key) {
            const auto c = (size_t)(*key - row_key);
            come[(size_t)comes] = (int32_t)c;
            *fresh = *key;
            comes += grows[c];
            fresh += grows[c];
            grows[c] = 0;
        }
        if (clash && share.clash < 0)
            for (int64_t i = start[r], j = 0; i < start[r + 1] && share.clash < 0; ++i) {
                while (own + j < grown && own[j] < row_key + p.column[first + i]) ++j;
                if (!p.drop[first + i] && own + j < grown && own[j] == row_key + p.column[first + i])
                    share.clash = own[j];
            }
        stay[(size_t)stays] = come[(size_t)comes] = std::numeric_limits<int32_t>::max();
        stay_slot[(size_t)stays] = -1;
        for (int64_t i = 0, j = 0; i + j < stays + comes;) {
            const int32_t a = stay[(size_t)i], b = come[(size_t)j];
            const bool new_one = b < a;
            const int32_t c = new_one ? b : a;
            column[at] = c;
            old_slot[at] = stay_slot[(size_t)i] | -(int64_t)new_one;
            share.seen[(size_t)c] = 1;
            ++at, i += !new_one, j += new_one;
        }
        share.active += stays + comes > 0;
        new_start[r + 1] = at;
    }
    share.fresh = fresh - (p.fresh + share.grown0);
}

// Whether the keys ascend, without repeats, from 0 to below `limit`.
bool ascending(const int64_t* keys, int64_t count, int64_t limit) {
    bool good = count == 0 || (keys[0] >= 0 && keys[count - 1] < limit);
    for (int64_t i = 1; i < count; ++i) good &= keys[i - 1] < keys[i];
    return good;
}

}  // namespace

int64_t sparse_merge(const MergeParams& p) {
    const int threads = threads_for(p.n_models * p.capacity, p.threads);
    const int64_t positions = p.out_features * p.in_features;
    if (!ascending(p.grown, p.n_grown, p.n_models * positions)) throw std::invalid_argument("unordered 0");
    std::vector<MergeShare> shares;
    for (const RowShare& rows : shares_of_rows(p.n_models, p.out_features, p.row_start, threads))
        shares.push_back({rows, 0, 0, 0, 0, 0, 0, 0, -1, {}});
    const auto count = (int64_t)shares.size();
    for_each(count, threads, [&](int64_t i) {
        MergeShare& share = shares[(size_t)i];
        const int64_t* start = p.row_start + share.rows.model * (p.out_features + 1);
        const uint8_t* drop = p.drop + share.rows.model * p.capacity;
        const int64_t row_key = share.rows.model * p.out_features;
        const auto place = [&](int64_t row) {
            return std::lower_bound(p.grown, p.grown + p.n_grown, (row_key + row) * p.in_features) - p.grown;
        };
        share.grown0 = place(share.rows.row0);
        share.grown1 = place(share.rows.row1);
        for (int64_t s = start[share.rows.row0]; s < start[share.rows.row1]; ++s) share.kept += drop[s] == 0;
    });
    for (int64_t i = 0; i < count; ++i) {  // where every share begins
        MergeShare& share = shares[(size_t)i];
        const int64_t room = share.kept + share.grown1 - share.grown0;
        share.at += share.rows.row0 == 0 ? 0 : shares[(size_t)i - 1].at;
        if (share.at + room > p.capacity) {
            int64_t total = 0;
            for (const MergeShare& other : shares)
                if (other.rows.model == share.rows.model) total += other.kept + other.grown1 - other.grown0;
            throw std::invalid_argument("crowded " + std::to_string(total));
        }
        if (i + 1 < count && shares[(size_t)i + 1].rows.row0 != 0) shares[(size_t)i + 1].at = room;
    }
    for_each(count, threads, [&](int64_t i) {
        MergeShare& share = shares[(size_t)i];
        merge_rows(p, share);
        const int64_t model = share.rows.model;
        int64_t* new_start = p.new_row_start + model * (p.out_features + 1);
        if (share.rows.row0 == 0) new_start[0] = 0;
        if (share.rows.row0 == 0 &&
            share.rows.row1 == p.out_features) {  // alone: what the rows have seen is summed at once
            int64_t columns = 0;
            for (const uint8_t one : share.seen) columns += one;
            p.active_columns[model] = columns;
            std::vector<uint8_t>().swap(share.seen);
        }
        if (share.rows.row1 < p.out_features) return;
        for (int64_t at = new_start[p.out_features]; at < p.capacity; ++at)
            p.new_column[model * p.capacity + at] = 0, p.old_slot[model * p.capacity + at] = -1;
    });
    for (const MergeShare& share : shares)
        if (share.clash >= 0) throw std::invalid_argument("clash " + std::to_string(share.clash));
    int64_t fresh = 0;
    std::vector<uint8_t> seen;
    for (int64_t i = 0; i < count; ++i) {
        const MergeShare& share = shares[(size_t)i];
        const int64_t k = share.rows.model, old = p.row_start[k * (p.out_features + 1) + share.rows.row1] -
                                                  p.row_start[k * (p.out_features + 1) + share.rows.row0];
        if (share.fresh) std::memmove(p.fresh + fresh, p.fresh + share.grown0, (size_t)share.fresh * sizeof(int64_t));
        fresh += share.fresh;
        if (share.rows.row0 == 0) {
            p.dropped[k] = p.came[k] = p.active_rows[k] = 0;
            seen.assign(share.seen.size(), 0);
        }
        p.dropped[k] += old - share.kept - share.returned;
        p.came[k] += share.fresh;
        p.active_rows[k] += share.active;
        if (seen.empty()) continue;
        for (size_t c = 0; c < seen.size(); ++c) seen[c] |= share.seen[c];
        if (share.rows.row1 < p.out_features) continue;
        p.active_columns[k] = 0;
        for (const uint8_t one : seen) p.active_columns[k] += one;
    }
    return fresh;
}

int64_t sparse_keys(const KeysParams& p) {
    const int threads = threads_for(p.n_models * p.capacity, p.threads);
    const std::vector<RowShare> shares = shares_of_rows(p.n_models, p.out_features, p.row_start, threads);
    std::vector<int64_t> at(shares.size() + 1, 0);
    const auto start_of = [&](const RowShare& share) { return p.row_start + share.model * (p.out_features + 1); };
    for_each((int64_t)shares.size(), threads, [&](int64_t i) {
        const RowShare& share = shares[(size_t)i];
        const int64_t first = start_of(share)[share.row0], last = start_of(share)[share.row1];
        int64_t gone = 0;
        if (p.drop)
            for (int64_t s = first; s < last; ++s) gone += p.drop[share.model * p.capacity + s] != 0;
        at[(size_t)i + 1] = last - first - gone;
    });
    for (size_t i = 0; i < shares.size(); ++i) at[i + 1] += at[i];
    if (at.back() > p.room) throw std::invalid_argument("there are more connections than places for their keys");
    for_each((int64_t)shares.size(), threads, [&](int64_t i) {
        const RowShare& share = shares[(size_t)i];
        const int64_t* start = start_of(share);
        const int32_t* column = p.column + share.model * p.capacity;
        const uint8_t* drop = p.drop ? p.drop + share.model * p.capacity : nullptr;
        int64_t *to = p.keys + at[(size_t)i], *end = p.keys + at[(size_t)i + 1];
        for (int64_t r = share.row0; r < share.row1 && to < end; ++r) {
            const int64_t row_key = (share.model * p.out_features + r) * p.in_features;
            int64_t s = start[r];
            if (!drop) {
                for (; s < start[r + 1]; ++s) *to++ = row_key + column[s];
                continue;
            }
            for (; s < start[r + 1] && to < end; ++s) {  // what is written over was dropped
                *to = row_key + column[s];
                to += drop[s] == 0;
            }
        }
    });
    return at.back();
}

namespace {

template <class T>
void move_one(T* tensor, const int64_t* old_slot, int64_t count, T* copy, int threads) {
    const int64_t pieces = threads == 1 ? 1 : 4 * threads;
    const auto bound = [&](int64_t piece) { return count * piece / pieces; };
    for_each(pieces, threads, [&](int64_t piece) {
        for (int64_t i = bound(piece); i < bound(piece + 1); ++i) {
            const int64_t slot = old_slot[i];
            const T value = tensor[slot < 0 ? 0 : slot];
            copy[i] = (T)(value & (T)((T)(slot < 0) - 1));
        }
    });
    for_each(pieces, threads, [&](int64_t piece) {
        if (bound(piece) < bound(piece + 1))
            std::memcpy(tensor + bound(piece), copy + bound(piece),
                        (size_t)(bound(piece + 1) - bound(piece)) * sizeof(T));
    });
}

}  // namespace

void sparse_move(const MoveParams& p) {
    const int threads = threads_for(p.count, p.threads);
    const int64_t pieces = threads == 1 ? 1 : 4 * threads;
    std::vector<int64_t> most((size_t)pieces, -1), least((size_t)pieces, 0);
    for_each(pieces, threads, [&](int64_t piece) {
        int64_t low = 0, high = -1;
        for (int64_t i = p.count * piece / pieces; i < p.count * (piece + 1) / pieces; ++i)
            low = std::min(low, p.old_slot[i]), high = std::max(high, p.old_slot[i]);
        least[(size_t)piece] = low, most[(size_t)piece] = high;
    });
    const int64_t high = *std::max_element(most.begin(), most.end());
    const int64_t low = *std::min_element(least.begin(), least.end());
    if (high >= p.count || low < -1)
        throw std::invalid_argument(
            "old_slot must be from \u2212"
            "1 to " +
            std::to_string(p.count - 1) + ", not " + std::to_string(low < -1 ? low : high));
    if (p.count == 0) return;
    int32_t widest = 0;
    for (int64_t t = 0; t < p.tensors; ++t) widest = std::max(widest, p.bytes[t]);
    std::vector<uint64_t> copy((size_t)((p.count * widest + 7) / 8));
    for (int64_t t = 0; t < p.tensors; ++t) {
        void* tensor = p.data[t];
        if (p.bytes[t] == 2)
            move_one((uint16_t*)tensor, p.old_slot, p.count, (uint16_t*)copy.data(), threads);
        else if (p.bytes[t] == 4)
            move_one((uint32_t*)tensor, p.old_slot, p.count, (uint32_t*)copy.data(), threads);
        else
            move_one((uint64_t*)tensor, p.old_slot, p.count, copy.data(), threads);
    }
}

void sparse_explore(const ExploreParams& p) {
    const int threads = threads_for(p.n_models * p.positions, p.threads);
    const int64_t each = p.n_models >= 4 * threads ? 1 : 4 * threads, count = p.n_models * each;
    if (!ascending(p.keys, p.n_keys, p.n_models * p.positions))
        throw std::invalid_argument("keys must ascend from 0 to below n_models x positions");
    std::vector<int64_t> sums((size_t)count);
    for_each(count, threads, [&](int64_t i) {
        const int64_t model = i / each, piece = i % each;
        const int64_t first = model * p.positions + p.positions * piece / each;
        const int64_t last = model * p.positions + p.positions * (piece + 1) / each;
        const int64_t* key = std::lower_bound(p.keys, p.keys + p.n_keys, first);
        for (; key < p.keys + p.n_keys && *key < last; ++key) p.explored[*key] = 1;
        int64_t sum = 0;
        for (int64_t from = first; from < last; from += 255) {  // bytes of 0 and 1: 255 of them fit one
            const int64_t to = std::min(from + 255, last);
            int32_t few = 0;
            for (int64_t at = from; at < to; ++at) few += p.explored[at] != 0;
            sum += few;
        }
        sums[(size_t)i] = sum;
    });
    for (int64_t k = 0; k < p.n_models; ++k) {
        p.counts[k] = 0;
        for (int64_t piece = 0; piece < each; ++piece) p.counts[k] += sums[(size_t)(k * each + piece)];
    }
}

}  // namespace toykern
