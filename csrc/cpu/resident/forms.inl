// Which form the step of an autoencoder takes: the one place where that is decided, for each model from its own data.
//
//   columns    samples across lanes (train_columns.inl): few hidden units, a stream
//   tiles      features across lanes, samples in tiles of rows (train_tiles.inl): whatever there is
//   gram       tiles by G = D E (gram.inl): linear codes, rare features that come as entries
//   connections  tiles turned, samples across lanes, over the connections of a sparse model (connections_passes.inl)
//
// Every form has a cost: nanoseconds of a step, by a formula in what is expected of a batch, whose factors are fitted to
// processor times (docs/performance.md). The cheapest form is taken. The arithmetic is that of doubles and the same at
// every level and on every machine, and nothing of a model's neighbours goes into it. force_form() puts one form in place
// of the cheapest, wherever it can be taken.
#pragma once
#include "cpu/stream/tables.inl"
#include "toykern/api.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kColumnsMaxHidden = 8, kColumnsMaxWeights = 1024;
constexpr int64_t kTinyWeights = 16;       // so few are columns on a stream, whatever the density
constexpr int64_t kGramMaxFeatures = 512;  // beyond, Gᵀ and A leave the cache (640 features lose by a sixth)

// Whether a network can take a form at all; room is made for it then.
inline bool columns_fit(const Network& net) {
    return net.n_hidden <= kColumnsMaxHidden && net.n_features * net.n_hidden <= kColumnsMaxWeights;
}
inline bool gram_fits(const Network& net) {
    return net.hidden_activation == (int32_t)Activation::kNone && net.n_features <= kGramMaxFeatures &&
           net.n_features * net.n_hidden > kTinyWeights;
}
inline bool connections_fit(const Network& net) { return net.sparse && net.tied; }
// Whether the products of a sparse model's Gram form go by its connections: an element is the same sum without its zeros, but
// each multiply-add has a load of its own.
constexpr int64_t kGramDensity = 4;  // up to one connection in so many places (measured)
inline bool gram_takes_connections(int64_t places, int64_t connections) { return kGramDensity * connections <= places; }
// Whether a block of the connections' form has its first product and the gradient of that by entries, which costs a row of
// codes (of all units) for each, forward and back; else each connection is a product of lanes there, too.
inline bool codes_by_entries(int64_t entries, int64_t mp, int64_t connections) {
    return (0.25 * (double)entries + 40.0) * (double)mp < 5.5 * (double)connections;
}

// What is expected of a batch.
struct Expected {
    bool listed;     // samples come as a list of entries, and empty ones are left out
    double rows;     // samples that are not left out
    double entries;  // active features
};

// Whether samples of the stream come as a list of entries.
inline bool is_listed(const StreamTables& tables) { return !tables.n_frequent && !(tables.data->noise > 0.0f); }

inline Expected expected_of(const StreamTables& tables, int64_t batch_size) {
    const double batch = (double)batch_size, n = (double)tables.data->n_features;
    if (!is_listed(tables)) return {false, batch, 0.5 * batch * n};
    // Samples that are not empty: about batch (1 − exp(−rate)), by a quotient of polynomials.
    const double rate = tables.rare_rate;
    return {true, batch * rate * (6.0 + rate) / (6.0 + rate * (4.0 + rate)), batch * tables.rare_entries};
}

// Nanoseconds of a step at v4 on a Zen 4, one thread. The formulas' terms are what a form does: for an output (or a
// weight) of a sample, for an entry, once a batch. All but a tenth of what was measured (19 shapes from 6 → 2 to 300 → 60,
// seven densities, batches of 128 and 1,024) is within 10% of them.
struct StepCosts {
    double n, m, np, mp;  // np, mp: in whole lane groups of sixteen, at every level
    double connections;   // of a sparse model
    bool tied;
    Expected e;

    static StepCosts of(const Network& net, const Expected& e, int64_t connections) {
        const int64_t n = net.n_features, m = net.n_hidden;
        return {(double)n, (double)m, (double)((n + 15) / 16 * 16), (double)((m + 15) / 16 * 16), (double)connections,
                net.tied,  e};
    }
    double columns() const {
        if (!e.listed) return e.rows * n * (0.099 * m + 0.53);
        return 210.0 + e.rows * n * (0.096 * m + 0.18) + 2.3 * e.entries + 2.9 * n * m;
    }
    double tiles() const {
        if (!e.listed) return 5000.0 + e.rows * (np * (0.037 * m + 0.6) + 0.064 * mp) + e.entries * (0.1 * mp + 0.34);
        return 340.0 + e.rows * (np * (0.047 * m + 0.47) + 0.14 * mp) + e.entries * (0.19 * mp + 2.1) + 0.14 * np * m;
    }
    // By connection: fitted on a Xeon, where G and A of many features do not have L2 to themselves.
    double gram(bool by_connection) const {
        const double products = by_connection ? 0.5 * m + 1.4 * connections / n : (tied ? 1.0 : 2.0) * m;
        return 310.0 + n * (np * (0.031 * products + 0.25) + 0.25 * m) + e.rows * (0.013 * np + 0.51) +
               e.entries * ((by_connection && n > 256.0 ? 0.2 : 0.123) * np + 2.1);
    }
    // Fitted on that Xeon, six shapes from 80 → 20 to 512 → 64, densities from .05 to .5.
    double by_connection() const {
        if (!e.listed) return 5000.0 + 3.0 * connections + e.rows * (1.07 * n + 0.87 * m + 0.13 * connections);
        const double by_rows = e.rows * (0.5 * m + 0.1 * mp + 0.088 * connections) + e.entries * (0.15 * mp + 1.5);
        const double by_lanes = e.rows * (0.87 * m + 0.13 * connections) + 0.3 * e.entries;
        return 340.0 + 3.0 * connections + 0.32 * n * e.rows + (by_rows < by_lanes ? by_rows : by_lanes);
    }
};

// Of a finite dataset, whose samples are not known beforehand: nothing says what a form would cost.
inline Form pick_form_of_rows(const Network& net, int64_t connections) {
    if (connections < 0 || !connections_fit(net)) return Form::kTiles;
    const Form forced = forced_form();
    return forced == Form::kConnections ? forced : Form::kTiles;
}

// `columns`: that form can be taken, too. `connections`: how many a sparse model has; -1: they are not counted yet. A model
// that has all of them takes what a dense one does.
inline Form pick_form(const Network& net, const StreamTables& tables, int64_t batch_size, bool columns,
                      int64_t connections = -1) {
    const Expected e = expected_of(tables, batch_size);
    const bool gram = gram_fits(net) && e.listed, counted = connections >= 0 && connections_fit(net);
    const Form forced = forced_form();
    if (forced == Form::kTiles || (forced == Form::kColumns && columns) || (forced == Form::kGram && gram))
        return forced;
    // Before its connections are counted, such a model goes to the tiles, whose worker has this form.
    if (forced == Form::kConnections && connections_fit(net)) return counted ? forced : Form::kTiles;
    const StepCosts costs = StepCosts::of(net, e, connections);
    Form best = Form::kTiles;
    double least = costs.tiles();
    if (columns && costs.columns() < least) best = Form::kColumns, least = costs.columns();
    const bool sparse = counted && connections < net.n_features * net.n_hidden;
    if (sparse && costs.by_connection() < least) best = Form::kConnections, least = costs.by_connection();
    if (gram && costs.gram(sparse && gram_takes_connections(net.n_features * net.n_hidden, connections)) < least)
        best = Form::kGram;
    return best;
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
