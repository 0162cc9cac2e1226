// The largest of scores that come piece by piece, for gradients that are never held as a whole.
//
// A threshold rises as scores are seen: the lower edge of the bin (cpu/sparse/scores.h) in which the count-th best so
// far stands. A piece is scanned for what reaches it. Early on that is much of a piece; so a sample of the piece says
// to which bin the threshold will rise, and if no fewer than the count are found above that one, nothing below can
// matter; otherwise the piece, which is still there, is scanned again. So the choice is exact, and follows from the
// scores and their places alone. Equals of the count-th best come in as well, since the random words of ties may prefer
// them to what is held.
#include <cstring>

#include "cpu/sparse/scores.h"
#include "cpu/sparse/ties.h"
#include "cpu/threads/shares.h"
#include "toykern/api.h"

namespace toykern {
namespace {

constexpr int kShift = 32 - kBinBits;
constexpr int64_t kSampled = 256, kSampledOf = 64;  // scores side by side in a sample, one such run in so many

float score_of(uint32_t key) {
    const uint32_t u = key & 0x80000000u ? key & 0x7FFFFFFFu : ~key;
    float x;
    std::memcpy(&x, &u, sizeof(x));
    return x;
}

}  // namespace

int64_t LargestStream::scan(const float* score, int64_t first, int64_t n, const int64_t* taken, int64_t n_taken,
                            uint32_t least, int threads) {
    const ChoiceKernels& kernels = *level().choice_kernels();
    const auto slices = (int64_t)slices_.size();
    for_each(slices, threads, [&](int64_t s) {
        Slice& mine = slices_[(size_t)s];
        const int64_t begin = n * s / slices, length = n * (s + 1) / slices - begin;
        if (mine.room < length + 64) {
            mine.room = length + 64;
            mine.key.reset(new uint32_t[(size_t)mine.room]);
            mine.at.reset(new uint32_t[(size_t)mine.room]);
        }
        const int64_t* from = std::lower_bound(taken, taken + n_taken, first + begin);
        mine.found = kernels.scan(score + begin, length, absolute_, from, taken + n_taken - from, first + begin, least,
                                  mine.key.get(), mine.at.get());
    });
    int64_t found = 0;
    for (const Slice& slice : slices_) found += slice.found;
    return found;
}

void LargestStream::add(const float* score, int64_t first, int64_t n, const int64_t* taken, int64_t n_taken,
                        int threads) {
    if (count_ <= 0 || n <= 0) return;
    threads = threads_for(n, threads);
    bins_.resize(kBins);
    slices_.resize((size_t)std::max<int64_t>(threads == 1 ? 1 : 2 * threads, n / (int64_t(1) << 31) + 1));
    uint32_t least = least_;
    if (n >= 4 * kSampledOf * kSampled) {
        const ChoiceKernels& kernels = *level().choice_kernels();
        uint32_t key[kSampled + 64], at[kSampled + 64];
        sample_.assign(kBins, 0);
        for (int64_t i = 0; i + kSampled <= n; i += kSampledOf * kSampled) {
            const int64_t* from = std::lower_bound(taken, taken + n_taken, first + i);
            const int64_t found =
                kernels.scan(score + i, kSampled, absolute_, from, taken + n_taken - from, first + i, least_, key, at);
            for (int64_t f = 0; f < found; ++f) ++sample_[key[f] >> kShift];
        }
        int64_t above = 0, bin = kBins - 1;
        for (; bin > (int64_t)(least_ >> kShift); --bin) {
            above += bins_[(size_t)bin] + kSampledOf * sample_[(size_t)bin];
            if (above >= count_ + count_ / 8 + 4096) break;
        }
        if (bin > (int64_t)(least_ >> kShift)) least = (uint32_t)bin << kShift;
    }
    int64_t found = scan(score, first, n, taken, n_taken, least, threads);
    if (least > least_) {
        int64_t held = 0;
        for (int64_t bin = least >> kShift; bin < kBins; ++bin) held += bins_[(size_t)bin];
        if (held + found < count_) found = scan(score, first, n, taken, n_taken, least_, threads);
    }
    const size_t before = key_.size();
    key_.resize(before + (size_t)found);
    place_.resize(before + (size_t)found);
    std::vector<int64_t> at(slices_.size() + 1, (int64_t)before);
    for (size_t s = 0; s < slices_.size(); ++s) at[s + 1] = at[s] + slices_[s].found;
    const auto slices = (int64_t)slices_.size();
    for_each(slices, threads, [&](int64_t s) {
        const Slice& mine = slices_[(size_t)s];
        const int64_t base = first + n * s / slices;
        uint32_t* key = key_.data() + at[(size_t)s];
        int64_t* place = place_.data() + at[(size_t)s];
        if (mine.found) std::memcpy(key, mine.key.get(), (size_t)mine.found * sizeof(uint32_t));
        for (int64_t i = 0; i < mine.found; ++i) place[i] = base + mine.at[(size_t)i];
    });
    for (size_t i = before; i < key_.size(); ++i) ++bins_[key_[i] >> kShift];
    raise();
    if ((int64_t)key_.size() > count_ + count_ / 2 + 8192) forget();
    if ((int64_t)key_.size() > 2 * count_ + 65536) {
        select();
        bins_.assign(kBins, 0);
        for (const uint32_t key : key_) ++bins_[key >> kShift];
    }
}

void LargestStream::raise() {
    int64_t above = 0;
    for (int64_t bin = kBins - 1; bin >= (int64_t)(floor_ >> kShift); --bin) {
        above += bins_[(size_t)bin];
        if (above < count_) continue;
        floor_ = (uint32_t)bin << kShift;
        least_ = std::max(least_, floor_);
        return;
    }
}

void LargestStream::forget() {
    size_t kept = 0;
    for (size_t i = 0; i < key_.size(); ++i) {
        const uint32_t key = key_[i];
        key_[kept] = key;
        place_[kept] = place_[i];
        kept += key >= floor_;
    }
    key_.resize(kept);
    place_.resize(kept);
    for (int64_t bin = 0; bin < (int64_t)(floor_ >> kShift); ++bin) bins_[(size_t)bin] = 0;
}

void LargestStream::select() {
    raise();
    // The bin of the threshold holds the count-th best; the bins above, fewer than the count. Within the bin, two more
    // rounds of bins find the key exactly.
    const uint32_t bin = floor_ >> kShift;
    int64_t missing = count_;
    for (int64_t higher = (int64_t)bin + 1; higher < kBins; ++higher) missing -= bins_[(size_t)higher];
    std::vector<uint32_t> close(key_.size() + 1);
    size_t n = 0;
    for (const uint32_t key : key_) {
        close[n] = key;
        n += key >> kShift == bin;
    }
    uint32_t last = bin << kShift;
    int64_t equals = 0;
    for (int shift = kShift, width = kShift / 2 + 1; shift > 0; width = shift) {
        const int low = shift - width;
        std::vector<int64_t> counts((size_t)1 << width);
        const uint32_t prefix = last >> shift;
        for (size_t i = 0; i < n; ++i) counts[(close[i] >> low) & ((1u << width) - 1)] += close[i] >> shift == prefix;
        size_t at = counts.size() - 1;
        for (; counts[at] < missing; --at) missing -= counts[at];
        last |= (uint32_t)at << low;
        equals = missing;  // to take of the equal ones
        shift = low;
    }
    std::vector<Tie> ties;
    TieWords words(ties_, *level().choice_kernels());
    for (size_t i = 0; i < key_.size(); ++i)
        if (key_[i] == last) ties.push_back(words(place_[i]));
    std::vector<Tie> ordered = ties;
    const Tie last_one = last_chosen(ordered, equals);
    const Tie* tie = ties.data();
    size_t kept = 0;
    for (size_t i = 0; i < key_.size(); ++i) {
        const uint32_t key = key_[i];
        const bool stays = key > last || (key == last && !(last_one < *tie++));
        key_[kept] = key;
        place_[kept] = place_[i];
        kept += stays;
    }
    key_.resize(kept);
    place_.resize(kept);
    least_ = last;
}

void LargestStream::finish(std::vector<int64_t>& place, std::vector<float>& score) {
    if ((int64_t)key_.size() > count_) select();
    place = std::move(place_);
    score.resize(key_.size());
    for (size_t i = 0; i < key_.size(); ++i) score[i] = score_of(key_[i]);
}

}  // namespace toykern
