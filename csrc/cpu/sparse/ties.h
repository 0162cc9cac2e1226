// Which of equal scores are chosen: those with the smallest random words (docs/data_stream.md §9), or the first where
// none are drawn.
//
// A word belongs to an entry's place in its model, so the choice depends on neither threads, nor pieces, nor what
// stands beside the model. Words are drawn for entries at the edge of the choice alone: where scores differ there,
// nothing is.
#pragma once
#include <algorithm>
#include <vector>

#include "toykern/api.h"
#include "toykern/sparse_topology.h"

namespace toykern {

struct Tie {
    uint64_t word;
    int64_t at;
    bool operator<(const Tie& other) const { return word != other.word ? word < other.word : at < other.at; }
};

// The words of entries, in whatever order they are asked for; neighbours cost one draw together.
class TieWords {
  public:
    TieWords(const TieSequence& sequence, const ChoiceKernels& kernels) : sequence_(sequence), kernels_(kernels) {}
    Tie operator()(int64_t at) {
        if (!sequence_.drawn) return {0, at};
        const int64_t place = at - sequence_.origin, block = place / kDrawn;
        if (block != block_) {
            const auto group = (uint32_t)(place >> 32);
            const auto chunk = (uint32_t)((place & 0xFFFFFFFF) / kDrawn * (kDrawn / 32));
            kernels_.draw(sequence_.seed, group, sequence_.step, sequence_.tag, chunk, kDrawn / 32, words_);
            block_ = block;
        }
        return {words_[place % kDrawn] >> 1, at};
    }

  private:
    static constexpr int64_t kDrawn = 64;
    const TieSequence& sequence_;
    const ChoiceKernels& kernels_;
    int64_t block_ = -1;
    uint64_t words_[kDrawn];
};

// The last of the `take` (1 … size) ties that are chosen; the ties are put in another order.
inline Tie last_chosen(std::vector<Tie>& ties, int64_t take) {
    std::nth_element(ties.begin(), ties.begin() + (take - 1), ties.end());
    return ties[(size_t)take - 1];
}

}  // namespace toykern
