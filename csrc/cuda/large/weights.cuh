// Gradients and optimiser for train_large.cuh: a block owns a tile of weights and walks the samples.
//
//   LoadLarge, StoreLarge   between the caller's arrays and a model's slot
//   WeightsLarge            G_D = dᵀ h, G_E = xᵀ dh (tied: their sum), G_b = Σ d, and the update, in place
//
// Layout     [n][mp], bias [n]; the gradient lives in registers. Only where a batch is longer than kChain are sums of
//            kChain samples added up in memory
// Sparse     (tied) where there is no connection the optimiser sees a gradient of 0, so that weight and moments stay 0
// Zeros      the encoder's gradient costs the active entries where the model is sparse; empty samples take part in the
//            bias alone
// Owner      block: features × hidden units of one model (untied: of its encoder or decoder); the first hidden tile
//            owns the bias
// Order      rows in order within kChain of them, then (sparse) entries by sample, then such sums in order: the shape
//            alone
// Roof       n m multiply-adds a row, twice that where dense; 24 bytes of weights and moments a parameter
#pragma once
#include "cuda/large/samples.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// A model's part of the caller's tensor or, from 0, of one of its moments; null where there is none.
TOYKERN_DEVICE float* callers(const LargeTask& t, int64_t model, Role role, int moment) {
    const TensorView& view = tensor_of(t.p, role);
    float* base = moment >= 0 ? view.state[moment] : view.data;
    if (base == nullptr) return nullptr;
    return base + (t.first_model + model) * (role == Role::kBias ? t.size.n : t.size.n * t.size.m);
}

// An element of the slot's tensor, counted so that neighbours are neighbours in the caller's array.
struct WeightAt {
    int64_t slot, caller;  // caller: -1 in the padding
    TOYKERN_DEVICE WeightAt(const LargeSizes& s, Role role, int64_t i) {
        if (role == Role::kBias) {
            slot = i, caller = i < s.n ? i : -1;
            return;
        }
        const bool encoder = role == Role::kEncoder;
        const int64_t j = encoder ? i % s.n : i / s.mp, k = encoder ? i / s.n : i % s.mp;
        slot = j * s.mp + k;
        caller = k >= s.m ? -1 : encoder ? k * s.n + j : j * s.m + k;
    }
    static TOYKERN_DEVICE int64_t count(const LargeSizes& s, Role role) {
        return role == Role::kBias ? s.np : s.n * s.mp;
    }
};

// Elements of the encoder, the decoder and the bias, their moments too, are dealt to the threads of some blocks.
struct MoveLarge {
    static constexpr int kThreads = 256;
    static constexpr int kResident = 4;
    static constexpr int64_t kShared = 0;
    TOYKERN_HD static int64_t blocks(const LargeTask& t) {
        const int64_t blocks = (t.size.n * t.size.mp + 2047) / 2048;
        return blocks < 512 ? blocks : 512;
    }

    // Calls move(the caller's array or null, the slot's, an element) for all of this block.
    template <class Move>
    static TOYKERN_DEVICE void each(const Block& b, const LargeTask& t, const BlockOf& at, int moments,
                                    const Move& move) {
        const LargeSizes& s = t.size;
        for (int32_t number = 0; number < kRoles; ++number) {
            const Role role = (Role)number;
            if (role == Role::kDecoder && s.tied) continue;
            for (int moment = -1; moment < moments; ++moment) {
                float* caller = callers(t, at.model, role, moment);
                float* slot = t.at(at.model, moment < 0 ? s[role].value : s[role].moment[moment]);
                b.each([&](int thread) {
                    const int64_t stride = blocks(t) * kThreads, count = WeightAt::count(s, role);
                    for (int64_t i = at.part * kThreads + thread; i < count; i += stride)
                        move(caller, slot, WeightAt(s, role, i));
                });
            }
        }
    }
};

