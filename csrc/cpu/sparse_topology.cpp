// Updates of a topology: choosing the largest scores, drawing free places, merging what came with what stayed, moving slots.
//
// Integers and comparisons, so one build serves every instruction-set level. Every result is defined without reference to threads or to
// the order of work (ties go to the smallest index), and equals what toykern/sparse computes in PyTorch and NumPy elsewhere.
// Linear in what is looked at: a histogram instead of a sort, a merge instead of a search.
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "common/philox.h"
#include "cpu/crew.h"
#include "cpu/parallel.h"
#include "toykern/sparse_topology.h"

namespace toykern {
namespace {

constexpr int64_t kSerialEntries = 1 << 16;

template <class Work>
void for_each(int64_t count, int threads, const Work& work) {
    threads = (int)std::min<int64_t>(threads, count);
    guard_fork(threads);
    if (threads <= 1) {
        for (int64_t i = 0; i < count; ++i) work(i);
        return;
    }
    std::atomic<int64_t> next{0};
    parallel(threads, [&] {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
    });
}

// ---- scores as unsigned numbers in the order of torch.sort: -0 equals 0, NaN (of either sign) comes last ----

uint32_t ordered(float x) {
    uint32_t u;
    std::memcpy(&u, &x, sizeof(u));
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return 0xFFFFFFFFu;
    if (u == 0x80000000u) u = 0;
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}
uint64_t ordered(double x) {
    uint64_t u;
    std::memcpy(&u, &x, sizeof(u));
    if ((u & 0x7FFFFFFFFFFFFFFFull) > 0x7FF0000000000000ull) return ~0ull;
    if (u == 0x8000000000000000ull) u = 0;
    return u >> 63 ? ~u : u | 0x8000000000000000ull;
}

constexpr int kBinBits = 13;  // sign, exponent, four bits of the fraction of a float; the bins fit L1
constexpr int64_t kBins = 1 << kBinBits;
constexpr int64_t kFewEntries = 4096;  // below this a group is sorted as it is

// Entries first … last - 1 of a group that are not taken, in order.
template <class T, class Visit>
void visit_free(const LargestParams& p, int64_t first, int64_t last, const Visit& visit) {
    const T* score = static_cast<const T*>(p.score);
    const int64_t* taken = std::lower_bound(p.taken, p.taken + p.n_taken, first);
    const int64_t* end = p.taken + p.n_taken;
    int64_t i = first;
    while (i < last) {
        const int64_t stop = taken < end && *taken < last ? *taken : last;
        for (; i < stop; ++i) visit(i, p.absolute ? ordered(score[i] < 0 ? -score[i] : score[i]) : ordered(score[i]));
        if (i < last) ++i, ++taken;
    }
}

// Smallest key chosen and how many of its equals are, for `count` (1 … n) of the keys.
template <class Key>
Key threshold(std::vector<Key>& keys, int64_t count, int64_t* equals) {
    const auto nth = keys.begin() + (int64_t)keys.size() - count;
    std::nth_element(keys.begin(), nth, keys.end());
    *equals = std::count(nth, keys.end(), *nth);
    return *nth;
}

// One group: its entries are score[first … last); appends to out what is chosen, ascending.
template <class T>
void largest_of(const LargestParams& p, int64_t first, int64_t last, int64_t count, int threads,
                std::vector<int64_t>& out) {
    using Key = decltype(ordered(T()));
    constexpr int kShift = 8 * (int)sizeof(Key) - kBinBits;
    if (count <= 0) return;
    const int64_t slices = last - first < kFewEntries ? 1 : std::max<int64_t>(1, threads * 2);
    const auto bound = [&](int64_t s) { return first + (last - first) * s / slices; };
    int64_t bin = -1, above = 0;  // the bin of the threshold, how many entries lie in higher ones
    if (last - first >= kFewEntries) {
        std::vector<std::vector<uint32_t>> counts((size_t)slices, std::vector<uint32_t>(kBins));
        for_each(slices, threads, [&](int64_t s) {
            uint32_t* mine = counts[(size_t)s].data();
            visit_free<T>(p, bound(s), bound(s + 1), [&](int64_t, Key key) { ++mine[key >> kShift]; });
        });
        for (bin = kBins - 1; bin >= 0; --bin) {
            int64_t here = 0;
            for (const auto& mine : counts) here += mine[(size_t)bin];
            if (above + here >= count) break;
            above += here;
        }
        if (bin < 0) above = 0;  // fewer than asked for: all of them, from every bin
    }
    std::vector<std::vector<Key>> parts((size_t)slices);  // keys of that bin; all where there are few
    for_each(slices, threads, [&](int64_t s) {
        auto& mine = parts[(size_t)s];
        visit_free<T>(p, bound(s), bound(s + 1), [&](int64_t, Key key) {
            if (bin < 0 || (int64_t)(key >> kShift) == bin) mine.push_back(key);
        });
    });
    std::vector<Key> keys;
    for (const auto& part : parts) keys.insert(keys.end(), part.begin(), part.end());
    count = std::min<int64_t>(count, above + (int64_t)keys.size());
    if (count <= 0) return;
    int64_t equals = 0;
    const Key least = threshold(keys, count - above, &equals);
    // The equals to take, slice by slice: the first ones.
    std::vector<int64_t> take((size_t)slices);
    for (int64_t s = 0; s < slices; ++s) {
        const auto& part = parts[(size_t)s];
        take[(size_t)s] = std::min<int64_t>(equals, std::count(part.begin(), part.end(), least));
        equals -= take[(size_t)s];
    }
    std::vector<std::vector<int64_t>> chosen((size_t)slices);
    for_each(slices, threads, [&](int64_t s) {
        int64_t left = take[(size_t)s];
        auto& mine = chosen[(size_t)s];
        visit_free<T>(p, bound(s), bound(s + 1), [&](int64_t i, Key key) {
            if (key > least)
                mine.push_back(i);
            else if (key == least && left > 0)
                --left, mine.push_back(i);
        });
    });
    for (const auto& mine : chosen) out.insert(out.end(), mine.begin(), mine.end());
}

template <class T>
std::vector<int64_t> largest_all(const LargestParams& p) {
    const int threads = p.groups * p.size < kSerialEntries ? 1 : std::max(1, p.threads);
    if (p.groups == 1 || p.size >= kSerialEntries) {  // threads share a group
        std::vector<int64_t> out;
        for (int64_t g = 0; g < p.groups; ++g)
            largest_of<T>(p, g * p.size, (g + 1) * p.size, p.counts[g], threads, out);
        return out;
    }
    std::vector<std::vector<int64_t>> parts((size_t)p.groups);
    for_each(p.groups, threads,
             [&](int64_t g) { largest_of<T>(p, g * p.size, (g + 1) * p.size, p.counts[g], 1, parts[(size_t)g]); });
    std::vector<int64_t> out;
    for (const auto& part : parts) out.insert(out.end(), part.begin(), part.end());
    return out;
}

// The 32 words of 64 bits number 32·chunk … of a sequence (toykern/sparse/draws.py).
void draw_chunk(PhiloxKey key, uint32_t group, uint32_t step, uint32_t tag, uint32_t chunk, uint64_t* words) {
    for (uint32_t lane = 0; lane < 16; ++lane) {
        const PhiloxBlock b = philox(key, 16u * chunk + lane, group, step, tag);
        words[lane] = (uint64_t)b.word[0] << 32 | b.word[1];
        words[16 + lane] = (uint64_t)b.word[2] << 32 | b.word[3];
    }
}

}  // namespace

std::vector<int64_t> sparse_largest(const LargestParams& p) {
    return p.is_double ? largest_all<double>(p) : largest_all<float>(p);
}

std::vector<int64_t> sparse_random_places(const RandomPlacesParams& p) {
    std::vector<std::vector<int64_t>> parts((size_t)p.groups);
    const int threads = p.groups * p.size < kSerialEntries ? 1 : std::max(1, p.threads);
    for_each(p.groups, threads, [&](int64_t g) {
        const int64_t first = g * p.size;
        const int64_t* taken = std::lower_bound(p.taken, p.taken + p.n_taken, first);
        const int64_t* end = std::lower_bound(taken, p.taken + p.n_taken, first + p.size);
        const int64_t free = p.size - (end - taken), count = std::min(p.counts[g], free);
        if (count <= 0) return;
        // The first `wanted` different numbers of the sequence floor(word · free / 2^64), as bits; where more than half are asked for,
        // they say which to leave out.
        const bool left_out = 2 * count > free;
        const int64_t wanted = left_out ? free - count : count;
        std::vector<uint64_t> bits((size_t)(free + 63) / 64);
        const PhiloxKey key = philox_key(p.seeds[g]);
        uint64_t words[32];
        int64_t found = 0;
        for (uint32_t chunk = 0; found < wanted; ++chunk) {
            draw_chunk(key, (uint32_t)p.ids[g], p.step, p.tag, chunk, words);
            for (int i = 0; i < 32 && found < wanted; ++i) {
                const auto number = (uint64_t)(((unsigned __int128)words[i] * (unsigned __int128)free) >> 64);
                uint64_t& word = bits[number >> 6];
                const uint64_t bit = 1ull << (number & 63);
                found += (word & bit) == 0;
                word |= bit;
            }
        }
        auto& out = parts[(size_t)g];
        out.reserve((size_t)count);
        int64_t before = 0;  // taken places at or before the free one of this rank
        const int64_t n_taken = end - taken;
        for (size_t w = 0; w < bits.size(); ++w) {
            uint64_t word = left_out ? ~bits[w] : bits[w];
            if (left_out && w + 1 == bits.size() && free % 64) word &= (1ull << (free % 64)) - 1;
            for (; word; word &= word - 1) {
                const int64_t rank = (int64_t)w * 64 + __builtin_ctzll(word);
                while (before < n_taken && taken[before] - first - before <= rank) ++before;
                out.push_back(first + rank + before);
            }
        }
    });
    std::vector<int64_t> out;
    for (const auto& part : parts) out.insert(out.end(), part.begin(), part.end());
    return out;
}

void sparse_merge(const MergeParams& p) {
    std::atomic<int64_t> clash{-1}, crowded{-1};
    const int threads = p.n_models * p.capacity < kSerialEntries ? 1 : std::max(1, p.threads);
    for_each(p.n_models, threads, [&](int64_t k) {
        const int64_t* start = p.row_start + k * (p.out_features + 1);
        const int64_t first = k * p.capacity;
        int64_t* new_start = p.new_row_start + k * (p.out_features + 1);
        int32_t* column = p.new_column + first;
        int64_t* old_slot = p.old_slot + first;
        int64_t row_key = k * p.out_features * p.in_features, at = 0;
        const int64_t* grown = std::lower_bound(p.grown, p.grown + p.n_grown, row_key);
        const int64_t* end = p.grown + p.n_grown;
        const auto put = [&](int32_t c, int64_t slot) {
            if (at < p.capacity) column[at] = c, old_slot[at] = slot;
            ++at;
        };
        new_start[0] = 0;
        for (int64_t r = 0; r < p.out_features; ++r, row_key += p.in_features) {
            const int64_t row_end = row_key + p.in_features;
            for (int64_t i = start[r]; i < start[r + 1]; ++i) {
                if (p.drop[first + i]) continue;
                const int64_t key = row_key + p.column[first + i];
                for (; grown < end && *grown < key; ++grown) put((int32_t)(*grown - row_key), -1);
                if (grown < end && *grown == key) clash = key;
                put(p.column[first + i], first + i);
            }
            for (; grown < end && *grown < row_end; ++grown) put((int32_t)(*grown - row_key), -1);
            new_start[r + 1] = at;
        }
        if (at > p.capacity) crowded = at;
        for (; at < p.capacity; ++at) column[at] = 0, old_slot[at] = -1;
    });
    if (clash >= 0) throw std::invalid_argument("clash " + std::to_string(clash));
    if (crowded >= 0) throw std::invalid_argument("crowded " + std::to_string(crowded));
}

void sparse_keys(int64_t n_models, int64_t out_features, int64_t in_features, int64_t capacity,
                 const int64_t* row_start, const int32_t* column, int64_t* keys) {
    int64_t row_key = 0;
    for (int64_t k = 0; k < n_models; ++k, ++row_start, column += capacity)
        for (int64_t r = 0; r < out_features; ++r, ++row_start, row_key += in_features)
            for (int64_t i = row_start[0]; i < row_start[1]; ++i) *keys++ = row_key + column[i];
}

void sparse_move(const MoveParams& p) {
    const int64_t pieces = p.count < kSerialEntries ? 1 : 4 * std::max(1, p.threads);
    const auto move = [&](auto* to, const auto* from) {
        for_each(pieces, p.threads, [&](int64_t piece) {
            for (int64_t i = p.count * piece / pieces; i < p.count * (piece + 1) / pieces; ++i)
                to[i] = p.old_slot[i] < 0 ? 0 : from[p.old_slot[i]];
        });
    };
    if (p.bytes == 2)
        move(static_cast<uint16_t*>(p.to), static_cast<const uint16_t*>(p.from));
    else if (p.bytes == 4)
        move(static_cast<uint32_t*>(p.to), static_cast<const uint32_t*>(p.from));
    else
        move(static_cast<uint64_t*>(p.to), static_cast<const uint64_t*>(p.from));
}

}  // namespace toykern
