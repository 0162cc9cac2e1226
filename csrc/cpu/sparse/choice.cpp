// Choosing connections: the largest scores, the lowest of a model's, and free places at random.
//
// Integers and comparisons. Every result is defined without reference to threads or to the order of work (ties:
// cpu/sparse/ties.h), and equals what toykern/sparse computes in PyTorch and NumPy elsewhere. Linear in what is looked
// at: histograms instead of sorts.
#include <cmath>
#include <vector>

#include "cpu/sparse/scores.h"
#include "cpu/sparse/ties.h"
#include "cpu/threads/shares.h"
#include "toykern/sparse_topology.h"

namespace toykern {
namespace {

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
    const bool all_equals = std::count(keys.begin(), keys.end(), least) == equals;
    std::vector<std::vector<Tie>> tied((size_t)slices);
    std::vector<Tie> ties;
    Tie last_one = {};
    if (!all_equals) {
        const TieSequence sequence = p.ties.of(first);
        for_each(slices, threads, [&](int64_t s) {
            TieWords words(sequence, *level().choice_kernels());
            visit_free<T>(p, bound(s), bound(s + 1), [&](int64_t i, Key key) {
                if (key == least) tied[(size_t)s].push_back(words(i));
            });
        });
        for (const auto& part : tied) ties.insert(ties.end(), part.begin(), part.end());
        last_one = last_chosen(ties, equals);
    }
    std::vector<std::vector<int64_t>> chosen((size_t)slices);
    for_each(slices, threads, [&](int64_t s) {
        const Tie* tie = tied[(size_t)s].data();
        auto& mine = chosen[(size_t)s];
        visit_free<T>(p, bound(s), bound(s + 1), [&](int64_t i, Key key) {
            if (key > least || (key == least && (all_equals || !(last_one < *tie++)))) mine.push_back(i);
        });
    });
    for (const auto& mine : chosen) out.insert(out.end(), mine.begin(), mine.end());
}

template <class T>
std::vector<int64_t> largest_all(const LargestParams& p) {
    const int threads = p.groups * p.size < kSerialEntries ? 1 : std::max(1, p.threads);
    if (p.groups == 1 || p.size >= kSerialEntries) {  // threads share a group
        std::vector<int64_t> out;
        for (int64_t g = 0; g < p.groups; ++g) {
            if (!p.is_double && p.size >= kSerialEntries) {
                const float* score = static_cast<const float*>(p.score) + g * p.size;
                const int64_t* taken = std::lower_bound(p.taken, p.taken + p.n_taken, g * p.size);
                std::vector<int64_t> place;
                std::vector<float> unused;
                LargestStream stream(p.counts[g], p.absolute, p.ties.of(g * p.size));
                stream.add(score, g * p.size, p.size, taken, p.taken + p.n_taken - taken, threads);
                stream.finish(place, unused);
                out.insert(out.end(), place.begin(), place.end());
                continue;
            }
            largest_of<T>(p, g * p.size, (g + 1) * p.size, p.counts[g], threads, out);
        }
        return out;
    }
    std::vector<std::vector<int64_t>> parts((size_t)p.groups);
    for_each(p.groups, threads,
             [&](int64_t g) { largest_of<T>(p, g * p.size, (g + 1) * p.size, p.counts[g], 1, parts[(size_t)g]); });
    std::vector<int64_t> out;
    for (const auto& part : parts) out.insert(out.end(), part.begin(), part.end());
    return out;
}

// ---- the lowest scores of a model, of all its connections or of the negative and the other ones by themselves ----

template <class T>
void lowest_of(const LowestParams& p, int64_t model, int threads) {
    using Key = decltype(ordered(T()));
    constexpr int kShift = 8 * (int)sizeof(Key) - kBinBits;
    const int64_t first = model * p.capacity, n = p.row_start[model * (p.out_features + 1) + p.out_features];
    const T* score = static_cast<const T*>(p.score) + first;
    const T* sign = p.sign ? static_cast<const T*>(p.sign) + first : nullptr;
    const uint8_t* allowed = p.allowed ? p.allowed + first : nullptr;
    uint8_t* drop = p.drop + first;
    const bool binned = n >= kFewEntries;
    const int64_t slices = binned ? std::max<int64_t>(1, threads * 2) : 1;
    const int classes = sign ? 2 : 1;
    const auto bound = [&](int64_t s) { return n * s / slices; };
    const auto class_of = [&](int64_t i) { return sign ? (int)(sign[i] < 0) : 0; };
    const auto key_of = [&](int64_t i) { return ordered(-score[i]); };
    const auto may_go = [&](int64_t i) { return !allowed || allowed[i]; };
    struct Slice {
        std::vector<uint32_t> bins;     // [classes][kBins] of those allowed
        std::vector<int64_t> close[2];  // slots in the bin where the threshold is; all where there are no bins
        int64_t members[2], available[2], dropped;
    };
    std::vector<Slice> parts((size_t)slices);
    for_each(slices, threads, [&](int64_t s) {
        Slice& mine = parts[(size_t)s];
        if (binned) mine.bins.assign((size_t)(classes * kBins), 0);
        uint32_t* bins = mine.bins.data();
        int64_t members[2] = {0, 0}, available[2] = {0, 0};
        for (int64_t i = bound(s); i < bound(s + 1); ++i) {
            const int c = class_of(i), may = may_go(i);
            members[1] += c;
            available[0] += may;
            available[1] += may & c;
            if (binned) bins[c * kBins + (int64_t)(key_of(i) >> kShift)] += may;
        }
        mine.members[1] = members[1], mine.members[0] = bound(s + 1) - bound(s) - members[1];
        mine.available[1] = available[1], mine.available[0] = available[0] - available[1];
    });
    int64_t count[2] = {0, 0}, above[2] = {0, 0}, bin[2] = {kBins, kBins};  // entries in higher bins go
    for (int c = 0; c < classes; ++c) {
        int64_t members = 0, available = 0;
        for (const Slice& part : parts) members += part.members[c], available += part.available[c];
        const double wanted = std::floor(p.fraction * (double)members * (1 + 1e-12));  // as sparse/prune.py has it
        count[c] = std::min(available, p.counts ? p.counts[model] : std::min((int64_t)wanted, members));
        if (count[c] <= 0) continue;
        for (bin[c] = kBins - 1; binned; --bin[c]) {
            int64_t here = 0;
            for (const Slice& part : parts) here += part.bins[(size_t)(c * kBins + bin[c])];
            if (above[c] + here >= count[c]) break;
            above[c] += here;
        }
    }
    for_each(slices, threads, [&](int64_t s) {
        Slice& mine = parts[(size_t)s];
        std::vector<int64_t> close[2];
        int64_t dropped = 0;
        for (int64_t i = bound(s); i < bound(s + 1); ++i) {
            const int c = class_of(i);
            const int64_t here = binned ? (int64_t)(key_of(i) >> kShift) : bin[c];
            const bool may = may_go(i), gone = may & (here > bin[c]);
            drop[i] = gone;
            dropped += gone;
            if ((here == bin[c]) & may & (here < kBins)) close[c].push_back(i);
        }
        for (int c = 0; c < classes; ++c) mine.close[c].swap(close[c]);
        mine.dropped = dropped;
    });
    if (n < p.capacity) std::memset(drop + n, 0, (size_t)(p.capacity - n));
    p.dropped[model] = 0;
    for (const Slice& part : parts) p.dropped[model] += part.dropped;
    for (int c = 0; c < classes; ++c) {  // exactly, in the bin of the threshold
        if (count[c] <= 0) continue;
        std::vector<Key> keys;
        for (const Slice& part : parts)
            for (const int64_t i : part.close[c]) keys.push_back(key_of(i));
        int64_t equals = 0;
        const Key least = threshold(keys, count[c] - above[c], &equals);
        const bool all_equals = std::count(keys.begin(), keys.end(), least) == equals;
        std::vector<Tie> ties;
        const TieSequence sequence = p.ties.of(first);
        TieWords words(sequence, *level().choice_kernels());
        for (const Slice& part : parts)
            for (const int64_t i : part.close[c]) {
                const Key key = key_of(i);
                const bool gone = key > least || (key == least && all_equals);
                drop[i] = gone;
                p.dropped[model] += gone;
                if (key == least && !all_equals) ties.push_back(words(first + i));
            }
        if (ties.empty()) continue;
        last_chosen(ties, equals);
        for (int64_t i = 0; i < equals; ++i) drop[ties[(size_t)i].at - first] = 1;
        p.dropped[model] += equals;
    }
}

template <class T>
void lowest_all(const LowestParams& p) {
    const int threads = threads_for(p.n_models * p.capacity, p.threads);
    if (p.n_models < 2 * threads || p.capacity >= kSerialEntries) {  // threads share a model
        for (int64_t k = 0; k < p.n_models; ++k) lowest_of<T>(p, k, threads);
        return;
    }
    for_each(p.n_models, threads, [&](int64_t k) { lowest_of<T>(p, k, 1); });
}

// ---- free places at random ----

constexpr int64_t kDrawnChunks = 64;  // of 32 words: what one visit draws, in L1

void random_places_of(const RandomPlacesParams& p, const ChoiceKernels& kernels, int64_t g, int threads,
                      std::vector<int64_t>& out) {
    const int64_t first = g * p.size;
    const int64_t* taken = std::lower_bound(p.taken, p.taken + p.n_taken, first);
    const int64_t* end = std::lower_bound(taken, p.taken + p.n_taken, first + p.size);
    const int64_t n_taken = end - taken, free = p.size - n_taken, count = std::min(p.counts[g], free);
    if (count <= 0) return;
    // The first `wanted` different numbers of the sequence floor(word · free / 2^64), as bits; where more than half are
    // asked for, they say which to leave out.
    const bool left_out = 2 * count > free;
    const int64_t wanted = left_out ? free - count : count;
    std::vector<uint64_t> bits((size_t)(free + 63) / 64);
    const int64_t visit = std::min<int64_t>(kDrawnChunks, (wanted + wanted / 8) / 32 + 1);
    std::vector<uint64_t> words((size_t)(32 * visit));
    int64_t found = 0;
    for (int64_t chunk = 0; found < wanted; chunk += visit) {
        kernels.draw(p.seeds[g], (uint32_t)p.ids[g], p.step, p.tag, (uint32_t)chunk, visit, words.data());
        for (int64_t i = 0; i < 32 * visit && found < wanted; ++i) {
            const auto number = (uint64_t)(((unsigned __int128)words[(size_t)i] * (unsigned __int128)free) >> 64);
            uint64_t& word = bits[number >> 6];
            const uint64_t bit = 1ull << (number & 63);
            found += (word & bit) == 0;
            word |= bit;
        }
    }
    if (left_out) {
        for (uint64_t& word : bits) word = ~word;
        if (free % 64) bits.back() &= (1ull << (free % 64)) - 1;
    }
    // Slices of the bits: each begins after what those before it found, and after the taken places before its first
    // free one.
    const auto n_words = (int64_t)bits.size();
    const int64_t slices = std::max<int64_t>(1, std::min<int64_t>(threads == 1 ? 1 : 2 * threads, n_words));
    std::vector<int64_t> at((size_t)slices + 1, (int64_t)out.size());
    const auto bound = [&](int64_t s) { return n_words * s / slices; };
    for_each(slices, threads, [&](int64_t s) {
        int64_t ones = 0;
        for (int64_t w = bound(s); w < bound(s + 1); ++w) ones += __builtin_popcountll(bits[(size_t)w]);
        at[(size_t)s + 1] = ones;
    });
    for (int64_t s = 0; s < slices; ++s) at[(size_t)s + 1] += at[(size_t)s];
    out.resize((size_t)at[(size_t)slices]);
    for_each(slices, threads, [&](int64_t s) {
        int64_t low = 0, high = n_taken;  // taken places before the free one of the slice's first rank
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (taken[middle] - first - middle <= 64 * bound(s))
                low = middle + 1;
            else
                high = middle;
        }
        int64_t before = low;
        int64_t* to = out.data() + at[(size_t)s];
        for (int64_t w = bound(s); w < bound(s + 1); ++w)
            for (uint64_t word = bits[(size_t)w]; word; word &= word - 1) {
                const int64_t rank = w * 64 + __builtin_ctzll(word);
                while (before < n_taken && taken[before] - first - before <= rank) ++before;
                *to++ = first + rank + before;
            }
    });
}

}  // namespace

std::vector<int64_t> sparse_largest(const LargestParams& p) {
    return p.is_double ? largest_all<double>(p) : largest_all<float>(p);
}

void sparse_lowest(const LowestParams& p) {
    if (p.is_double)
        lowest_all<double>(p);
    else
        lowest_all<float>(p);
}

std::vector<int64_t> sparse_random_places(const RandomPlacesParams& p) {
    const ChoiceKernels& kernels = *level().choice_kernels();
    const int threads = threads_for(p.groups * p.size, p.threads);
    std::vector<int64_t> out;
    if (p.groups < 2 * threads) {  // threads share a group
        for (int64_t g = 0; g < p.groups; ++g) random_places_of(p, kernels, g, threads, out);
        return out;
    }
    std::vector<std::vector<int64_t>> parts((size_t)p.groups);
    for_each(p.groups, threads, [&](int64_t g) { random_places_of(p, kernels, g, 1, parts[(size_t)g]); });
    for (const auto& part : parts) out.insert(out.end(), part.begin(), part.end());
    return out;
}

}  // namespace toykern
