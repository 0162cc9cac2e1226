// From samples to the gradient at the output and back to the hidden units, for train_large.cuh.
//
//   GatherLarge    sparse: h = f(E x) from the active entries, a warp to a row
//   FeaturesLarge  Σ over features of a row: dense h = E x; backwards dh = d D. Cut into splits of kSplit features
//   JoinLarge      the splits' sums added in order; h = f(…), dh = 0 where h is at the floor
//   CodesLarge     h = f(…) and its slopes, dh f′(…), where f is no floor: the kernels above leave sums then
//   OutputLarge    y = g(D h + b), residual, loss, and the gradient at the output d = 2 c I (y − t) [y > floor],
//                  without 2 c
//   ResidualLarge  the same from z = D h + b where g is no floor: OutputLarge leaves z then
//   LossLarge      the step's loss: records, divergence; or an evaluation's sum. The gradient of an empty sample
//
// Zeros      empty samples are not rows: LossLarge adds their loss, cuda/large/weights.cuh their gradient, in closed
//            form
// Order      entries by feature; features in order within a split, splits in order; hidden units in order after the
//            bias; losses of 64 elements of a thread in order, threads by sum_of_threads, tiles by LossLarge in strides
//            of its threads: the shape alone
// Roof       multiply-adds: n m forward and n m backward a row (and n m for h where dense); d written once, read twice
#pragma once
#include "cuda/large/products.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

TOYKERN_DEVICE int lowest_bit(uint32_t x) { return 31 - leading_zeros(x & (0u - x)); }

struct GatherLarge {
    static constexpr const char* kName = "gather_large";
    static constexpr int kThreads = 256;
    static constexpr int kResident = 4;
    static constexpr int64_t kShared = 0;
    static constexpr int kRows = kThreads / kWarpLanes;
    static constexpr int64_t kHidden = 8 * kWarpLanes;  // hidden units in registers at a time
    TOYKERN_HD static int64_t blocks(const LargeTask& t) { return tiles(t.samples(), kRows); }

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char*) {
        const BlockOf at(block, blocks(t));
        if (t.skips(at.model) || t.state(at.model).dense) return;
        const LargeSizes& s = t.size;
        const int64_t rows = t.state(at.model).rows;
        const auto hidden = t.hidden_floor();
        const float* encoder = t.at(at.model, s[Role::kEncoder].value);
        b.each_warp([&](const Warp& w) {
            const int64_t row = at.part * kRows + w.number;
            if (row >= rows) return;
            const int64_t sample = t.at<uint32_t>(at.model, s.sample_of_row)[row];
            const uint32_t* active = t.at<uint32_t>(at.model, s.active) + sample * s.nw;
            const float* x = t.at(at.model, s.x) + sample * s.np;
            float* h = t.at(at.model, s.h) + row * s.mp;
            TOYKERN_NO_UNROLL
            for (int64_t k0 = 0; k0 < s.mp; k0 += kHidden) {
                Lane<Float4> low, high;  // units k0 + 4 lane …, k0 + 128 + 4 lane …
                w.each([&](int lane) { low[lane] = high[lane] = {{0.0f, 0.0f, 0.0f, 0.0f}}; });
                TOYKERN_NO_UNROLL
                for (int64_t first = 0; first < s.nw; first += kWarpLanes) {
                    Lane<uint32_t> words;
                    Lane<bool> busy;
                    w.each([&](int lane) {
                        words[lane] = first + lane < s.nw ? active[first + lane] : 0u;
                        busy[lane] = words[lane] != 0u;
                    });
                    TOYKERN_NO_UNROLL
                    for (uint32_t left = w.ballot(busy); left; left &= left - 1u) {
                        const int number = lowest_bit(left);
                        TOYKERN_NO_UNROLL
                        for (uint32_t bits = w.broadcast(words, number)[w.lane]; bits; bits &= bits - 1u) {
                            const int64_t j = 32 * (first + number) + lowest_bit(bits);
                            const float value = x[j];
                            const float* from = encoder + j * s.mp + k0;
                            w.each([&](int lane) {
                                if (k0 + 4 * lane < s.mp) add(low[lane], value, from + 4 * lane);
                                if (k0 + 128 + 4 * lane < s.mp) add(high[lane], value, from + 128 + 4 * lane);
                            });
                        }
                    }
                }
                w.each([&](int lane) {
                    if (k0 + 4 * lane < s.mp) put(h + k0 + 4 * lane, hidden, low[lane]);
                    if (k0 + 128 + 4 * lane < s.mp) put(h + k0 + 128 + 4 * lane, hidden, high[lane]);
                });
            }
        });
    }

  private:
    static TOYKERN_DEVICE void add(Float4& sum, float value, const float* from) {
        const Float4 weight = load4(from);
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) sum.v[q] = fused(value, weight.v[q], sum.v[q]);
    }
    static TOYKERN_DEVICE void put(float* to, const FloorActivation<float>& hidden, Float4 sum) {
        float slope;
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) sum.v[q] = hidden.value(sum.v[q], slope);
        store4(to, sum);
    }
};

