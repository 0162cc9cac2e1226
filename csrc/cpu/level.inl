// One instruction-set level's table. Included once per level by level_<name>.cpp.
#pragma once
#include "cpu/layer/level.inl"
#include "cpu/measure.inl"
#include "cpu/resident/resident.inl"
#include "cpu/sparse/choice.inl"
#include "cpu/sparse/level.inl"
#include "cpu/stream/sample.inl"
#include "cpu/stream/unit_tables.inl"

#define TOYKERN_TEXT2(x) #x
#define TOYKERN_TEXT(x) TOYKERN_TEXT2(x)
#define TOYKERN_JOIN2(a, b) a##b
#define TOYKERN_JOIN(a, b) TOYKERN_JOIN2(a, b)

namespace toykern {

const LevelTable* TOYKERN_JOIN(level_, TOYKERN_LEVEL)() {
    namespace here = TOYKERN_LEVEL;
    static const LevelTable table = {
        TOYKERN_TEXT(TOYKERN_LEVEL),
        here::kLanes,
        here::pick_regime,
        here::sample_bytes,
        here::sample_rows,
        here::sample_entries,
        here::tables_room,
        here::flat_tables,
        here::spin_fma,
        here::spin_words,
        here::sparse_kernels,
        here::choice_kernels,
        here::pick_layer_regime,
        here::entries_hold,
    };
    return &table;
}

}  // namespace toykern
