// The layer across cores: teams of one where there are models enough and memory for them, else one team for each model
// in turn.
#include "cpu/threads/scratch.h"
#include "cpu/threads/workers.h"

namespace toykern {
namespace {

// Above this, models are taken one after the other by all threads rather than side by side.
constexpr size_t kSideBySideBytes = (size_t)192 << 20;
constexpr int64_t kSliceOfEntries = 1 << 16;  // rows and entries below which nobody is woken to check them
constexpr int64_t kTeamWork = 1 << 18;        // multiply-adds of a model below which a team would mostly wait

int64_t most_entries(const LayerParams& p) {
    if (p.x) return 0;
    int64_t most = 0;
    for (int64_t i = 0; i < (p.row_stride ? p.n_models : 1); ++i)
        most = std::max(most, p.row_start[(i + 1) * p.batch] - p.row_start[i * p.batch]);
    return most;
}

}  // namespace

// Checked in slices side by side; where something is wrong, once more in order, for the first row that it is wrong in.
EntryFault check_entries(const int64_t* row_start, int64_t rows, const int32_t* feature, int64_t entries,
                         int64_t n_features, int threads) {
    if (row_start[0] != 0) return {"start", 0};
    if (row_start[rows] != entries) return {"end", rows};
    const auto hold = level().entries_hold;
    std::atomic<bool> good{true};
    if (threads == 1 || rows + entries < kSliceOfEntries) {  // in a forked child too, where data loaders make batches
        good = hold(row_start, 0, rows, feature, entries, n_features);
    } else {
        guard_fork(threads);
        parallel(threads, [&] {
            const int64_t size = team_size(), rank = thread_rank();
            const int64_t first = rows * rank / size, last = rows * (rank + 1) / size;
            if (!hold(row_start, first, last, feature, entries, n_features)) good = false;
        });
    }
    if (good) return {"", -1};
    for (int64_t r = 0; r < rows; ++r)
        if (row_start[r + 1] < row_start[r] || row_start[r + 1] > entries) return {"order of rows", r};
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t e = row_start[r]; e < row_start[r + 1]; ++e) {
            if (feature[e] < 0 || feature[e] >= n_features) return {"range", r};
            if (e > row_start[r] && feature[e] <= feature[e - 1]) return {"order", r};
        }
    return {"", -1};
}

const char* layer_regime(const LayerParams& p) { return level().pick_layer_regime(p).name; }

void run_layer(const LayerParams& p) {
    const LayerRegime loop = level().pick_layer_regime(p);
    const int64_t entries = most_entries(p);
    const size_t shared_bytes = loop.shared_bytes(p, entries), room_bytes = loop.room_bytes(p);
    guard_fork(p.threads);
    const int64_t groups = (p.n_models + loop.group - 1) / loop.group;
    const int threads = workers_for(groups, p.threads);
    const bool too_large = (size_t)threads * (shared_bytes + room_bytes) > kSideBySideBytes;
    const double work = 3.0 * (double)p.batch * (double)p.n_features * (double)p.n_hidden;
    if (p.threads > 1 && work >= (double)kTeamWork && (p.n_models < p.threads || too_large)) {
        Scratch shared(Held::kLayerShared, 1, shared_bytes, "the layer's shared scratch memory");
        Scratch rooms(Held::kLayerRooms, (size_t)p.threads, room_bytes, "the layer's scratch memory");
        Meeting meeting;
        parallel(p.threads, [&] {
            [[maybe_unused]] FlushDenormals flush;
            Team team;
            team.rank = thread_rank();
            team.size = team_size();
            team.barrier = Meeting::wait;
            team.meeting = &meeting;
            CountingQueue queue{0, groups};
            loop.run(p, entries, shared.piece(0), rooms.piece((size_t)team.rank), team,
                     Queue{CountingQueue::take, &queue});
        });
        return;
    }
    Scratch shared(Held::kLayerShared, (size_t)threads, shared_bytes,
                   "the layer's scratch memory of the models in hand");
    Scratch rooms(Held::kLayerRooms, (size_t)threads, room_bytes, "the layer's scratch memory");
    over_models(groups, threads, [&](size_t t, const Queue& queue) {
        loop.run(p, entries, shared.piece(t), rooms.piece(t), Team(), queue);
    });
}

}  // namespace toykern
