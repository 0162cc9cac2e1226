// Which connections a sparse model has, as lists, and its weights by connection: what the connections' form of the step
// (connections_passes.inl) and the sparse products of the Gram form (gram_products.inl) go by.
//
// Layout     two lists, each in panels whose rows of a block of samples stay in L1. By feature: panels of hidden units, in a
//            panel by feature, there by unit: start [panels][n + 1], hidden [count]; a connection's number is its place in
//            this list. By unit: panels of features, in a panel by unit, there by feature: unit_start [feature_panels][m + 1],
//            feature and number [count]. For the Gram form there is one panel of each
// Owner      rank 0 of the team makes the lists at the beginning of a stretch: within one no connection comes or goes
// Zeros      a connection is what the caller's mark says; its weight may be 0
// Limits     tied networks
#pragma once
#include "cpu/simd/simd.h"
#include "cpu/threads/workspace.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kPanelUnits = 64;  // at most, and of features

struct Connections {
    int64_t n, m, count, panels, feature_panels;
    uint32_t* start;
    uint32_t* hidden;  // counted from the panel's first unit
    uint32_t* unit_start;
    uint32_t* feature;   // counted from the panel's first feature
    uint32_t* number;    // of the connection in the list by feature
    float* unit_weight;  // [count] the weights in the order by unit

    void carve(Workspace& w, int64_t features, int64_t units, bool there) {
        n = features, m = units, count = 0;
        divide(false);
        const size_t most = there ? (size_t)(n * m) : 0;
        start = w.take<uint32_t>(there ? (size_t)(panels * (n + 1)) : 0);
        hidden = w.take<uint32_t>(most);
        unit_start = w.take<uint32_t>(there ? (size_t)(feature_panels * (m + 1)) : 0);
        feature = w.take<uint32_t>(most), number = w.take<uint32_t>(most);
        unit_weight = w.take<float>(most);
    }
    int64_t first_unit(int64_t panel) const { return panel * m / panels; }
    int64_t first_feature(int64_t panel) const { return panel * n / feature_panels; }

    // Every rank has these numbers for itself: `connected` [m][n] or null, where all are there.
    void count_all(const uint8_t* connected) {
        count = connected ? 0 : n * m;
        for (int64_t i = 0; connected && i < n * m; ++i) count += connected[i];
    }
    void divide(bool whole) {
        panels = whole ? 1 : (m + kPanelUnits - 1) / kPanelUnits;
        feature_panels = whole ? 1 : (n + kPanelUnits - 1) / kPanelUnits;
    }

    // The lists, by one rank.
    void list(const uint8_t* connected) {
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
        at = 0;
        for (int64_t panel = 0; panel < feature_panels; ++panel) {
            uint32_t* const to = unit_start + panel * (m + 1);
            const int64_t first = first_feature(panel), last = first_feature(panel + 1);
            for (int64_t k = 0; k < m; ++k) {
                to[k] = at;
                for (int64_t i = first; i < last; ++i) {
                    if (connected[k * n + i]) feature[at++] = (uint32_t)(i - first);
                }
            }
            to[m] = at;
        }
        each([&](int64_t c, int64_t unit, int64_t i) { number[place_of(unit, i)] = (uint32_t)c; });
    }

    // Calls visit(connection, unit, feature) in the order of the list by feature.
    template <class Visit>
    void each(const Visit& visit) const {
        for (int64_t panel = 0; panel < panels; ++panel) {
            const uint32_t* const from = start + panel * (n + 1);
            const int64_t unit = first_unit(panel);
            for (int64_t i = 0; i < n; ++i)
                for (uint32_t c = from[i]; c < from[i + 1]; ++c) visit((int64_t)c, unit + hidden[c], i);
        }
    }
    // The weights in the order by unit; ranks share them.
    void order_by_unit(const float* weight, int64_t rank, int64_t size) const {
        for (int64_t t = rank * count / size; t < (rank + 1) * count / size; ++t) unit_weight[t] = weight[number[t]];
    }

  private:
    // Where the list by unit has a connection, by bisection.
    uint32_t place_of(int64_t unit, int64_t i) const {
        int64_t panel = i * feature_panels / n;
        while (first_feature(panel + 1) <= i) ++panel;
        const uint32_t* const from = unit_start + panel * (m + 1);
        const uint32_t wanted = (uint32_t)(i - first_feature(panel));
        uint32_t low = from[unit], high = from[unit + 1];
        while (low + 1 < high) {
            const uint32_t middle = (low + high) / 2;
            if (feature[middle] <= wanted)
                low = middle;
            else
                high = middle;
        }
        return low;
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
