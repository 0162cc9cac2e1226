// The resident step for larger networks: features (or hidden units) across lanes, samples in tiles of rows.
//
//   h = f(E x), y = g(D h + b), loss = Σ_j I_j (t_j − y_j)², gradients of E, D and b, over one part of the batch
//
// Layout     decoder D [m][np] with features across lanes (np = n rounded up to lanes), its transpose Dt [n][mp] with
//            hidden units across lanes; encoder Et [n][mp] (tied: Et = Dt). A tile holds up to 32 or 64 non-empty
//            samples: their entries, codes h [rows][mp], targets and output gradients [rows][np]
// Source     tile_source.inl
// Zeros      empty samples share one closed-form term; the passes cost only active entries and outputs where these are few
// Forms      linear codes of rare features may take the Gram form instead (gram.inl), as forms.inl decides for a model
// Owner      one worker per part; models smaller than L2 stay in cache for the whole run
// Order      entries, rows and tiles in the order of their samples, lanes by fixed trees: a function of shape, level
//            and the model's own data
// Limits     none but memory (scratch about 7 n·m floats a model, and 2 gradients a part); any shape runs here
// Roof       that of the passes (tiles_passes.inl)
#pragma once
#include "cpu/resident/connections_passes.inl"
#include "cpu/resident/tile_source.inl"
#include "cpu/resident/tiles_passes.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// Takes one part of a batch tile by tile and adds up its gradients.
class TilesWorker : TilesPasses {
  public:
    void carve(Workspace& w, const Network& net, const Distribution& data, const FiniteData& finite) {
        const int64_t np = round_up(net.n_features);
        rows_max_ = np <= 256 ? 32 : 64;
        while (rows_max_ > 1 && rows_max_ * np > ((int64_t)1 << 22)) rows_max_ /= 2;
        // Where rows are long and products small, what a tile costs is its way through the cache.
        if (finite.rows && net.n_hidden <= kLanes)
            while (rows_max_ > kBlockRows && rows_max_ * np > 65536) rows_max_ /= 2;
        const int64_t drawn_rows = connections_fit(net) ? kConnectionsRows : kDrawnRows;
        const int64_t listed_rows = gram_fits(net)              ? kGramTileRows
                                    : rows_max_ > kBlockSamples ? rows_max_
                                                                : kBlockSamples;
        source_.carve(w, net, data, finite, rows_max_, listed_rows, drawn_rows);
        connections_.carve(w, net, data.noise > 0.0f || finite.target || finite.label);
        sorted_.carve(w, gram_fits(net));
        TilesPasses::carve(w, net, rows_max_ > drawn_rows ? rows_max_ : drawn_rows, finite.rows > 0);
    }
    void set_up(int64_t model, int64_t seed, int64_t batch_size) { source_.set_up(model, seed, batch_size); }
    // Which form the model that was set up takes.
    void choose(TilesModel& model, int64_t batch_size) {
        const Form form = form_of(batch_size, model.connections.count);
        model.gram = form == Form::kGram, model.by_connection = form == Form::kConnections;
        source_.set_drawn_rows(model.by_connection ? kConnectionsRows : kDrawnRows);
    }
    Form form(int64_t batch_size) const { return form_of(batch_size, -1); }
    Form form_of(int64_t batch_size, int64_t connections) const {
        if (source_.of_stream()) return pick_form(net_, source_.tables(), batch_size, false, connections);
        return pick_form_of_rows(net_, connections);
    }

    // As ColumnsWorker::accumulate; g is a TilesModel::Gradient array.
    double accumulate(const TilesModel& model, const StreamKey& key, int64_t first, int64_t last, float* g) {
        begin(model, g);
        if (model.by_connection) connections_.begin(model, g_);
        const int64_t listed_rows = model.gram ? kGramTileRows : model.by_connection ? kBlockSamples : rows_max_;
        source_.each_tile(key, first, last, listed_rows, !model.gram && !model.by_connection, *this);
        if (model.by_connection) connections_.finish();
        if (last - first > visited_) add_empty(last - first - visited_);
        return loss_;
    }
    void take(const Tile& t) {
        if (model_->gram) return gram_tile(t);
        if (model_->by_connection) return connections_tile(t);
        tile(t.rows, t.entries, t.row, t.feature, t.value, t.x, t.target);
    }

  private:
    static constexpr int64_t kDrawnRows = 32, kConnectionsRows = kBlockSamples > 32 ? kBlockSamples : 32;

    void connections_tile(const Tile& t) {
        visited_ += t.rows;
        loss_ += connections_.tile(t, source_.listed());
    }
    // A tile of listed entries in the Gram form.
    void gram_tile(const Tile& t) {
        visited_ += t.rows;
        sorted_.sort(t.rows, t.entries, t.row);
        GramPass pass = {
            model_->gt,    model_->b,   model_->importance,       g_.a, g_.b, model_->np, t.feature, t.value,
            sorted_.start, {net_.loss}, target_bits(net_.target), 0,    0.0};
        if (is_floor(net_.output_activation))
            sorted_.pass(pass, FloorActivation<F>::of(net_.output_activation, net_.output_option));
        else
            sorted_.pass(pass, CalledActivation::of(net_.output_activation, net_.output_option));
        loss_ += pass.loss;
    }

    TileSource source_;
    GramTile sorted_;
    ConnectionsPasses connections_;
    int64_t rows_max_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
