// One model's tables of the data stream laid out flat, for a device to read (docs/data_stream.md §2-§5). They are made
// by the CPU's own set-up (cpu/stream/unit_tables.inl), so both backends draw from the same numbers.
//
// Layout     UnitTables, then arrays at the offsets of TablesLayout, which follow from the units alone (not from the
//            probabilities): one stride for all models. Arrays that no unit can need are left out.
#pragma once
#include "common/stream/stream.h"

namespace toykern {

struct UnitTables {
    RareProcess rare;
    uint32_t n_frequent;  // D
    double rare_rate;     // expected arrivals per sample
    uint32_t n_levels;    // levels after which every gate is decided; 0: all frequent units are always active
    uint32_t guide_log2;
};

struct TablesLayout {
    uint32_t n_units, n_features;
    uint32_t max_members;  // of a correlated unit
    bool plain;            // every unit is a single feature
    bool has_exclusive;
    // Offsets in bytes of
    uint32_t start;             // uint64 [n_units + 1]: B_u, the last one 2^64 - 1 (rates that differ)
    uint32_t choice_start;      // uint64 [n_features] by position in unit_member (groups)
    uint32_t rare_unit;         // uint32 [n_units] unit of each rare unit
    uint32_t rare_feature;      // uint32 [n_units] its first feature
    uint32_t frequent_unit;     // uint32 [n_units]
    uint32_t frequent_feature;  // uint32 [n_units] its first feature
    uint32_t threshold;         // uint32 [n_units] T_d; 0 = always active
    uint32_t guide;             // uint32 [2^guide_log2 + 1] first candidate unit by the top bits of phi
    uint32_t choice_equal;      // uint8 [n_units] (groups)
    uint32_t guide_log2;
    uint64_t bytes;  // of one model
};

// Reads the host's description of the units; the probabilities do not matter.
inline TablesLayout tables_layout(const Distribution& d) {
    TablesLayout l = {};
    l.n_units = (uint32_t)d.n_units;
    l.n_features = (uint32_t)d.n_features;
    l.max_members = 1;
    l.plain = true;
    for (int64_t u = 0; u < d.n_units; ++u) {
        if (d.unit_kind[u] == (uint8_t)UnitKind::kSingle) continue;
        l.plain = false;
        const uint32_t members = (uint32_t)(d.unit_start[u + 1] - d.unit_start[u]);
        if (d.unit_kind[u] == (uint8_t)UnitKind::kExclusive)
            l.has_exclusive = true;
        else if (members > l.max_members)
            l.max_members = members;
    }
    l.guide_log2 = 1;
    while ((1u << l.guide_log2) < 2 * l.n_units && l.guide_log2 < 16) ++l.guide_log2;
    uint64_t at = sizeof(UnitTables);
    const auto take = [&](uint64_t count, uint64_t size) {
        const uint64_t here = (at + size - 1) / size * size;
        at = here + count * size;
        return (uint32_t)here;
    };
    const uint64_t units = l.n_units;
    l.start = take(units + 1, 8);
    l.choice_start = take(l.plain ? 0 : l.n_features, 8);
    l.rare_unit = take(units, 4);
    l.rare_feature = take(units, 4);
    l.frequent_unit = take(units, 4);
    l.frequent_feature = take(units, 4);
    l.threshold = take(units, 4);
    l.guide = take(((uint64_t)1 << l.guide_log2) + 1, 4);
    l.choice_equal = take(l.plain ? 0 : units, 1);
    l.bytes = (at + 15) / 16 * 16;
    return l;
}

// A model's tables where they lie.
struct TablesView {
    const char* base;
    const TablesLayout* layout;

    TOYKERN_HD const UnitTables& head() const { return *reinterpret_cast<const UnitTables*>(base); }
    TOYKERN_HD const uint64_t* start() const { return at<uint64_t>(layout->start); }
    TOYKERN_HD const uint64_t* choice_start() const { return at<uint64_t>(layout->choice_start); }
    TOYKERN_HD const uint32_t* rare_unit() const { return at<uint32_t>(layout->rare_unit); }
    TOYKERN_HD const uint32_t* rare_feature() const { return at<uint32_t>(layout->rare_feature); }
    TOYKERN_HD const uint32_t* frequent_unit() const { return at<uint32_t>(layout->frequent_unit); }
    TOYKERN_HD const uint32_t* frequent_feature() const { return at<uint32_t>(layout->frequent_feature); }
    TOYKERN_HD const uint32_t* threshold() const { return at<uint32_t>(layout->threshold); }
    TOYKERN_HD const uint32_t* guide() const { return at<uint32_t>(layout->guide); }
    TOYKERN_HD const uint8_t* choice_equal() const { return at<uint8_t>(layout->choice_equal); }

  private:
    template <class T>
    TOYKERN_HD const T* at(uint32_t offset) const {
        return reinterpret_cast<const T*>(base + offset);
    }
};

// Whether a model's batches are drawn as dense rows: groups, noise, rare and frequent features together.
TOYKERN_SHARED bool drawn_as_rows(const TablesLayout& layout, float noise, const UnitTables& head) {
    return !layout.plain || noise > 0.0f || (head.rare.n_units && head.n_frequent);
}

// Which of the rare units lies at a place of its sample.
TOYKERN_SHARED uint32_t rare_unit_at(const TablesView& t, uint64_t phi) {
    const UnitTables& h = t.head();
    const RareProcess& r = h.rare;
    const int b = 32 + (r.rho > 0 ? r.rho : 0);
    if (r.uniform) {
        const uint64_t high = phi >> 32, low = phi & 0xFFFFFFFFu;
        return (uint32_t)((high * r.n_units + ((low * r.n_units) >> 32)) >> (b - 32));
    }
    uint32_t u = t.guide()[(phi >> (b - (int)h.guide_log2)) & ((1u << h.guide_log2) - 1u)];
    while (t.start()[u + 1] <= phi) ++u;
    return u;
}

// The feature that a choice word picks in the exclusive unit u (§5).
TOYKERN_SHARED uint32_t chosen_member(const TablesView& t, const Distribution& d, uint32_t u, uint32_t word) {
    const int64_t first = d.unit_start[u], members = d.unit_start[u + 1] - first;
    if (t.choice_equal()[u]) return d.unit_member[first + (int64_t)(((uint64_t)word * (uint64_t)members) >> 32)];
    int64_t r = 0;
    while (r + 1 < members && t.choice_start()[first + r + 1] <= word) ++r;
    return d.unit_member[first + r];
}

}  // namespace toykern
