// The per-model tables of the data stream on the CPU (docs/data_stream.md §2-§5), set up once per model and stretch.
//
// Work: a few operations a feature. Memory: 100 bytes a feature beside the gate pattern (64 bytes a frequent unit).
#pragma once
#include "common/stream/stream.h"
#include "common/stream/tables.h"
#include "cpu/threads/workspace.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// Features that depend on each other reach the loops as entries where at most one in so many is active: exactly k of
// them, and others on average, whose blocks of samples may be full all the same and need room for it.
constexpr int64_t kListedSubset = 4, kListedJoint = 8, kMostListedFeatures = 4096;

struct StreamTables {
    const Distribution* data;
    bool plain;            // every unit is a single feature
    uint32_t max_members;  // of a correlated unit
    size_t refill_room;    // entries that one refill of a list adds at most
    bool has_exclusive;

    RareProcess rare;
    double rare_rate;        // expected arrivals per sample
    double rare_entries;     // expected active features of rare units per sample
    uint32_t* rare_unit;     // [N] unit of each rare unit
    uint32_t* rare_feature;  // [N] its first feature
    bool rare_in_order;      // rare_feature[i] == i
    double* rate;            // [N]
    uint64_t* start;         // [N + 1] B_u when the rates differ
    uint32_t* guide;         // [2^guide_log2 + 1] first candidate unit by the top bits of φ
    int guide_log2;

    uint32_t n_gates;  // units whose gates are drawn by the block (§4): the frequent ones, or all of a hierarchy
    uint32_t n_frequent;
    uint32_t* frequent_unit;     // [D]
    uint32_t* frequent_feature;  // [D] its first feature
    uint32_t* gate_pattern;      // [16 D] thresholds of 16 consecutive blocks' gate words; 0 = always active
    bool all_always;             // no gate is drawn at all
    int n_levels;                // levels after which every gate is decided

    uint64_t* choice_start;  // [n] by position in unit_member; may be 2^32 where the rest has no share
    uint8_t* choice_equal;   // [n_units]

    bool listed_joint;             // features that depend on each other come as entries, not as rows
    const float* joint_threshold;  // [n] of a copula
    uint8_t* never;                // [n] of a hierarchy

    void carve(Workspace& w, const Distribution& d) {
        const size_t units = (size_t)d.n_units, n = (size_t)d.n_features;
        data = &d;
        rare_unit = w.take<uint32_t>(units);
        rare_feature = w.take<uint32_t>(units);
        rate = w.take<double>(units);
        start = w.take<uint64_t>(units + 1);
        guide_log2 = 1;
        while ((1u << guide_log2) < 2 * units && guide_log2 < 16) ++guide_log2;
        guide = w.take<uint32_t>(((size_t)1 << guide_log2) + 1);
        frequent_unit = w.take<uint32_t>(units);
        frequent_feature = w.take<uint32_t>(units);
        gate_pattern = w.take<uint32_t>(16 * units);
        choice_start = w.take<uint64_t>(n);
        choice_equal = w.take<uint8_t>(units);
        never = w.take<uint8_t>(d.joint == (int32_t)Joint::kHierarchy ? units : 0);
        plain = d.joint == (int32_t)Joint::kUnits;
        has_exclusive = false;
        max_members = 1;
        for (size_t u = 0; u < units; ++u) {
            if (d.unit_kind[u] == (uint8_t)UnitKind::kSingle) continue;
            plain = false;
            if (d.unit_kind[u] == (uint8_t)UnitKind::kExclusive) has_exclusive = true;
            const uint32_t members = (uint32_t)(d.unit_start[u + 1] - d.unit_start[u]);
            if (d.unit_kind[u] == (uint8_t)UnitKind::kCorrelated && members > max_members) max_members = members;
        }
        refill_room = 128 * (size_t)max_members;
        if (may_list()) {
            const int64_t most = 32 * (d.joint == (int32_t)Joint::kSubset ? d.n_active : d.n_features);
            if ((size_t)most > refill_room) refill_room = (size_t)most;
        }
    }

    void set_up(int64_t model) {
        const Distribution& d = *data;
        const double* p = d.probability + model * d.probability_stride;
        if (d.joint != (int32_t)Joint::kUnits) {
            set_up_joint(model, p);
            return;
        }
        listed_joint = false;
        uint32_t n_rare = 0;
        n_frequent = 0;
        double total = 0.0, last_q = -1.0, last_rate = 0.0;
        bool uniform = true;
        rare_in_order = true;
        all_always = true;
        n_levels = 0;
        rare_entries = 0.0;
        for (int64_t u = 0; u < d.n_units; ++u) {
            const int64_t first = d.unit_start[u], members = d.unit_start[u + 1] - first;
            double q = p[d.unit_member[first]];
            if (d.unit_kind[u] == (uint8_t)UnitKind::kExclusive) q = set_up_choice(p, u, first, members);
            if (q <= 0.0) continue;
            if (q <= kRareLimit) {
                if (q != last_q) {
                    last_q = q;
                    last_rate = arrival_rate(q);
                }
                rate[n_rare] = last_rate;
                uniform = uniform && last_rate == rate[0];
                total += last_rate;
                rare_entries += d.unit_kind[u] == (uint8_t)UnitKind::kCorrelated ? q * (double)members : q;
                rare_unit[n_rare] = (uint32_t)u;
                rare_feature[n_rare] = d.unit_member[first];
                rare_in_order = rare_in_order && rare_feature[n_rare] == n_rare;
                ++n_rare;
            } else {
                const double threshold = q * 4294967296.0 + 0.5;
                const uint32_t t = threshold >= 4294967296.0 ? 0u : (uint32_t)threshold;
                if (t) {
                    all_always = false;
                    const int level = 32 - __builtin_ctz(t);
                    n_levels = level > n_levels ? level : n_levels;
                }
                frequent_unit[n_frequent] = (uint32_t)u;
                frequent_feature[n_frequent] = d.unit_member[first];
                gate_pattern[n_frequent] = t;
                ++n_frequent;
            }
        }
        for (uint32_t i = n_frequent; i < 16 * n_frequent; ++i) gate_pattern[i] = gate_pattern[i - n_frequent];
        n_gates = n_frequent;
        rare = rare_process(n_rare, total, uniform);
        rare_rate = total;
        if (rare.n_units && !uniform) set_up_places(total);
    }

