// Which connections a sparse model has, as lists, and its weights by connection: what the connections' form of the step
// (connections_passes.inl) and the sparse products of the Gram form (gram_products.inl) go by.
//
// Layout     hidden units in panels of up to kPanelUnits, so that the codes of a panel stay in L1. Connections stand by panel,
//            in it by feature, there by hidden unit: start [panels][n + 1], hidden [count]. For the Gram form there is one
//            panel, and the list by hidden unit: unit_start [m + 1], feature [count]
// Owner      rank 0 of the team makes the lists at the beginning of a stretch: within one no connection comes or goes
// Zeros      a connection is what the caller's mark says; its weight may be 0
// Limits     tied networks
#pragma once
#include "cpu/simd/simd.h"
#include "cpu/threads/workspace.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kPanelUnits = 64;

inline int64_t count_connections(const uint8_t* connected, int64_t length) {
    int64_t count = 0;
    for (int64_t i = 0; i < length; ++i) count += connected[i];
    return count;
}

struct Connections {
    int64_t n, m, count, panels;
    uint32_t* start;       // [panels][n + 1]
    uint32_t* hidden;      // [count] counted from the panel's first unit
    uint32_t* unit_start;  // [m + 1]
    uint32_t* feature;     // [count]

    void carve(Workspace& w, int64_t features, int64_t units, bool there) {
        n = features, m = units, count = 0;
        const size_t most = there ? (size_t)(n * m) : 0, most_panels = (size_t)((m + kPanelUnits - 1) / kPanelUnits);
        start = w.take<uint32_t>(there ? most_panels * (size_t)(n + 1) : 0);
        hidden = w.take<uint32_t>(most);
        unit_start = w.take<uint32_t>(there ? (size_t)m + 1 : 0);
        feature = w.take<uint32_t>(most);
    }
    int64_t first_unit(int64_t panel) const { return panel * m / panels; }

    // Every rank has these numbers for itself: `connected` [m][n] or null, where all are there.
    void count_all(const uint8_t* connected) { count = connected ? count_connections(connected, n * m) : n * m; }
    void divide(bool whole) { panels = whole ? 1 : (m + kPanelUnits - 1) / kPanelUnits; }

    // The lists, by one rank.
    void list_features(const uint8_t* connected) {
        uint32_t at = 0;
        for (int64_t panel = 0; panel < panels; ++panel) {
            uint32_t* const to = start + panel * (n + 1);
            const int64_t first = first_unit(panel), last = first_unit(panel + 1);
            for (int64_t i = 0; i < n; ++i) {
                to[i] = at;
                for (int64_t k = first; k < last; ++k) {
                    if (connected[k * n + i]) hidden[at++] = (uint32_t)(k - first);
                }
            }
            to[n] = at;
        }
    }
    void list_units(const uint8_t* connected) {
        uint32_t at = 0;
        for (int64_t k = 0; k < m; ++k) {
            unit_start[k] = at;
            for (int64_t i = 0; i < n; ++i) {
                if (connected[k * n + i]) feature[at++] = (uint32_t)i;
            }
        }
        unit_start[m] = at;
    }

    // Calls visit(connection, unit, feature) in the order of the list.
    template <class Visit>
    void each(const Visit& visit) const {
        for (int64_t panel = 0; panel < panels; ++panel) {
            const uint32_t* const from = start + panel * (n + 1);
            const int64_t unit = first_unit(panel);
            for (int64_t i = 0; i < n; ++i)
                for (uint32_t c = from[i]; c < from[i + 1]; ++c) visit((int64_t)c, unit + hidden[c], i);
        }
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
