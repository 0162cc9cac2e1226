// The stream's per-model tables laid out flat for a device (common/stream/unit_tables.h): the same numbers that the CPU
// draws from.
#pragma once
#include "common/stream/unit_tables.h"
#include "cpu/stream/tables.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

inline size_t tables_room(const Distribution& data) {
    Workspace w;
    StreamTables tables;
    tables.carve(w, data);
    return w.bytes();
}

template <class T>
void copy_array(char* out, uint32_t offset, const T* from, size_t count) {
    T* to = reinterpret_cast<T*>(out + offset);
    for (size_t i = 0; i < count; ++i) to[i] = from[i];
}

// Models first … last - 1, one after another, into out [last - first][layout.bytes].
inline void flat_tables(const Distribution& data, const TablesLayout& layout, int64_t first, int64_t last, void* memory,
                        char* out) {
    Workspace w(memory);
    StreamTables t;
    t.carve(w, data);
    for (int64_t model = first; model < last; ++model, out += layout.bytes) {
        t.set_up(model);
        for (uint64_t i = 0; i < layout.bytes; ++i) out[i] = 0;
        UnitTables& head = *reinterpret_cast<UnitTables*>(out);
        head.rare = t.rare;
        head.n_frequent = t.n_frequent;
        head.rare_rate = t.rare.n_units ? t.rare_rate : 0.0;
        head.n_levels = (uint32_t)t.n_levels;
        head.guide_log2 = (uint32_t)t.guide_log2;
        copy_array(out, layout.rare_unit, t.rare_unit, t.rare.n_units);
        copy_array(out, layout.rare_feature, t.rare_feature, t.rare.n_units);
        if (t.rare.n_units && !t.rare.uniform) {
            copy_array(out, layout.start, t.start, t.rare.n_units + 1);
            copy_array(out, layout.guide, t.guide, (size_t)1 << t.guide_log2);
        }
        copy_array(out, layout.frequent_unit, t.frequent_unit, t.n_frequent);
        copy_array(out, layout.frequent_feature, t.frequent_feature, t.n_frequent);
        copy_array(out, layout.threshold, t.gate_pattern, t.n_frequent);
        if (!layout.plain) {
            copy_array(out, layout.choice_start, t.choice_start, layout.n_features);
            copy_array(out, layout.choice_equal, t.choice_equal, layout.n_units);
        }
    }
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
