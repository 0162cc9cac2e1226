// The resident run of small models: a block to a model, weights and gradients in shared memory for a whole launch.
//
//   h = f(E x), y = g(D h + b), loss = Σ_j I_j (t_j - y_j)², its gradients and the optimiser's step; any options, any
//   distribution
//
// Layout     cuda/small/shape.h: rows of m weights, bias and importance by feature; tiles of 32 or 64 samples, a lane
//            to a sample
// Owner      a block (1, 2, 4 or 8 warps by the shape) goes through a model's steps alone; parameters are dealt to its
//            threads at the update
// Zeros      rare single features: only samples that are not empty become columns, codes and the encoder's gradient
//            cost their entries alone, empty samples share one closed-form term. Anything else goes through dense rows
//            (cuda/small/rows.cuh)
// Order      cuda/small/products.cuh; a lane's loss runs over its columns in double precision, lanes and warps are
//            added in order. A function of the shape and the model's own data: neighbours, launches, blocks and devices
//            of one compute capability change no bit
// Barriers   four keep nothing apart: the one after the workspace's place and the one after the moments, since
//            load_model's is there; those at a model's end, since what store_model reads is written for the next model
//            by the same threads and all else was read before total_loss. Without the four the code is right, but ptxas
//            keeps values across and spills 8 to 16 bytes (sm_80, 90, 100)
// Registers  what a thread's number decides is computed anew for every tile by the loop for any m (Block::anew): kept
//            across its calls it is spilled on sm_120; in the other loops it is computing it anew that spills there,
//            and on sm_90
// Limits     small_shape().shared_bytes <= cuda_shared_limit(); train_large.cuh takes the rest. Batches up to 2^32
//            samples
// Roof       instruction issue; docs/gpu_trainer.md counts a step
#pragma once
#include "cuda/small/model.cuh"
#include "cuda/small/products.cuh"
#include "cuda/small/rows.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// Where a model's batches come from. An object of its own, because it is handed to called functions and so lies in
// memory.
struct SmallSource {
    int64_t model, step;
    TablesView tables;
    bool by_columns;  // the batch is a list of columns; dense rows otherwise
    SmallArrivals arrivals;
    SmallRows rows;
    // Of the batch in hand:
    int64_t visited;  // samples of its tiles so far
    int complete;     // columns of the list that no arrival will change
    SmallTile tile;
    PerThread<double> loss;
    LossRecord record;  // in training

    TOYKERN_DEVICE SmallSource(const Block& b, const SmallTask& task, const SmallRoom& room, int64_t model)
        : model(model),
          step(0),
          tables{task.tables + model * task.tables_stride, &task.layout},
          by_columns(!drawn_as_rows(task.layout, task.data.noise, tables.head()) && tables.head().n_frequent == 0),
          arrivals(b, room, tables, task.data, task.batch_size, by_columns),
          rows(b, room, tables, task.data) {}
};

// kM = m up to kSmallFusedHidden, or 0: any m. A: FloorActivation<float>, or CalledActivation, which takes kM = 0.
template <int kM, bool kTrain, class A>
class SmallModel {
    using Options = SmallOptions<A>;

  public:
    TOYKERN_DEVICE SmallModel(const Block& b, const SmallTask& task, const SmallRoom& room, SmallSource& source)
        : b_(b), task_(task), room_(room), from_(source) {}

    // Draws a batch; returns the sum of its squared errors and leaves the gradients in shared memory. A barrier is
    // behind it.
    TOYKERN_DEVICE double batch(uint32_t step, Purpose purpose) {
        const StepKey key = {philox_key(task_.seed[from_.model]), step, (uint32_t)purpose};
        b_.each([&](int t) { from_.loss[t] = 0.0; });
        from_.arrivals.begin(key);
        from_.rows.begin(key);
        from_.visited = 0;
        from_.complete = 0;
        from_.tile = {0, 0};
        TOYKERN_NO_UNROLL
        while (from_.by_columns ? next_columns() : next_rows()) {
            if (kM == 0 && !kKeepsSlope<A>) b_ = b_.anew();
            const SmallTile& tile = from_.tile;  // in memory: calls leave few registers
            from_.visited += tile.count;
            if (from_.by_columns)
                lay_out_columns(tile);
            else
                encode_rows(b_, room_, Options(task_.network));
            outputs(tile);
            if (!kTrain) continue;
            if (from_.by_columns)
                add_entries<kM>(b_, room_, tile, room_.encoder_sum());
            else
                add_rows_gradient(b_, room_, tile);
            b_.sync();  // the tile and its entries have been read before the next ones come
        }
        add_empty(b_, room_, Options(task_.network), empty(), from_.loss);
        return total_loss(b_, room_, from_.loss);
    }
    // Empty samples of the batch.
    TOYKERN_DEVICE int64_t empty() const { return task_.batch_size - from_.visited; }