// What becomes of a finished sum over features: forwards h, backwards dh.
TOYKERN_DEVICE void finish_hidden(const LargeTask& t, int64_t model, int64_t row, int64_t k, Float4 sum) {
    const LargeSizes& s = t.size;
    const auto hidden = t.hidden_floor();
    const int64_t at = row * s.mp + k;
    float slope = 0.0f;
    if (t.back) {
        const Float4 h = load4(t.at(model, s.h) + at);
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) sum.v[q] = hidden.back(h.v[q], slope, sum.v[q]);
        store4(t.at(model, s.dh) + at, sum);
    } else {
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) sum.v[q] = hidden.value(sum.v[q], slope);
        store4(t.at(model, s.h) + at, sum);
    }
}

TOYKERN_DEVICE bool takes_features(const LargeTask& t, int64_t model) {
    return !t.skips(model) && (t.back || t.state(model).dense);
}

template <class T>
struct FeaturesLarge {
    static constexpr const char* kName = "features_large";
    static constexpr int kThreads = T::kThreads;
    static constexpr int kResident = T::kResident;
    static constexpr int64_t kShared = T::kShared;
    TOYKERN_HD static int64_t blocks(const LargeTask& t) {
        return tiles(t.samples(), T::kRows) * tiles(t.size.mp, T::kColumns) * t.size.splits;
    }

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char* shared) {
        const LargeSizes& s = t.size;
        const BlockOf at(block, blocks(t));
        if (!takes_features(t, at.model)) return;
        const int64_t across = tiles(s.mp, T::kColumns), rows = t.state(at.model).rows;
        const int64_t split = at.part % s.splits, tile = at.part / s.splits;
        const int64_t row0 = tile / across * T::kRows, k0 = tile % across * T::kColumns, j0 = split * kSplit;
        if (row0 >= rows) return;
        const float* x = t.at(at.model, t.back ? s.d : s.x);
        const float* weight = t.at(at.model, s[t.back ? Role::kDecoder : Role::kEncoder].value);
        PerThread<Quarters> c;
        clear(b, c);
        const int64_t depth = s.n - j0 < kSplit ? s.n - j0 : kSplit;
        multiply<T, Lie::kAlong, Lie::kAcross>(b, shared, {x + row0 * s.np + j0, s.np, rows - row0, depth},
                                               {weight + j0 * s.mp + k0, s.mp, s.mp - k0, depth}, c);
        float* parts = t.at(at.model, s.parts) + split * s.piece * s.mp;
        b.each([&](int thread) {
            each_vector(c[thread], thread, [&](int own, int i, int half, const Float4& sum) {
                const int64_t row = row0 + T::row(own, i), k = k0 + T::column(own, 4 * half);
                if (row >= rows || k >= s.mp) return;
                if (s.splits == 1)
                    finish_hidden(t, at.model, row, k, sum);
                else
                    store4(parts + row * s.mp + k, sum);
            });
        });
    }
};