struct LoadLarge : MoveLarge {
    static constexpr const char* kName = "load_large";

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char*) {
        const LargeSizes& s = t.size;
        const BlockOf at(block, blocks(t));
        each(b, t, at, t.training() ? kMostStates : 0, [](const float* caller, float* slot, const WeightAt& w) {
            slot[w.slot] = caller && w.caller >= 0 ? caller[w.caller] : 0.0f;
        });
        const float* importance = t.p.importance + (t.first_model + at.model) * t.p.importance_stride;
        float* to = t.at(at.model, s.importance);
        b.each([&](int thread) {
            for (int64_t j = at.part * kThreads + thread; j < s.np; j += blocks(t) * kThreads)
                to[j] = j < s.n ? importance[j] : 0.0f;
        });
    }
};

struct StoreLarge : MoveLarge {
    static constexpr const char* kName = "store_large";

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char*) {
        each(b, t, BlockOf(block, blocks(t)), kMostStates, [](float* caller, const float* slot, const WeightAt& w) {
            if (caller && w.caller >= 0) caller[w.caller] = slot[w.slot];
        });
    }
};

template <class T>
struct WeightsLarge {
    static constexpr const char* kName = "weights_large";
    static constexpr int kThreads = T::kThreads;
    // Two warps to each scheduler: the products, the walk over entries and the update together want some 200 registers
    // a thread.
    static constexpr int kResident = 8 * kWarpLanes / kThreads;
    static constexpr int64_t kShared = T::kShared;
    static constexpr int kBiases = T::kRows > kThreads ? T::kRows / kThreads : 1;  // of one thread
    TOYKERN_HD static int64_t blocks(const LargeTask& t) {
        return tiles(t.size.n, T::kRows) * tiles(t.size.mp, T::kColumns) * (t.size.tied ? 1 : 2);
    }

    // Gradients of biases: the terms of samples and of empty samples nearly cancel, so slabs of rows are summed in
    // double.
    struct Biases {
        double v[kBiases];
    };

    static TOYKERN_DEVICE void run(const Block& b, const LargeTask& t, int64_t block, char* shared) {
        const LargeSizes& s = t.size;
        const BlockOf at(block, blocks(t));
        if (t.skips(at.model)) return;
        const int64_t across = tiles(s.mp, T::kColumns), tile = s.tied ? at.part : at.part / 2;
        const bool decoder = s.tied || at.part % 2 == 1, encoder = s.tied || !decoder;
        const Role role = encoder ? Role::kEncoder : Role::kDecoder;  // of the slot's tensors
        const int64_t j0 = tile / across * T::kRows, k0 = tile % across * T::kColumns;
        const bool dense = t.state(at.model).dense;
        const bool with_bias = decoder && k0 == 0 && t.p.network.has_bias;
        const int rows = t.state(at.model).rows;
        PerThread<Quarters> c;
        PerThread<Biases> bias;
        clear(b, c);
        clear_biases(b, bias);
        bool kept = !t.starts;  // sums of earlier samples lie in memory
        for (int r0 = 0;; r0 += (int)kChain) {
            const int depth = (int)(rows - r0 < kChain ? rows - r0 : kChain);
            TOYKERN_NO_UNROLL
            for (int product = 0; product < 2; ++product) {  // dᵀ h, xᵀ dh
                if (product == 0 ? !decoder : !encoder || !dense) continue;
                const float* of_feature = t.at(at.model, product == 0 ? s.d : s.x) + (int64_t)r0 * s.np + j0;
                const float* of_hidden = t.at(at.model, product == 0 ? s.h : s.dh) + (int64_t)r0 * s.mp + k0;
                multiply<T, Lie::kAcross, Lie::kAcross>(b, shared, {of_feature, s.np, s.np - j0, depth},
                                                        {of_hidden, s.mp, s.mp - k0, depth}, c,
                                                        [&](int thread, const float* d) {
                                                            if (product == 0 && with_bias)
                                                                add_biases(bias[thread], thread, d);
                                                        });
            }
            const bool last = r0 + kChain >= rows;
            if (last && encoder && !dense) add_entries(b, t, at.model, j0, k0, c);
            if (last && t.finishes) break;
            keep(b, t, at.model, role, j0, k0, with_bias, kept, c, bias);
            kept = true;
            if (last) return;
        }
        update(b, t, at.model, role, j0, k0, with_bias, kept, c, bias);
    }