  private:
    // Rare single features: the next samples that are not empty. False at the end of the batch.
    TOYKERN_DEVICE bool next_columns() {
        SmallArrivals& arrivals = from_.arrivals;
        SmallTile& tile = from_.tile;
        tile.first += tile.count;
        while (tile.first == from_.complete) {
            if (arrivals.done()) return false;
            arrivals.keep_last_column();
            fill_arrivals(arrivals);
            from_.complete = arrivals.columns() - (arrivals.done() || arrivals.columns() == 0 ? 0 : 1);
            tile.first = 0;
        }
        const int left = from_.complete - tile.first;
        tile.count = left < room_.s.columns ? left : room_.s.columns;
        return true;
    }
    // All samples, as dense rows.
    TOYKERN_DEVICE bool next_rows() {
        const int64_t left = task_.batch_size - from_.visited;
        from_.tile.count = (int)(left < room_.s.columns ? left : room_.s.columns);
        if (left > 0) draw_rows(from_.rows, from_.arrivals, from_.visited, from_.tile.count);
        return left > 0;
    }

    // The columns' entries into the tile, and their codes.
    TOYKERN_DEVICE void lay_out_columns(const SmallTile& tile) {
        const SmallShape& s = room_.s;
        b_.each([&](int t) {
            for (int i = 4 * t; i < s.n * s.stride; i += 4 * s.threads()) store_quad(room_.tile() + i, Quad{});
            for (int i = t; kTrain && i < s.n * s.column_warps; i += s.threads()) room_.bits()[i] = 0;
        });
        gather_codes(b_, room_, Options(task_.network), tile);
        b_.sync();  // the tile is cleared before its entries come; the codes are there
        const int first = room_.first()[tile.first], last = room_.first()[tile.first + tile.count];
        b_.each([&](int t) {
            for (int e = first + t; e < last; e += s.threads()) {
                const uint32_t place = room_.place()[e], j = place & 0xFFFFu, c = (place >> 16) - (uint32_t)tile.first;
                room_.tile()[(int)j * s.stride + (int)c] = room_.value()[e];
                if (kTrain) set_bits(room_.bits() + (int)j * s.column_warps + (int)(c >> 5), 1u << (c & 31u));
            }
        });
        b_.sync();  // the targets are there for all
    }

    // From codes and targets to the gradients of decoder, biases and codes.
    TOYKERN_DEVICE void outputs(const SmallTile& tile) {
        if constexpr (kM > 0)
            outputs_fused<kM, kTrain>(b_, room_, Options(task_.network), tile, from_.loss);
        else
            outputs_any<kTrain>(b_, room_, Options(task_.network), tile, from_.loss);
        b_.sync();  // the gradients at the outputs are there, and all their codes have been read
        if (!kTrain) return;
        if (kM == 0) {
            feature_sums(b_, room_, room_.tile(), room_.decoder());
            b_.sync();  // the parts of the codes' gradient are there
        }
        add_decoder_gradient<kM>(b_, room_, tile);
        if (kM == 0 || room_.s.feature_warps > 1) add_parts(b_, room_, Options(task_.network), false);
        b_.sync();  // the codes' gradient is there for the encoder's; decoder's and biases' are done with the tile
    }

    Block b_;
    const SmallTask& task_;
    SmallRoom room_;
    SmallSource& from_;
};

// Whether a model is the tiny regime's.
TOYKERN_DEVICE bool left_alone(const SmallTask& task, int64_t model) {
    const TablesView tables = {task.tables + model * task.tables_stride, &task.layout};
    return task.rows_only && !drawn_as_rows(task.layout, task.data.noise, tables.head());
}
// Whether it is the Gram form's, which knows no activations that are called.
template <class A>
TOYKERN_DEVICE bool left_to_gram(const SmallTask& task, int64_t model) {
    if constexpr (kKeepsSlope<A>) return false;
    const TablesView tables = {task.tables + model * task.tables_stride, &task.layout};
    return gram_takes(task.gram, task.network, task.layout, task.data.noise, tables.head(), task.batch_size);
}

template <int kM, class A>
TOYKERN_DEVICE void train_small_model(const Block& b, const TrainParams& p, const SmallTask& task,
                                      const double* step_scale, const SmallRoom& room, int64_t model) {
    if (p.diverged_at[model] >= 0 || left_alone(task, model) || left_to_gram<A>(task, model)) return;
    SmallSource source(b, task, room, model);
    SmallModel<kM, true, A> m(b, task, room, source);
    load_model(b, room, task, model);
    load_moments(b, room, p, model);
    source.record = LossRecord(p, model);
    for (source.step = p.first_step; source.step < p.first_step + p.steps; ++source.step) {
        const double loss = m.batch((uint32_t)source.step, Purpose::kTraining);
        if (!finish_step<A>(b, room, p, task, source.record, source.model, source.step, step_scale, loss,
                            (float)m.empty()))
            break;
    }
    source.record.close(p, model, b.thread == 0);
    store_model(b, room, p, model);
    b.sync();  // for ptxas alone
}

template <class A>
TOYKERN_DEVICE void evaluate_small_model(const Block& b, const EvaluateParams& p, const SmallTask& task,
                                         const SmallRoom& room, int64_t model) {
    if (left_alone(task, model)) return;
    SmallSource source(b, task, room, model);
    SmallModel<0, false, A> m(b, task, room, source);
    load_model(b, room, task, model);
    double sum = 0.0;
    for (int64_t step = 0; step < p.batches; ++step) sum += m.batch((uint32_t)step, Purpose::kEvaluation);
    if (b.thread == 0) p.loss[model] = sum * task.mean_factor / (double)p.batches;
    b.sync();  // for ptxas alone
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