struct JoinLarge {
    static constexpr const char* kName = "join_large";
    static constexpr int kThreads = 256;
    static constexpr int kResident = 4;
    static constexpr int64_t kShared = 0;
    TOYKERN_HD static int64_t blocks(const LargeTask& t) { return tiles(t.samples() * t.size.mp / 4, kThreads); }

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char*) {
        const LargeSizes& s = t.size;
        const BlockOf at(block, blocks(t));
        if (!takes_features(t, at.model)) return;
        const float* parts = t.at(at.model, s.parts);
        b.each([&](int thread) {
            const int64_t i = 4 * (at.part * kThreads + thread);
            if (i >= t.state(at.model).rows * s.mp) return;
            Float4 sum = load4(parts + i);
            TOYKERN_NO_UNROLL
            for (int64_t split = 1; split < s.splits; ++split) {
                const Float4 part = load4(parts + split * s.piece * s.mp + i);
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) sum.v[q] = sum.v[q] + part.v[q];
            }
            finish_hidden(t, at.model, i / s.mp, i % s.mp, sum);
        });
    }
};

// Of an activation that is no floor: all codes of the rows, in place.
struct CodesLarge {
    static constexpr const char* kName = "codes_large";
    static constexpr int kThreads = 256;
    static constexpr int kResident = 4;
    static constexpr int64_t kShared = 0;
    TOYKERN_HD static int64_t blocks(const LargeTask& t) { return tiles(t.samples() * t.size.mp, kThreads); }

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char*) {
        const LargeSizes& s = t.size;
        const BlockOf at(block, blocks(t));
        if (t.skips(at.model)) return;
        const auto hidden = t.hidden();
        float *h = t.at(at.model, s.h), *dh = t.at(at.model, s.dh), *slope = t.at(at.model, s.slope);
        b.each([&](int thread) {
            const int64_t i = at.part * kThreads + thread;
            if (i >= t.state(at.model).rows * s.mp) return;
            if (t.back)
                dh[i] = hidden.back(h[i], slope[i], dh[i]);
            else
                h[i] = hidden.value(h[i], slope[i]);
        });
    }
};

