// How often the warps of a kernel execute each of its basic blocks: included by what tools/count_instructions.py makes of a kernel's PTX.
//
// The emulator runs every thread by itself, so a warp's executions have to be told from those of its lanes. All lanes meet at shuffles,
// votes and barriers; between two of these a warp executes a block as often as the lane that executes it most, as a device does whose lanes
// come together again after every branch and loop.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>
#include <vector>

#include "ptx_thread.h"

namespace {
namespace counting {

struct Lane {
    std::vector<uint32_t> executed;  // of each block since the lanes met
    std::vector<uint32_t> touched;
    size_t meeting = 0;
};
struct Warp {
    std::vector<std::unordered_map<uint32_t, uint32_t>> most;  // [meetings]: of each block
    uint32_t ended = 0;
};
struct Total {
    uint64_t warp = 0, lanes = 0;
};

struct Counts {
    Lane lanes[1024];
    Warp warps[32];
    std::vector<Total> totals;

    ~Counts() {
        const char* path = std::getenv("TOYKERN_COUNTS");
        FILE* file = path ? std::fopen(path, "a") : nullptr;
        if (!file) return;
        for (size_t block = 0; block < totals.size(); ++block)
            if (totals[block].warp)
                std::fprintf(file, "%s\t%zu\t%llu\t%llu\n", TOYKERN_COUNTED, block,
                             (unsigned long long)totals[block].warp, (unsigned long long)totals[block].lanes);
        std::fclose(file);
    }
};
Counts counts;

inline void hit(ptx::Thread& t, uint32_t block) {
    Lane& lane = counts.lanes[t.index];
    if (lane.executed.size() <= block) lane.executed.resize(block + 1);
    if (lane.executed[block]++ == 0) lane.touched.push_back(block);
}

inline void meet(ptx::Thread& t) {
    Lane& lane = counts.lanes[t.index];
    Warp& warp = counts.warps[t.index / 32];
    if (warp.most.size() <= lane.meeting) warp.most.resize(lane.meeting + 1);
    auto& most = warp.most[lane.meeting++];
    for (const uint32_t block : lane.touched) {
        uint32_t& known = most[block];
        known = std::max(known, lane.executed[block]);
        if (counts.totals.size() <= block) counts.totals.resize(block + 1);
        counts.totals[block].lanes += lane.executed[block];
        lane.executed[block] = 0;
    }
    lane.touched.clear();
}

// In the outermost scope of a kernel: what happens where a thread ends.
struct Ends {
    ptx::Thread& t;
    ~Ends() {
        meet(t);
        counts.lanes[t.index].meeting = 0;
        Warp& warp = counts.warps[t.index / 32];
        const uint32_t threads = (uint32_t)(t.ntid_x() * t.ntid_y() * t.ntid_z()), first = t.index / 32 * 32;
        if (++warp.ended < std::min(32u, threads - first)) return;
        for (const auto& most : warp.most)
            for (const auto& [block, times] : most) counts.totals[block].warp += times;
        warp.most.clear();
        warp.ended = 0;
    }
};

}  // namespace counting
}  // namespace
