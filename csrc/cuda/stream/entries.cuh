// What the units of a slice switch on, as entries (sample, feature, value), a warp to a slice (docs/data_stream.md
// §3-§6).
//
//   rare_entries       arrivals of the rare units
//   frequent_entries   active gates of the frequent units
//
// Owner      one warp; emit(sample, feature, value) is called by single lanes, in no order, once for every active
//            feature
#pragma once
#include "cuda/stream/frequent.cuh"
#include "cuda/stream/rare.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// Slices of 2^size_log2 samples that hold samples first … last - 1 of a batch: numbers begin … end - 1.
struct SliceRange {
    int64_t begin, end;
    int size_log2;
    TOYKERN_DEVICE int64_t start(int64_t slice) const { return slice << size_log2; }
    // Samples of the slice below `last`.
    TOYKERN_DEVICE uint32_t samples(int64_t slice, int64_t last) const {
        const int64_t left = last - start(slice), size = (int64_t)1 << size_log2;
        return (uint32_t)(left < size ? left : size);
    }
};

TOYKERN_DEVICE SliceRange slice_range(int size_log2, int64_t first, int64_t last) {
    return {first >> size_log2, (last + ((int64_t)1 << size_log2) - 1) >> size_log2, size_log2};
}
TOYKERN_DEVICE SliceRange rare_slices(const TablesView& tables, int64_t first, int64_t last) {
    const RareProcess r = tables.head().rare;
    return r.n_units ? slice_range(r.slice_log2, first, last) : SliceRange{0, 0, 0};
}
TOYKERN_DEVICE SliceRange frequent_slices(const TablesView& tables, int64_t first, int64_t last) {
    const uint32_t units = tables.head().n_frequent;
    return units ? slice_range(dense_slice_log2(units), first, last) : SliceRange{0, 0, 0};
}

// `samples` are those of the slice that are wanted, from its start.
template <class Emit>
TOYKERN_DEVICE void rare_entries(const Warp& w, const Distribution& d, const TablesView& tables, const StepKey& key,
                                 uint32_t slice, uint32_t samples, const Emit& emit) {
    RareSlice arrivals(tables, key, slice, samples);
    while (!arrivals.done()) {
        const Lane<Arrivals> a = arrivals.next(w);
        const Lane<PhiloxBlock> values = arrivals.words(w, Kind::kRareMagnitude, 0);
        Lane<PhiloxBlock> choices = values;
        if (tables.layout->has_exclusive) choices = arrivals.words(w, Kind::kRareChoice, 0);
        for (uint32_t member = 0; member < tables.layout->max_members; ++member) {
            const Lane<PhiloxBlock> words = member ? arrivals.words(w, Kind::kRareMagnitude, member) : values;
            w.each([&](int lane) {
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) {
                    if (!a[lane].kept[q]) continue;
                    const uint32_t unit = tables.rare_unit()[a[lane].unit[q]];
                    const uint32_t feature = active_member(d, tables, unit, choices[lane].word[q], member);
                    if (feature != kNoFeature)
                        emit(a[lane].sample[q], feature, magnitude(d.magnitude, words[lane].word[q]));
                }
            });
        }
    }
}

template <class Emit>
TOYKERN_DEVICE void frequent_entries(const Warp& w, const Distribution& d, const TablesView& tables, const StepKey& key,
                                     uint32_t slice, uint32_t samples, const Emit& emit) {
    frequent_slice(w, tables, key, slice, samples, [&](int, uint32_t s, uint32_t unit, uint32_t rank) {
        const auto word = [&](Kind kind, uint32_t member) {
            return sequence_word(key.key, kind, key.purpose, member, slice, key.step, rank);
        };
        const uint32_t choice = tables.layout->has_exclusive ? word(Kind::kFrequentChoice, 0) : 0u;
        for (uint32_t member = 0; member < tables.layout->max_members; ++member) {
            const uint32_t feature = active_member(d, tables, tables.frequent_unit()[unit], choice, member);
            if (feature == kNoFeature) return;
            emit(s, feature, magnitude(d.magnitude, word(Kind::kFrequentMagnitude, member)));
        }
    });
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