  private:
    // Whether there is room for the entries of features that depend on each other.
    bool may_list() const {
        const Distribution& d = *data;
        switch ((Joint)d.joint) {
            case Joint::kUnits: return false;
            case Joint::kSubset: return d.n_active <= d.n_features / kListedSubset;
            default: return d.n_features <= kMostListedFeatures;
        }
    }

    // How many features that depend on each other are active on average; of `roots`, how many open a tree.
    double expected_active(const double* p, double* roots) {
        const Distribution& d = *data;
        *roots = (double)d.n_active;
        if (d.joint == (int32_t)Joint::kSubset) return *roots;
        const bool tree = d.joint == (int32_t)Joint::kHierarchy;
        double sum = 0.0;
        *roots = 0.0;
        for (int64_t i = 0; i < d.n_features; ++i) {
            const int64_t j = tree ? d.order[i] : i, parent = tree ? d.parent[j] : d.n_features;
            rate[j] = parent < d.n_features ? p[j] * rate[parent] : p[j];
            sum += rate[j];
            if (parent == d.n_features) *roots += rate[j];
        }
        return sum;
    }

    // Features that depend on each other are drawn by blocks of samples (joint.inl). To all else they look like frequent
    // units, of which the loops read rows, and where they are few, like rare ones, of which the loops read entries. Of
    // the thresholds a hierarchy alone has need.
    void set_up_joint(int64_t model, const double* p) {
        const Distribution& d = *data;
        rare = rare_process(0, 0.0, false);
        rare_entries = expected_active(p, &rare_rate);
        listed_joint = may_list() && (d.joint == (int32_t)Joint::kSubset ||
                                      rare_entries * (double)kListedJoint <= (double)d.n_features);
        rare_in_order = false;
        n_frequent = listed_joint ? 0 : (uint32_t)d.n_units;
        n_gates = (uint32_t)d.n_units;
        all_always = false;
        n_levels = 0;
        joint_threshold = d.threshold + (d.threshold ? model * d.probability_stride : 0);
        if (d.joint != (int32_t)Joint::kHierarchy) return;
        for (uint32_t j = 0; j < n_gates; ++j) {
            const double threshold = p[j] * 4294967296.0 + 0.5;
            uint32_t t = threshold >= 4294967296.0 ? 0u : (uint32_t)threshold;
            never[j] = threshold < 1.0;
            if (never[j]) t = 0x80000000u;  // 0 is always; this is decided soonest
            if (t) {
                const int level = 32 - __builtin_ctz(t);
                n_levels = level > n_levels ? level : n_levels;
            }
            for (uint32_t i = j; i < 16 * n_gates; i += n_gates) gate_pattern[i] = t;
        }
    }

    // Starts of the members' shares of an exclusive unit; returns its gate probability.
    double set_up_choice(const double* p, int64_t u, int64_t first, int64_t members) {
        const Distribution& d = *data;
        const double p0 = p[d.unit_member[first]];
        double sum = 0.0;
        bool equal = true;
        for (int64_t r = 0; r < members; ++r) {
            const double pr = p[d.unit_member[first + r]];
            equal = equal && pr == p0;
            sum += pr;
        }
        choice_equal[u] = equal;
        if (!equal) {
            double before = 0.0;
            for (int64_t r = 0; r < members; ++r) {
                choice_start[first + r] = (uint64_t)(before / sum * 4294967296.0);
                before += p[d.unit_member[first + r]];
            }
        }
        return sum > 1.0 ? 1.0 : sum;
    }

    // Places of the rare units within a sample when their rates differ, and a guide into them.
    void set_up_places(double total) {
        const int b = 32 + (rare.rho > 0 ? rare.rho : 0);
        const double scale = (double)((uint64_t)1 << b);
        double before = 0.0;
        for (uint32_t i = 0; i < rare.n_units; ++i) {
            start[i] = (uint64_t)(before / total * scale);
            before += rate[i];
        }
        start[rare.n_units] = ~(uint64_t)0;
        uint32_t unit = 0;
        for (uint32_t g = 0; g < (1u << guide_log2); ++g) {
            const uint64_t phi = (uint64_t)g << (b - guide_log2);
            while (start[unit + 1] <= phi) ++unit;
            guide[g] = unit;
        }
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
