// Which form the step of an autoencoder takes: the one place where that is decided, for each model from its own data.
//
//   columns    samples across lanes (train_columns.inl): few hidden units, a stream
//   tiles      features across lanes, samples in tiles of rows (train_tiles.inl): whatever there is
//   gram       tiles by G = D E (gram.inl): linear codes, rare features that come as entries
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
constexpr int64_t kGramMaxFeatures = 320;  // beyond, Gᵀ and A leave the cache (measured: 400 features lose by a third)

// Whether a network can take a form at all; room is made for it then.
inline bool columns_fit(const Network& net) {
    return net.n_hidden <= kColumnsMaxHidden && net.n_features * net.n_hidden <= kColumnsMaxWeights;
}
inline bool gram_fits(const Network& net) {
    return net.hidden_activation == (int32_t)Activation::kNone && net.n_features <= kGramMaxFeatures;
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

inline double columns_cost(const Network& net, const Expected& e) {
    const double n = (double)net.n_features, m = (double)net.n_hidden;
    return e.rows * n * (0.02 * m + 0.03);
}
inline double tiles_cost(const Network& net, const Expected& e) {
    const double n = (double)net.n_features, m = (double)net.n_hidden;
    return 1.6 * e.rows * n * m + 2.0 * e.entries * m;
}
inline double gram_cost(const Network& net, const Expected& e) {
    const double n = (double)net.n_features, m = (double)net.n_hidden;
    return n * ((net.tied ? 2.0 : 3.0) * n * m + 5.0 * n + 2.0 * e.entries + 3.0 * e.rows);
}

// `columns`: that form can be taken, too.
inline Form pick_form(const Network& net, const StreamTables& tables, int64_t batch_size, bool columns) {
    const Expected e = expected_of(tables, batch_size);
    const bool gram = gram_fits(net) && e.listed;
    const Form forced = forced_form();
    if (forced == Form::kTiles || (forced == Form::kColumns && columns) || (forced == Form::kGram && gram))
        return forced;
    Form best = Form::kTiles;
    double cost = tiles_cost(net, e);
    if (columns && columns_cost(net, e) < cost) best = Form::kColumns, cost = columns_cost(net, e);
    if (gram && gram_cost(net, e) < cost) best = Form::kGram;
    return best;
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
