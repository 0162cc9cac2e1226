// The batch of a step for train_large.cuh: bit for bit the stream's, drawn into the layout of cuda/large/task.cuh.
//
//   StartLarge    once a call: whether a model is sparse or dense
//   ClearLarge    the step's number goes up; bits (sparse) or rows (dense) become zero
//   DrawLarge     slices of rare and frequent units, a warp to a slice
//   NoiseLarge    dense rows plus noise, four entries to a thread
//   RowsLarge     the samples that are not all zero, in order, numbered without gaps
//
// Order      no float sums; bits are set by integer atomics, whose order does not matter
// Roof       sparse: n (P / 8 + …) bytes of bits and 4 bytes an entry; dense: the rows written twice, with noise four
//            times
// Limits     a slice is drawn by one warp: one model of thousands of frequent units waits for its longest slice
#pragma once
#include "cuda/large/task.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

struct StartLarge {
    static constexpr const char* kName = "start_large";
    static constexpr int kThreads = 32;
    static constexpr int kResident = 8;
    static constexpr int64_t kShared = 0;
    static int64_t blocks(const LargeTask&) { return 1; }  // of each model

    // Members of rare groups are counted as if all were of the largest.
    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char*) {
        if (block == 0) {
            b.each([&](int thread) {
                if (thread == 0) t.step() = t.first_step - 1;
            });
        }
        const TablesView tables = t.view(block);
        const UnitTables head = tables.head();
        b.each_warp([&](const Warp& w) {
            Lane<double> expected;
            w.each([&](int lane) {
                expected[lane] = 0.0;
                for (uint32_t d = (uint32_t)lane; d < head.n_frequent; d += kWarpLanes) {
                    const uint32_t threshold = tables.threshold()[d], u = tables.frequent_unit()[d];
                    const double q = threshold ? threshold * 0x1p-32 : 1.0;
                    const bool one = t.p.data.unit_kind[u] != (uint8_t)UnitKind::kCorrelated;
                    expected[lane] += one ? q : q * (double)(t.p.data.unit_start[u + 1] - t.p.data.unit_start[u]);
                }
            });
            expected = sum_of_lanes(w, expected);
            w.each([&](int lane) {
                const double sum =
                    expected[lane] + (head.rare.n_units ? head.rare_rate * (double)t.layout.max_members : 0.0);
                if (lane == 0) t.state(block) = {t.noisy() || sum * kDenseShare > (double)t.size.n, 0, 0.0, 0};
            });
        });
    }
};

struct ClearLarge {
    static constexpr const char* kName = "clear_large";
    static constexpr int kThreads = 256;
    static constexpr int kResident = 4;
    static constexpr int64_t kShared = 0;
    TOYKERN_HD static int64_t blocks(const LargeTask& t) {
        const int64_t blocks = (t.samples() * t.size.np / 4 + 8 * kThreads - 1) / (8 * kThreads);
        return blocks < 1024 ? blocks : 1024;
    }

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char*) {
        if (block == 0 && t.starts) {
            b.each([&](int thread) {
                if (thread == 0) ++t.step();  // no other block of this launch reads it
            });
        }
        const int64_t parts = blocks(t);
        const BlockOf at(block, parts);
        if (t.skips(at.model)) return;
        const LargeSizes& s = t.size;
        const auto clear = [&](uint64_t offset, int64_t floats) {
            float* to = t.at(at.model, offset);
            b.each([&](int thread) {
                for (int64_t i = at.part * kThreads + thread; i < (floats + 3) / 4; i += parts * kThreads)
                    store4(to + 4 * i, {{0.0f, 0.0f, 0.0f, 0.0f}});
            });
        };
        // Arrays start at multiples of 256 bytes, so what rounding up clears beyond their end is nobody's.
        if (t.state(at.model).dense) {
            clear(s.x, t.samples() * s.np);
            if (t.noisy()) clear(s.d, t.samples() * s.np);
        } else {
            clear(s.active, t.samples() * s.nw);
            clear(s.by_feature, s.n * s.pw);
            clear(s.used, tiles(t.samples(), 32));
        }
    }
};