// kFloor: g is a floor; else z is all that is made.
template <class T, bool kFloor>
struct OutputLarge {
    static constexpr const char* kName = "output_large";
    static constexpr int kThreads = T::kThreads;
    static constexpr int kResident = T::kResident;
    static constexpr int64_t kShared = T::kShared;
    TOYKERN_HD static int64_t blocks(const LargeTask& t) {
        return tiles(t.samples(), T::kRows) * tiles(t.size.np, T::kColumns);
    }

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char* shared) {
        const LargeSizes& s = t.size;
        const BlockOf at(block, blocks(t));
        if (t.skips(at.model)) return;
        const int64_t across = tiles(s.np, T::kColumns), rows = t.state(at.model).rows;
        const int64_t row0 = at.part / across * T::kRows, j0 = at.part % across * T::kColumns;
        if (row0 >= rows) return;
        const float* bias = t.at(at.model, s[Role::kBias].value);
        PerThread<Quarters> c;
        b.each([&](int thread) {
            TOYKERN_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int64_t j = j0 + T::column(thread, 4 * half);
                const Float4 start = j < s.np ? load4(bias + j) : Float4{{0.0f, 0.0f, 0.0f, 0.0f}};
                TOYKERN_UNROLL
                for (int i = 0; i < 8; ++i) {
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q) c[thread].v[i][4 * half + q] = start.v[q];
                }
            }
        });
        multiply<T, Lie::kAlong, Lie::kAlong>(
            b, shared, {t.at(at.model, s.h) + row0 * s.mp, s.mp, rows - row0, s.mp},
            {t.at(at.model, s[Role::kDecoder].value) + j0 * s.mp, s.mp, s.n - j0, s.mp}, c);

        if constexpr (!kFloor) {
            float* z = t.at(at.model, s.z);
            b.each([&](int thread) {
                each_vector(c[thread], thread, [&](int own, int i, int half, const Float4& sum) {
                    const int64_t row = row0 + T::row(own, i), j = j0 + T::column(own, 4 * half);
                    if (row < rows && j < s.np) store4(z + row * s.np + j, sum);
                });
            });
            return;
        }
        const bool dense = t.state(at.model).dense, training = t.training();
        const auto output = t.output_floor();
        const AnyLoss loss_function = t.loss();
        const uint32_t bits_of_target = target_bits(t.p.network.target);
        const float* importance = t.at(at.model, s.importance);
        const float* x = t.at(at.model, dense && t.noisy() ? s.d : s.x);
        const uint32_t* active = t.at<uint32_t>(at.model, s.active);
        const uint32_t* sample_of_row = t.at<uint32_t>(at.model, s.sample_of_row);
        float* d = t.at(at.model, s.d);
        PerThread<double> loss;
        b.each([&](int thread) {
            float sum = 0.0f;
            each_vector(c[thread], thread, [&](int own, int i, int half, const Float4& z) {
                const int64_t row = row0 + T::row(own, i), j = j0 + T::column(own, 4 * half);
                if (row >= rows || j >= s.np) return;
                Float4 target = {{0.0f, 0.0f, 0.0f, 0.0f}};
                if (dense) {
                    target = load4(x + row * s.np + j);
                } else {
                    const int64_t sample = sample_of_row[row];
                    const uint32_t bits = active[sample * s.nw + (j >> 5)] >> (j & 31);
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q)
                        if (bits >> q & 1u) target.v[q] = x[sample * s.np + j + q];
                }
                const Float4 weight = load4(importance + j);
                Float4 gradient;
                float slope;
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) {
                    const float error = output.value(z.v[q], slope) - keep_bits(target.v[q], bits_of_target);
                    gradient.v[q] = output.back(z.v[q], slope, loss_function.add_to(sum, error, weight.v[q]));
                }
                if (training) store4(d + row * s.np + j, gradient);
            });
            loss[thread] = (double)sum;
        });
        const double sum = sum_of_threads(b, loss, shared);
        b.each([&](int thread) {
            if (thread == 0) t.at<double>(at.model, s.loss)[at.part] = sum;
        });
    }
};

// A block to a tile of OutputLarge; a thread's elements in order.
//
// The lines that find a tile's place and an element's target are OutputLarge's again, on purpose: there a thread holds
// four neighbours of a product in registers and looks four bits up at once, here one element of memory. A function for
// both would take a dozen arguments and either lose the four loads or be told which of the two it serves.
template <class T>
struct ResidualLarge {
    static constexpr const char* kName = "residual_large";
    static constexpr int kThreads = 256;
    static constexpr int kResident = 4;
    static constexpr int64_t kShared = 32 * 8;
    TOYKERN_HD static int64_t blocks(const LargeTask& t) {
        return tiles(t.samples(), T::kRows) * tiles(t.size.np, T::kColumns);
    }

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char* shared) {
        const LargeSizes& s = t.size;
        const BlockOf at(block, blocks(t));
        if (t.skips(at.model)) return;
        const int64_t across = tiles(s.np, T::kColumns), rows = t.state(at.model).rows;
        const int64_t row0 = at.part / across * T::kRows, j0 = at.part % across * T::kColumns;
        if (row0 >= rows) return;
        const bool dense = t.state(at.model).dense;
        const auto output = t.output();
        const AnyLoss loss_function = t.loss();
        const uint32_t bits_of_target = target_bits(t.p.network.target);
        const float *importance = t.at(at.model, s.importance), *z = t.at(at.model, s.z);
        const float* x = t.at(at.model, dense && t.noisy() ? s.d : s.x);
        const uint32_t* active = t.at<uint32_t>(at.model, s.active);
        const uint32_t* sample_of_row = t.at<uint32_t>(at.model, s.sample_of_row);
        float* d = t.at(at.model, s.d);
        PerThread<double> loss;
        b.each([&](int thread) {
            float sum = 0.0f;
            TOYKERN_NO_UNROLL
            for (int i = thread; i < T::kRows * T::kColumns; i += kThreads) {
                const int64_t row = row0 + i / T::kColumns, j = j0 + i % T::kColumns, here = row * s.np + j;
                if (row >= rows || j >= s.np) continue;
                float target = 0.0f, slope;
                if (dense) {
                    target = x[here];
                } else {
                    const int64_t sample = sample_of_row[row];
                    if (active[sample * s.nw + (j >> 5)] >> (j & 31) & 1u) target = x[sample * s.np + j];
                }
                const float error = output.value(z[here], slope) - keep_bits(target, bits_of_target);
                d[here] = output.back(z[here], slope, loss_function.add_to(sum, error, importance[j]));
            }
            loss[thread] = (double)sum;
        });
        const double sum = sum_of_threads(b, loss, shared);
        b.each([&](int thread) {
            if (thread == 0) t.at<double>(at.model, s.loss)[at.part] = sum;
        });
    }
};