  private:
    static TOYKERN_DEVICE void clear_biases(const Block& b, PerThread<Biases>& bias) {
        b.each([&](int thread) {
            TOYKERN_UNROLL
            for (int v = 0; v < kBiases; ++v) bias[thread].v[v] = 0.0;
        });
    }
    // d [kDepth][kRowPitch]: zeros past the last row.
    static TOYKERN_DEVICE void add_biases(Biases& bias, int thread, const float* d) {
        TOYKERN_UNROLL
        for (int v = 0; v < kBiases; ++v) {
            const int i = thread + v * kThreads;
            if (i >= T::kRows) continue;
            float slab = d[i];
            TOYKERN_UNROLL
            for (int k = 1; k < T::kDepth; ++k) slab = slab + d[k * T::kRowPitch + i];
            bias.v[v] = bias.v[v] + (double)slab;
        }
    }

    // The encoder's share of a sparse model: for each of a thread's features its entries, by sample.
    static TOYKERN_DEVICE void add_entries(const Block& b, const LargeTask& t, int64_t model, int64_t j0, int64_t k0,
                                           PerThread<Quarters>& c) {
        const LargeSizes& s = t.size;
        const uint32_t* row_of_sample = t.at<uint32_t>(model, s.row_of_sample);
        const int64_t words = tiles(t.samples(), 32);
        b.each([&](int thread) {
            const int own = unforeseen(thread);
            const int64_t low = k0 + T::column(own, 0), high = k0 + T::column(own, 4);
            TOYKERN_NO_UNROLL
            for (int feature = 0; feature < 8; ++feature) {
                const int64_t j = j0 + T::row(own, feature);
                if (j >= s.n) break;
                const uint32_t* entries = t.at<uint32_t>(model, s.by_feature) + j * s.pw;
                const float* x = t.at(model, s.x) + j;
                float sum[8] = {};
                TOYKERN_NO_UNROLL
                for (int64_t word = 0; word < words; ++word) {
                    TOYKERN_NO_UNROLL
                    for (uint32_t bits = entries[word]; bits; bits &= bits - 1u) {
                        const int64_t sample = 32 * word + lowest_bit(bits);
                        const float value = x[sample * s.np];
                        const float* dh = t.at(model, s.dh) + (int64_t)row_of_sample[sample] * s.mp;
                        if (low < s.mp) add(sum, value, load4(dh + low));
                        if (high < s.mp) add(sum + 4, value, load4(dh + high));
                    }
                }
                TOYKERN_UNROLL
                for (int i = 0; i < 8; ++i) {  // registers have no addresses: all are visited
                    TOYKERN_UNROLL
                    for (int q = 0; q < 8; ++q) c[thread].v[i][q] += i == feature ? sum[q] : 0.0f;
                }
            }
        });
    }
    static TOYKERN_DEVICE void add(float* sum, float value, const Float4& by) {
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) sum[q] = fused(value, by.v[q], sum[q]);
    }

    // Calls f(sum, offset) for each vector of the tile that exists.
    template <class F>
    static TOYKERN_DEVICE void each_sum(const Block& b, const LargeSizes& s, int64_t j0, int64_t k0,
                                        const PerThread<Quarters>& c, const F& f) {
        b.each([&](int thread) {
            each_vector_in_turn(c[thread], thread, [&](int own, int i, int half, const Float4& sum) {
                const int64_t j = j0 + T::row(own, i), k = k0 + T::column(own, 4 * half);
                if (j < s.n && k < s.mp) f(sum, j * s.mp + k);
            });
        });
    }
    // Calls f(thread, v, j) for each feature whose bias is a thread's.
    template <class F>
    static TOYKERN_DEVICE void each_bias(const Block& b, const LargeSizes& s, int64_t j0, const F& f) {
        b.each([&](int thread) {
            TOYKERN_UNROLL
            for (int v = 0; v < kBiases; ++v) {
                const int64_t i = thread + v * kThreads, j = j0 + i;
                if (i < T::kRows && j < s.n) f(thread, v, j);
            }
        });
    }

    // Adds the sums so far to those in memory (`kept`: there are some), and starts new ones.
    static TOYKERN_DEVICE void keep(const Block& b, const LargeTask& t, int64_t model, Role role, int64_t j0,
                                    int64_t k0, bool with_bias, bool kept, PerThread<Quarters>& c,
                                    PerThread<Biases>& bias) {
        float *sums = t.at(model, t.size[role].gradient), *biases = t.at(model, t.size[Role::kBias].gradient);
        each_sum(b, t.size, j0, k0, c, [&](Float4 sum, int64_t at) {
            if (kept) {
                const Float4 before = load4(sums + at);
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) sum.v[q] = before.v[q] + sum.v[q];
            }
            store4(sums + at, sum);
        });
        clear(b, c);
        if (!with_bias) return;
        each_bias(b, t.size, j0, [&](int thread, int v, int64_t j) {
            biases[j] = (float)(kept ? biases[j] + bias[thread].v[v] : bias[thread].v[v]);
        });
        clear_biases(b, bias);
    }

    // Of a sparse model: the gradients of four hidden units of a feature, from `at` of the slot's array on.
    static TOYKERN_DEVICE void keep_connected(const LargeTask& t, int64_t model, int64_t step, int64_t at, Float4& g) {
        const LargeSizes& s = t.size;
        const int64_t j = at / s.mp, k = at % s.mp;
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) {
            if (k + q >= s.m) continue;
            g.v[q] = connected_gradient(t.p, step, ((t.first_model + model) * s.m + k + q) * s.n + j, g.v[q]);
        }
    }

    static TOYKERN_DEVICE void update(const Block& b, const LargeTask& t, int64_t model, Role role, int64_t j0,
                                      int64_t k0, bool with_bias, bool kept, const PerThread<Quarters>& c,
                                      const PerThread<Biases>& bias) {
        const LargeSizes& s = t.size;
        const int64_t step = t.step();
        const UpdateConstants constants =
            update_constants(t.p, t.first_model + model, step, t.step_scale + 3 * (step - t.first_step));
        const float scale = t.gradient_factor();
        const float* sums = t.at(model, s[role].gradient);
        float* weight = t.at(model, s[role].value);
        float *first = t.at(model, s[role].moment[0]), *second = t.at(model, s[role].moment[1]);
        each_sum(b, s, j0, k0, c, [&](const Float4& sum, int64_t at) {
            const Float4 before = kept ? load4(sums + at) : Float4{{0.0f, 0.0f, 0.0f, 0.0f}};
            Float4 value = load4(weight + at), s1 = load4(first + at), s2 = load4(second + at), g;
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) g.v[q] = (before.v[q] + sum.v[q]) * scale;
            if (t.p.connected) keep_connected(t, model, step, at, g);
            if (tensor_of(t.p, role).frozen) return;
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) value.v[q] = updated(constants, value.v[q], g.v[q], s1.v[q], s2.v[q]);
            store4(weight + at, value);
            store4(first + at, s1);
            store4(second + at, s2);
        });
        if (!with_bias || tensor_of(t.p, Role::kBias).frozen) return;
        const LargeSizes::Tensor& place = s[Role::kBias];
        float *value = t.at(model, place.value), *b1 = t.at(model, place.moment[0]), *b2 = t.at(model, place.moment[1]);
        const float *at_empty = t.at(model, s.at_empty), *before = t.at(model, place.gradient);
        const double empty = (double)t.state(model).empty;
        each_bias(b, s, j0, [&](int thread, int v, int64_t j) {
            double sum = bias[thread].v[v];
            if (kept) sum = before[j] + sum;
            sum = fused((double)at_empty[j], empty, sum);
            value[j] = updated(constants, value[j], (float)sum * scale, b1[j], b2[j]);
        });
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
