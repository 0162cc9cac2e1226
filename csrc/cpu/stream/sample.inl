// Batches of the data stream laid out for a person (or another trainer) to look at: what training sees, bit for bit.
//
//   sample_rows      dense [batch][n], with and without noise
//   sample_entries   the active entries in the order (sample, feature)
//
// Owner: one worker a model. Cost of rows: the dense output; of entries without frequent units or noise: the entries.
#pragma once
#include "cpu/stream/stream.inl"
#include "toykern/api.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kRowsToAsk = 512;  // drawn between two looks whether to stop

struct SampleRoom {
    StreamTables tables;
    RowCursor rows;
    RareCursor rare;
    EntryList list;
    float *clean, *noisy;

    void carve(Workspace& w, const Distribution& data) {
        tables.carve(w, data);
        rows.carve(w, tables);
        rare.carve(w, tables);
        list.carve(w, tables, 64 * (size_t)tables.max_members);
        clean = w.take<float>(32 * (size_t)data.n_features);
        noisy = w.take<float>(32 * (size_t)data.n_features);
    }
};

inline size_t sample_bytes(const Distribution& data) {
    Workspace w;
    SampleRoom room;
    room.carve(w, data);
    return w.bytes();
}

inline void sample_rows(const SampleParams& p, int64_t model, void* memory) {
    Workspace w(memory);
    SampleRoom room;
    room.carve(w, p.data);
    room.tables.set_up(model);
    const size_t n = (size_t)p.data.n_features;
    const StreamKey key = stream_key(p.seed[model * p.seed_stride], p.step, p.purpose);
    room.rows.begin(key, 0, p.batch_size);
    for (int64_t s = 0; !room.rows.done(); s += 32) {
        if (s % kRowsToAsk == 0 && p.stop.now()) return;
        const int count = room.rows.next32(room.clean, n);
        if (p.noisy) room.rows.add_noise(room.clean, room.noisy, n, count);
        const size_t at = ((size_t)model * (size_t)p.batch_size + (size_t)s) * n;
        for (size_t i = 0; i < (size_t)count * n; ++i) {
            if (p.clean) p.clean[at + i] = room.clean[i];
            if (p.noisy) p.noisy[at + i] = room.noisy[i];
        }
    }
}

// Sorted by sample; by feature within one only where no groups are (the caller sorts the rest).
inline void sample_entries(const SampleParams& p, int64_t model, void* memory, const EntrySink& sink) {
    Workspace w(memory);
    SampleRoom room;
    room.carve(w, p.data);
    room.tables.set_up(model);
    const StreamKey key = stream_key(p.seed[model * p.seed_stride], p.step, p.purpose);
    const size_t n = (size_t)p.data.n_features;
    if (room.tables.n_frequent || p.data.noise > 0.0f) {
        room.rows.begin(key, 0, p.batch_size);
        for (int64_t s = 0; !room.rows.done(); s += 32) {
            if (s % kRowsToAsk == 0 && p.stop.now()) return;
            const int count = room.rows.next32(room.clean, n);
            if (p.data.noise > 0.0f) room.rows.add_noise(room.clean, room.noisy, n, count);
            const float* rows = p.data.noise > 0.0f ? room.noisy : room.clean;
            for (int r = 0; r < count; ++r)
                for (size_t j = 0; j < n; ++j)
                    if (rows[r * n + j] != 0.0f)
                        sink.put(sink.context, (uint32_t)(s + r), (uint32_t)j, rows[r * n + j]);
        }
        return;
    }
    room.rare.begin(key, 0, p.batch_size);
    room.list.count = 0;
    while (!room.rare.done()) {
        if (p.stop.now()) return;
        room.rare.refill(room.list);
        for (int64_t i = 0; i < room.list.count; ++i)
            sink.put(sink.context, room.list.sample[i], room.list.feature[i], room.list.value[i]);
        room.list.count = 0;
    }
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