struct DrawLarge {
    static constexpr const char* kName = "draw_large";
    static constexpr int kThreads = 128;
    static constexpr int kResident = 4;
    static constexpr int64_t kShared = 0;
    static constexpr int kWarps = kThreads / kWarpLanes;
    // About as many warps as there can be slices: one has some hundreds of active entries.
    TOYKERN_HD static int64_t blocks(const LargeTask& t) {
        const int64_t blocks = t.samples() * t.size.n / (4096 * kWarps) + 1;
        return blocks < 256 ? blocks : 256;
    }

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char*) {
        const int64_t warps = blocks(t) * kWarps;
        const BlockOf at(block, blocks(t));
        if (t.skips(at.model)) return;
        const LargeSizes& s = t.size;
        const TablesView tables = t.view(at.model);
        const StepKey key = t.key(at.model);
        const bool dense = t.state(at.model).dense;
        float* x = t.at(at.model, dense && t.noisy() ? s.d : s.x);
        uint32_t* active = t.at<uint32_t>(at.model, s.active);
        uint32_t* by_feature = t.at<uint32_t>(at.model, s.by_feature);
        uint32_t* used = t.at<uint32_t>(at.model, s.used);
        // An entry of the slice that begins at sample `start`; the slice may begin before the piece does.
        const auto put = [&](int64_t start, uint32_t sample, uint32_t j, float value) {
            const int64_t row = start + sample - t.first;
            if (row < 0) return;
            x[row * s.np + j] = value;
            if (dense) return;
            set_bits(used + (row >> 5), 1u << (row & 31));
            set_bits(active + row * s.nw + (j >> 5), 1u << (j & 31u));
            set_bits(by_feature + j * s.pw + (row >> 5), 1u << (row & 31));
        };
        b.each_warp([&](const Warp& w) {
            const int64_t task = at.part * kWarps + w.number;
            const SliceRange rare = rare_slices(tables, t.first, t.last);
            TOYKERN_NO_UNROLL
            for (int64_t slice = rare.begin + task; slice < rare.end; slice += warps)
                rare_entries(
                    w, t.p.data, tables, key, (uint32_t)slice, rare.samples(slice, t.last),
                    [&](uint32_t sample, uint32_t j, float value) { put(rare.start(slice), sample, j, value); });
            // From the other end: warps that had the fewest rare slices.
            const SliceRange frequent = frequent_slices(tables, t.first, t.last);
            TOYKERN_NO_UNROLL
            for (int64_t slice = frequent.begin + (warps - 1 - task); slice < frequent.end; slice += warps)
                frequent_entries(
                    w, t.p.data, tables, key, (uint32_t)slice, frequent.samples(slice, t.last),
                    [&](uint32_t sample, uint32_t j, float value) { put(frequent.start(slice), sample, j, value); });
        });
    }
};

struct NoiseLarge {
    static constexpr const char* kName = "noise_large";
    static constexpr int kThreads = 256;
    static constexpr int kResident = 4;
    static constexpr int64_t kShared = 0;
    // Entries are numbered by block of sixteen samples, feature, sample (docs/data_stream.md §7); a thread has four
    // with its sample's lane.
    TOYKERN_HD static int64_t first_group(const LargeTask& t) { return t.first / 16 * t.size.n / 4; }
    TOYKERN_HD static int64_t end_group(const LargeTask& t) { return ((t.last + 15) / 16 * t.size.n + 3) / 4; }
    TOYKERN_HD static int64_t blocks(const LargeTask& t) {
        return (16 * (end_group(t) - first_group(t)) + kThreads - 1) / kThreads;
    }

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char*) {
        const BlockOf at(block, blocks(t));
        if (t.skips(at.model)) return;
        const StepKey key = t.key(at.model);
        const float* clean = t.at(at.model, t.size.d);
        float* noisy = t.at(at.model, t.size.x);
        const int64_t n = t.size.n;
        b.each([&](int thread) {
            // Neighbours have the same sample, so that they write side by side.
            const int64_t groups = end_group(t) - first_group(t), i = at.part * kThreads + thread;
            if (i >= 16 * groups) return;
            const int64_t group = first_group(t) + i % groups, lane = i / groups;
            const uint64_t counter = 16 * (uint64_t)group + (uint64_t)lane;
            const PhiloxBlock words = philox(key.key, (uint32_t)counter, (uint32_t)(counter >> 32), key.step,
                                             counter_tag(Kind::kNoise, key.purpose, 0));
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) {
                const int64_t entry = 4 * group + q, sample = 16 * (entry / n) + lane, j = entry % n;
                if (sample < t.first || sample >= t.last) continue;
                const int64_t to = (sample - t.first) * t.size.np + j;
                noisy[to] = clean[to] + t.p.data.noise * signed_normal(words.word[q]);
            }
        });
    }
};

struct RowsLarge {
    static constexpr const char* kName = "rows_large";
    static constexpr int kThreads = 256;
    static constexpr int kResident = 4;
    static constexpr int64_t kShared = kThreads / kWarpLanes * 4;
    static int64_t blocks(const LargeTask&) { return 1; }

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t model, char* shared) {
        if (t.skips(model)) return;
        LargeState& state = t.state(model);
        const int64_t samples = t.samples();
        if (state.dense) {
            b.each([&](int thread) {
                if (thread == 0) state.rows = (int32_t)samples;
            });
            return;
        }
        const uint32_t* used = t.at<uint32_t>(model, t.size.used);
        uint32_t* sample_of_row = t.at<uint32_t>(model, t.size.sample_of_row);
        uint32_t* row_of_sample = t.at<uint32_t>(model, t.size.row_of_sample);
        int32_t* of_warp = reinterpret_cast<int32_t*>(shared);
        int32_t rows = 0;
        for (int64_t base = 0; base < samples; base += kThreads) {
            PerThread<uint32_t> found;
            b.each([&](int thread) {
                const int64_t first = base + thread / kWarpLanes * kWarpLanes;
                found[thread] = first < samples ? used[first / 32] : 0u;  // of the warp's samples
                if (thread % kWarpLanes == 0) of_warp[thread / kWarpLanes] = count_bits(found[thread]);
            });
            b.sync();
            b.each([&](int thread) {
                if (!(found[thread] >> (thread % kWarpLanes) & 1u)) return;
                int32_t row = rows + count_bits(found[thread] & ((1u << thread % kWarpLanes) - 1u));
                for (int i = 0; i < thread / kWarpLanes; ++i) row += of_warp[i];
                sample_of_row[row] = (uint32_t)(base + thread);
                row_of_sample[base + thread] = (uint32_t)row;
            });
            for (int i = 0; i < b.warps(); ++i) rows += of_warp[i];
            b.sync();  // all have read the warps' counts before the next 256 samples' come
        }
        b.each([&](int thread) {
            if (thread == 0) state.rows = rows;
        });
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