// T is the tile of OutputLarge (or ResidualLarge), whose sums are added here.
template <class T>
struct LossLarge {
    static constexpr const char* kName = "loss_large";
    static constexpr int kThreads = 256;
    static constexpr int kResident = 4;
    static constexpr int64_t kShared = 32 * 8;
    static int64_t blocks(const LargeTask&) { return 1; }

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t model, char* shared) {
        if (t.skips(model)) return;
        const LargeSizes& s = t.size;
        LargeState& state = t.state(model);
        const int64_t rows = state.rows, sums = tiles(rows, T::kRows) * tiles(s.np, T::kColumns);
        const double empty = (double)(t.samples() - rows);
        const bool updates = t.training() && t.finishes;
        const auto output = t.output();
        const AnyLoss loss_function = t.loss();
        const double* of_tile = t.at<double>(model, s.loss);
        const float *bias = t.at(model, s[Role::kBias].value), *importance = t.at(model, s.importance);
        float* at_empty = t.at(model, s.at_empty);
        PerThread<double> loss;
        b.each([&](int thread) {
            double sum = 0.0;
            for (int64_t i = thread; i < sums; i += kThreads) sum += of_tile[i];
            if (empty > 0.0 || updates) {
                double one = 0.0;
                for (int64_t j = thread; j < s.np; j += kThreads) {
                    float slope;
                    const float y = output.value(bias[j], slope), back = loss_function.slope(y, importance[j]);
                    one = loss_function.add((double)y, (double)back, (double)importance[j], one);
                    if (updates) at_empty[j] = output.back(bias[j], slope, back);
                }
                if (empty > 0.0) sum += one * empty;
            }
            loss[thread] = sum;
        });
        const double sum = sum_of_threads(b, loss, shared);
        b.each([&](int thread) {
            if (thread != 0) return;
            const bool fresh = t.training() && t.starts;
            state.loss = (fresh ? 0.0 : state.loss) + sum;
            state.empty = (fresh ? 0 : state.empty) + t.samples() - rows;
            if (!t.finishes) return;
            const int64_t step = t.step();
            if (t.training()) {
                TrainParams one_step = t.p;
                one_step.first_step = step;
                LossRecord record(one_step, t.first_model + model);
                record.add(one_step, t.first_model + model, step, state.loss * t.mean_factor(), true);
                record.close(one_step, t.first_model + model, true);
            } else if (step + 1 == t.batches) {
                t.mean_loss[t.first_model + model] = state.loss * t.mean_factor() / (double)t.batches;
            }
        });
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
