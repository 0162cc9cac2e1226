// The sparse layer across cores: forward and backward of K layers of one shape.
//
// Two ways to share the work, chosen by its size; neither changes a bit of any result, since every sum belongs to one
// worker whatever its order of arrival:
//
//   alone     a worker takes a model (forward: a tile of a model), and does everything in memory of its own: ensembles,
//             and anything on one thread
//   together all workers share each model: they pack all tiles, then divide the rows (or columns) of every tile among
//   them
//
// The file is long because forward and backward, alone and together, divide the same tiles and have to agree on them.
//
// Layers below kSerialWork run on the calling thread: waking a second costs more than they do.
//
// Backward takes the tiles in blocks whose panels fit the workers' second-level caches: packs a block, then uses it for
// dx and for dvalues, which go on from what the blocks before left. Tiles stay in order, so the size of a block (it
// depends on the number of threads) changes no bit. A call is one parallel region; between its phases the workers meet.
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cpu/threads/scratch.h"
#include "cpu/threads/workers.h"

namespace toykern {
namespace {

constexpr int64_t kSerialWork = 1 << 18;         // multiply-adds
constexpr int64_t kSerialSlots = 1 << 16;        // to sort: each is worth several of those
constexpr int64_t kGradientSlots = 1 << 15;      // of a chunk of rows whose gradients stay in L2 while the tiles pass
constexpr size_t kBlockBytes = (size_t)1 << 20;  // panels of a block, for each worker
// Outputs from this size on are written past the caches. They leave no room in the second level, and lines that come
// from the third to be overwritten cost three times the write; it pays even where the next layer reads them at once.
constexpr size_t kPastCaches = (size_t)1 << 20;
constexpr int64_t kRowsTogether = 16;  // chunks of rows begin at multiples: whole cache lines of the output

// For each phase p < phases, one after the other: work(p, i, worker) for i < count(p), on `threads` threads that take
// numbers from one counter. All of a phase is done before the next begins.
template <class Count, class Work>
void in_phases(int64_t phases, int threads, const Count& count, const Work& work) {
    if (threads <= 1) {
        [[maybe_unused]] FlushDenormals flush;
        for (int64_t p = 0; p < phases; ++p)
            for (int64_t i = 0, n = count(p); i < n; ++i) work(p, i, (size_t)0);
        return;
    }
    std::vector<std::atomic<int64_t>> next((size_t)phases);
    for (auto& n : next) n.store(0, std::memory_order_relaxed);
    Meeting meeting;
    parallel(threads, [&] {
        [[maybe_unused]] FlushDenormals flush;
        const auto worker = (size_t)thread_rank();
        const int team = team_size();
        for (int64_t p = 0; p < phases; ++p) {
            const int64_t n = count(p);
            for (int64_t i; (i = next[(size_t)p].fetch_add(1, std::memory_order_relaxed)) < n;) work(p, i, worker);
            if (p + 1 < phases) Meeting::wait(&meeting, team);
        }
    });
}

// One phase.
template <class Work>
void for_each(int64_t count, int threads, const Work& work) {
    in_phases(
        1, (int)std::min<int64_t>(threads, count), [&](int64_t) { return count; },
        [&](int64_t, int64_t i, size_t worker) { work(i, worker); });
}

// Row at which share i of n begins: shares of nearly equal numbers of connections (and of rows, where those are few).
int64_t row_of_share(const int64_t* start, int64_t rows, int64_t i, int64_t n) {
    if (i <= 0) return 0;
    if (i >= n) return rows;
    const double wanted = ((double)(start[rows] - start[0]) + 4.0 * (double)rows) * (double)i / (double)n;
    int64_t low = 0, high = rows;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if ((double)(start[middle] - start[0]) + 4.0 * (double)middle < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return std::min(rows, (low + kRowsTogether / 2) / kRowsTogether * kRowsTogether);
}

// The same for features to be packed.
int64_t feature_of_share(int64_t features, int64_t i, int64_t n) {
    return i == n ? features : i * features / n / kRowsTogether * kRowsTogether;
}

int64_t connections(const SparseTopology& t, int64_t model) {
    return t.row_start[model * (t.out_features + 1) + t.out_features];
}

// Starts of rows (or columns): 0 first, never descending, no further than `most`.
void check_start(const char* name, const int64_t* start, int64_t rows, int64_t most) {
    bool ascends = start[0] == 0;
    for (int64_t r = 0; r < rows; ++r) ascends &= start[r] <= start[r + 1];
    if (!ascends || start[rows] > most)
        throw std::invalid_argument(std::string(name) + " must begin with 0, never descend, and end at or below " +
                                    std::to_string(most));
}

void check_index(const SparseKernels& kernels, const char* name, const int32_t* index, int64_t count, int64_t limit) {
    if (!kernels.within(index, count, limit))
        throw std::invalid_argument(std::string(name) + " must be from 0 to " + std::to_string(limit - 1) +
                                    " in all slots of a connection");
}

// Every index that the kernels will follow: about a hundredth of a pass, and no array of indices that was tampered with
// can lead outside.
void check_topology(const SparseTopology& t, const SparseKernels& kernels, bool by_column) {
    for (int64_t k = 0; k < t.n_models; ++k) {
        const int64_t first = k * t.capacity;
        check_start("row_start", t.row_start + k * (t.out_features + 1), t.out_features, t.capacity);
        const int64_t count = t.row_start[k * (t.out_features + 1) + t.out_features];
        check_index(kernels, "column", t.column + first, count, t.in_features);
        if (!by_column) continue;
        const int64_t* start = t.column_start + k * (t.in_features + 1);
        check_start("column_start", start, t.in_features, count);
        if (start[t.in_features] != count)
            throw std::invalid_argument("column_start must end where row_start ends: make the index anew");
        check_index(kernels, "row", t.row + first, count, t.out_features);
        check_index(kernels, "slot", t.slot + first, count, count);
    }
}

char* at(void* base, int64_t elements, size_t bytes) { return static_cast<char*>(base) + elements * (int64_t)bytes; }
const char* at(const void* base, int64_t elements, size_t bytes) {
    return static_cast<const char*>(base) + elements * (int64_t)bytes;
}

// One call: the kernels and the sizes that everything below needs.
struct Call {
    const SparseLinearParams& p;
    const SparseTopology& t;
    const SparseKernels& kernels;
    size_t stored, computed;
    int64_t tiles, in, out;
    int threads;
    bool copied;  // the values are stored in another type than they are computed in
    bool y_past_caches, dx_past_caches;

    Call(const SparseLinearParams& given, bool by_column)
        : p(given),
          t(given.topology),
          kernels(level().sparse_kernels()[given.scalar]),
          stored(kernels.stored_bytes),
          computed(kernels.computed_bytes),
          tiles((given.batch_size + kPanelSamples - 1) / kPanelSamples),
          in(given.topology.in_features),
          out(given.topology.out_features),
          threads(1),
          copied(stored != computed),
          y_past_caches(numbers(out) * stored >= kPastCaches),
          dx_past_caches(numbers(in) * stored >= kPastCaches) {
        check_topology(t, kernels, by_column);
        int64_t work = 0;
        for (int64_t k = 0; k < t.n_models && work < kSerialWork; ++k)
            work += p.batch_size * (connections(t, k) + in + out);
        if (work >= kSerialWork) threads = std::max(1, p.threads);
        guard_fork(threads);
    }

    size_t numbers(int64_t features) const { return (size_t)(t.n_models * p.batch_size * features); }
    size_t panel_bytes(int64_t features) const { return (size_t)(features * kPanelSamples) * computed; }
    int64_t samples(int64_t tile) const {
        return std::min<int64_t>(kPanelSamples, p.batch_size - tile * kPanelSamples);
    }

    SparsePack pack_x(int64_t model, int64_t tile, void* panel) const {
        const int64_t first = model * p.x_model_stride + tile * kPanelSamples * in;
        return {at(p.x, first, stored), nullptr, in, samples(tile), panel};
    }
    SparsePack pack_dy(int64_t model, int64_t tile, void* panel) const {
        const int64_t first = (model * p.batch_size + tile * kPanelSamples) * out;
        return {at(p.dy, first, stored), p.relu ? at(p.y, first, stored) : nullptr, out, samples(tile), panel};
    }
    // The model's values as they are computed with: `copy` holds one model's.
    const void* values(int64_t model, void* copy) const {
        const char* mine = at(p.values, model * t.capacity, stored);
        if (!copied) return mine;
        kernels.widen(mine, copy, connections(t, model));
        return copy;
    }
    SparseProduct product_y(int64_t model, int64_t tile, const void* value, const void* panel) const {
        const int64_t first = (model * p.batch_size + tile * kPanelSamples) * out;
        return {t.row_start + model * (out + 1),
                t.column + model * t.capacity,
                value,
                panel,
                p.bias ? at(p.bias, model * out, stored) : nullptr,
                p.relu,
                at(p.y, first, stored),
                out,
                samples(tile),
                nullptr,
                y_past_caches};
    }
    // `value` by place; null: the values as they are stored, looked up by slot.
    SparseProduct product_dx(int64_t model, int64_t tile, const void* value, const void* panel) const {
        const int64_t first = (model * p.batch_size + tile * kPanelSamples) * in;
        return {t.column_start + model * (in + 1),
                t.row + model * t.capacity,
                value ? value : at(p.values, model * t.capacity, stored),
                panel,
                nullptr,
                false,
                at(p.dx, first, stored),
                in,
                samples(tile),
                value ? nullptr : t.slot + model * t.capacity,
                dx_past_caches};
    }
};

// Whether whole items divide among the workers without one of them waiting for long. What a worker made is then used by
// itself: between cores that share no cache, fetching the other's panels takes longer than the work over them.
bool even(int64_t items, int threads) { return items % threads == 0 || items >= 4 * threads; }

size_t rounded(size_t bytes) { return (bytes + 127) / 64 * 64; }

}  // namespace

void sparse_linear_forward(const SparseLinearParams& p) {
    const Call c(p, false);
    const int64_t n = c.t.n_models * c.tiles, capacity = c.t.capacity;
    if (n == 0) return;
    const size_t value_bytes = c.copied ? rounded((size_t)capacity * c.computed) : 0;
    const size_t panel_bytes = rounded(c.panel_bytes(c.in));
    if (even(n, c.threads)) {  // alone
        const int workers = (int)std::min<int64_t>(c.threads, n);
        Scratch room(Held::kSparse, (size_t)workers, value_bytes + panel_bytes, "the panels of a sparse layer");
        for_each(n, workers, [&](int64_t i, size_t worker) {
            const int64_t model = i / c.tiles, tile = i % c.tiles;
            char* memory = static_cast<char*>(room.piece(worker));
            const void* value = c.values(model, memory);
            void* panel = memory + value_bytes;
            c.kernels.pack(c.pack_x(model, tile, panel), 0, c.in);
            c.kernels.product(c.product_y(model, tile, value, panel), 0, c.out);
        });
        return;
    }
    Scratch room(Held::kSparse, 1, value_bytes + panel_bytes * (size_t)c.tiles, "the panels of a sparse layer");
    char* panels = static_cast<char*>(room.piece(0)) + value_bytes;
    const int64_t shares = (4 * c.threads + c.tiles - 1) / c.tiles;
    for (int64_t model = 0; model < c.t.n_models; ++model) {
        const void* value = c.values(model, room.piece(0));
        const auto panel = [&](int64_t tile) { return panels + (size_t)tile * panel_bytes; };
        const int64_t* start = c.t.row_start + model * (c.out + 1);
        in_phases(
            2, c.threads, [&](int64_t) { return c.tiles * shares; },
            [&](int64_t phase, int64_t i, size_t) {
                const int64_t tile = i / shares, share = i % shares;
                if (phase == 0)
                    c.kernels.pack(c.pack_x(model, tile, panel(tile)), feature_of_share(c.in, share, shares),
                                   feature_of_share(c.in, share + 1, shares));
                else
                    c.kernels.product(c.product_y(model, tile, value, panel(tile)),
                                      row_of_share(start, c.out, share, shares),
                                      row_of_share(start, c.out, share + 1, shares));
            });
    }
}

namespace {

// Where a backward pass by `threads` threads keeps what it makes of one model.
struct BackwardMemory {
    int64_t block;  // tiles in hand at once
    bool whole;     // a worker takes whole tiles
    bool by_place;  // the values are copied into the order of the columns; for a single tile that does not pay
    size_t x, dy, value, dvalue, dbias, bytes;
    BackwardMemory(const Call& c, int threads) {
        const size_t x_bytes = c.p.dvalues ? c.panel_bytes(c.in) : 0, dy_bytes = c.panel_bytes(c.out);
        const size_t fit = (size_t)threads * kBlockBytes / (x_bytes + dy_bytes);
        whole = even(c.tiles, threads);
        block = std::min(c.tiles, std::max<int64_t>(1, (int64_t)fit / threads) * threads);
        by_place = c.p.dx && (c.copied || c.tiles > 1);
        size_t used = 0;
        const auto take = [&](bool wanted, size_t count) {
            const size_t here = used;
            if (wanted) used += rounded(count);
            return here;
        };
        x = take(c.p.dvalues, x_bytes * (size_t)block);
        dy = take(true, dy_bytes * (size_t)block);
        value = take(by_place, (size_t)c.t.capacity * c.computed);
        dvalue = take(c.p.dvalues && c.copied, (size_t)c.t.capacity * c.computed);
        dbias = take(c.p.dbias && c.copied, (size_t)c.out * c.computed);
        bytes = used;
    }
};

// Everything of one model, by `threads` threads.
void backward_model(const Call& c, const BackwardMemory& m, int64_t model, char* memory, int threads) {
    const SparseLinearParams& p = c.p;
    const int64_t first_slot = model * c.t.capacity, count = connections(c.t, model);
    const int64_t* row_start = c.t.row_start + model * (c.out + 1);
    const int64_t* column_start = c.t.column_start + model * (c.in + 1);
    const size_t x_bytes = c.panel_bytes(c.in), dy_bytes = c.panel_bytes(c.out);
    const int64_t blocks = (c.tiles + m.block - 1) / m.block;
    const auto tiles_of = [&](int64_t block) { return std::min(m.block, c.tiles - block * m.block); };
    const int64_t shares = m.whole ? 1 : (4 * threads + m.block - 1) / m.block;
    const int64_t pieces = m.by_place ? 4 * threads : 0;

    const auto order = [&](int64_t i) {  // values into the order of the columns
        const int64_t from = i * count / pieces, to = (i + 1) * count / pieces;
        c.kernels.gather(at(p.values, first_slot, c.stored), c.t.slot + first_slot + from,
                         at(memory + m.value, from, c.computed), to - from);
    };
    const auto dx = [&](int64_t block, int64_t i) {
        const int64_t here = i / shares, share = i % shares;
        c.kernels.product(c.product_dx(model, block * m.block + here, m.by_place ? memory + m.value : nullptr,
                                       memory + m.dy + (size_t)here * dy_bytes),
                          row_of_share(column_start, c.in, share, shares),
                          row_of_share(column_start, c.in, share + 1, shares));
    };
    const auto pack = [&](int64_t block, int64_t i) {
        const int64_t here = i / shares, tile = block * m.block + here, share = i % shares;
        c.kernels.pack(c.pack_dy(model, tile, memory + m.dy + (size_t)here * dy_bytes),
                       feature_of_share(c.out, share, shares), feature_of_share(c.out, share + 1, shares));
        if (p.dvalues)
            c.kernels.pack(c.pack_x(model, tile, memory + m.x + (size_t)here * x_bytes),
                           feature_of_share(c.in, share, shares), feature_of_share(c.in, share + 1, shares));
        if (m.whole && p.dx) dx(block, i);  // while the panel is at hand
    };

    int64_t chunks = 0;
    if (p.dvalues || p.dbias)
        chunks = threads == 1 ? count / kGradientSlots + 1 : std::max<int64_t>(4 * threads, count / kGradientSlots + 1);
    SparseValuesGradient g = {};
    g.start = row_start;
    g.column = c.t.column + first_slot;
    g.x = memory + m.x;
    g.dy = memory + m.dy;
    g.in_features = c.in;
    g.out_features = c.out;
    if (p.dvalues) g.dvalue = c.copied ? memory + m.dvalue : at(p.dvalues, first_slot, c.computed);
    if (p.dbias) g.dbias = c.copied ? memory + m.dbias : at(p.dbias, model * c.out, c.computed);
    const auto use = [&](int64_t block, int64_t i) {
        if (i < chunks) {
            SparseValuesGradient mine = g;
            mine.samples = std::min(m.block * kPanelSamples, p.batch_size - block * m.block * kPanelSamples);
            mine.add = block > 0;
            c.kernels.values_gradient(mine, row_of_share(row_start, c.out, i, chunks),
                                      row_of_share(row_start, c.out, i + 1, chunks));
            return;
        }
        dx(block, i - chunks);
    };

    // Phases: values in order; then for each block its packing, and its use.
    const int64_t before = pieces ? 1 : 0;
    in_phases(
        before + 2 * blocks, threads,
        [&](int64_t phase) {
            if (phase < before) return pieces;
            const int64_t items = tiles_of((phase - before) / 2) * shares;
            if ((phase - before) % 2 == 0) return items;
            return chunks + (p.dx && !m.whole ? items : 0);
        },
        [&](int64_t phase, int64_t i, size_t) {
            if (phase < before)
                order(i);
            else if ((phase - before) % 2 == 0)
                pack((phase - before) / 2, i);
            else
                use((phase - before) / 2, i);
        });
    if (p.dvalues) {
        char* made = at(p.dvalues, first_slot, c.stored);
        if (c.copied) c.kernels.narrow(memory + m.dvalue, made, count);
        if (count < c.t.capacity)
            std::memset(made + (size_t)count * c.stored, 0, (size_t)(c.t.capacity - count) * c.stored);
    }
    if (p.dbias && c.copied) c.kernels.narrow(memory + m.dbias, at(p.dbias, model * c.out, c.stored), c.out);
}

}  // namespace

void sparse_linear_backward(const SparseLinearParams& p) {
    const Call c(p, p.dx != nullptr);
    const int64_t models = c.t.n_models;
    if (c.tiles == 0) {  // sums over no samples
        if (p.dvalues) std::memset(p.dvalues, 0, (size_t)(models * c.t.capacity) * c.stored);
        if (p.dbias) std::memset(p.dbias, 0, (size_t)(models * c.out) * c.stored);
        return;
    }
    if (c.threads == 1 || models >= 4 * c.threads) {
        const BackwardMemory m(c, 1);
        const int workers = (int)std::min<int64_t>(c.threads, models);
        Scratch room(Held::kSparse, (size_t)workers, m.bytes, "the backward pass of a sparse layer");
        for_each(models, workers, [&](int64_t model, size_t worker) {
            backward_model(c, m, model, static_cast<char*>(room.piece(worker)), 1);
        });
        return;
    }
    const BackwardMemory m(c, c.threads);
    Scratch room(Held::kSparse, 1, m.bytes, "the backward pass of a sparse layer");
    for (int64_t model = 0; model < models; ++model)
        backward_model(c, m, model, static_cast<char*>(room.piece(0)), c.threads);
}

namespace {

// One model's index by column: a counting sort, in which every thread has counts of its own for a share of the rows.
// Within a column the shares stand in the order of their rows, so the result is the same for any number of them.
void transpose_model(const SparseTransposeParams& p, int64_t k, int threads) {
    const int64_t* row_start = p.row_start + k * (p.out_features + 1);
    const int32_t* column = p.column + k * p.capacity;
    int64_t* column_start = p.column_start + k * (p.in_features + 1);
    int32_t *row = p.row + k * p.capacity, *slot = p.slot + k * p.capacity;
    const int64_t count = row_start[p.out_features];
    std::vector<std::vector<int32_t>> place((size_t)threads);  // [shares][in] next place of a column in a share
    const auto first_row = [&](int64_t share) { return row_of_share(row_start, p.out_features, share, threads); };
    for_each(threads, threads, [&](int64_t share, size_t) {
        auto& mine = place[(size_t)share];
        mine.assign((size_t)p.in_features, 0);
        const int64_t last = row_start[first_row(share + 1)];
        for (int64_t i = row_start[first_row(share)]; i < last; ++i) ++mine[(size_t)column[i]];
    });
    int64_t at = 0;
    for (int64_t c = 0; c < p.in_features; ++c) {
        column_start[c] = at;
        for (auto& mine : place) {
            const int32_t here = mine[(size_t)c];
            mine[(size_t)c] = (int32_t)at;
            at += here;
        }
    }
    column_start[p.in_features] = at;
    for_each(threads, threads, [&](int64_t share, size_t) {
        int32_t* next = place[(size_t)share].data();
        for (int64_t r = first_row(share); r < first_row(share + 1); ++r)
            for (int64_t i = row_start[r]; i < row_start[r + 1]; ++i) {
                const int32_t here = next[column[i]]++;
                row[here] = (int32_t)r;
                slot[here] = (int32_t)i;
            }
    });
    if (count == p.capacity) return;
    std::memset(row + count, 0, (size_t)(p.capacity - count) * sizeof(int32_t));
    std::memset(slot + count, 0, (size_t)(p.capacity - count) * sizeof(int32_t));
}

}  // namespace

void sparse_check_index(const SparseTransposeParams& p) {
    const SparseKernels& kernels = *level().sparse_kernels();
    for (int64_t k = 0; k < p.n_models; ++k) {
        const int64_t* row_start = p.row_start + k * (p.out_features + 1);
        check_start("row_start", row_start, p.out_features, p.capacity);
        check_index(kernels, "column", p.column + k * p.capacity, row_start[p.out_features], p.in_features);
    }
}

void sparse_transpose(const SparseTransposeParams& p) {
    const int64_t work = p.n_models * (p.capacity + p.in_features);
    const int threads = work < kSerialSlots ? 1 : std::max(1, p.threads);
    sparse_check_index(p);
    guard_fork(threads);
    if (p.n_models < 2 * threads)
        for (int64_t k = 0; k < p.n_models; ++k) transpose_model(p, k, threads);
    else
        for_each(p.n_models, threads, [&](int64_t k, size_t) { transpose_model(p, k, 1); });
}

}  // namespace toykern
