// The autoencoder layer for many small models: forward, loss and every gradient of a model's batch in one launch.
//
//   a = E (x − b·centered) + c, h = f(a), z = D h + b, y = g(z), loss = scale Σ I (t − y)² + l1 Σ |h|, gradients by the
//   chain rule
//
// Owner      a block to up to 512 samples of one model; weights, gradients and a tile of 32 samples in shared memory,
//            [feature][sample]; in products over features or hidden units a lane has a sample, in the weights'
//            gradients a thread an element of them
// Zeros      a word a feature says which of the 32 samples have an input, another which have a gradient: encoding and
//            dh skip features whose word is 0, the weights' gradients go from set bit to set bit
// Order      within a tile sums over features and hidden units rise, sums over samples fall; tiles, then slices of 512
//            in order: by the shape alone. No atomics.
// Limits     99 KiB of shared memory, 64 KiB on sm_75 (stacked_fits: n·m up to some thousands; less where x or a target takes a
//            gradient); larger networks go through tk's large path
// Entries    an entry or a row outside its bounds makes the sample NaN and touches nothing else
// Roof       reading x and writing the gradients; not measured on a GPU
#pragma once
#include "cuda/layer/shape.h"
#include "cuda/layer/values.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

struct StackedTask {
    LayerParams p;
    LayerLaunch l;
    StackedShape s;
};

constexpr int kP = kStackedPitch;

// Element e of a model's sums (encoder, decoder, bias, hidden bias, loss) to where the caller wants it.
template <class T>
TOYKERN_DEVICE void put_stacked_sum(const StackedTask& t, int64_t model, int64_t e, float value) {
    const LayerParams& p = t.p;
    const int64_t n = t.s.n, m = t.s.m, cells = n * m;
    if (e < cells) {
        if (p.encoder_grad) static_cast<T*>(p.encoder_grad)[model * cells + e] = stored<T>(value);
        return;
    }
    e -= cells;
    if (!p.tied) {
        if (e < cells) {
            if (p.decoder_grad) static_cast<T*>(p.decoder_grad)[model * cells + e] = stored<T>(value);
            return;
        }
        e -= cells;
    }
    if (e < n) {
        if (p.bias_grad) static_cast<T*>(p.bias_grad)[model * n + e] = stored<T>(value);
    } else if (e < n + m) {
        if (p.hidden_bias_grad) static_cast<T*>(p.hidden_bias_grad)[model * m + e - n] = stored<T>(value);
    } else if (t.l.loss) {
        t.l.loss[model] = value;
    }
}

// The sums of a group's slices, in order; `i` counts models and elements.
template <class T>
TOYKERN_DEVICE void add_stacked_slices(const StackedTask& t, int64_t i) {
    const int64_t model = i / t.s.partial, e = i % t.s.partial;
    const int64_t weights = (int64_t)t.s.n * t.s.m * (t.p.tied ? 1 : 2);
    if (!t.p.encoder_grad && e < weights) return;  // nobody has written these
    const float* from = t.l.partial + model * t.s.slices * t.s.partial + e;
    float sum = from[0];
    for (int64_t slice = 1; slice < t.s.slices; ++slice) sum += from[slice * t.s.partial];
    put_stacked_sum<T>(t, t.l.first_model + model, e, sum);
}

template <class T>
struct Stacked {
    const StackedTask& t;
    const LayerParams& p;
    const StackedShape& s;
    float* f;  // shared memory
    int64_t model, slice;
    int n, m;
    bool gradients, direct;
    AnyActivation<float> hidden, outer;

    TOYKERN_DEVICE Stacked(const StackedTask& task, int64_t block, char* shared)
        : t(task), p(task.p), s(task.s), f(reinterpret_cast<float*>(shared)) {
        model = t.l.first_model + block / s.slices, slice = block % s.slices;
        n = s.n, m = s.m;
        gradients = p.encoder_grad != nullptr;
        direct = p.x_grad || p.value_grad || p.target_grad;
        hidden = hidden_of(p), outer = output_of(p);
    }
    TOYKERN_DEVICE uint32_t* words(int at) const { return reinterpret_cast<uint32_t*>(f + at); }
    TOYKERN_DEVICE bool task_is(LayerTask task) const { return p.task == (int32_t)task; }
    TOYKERN_DEVICE bool code_part() const { return gradients || p.x_grad || p.value_grad; }

    TOYKERN_DEVICE void run(const Block& b) {
        load_weights(b);
        PerThread<float> losses, magnitudes;
        b.each([&](int thread) { losses[thread] = magnitudes[thread] = 0.0f; });
        const int64_t first = slice * s.slice_rows;
        const int64_t end = min_of(first + s.slice_rows, p.batch);
        for (int64_t row = first; row < end; row += kWarpLanes) {
            const int rows = (int)min_of<int64_t>(kWarpLanes, end - row);
            load_rows(b, row, rows);
            encode(b, rows, magnitudes);
            decode(b, row, rows, losses);
            if (task_is(LayerTask::kForward)) {
                write_tile(b, s.z, static_cast<T*>(p.output), row, rows);
                continue;
            }
            if (code_part()) code_gradients(b, rows);
            if (gradients) weight_gradients(b);
            if (direct) direct_gradients(b, row, rows);
        }
        if (!task_is(LayerTask::kForward)) finish(b, losses, magnitudes);
    }

    TOYKERN_DEVICE void load_weights(const Block& b) const {
        const int64_t cells = (int64_t)n * m;
        const T* encoder = array_at<T>(p.encoder, model * cells);
        const T* decoder = array_at<T>(p.decoder, model * cells);
        const T* bias = array_at<T>(p.bias, model * n);
        const float* importance = array_at<float>(p.importance, model * p.importance_stride);
        b.each([&](int thread) {
            for (int e = thread; e < n * m; e += b.threads) {
                const int k = e / n, j = e - k * n;
                f[s.encoder + j * m + k] = number(encoder[e]);
                if (!p.tied) f[s.decoder + e] = number(decoder[e]);
                if (gradients) f[s.encoder_sum + e] = 0.0f;
                if (gradients && !p.tied) f[s.decoder_sum + e] = 0.0f;
            }
            for (int j = thread; j < n; j += b.threads) {
                f[s.bias + j] = bias ? number(bias[j]) : 0.0f;
                f[s.importance + j] = importance ? importance[j] : 1.0f;
                f[s.bias_sum + j] = 0.0f;
            }
            for (int k = thread; k < m; k += b.threads) f[s.code_sum + k] = 0.0f;
        });
        b.sync();  // the weights are there for all
        const T* code_bias = array_at<T>(p.hidden_bias, model * m);
        b.each([&](int thread) {
            for (int k = thread; k < m; k += b.threads) {
                float c = code_bias ? number(code_bias[k]) : 0.0f;
                if (t.l.centered)
                    for (int j = 0; j < n; ++j) c = fused(-f[s.encoder + j * m + k], f[s.bias + j], c);
                f[s.code_bias + k] = c;
            }
        });
        // No barrier: load_rows has some before the codes are made, and without rows nothing reads these.
    }

    // Inputs, and targets or output gradients, of the tile's samples; zeros behind the last. Then the words of x.
    TOYKERN_DEVICE void load_rows(const Block& b, int64_t row, int rows) const {
        const int64_t at = row * n;
        const T* x = array_at<T>(p.x, model * p.x_stride + at);
        const T* given = nullptr;
        if (task_is(LayerTask::kBackward)) given = array_at<T>(p.output_grad, model * p.batch * n + at);
        if (task_is(LayerTask::kLoss)) given = array_at<T>(p.target_values, model * p.target_stride + at);
        b.each([&](int thread) {
            for (int i = thread; i < kWarpLanes * n; i += b.threads) {
                const int r = i / n, to = (i - r * n) * kP + r;
                f[s.x + to] = x && r < rows ? number(x[i]) : 0.0f;
                if (given) f[s.given + to] = r < rows ? number(given[i]) : 0.0f;
            }
        });
        b.sync();  // inputs and targets are there; the tile before is done with
        if (!x) {
            b.each([&](int thread) {
                for (int r = thread; r < rows; r += b.threads) {
                    const EntryRange in = entries_of(p.row_start + model * p.row_stride, row + r, t.l.entries);
                    if (in.broken) f[s.x + r] = not_a_number();
                    for (int64_t e = in.first; e < in.last; ++e) {
                        const uint32_t j = (uint32_t)p.feature[e];
                        if (j < (uint32_t)n)
                            f[s.x + (int)j * kP + r] = number(static_cast<const T*>(p.value)[e]);
                        else
                            f[s.x + r] = not_a_number();
                    }
                }
            });
            b.sync();  // so are the entries
        }
        b.each_warp([&](const Warp& w) {
            for (int j = w.number; j < n; j += b.warps()) {
                Lane<bool> on;
                w.each([&](int lane) { on[lane] = f[s.x + j * kP + lane] != 0.0f; });
                put_word(w, words(s.x_mask) + j, on);
            }
        });
        b.sync();  // and the words
    }
    static TOYKERN_DEVICE void put_word(const Warp& w, uint32_t* to, const Lane<bool>& on) {
        const uint32_t word = w.ballot(on);
        w.each([&](int lane) {
            if (lane == 0) *to = word;
        });
    }

    TOYKERN_DEVICE void encode(const Block& b, int rows, PerThread<float>& magnitudes) const {
        const bool top = p.hidden_activation == (int32_t)Activation::kTopK;
        b.each_warp([&](const Warp& w) {
            for (int k0 = 4 * w.number; k0 < m; k0 += 4 * b.warps()) {
                const int k1 = min_of(k0 + 1, m - 1), k2 = min_of(k0 + 2, m - 1), k3 = min_of(k0 + 3, m - 1);
                w.each([&](int lane) {
                    float a[4] = {f[s.code_bias + k0], f[s.code_bias + k1], f[s.code_bias + k2], f[s.code_bias + k3]};
                    for (int j = 0; j < n; ++j) {
                        if (!words(s.x_mask)[j]) continue;
                        const float x = f[s.x + j * kP + lane];
                        const float* e = f + s.encoder + j * m;
                        a[0] = fused(x, e[k0], a[0]), a[1] = fused(x, e[k1], a[1]);
                        a[2] = fused(x, e[k2], a[2]), a[3] = fused(x, e[k3], a[3]);
                    }
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q)
                        if (k0 + q < m) f[s.codes + (k0 + q) * kP + lane] = a[q];
                });
            }
        });
        b.sync();   // the pre-activations of all units are there
        if (top) {  // a code stays if fewer than top_k others are larger, or equal and before it
            b.each_warp([&](const Warp& w) {
                for (int k = w.number; k < m; k += b.warps()) {
                    Lane<bool> on;
                    w.each([&](int lane) {
                        const uint32_t own = rank_of(f[s.codes + k * kP + lane]);
                        int64_t before = 0;
                        for (int i = 0; i < m; ++i) {
                            const uint32_t other = rank_of(f[s.codes + i * kP + lane]);
                            before += other > own || (other == own && i < k);
                        }
                        on[lane] = lane < rows && before < p.top_k;
                    });
                    put_word(w, words(s.code_mask) + k, on);
                }
            });
            b.sync();  // the words of the largest codes are there; all have compared with the others
        }
        b.each_warp([&](const Warp& w) {
            for (int k = w.number; k < m; k += b.warps()) {
                Lane<bool> on;
                w.each([&](int lane) {
                    float& h = f[s.codes + k * kP + lane];
                    const Activated<float> a = hidden.at(h);
                    const bool here = lane < rows && (!top || (words(s.code_mask)[k] >> lane & 1));
                    on[lane] = here && hidden.on(h, a.slope);
                    h = here ? a.y : 0.0f;
                    if (!hidden.selects) f[s.slope + k * kP + lane] = a.slope;
                    if (p.l1) magnitudes[w.number * kWarpLanes + lane] += magnitude_of(h);
                });
                if (top) w.sync();  // all lanes have read the word before it is written anew
                put_word(w, words(s.code_mask) + k, on);
            }
        });
        b.sync();  // the codes are final
    }

    TOYKERN_DEVICE void decode(const Block& b, [[maybe_unused]] int64_t row, int rows, PerThread<float>& losses) const {
        b.each_warp([&](const Warp& w) {
            for (int j0 = 4 * w.number; j0 < n; j0 += 4 * b.warps()) {
                const int js[4] = {j0, min_of(j0 + 1, n - 1), min_of(j0 + 2, n - 1), min_of(j0 + 3, n - 1)};
                Lane<bool> on[4];
                w.each([&](int lane) {
                    float z[4] = {f[s.bias + js[0]], f[s.bias + js[1]], f[s.bias + js[2]], f[s.bias + js[3]]};
                    for (int k = 0; k < m; ++k) {
                        const float h = f[s.codes + k * kP + lane];
                        TOYKERN_UNROLL
                        for (int q = 0; q < 4; ++q) z[q] = fused(h, f[s.decoder + js[q] * m + k], z[q]);
                    }
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q) {
                        on[q][lane] = false;
                        if (j0 + q < n)
                            on[q][lane] = output(lane < rows, (j0 + q) * kP + lane, j0 + q, z[q],
                                                 losses[w.number * kWarpLanes + lane]);
                    }
                });
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q)
                    if (j0 + q < n) put_word(w, words(s.z_mask) + j0 + q, on[q]);
            }
        });
        b.sync();  // the gradients at the outputs, or the outputs, are there
    }
    // One output; says whether it has a gradient.
    TOYKERN_DEVICE bool output(bool here, int at, int j, float z, float& own_loss) const {
        float dz = 0.0f, to_given = 0.0f;
        const Activated<float> a = outer.at(z);
        if (task_is(LayerTask::kForward)) {
            f[s.z + at] = a.y;
            return false;
        }
        if (here && task_is(LayerTask::kBackward)) {
            dz = f[s.given + at] * a.slope;
        } else if (here) {
            const bool tensor = p.target == (int32_t)Target::kTensor;
            const OutputLoss loss = output_loss(p, outer, a, f[(tensor ? s.given : s.x) + at], f[s.importance + j]);
            own_loss += loss.own;
            dz = loss.dz, to_given = loss.direct;
        }
        f[s.z + at] = dz;
        if (direct) f[s.direct + at] = to_given;
        return dz != 0.0f;
    }

    TOYKERN_DEVICE void code_gradients(const Block& b, int rows) const {
        const float l1 = p.l1 ? array_at<float>(p.l1, model * p.l1_stride)[0] * (float)p.l1_scale : 0.0f;
        b.each_warp([&](const Warp& w) {
            for (int k0 = 4 * w.number; k0 < m; k0 += 4 * b.warps()) {
                const int ks[4] = {k0, min_of(k0 + 1, m - 1), min_of(k0 + 2, m - 1), min_of(k0 + 3, m - 1)};
                w.each([&](int lane) {
                    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                    for (int j = 0; j < n; ++j) {
                        if (!words(s.z_mask)[j]) continue;
                        const float dz = f[s.z + j * kP + lane];
                        TOYKERN_UNROLL
                        for (int q = 0; q < 4; ++q) d[q] = fused(dz, f[s.decoder + j * m + ks[q]], d[q]);
                    }
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q) {
                        if (k0 + q >= m) continue;
                        const bool on = lane < rows && (words(s.code_mask)[k0 + q] >> lane & 1);
                        const float h = f[s.codes + (k0 + q) * kP + lane];
                        const float da = on ? fused(l1, sign_of(h), d[q]) : 0.0f;
                        f[s.code_grad + (k0 + q) * kP + lane] =
                            hidden.selects ? da : da * f[s.slope + (k0 + q) * kP + lane];
                    }
                });
            }
        });
        b.sync();  // the codes' gradients are there
    }

    TOYKERN_DEVICE void weight_gradients(const Block& b) const {
        b.each([&](int thread) {
            for (int e = thread; e < n * m; e += b.threads) {
                const int k = e / n, j = e - k * n;
                const float *da = f + s.code_grad + k * kP, *h = f + s.codes + k * kP;
                float sum = f[s.encoder_sum + e];
                for (uint32_t bits = words(s.x_mask)[j]; bits;) {
                    const int r = 31 - leading_zeros(bits);
                    bits ^= 1u << r;
                    sum = fused(da[r], f[s.x + j * kP + r], sum);
                }
                float& decoder = p.tied ? sum : f[s.decoder_sum + j * m + k];
                for (uint32_t bits = words(s.z_mask)[j]; bits;) {
                    const int r = 31 - leading_zeros(bits);
                    bits ^= 1u << r;
                    decoder = fused(h[r], f[s.z + j * kP + r], decoder);
                }
                f[s.encoder_sum + e] = sum;
            }
            for (int j = thread; j < n; j += b.threads)
                for (uint32_t bits = words(s.z_mask)[j]; bits;) {
                    const int r = 31 - leading_zeros(bits);
                    bits ^= 1u << r;
                    f[s.bias_sum + j] += f[s.z + j * kP + r];
                }
            for (int k = thread; k < m; k += b.threads)
                for (int r = 0; r < kWarpLanes; ++r) f[s.code_sum + k] += f[s.code_grad + k * kP + r];
        });
        b.sync();  // the tile has been read before the next one comes
    }

    // x_grad, value_grad, target_grad. Only one of the first two and the last can be wanted at once with a tile of
    // their own: the target goes out before the code's part is added to x, which then has no part of its own.
    TOYKERN_DEVICE void direct_gradients(const Block& b, int64_t row, int rows) const {
        if (p.target_grad) write_tile(b, s.direct, static_cast<T*>(p.target_grad), row, rows);
        if (!p.x_grad && !p.value_grad) return;
        const bool tensor = p.target == (int32_t)Target::kTensor;
        b.each_warp([&](const Warp& w) {
            for (int j = w.number; j < n; j += b.warps()) {
                w.each([&](int lane) {
                    float& d = f[s.direct + j * kP + lane];
                    float sum = tensor ? 0.0f : d;
                    for (int k = 0; k < m; ++k)
                        sum = fused(f[s.code_grad + k * kP + lane], f[s.encoder + j * m + k], sum);
                    d = sum;
                });
            }
        });
        b.sync();  // the gradients at x are there before other threads write them out
        if (p.x_grad) return write_tile(b, s.direct, static_cast<T*>(p.x_grad), row, rows);
        b.each([&](int thread) {
            for (int r = thread; r < rows; r += b.threads) {
                const EntryRange in = entries_of(p.row_start + model * p.row_stride, row + r, t.l.entries);
                for (int64_t e = in.first; e < in.last; ++e) {
                    const uint32_t j = (uint32_t)p.feature[e];
                    static_cast<T*>(p.value_grad)[model * p.value_grad_stride + e] =
                        stored<T>(j < (uint32_t)n ? f[s.direct + (int)j * kP + r] : not_a_number());
                }
            }
        });
        // No barrier: load_rows has some before the next tile's `direct` is made.
    }

    TOYKERN_DEVICE void write_tile(const Block& b, int tile, T* to, int64_t row, int rows) const {
        to += (model * p.batch + row) * n;
        b.each([&](int thread) {
            for (int i = thread; i < rows * n; i += b.threads) {
                const int r = i / n;
                to[i] = stored<T>(f[tile + (i - r * n) * kP + r]);
            }
        });
        b.sync();  // the tile has been written out before it changes
    }

    TOYKERN_DEVICE void finish(const Block& b, PerThread<float>& losses, PerThread<float>& magnitudes) const {
        float* sums = f + s.sums;
        float loss = 0.0f;
        if (t.l.loss) {
            sum_of_block(b, losses, sums);
            loss = sums[0] * (float)p.loss_scale;
            if (p.l1) {
                b.sync();  // all have read the first sum
                sum_of_block(b, magnitudes, sums);
                loss += sums[0] * (array_at<float>(p.l1, model * p.l1_stride)[0] * (float)p.l1_scale);
            }
        }
        if (gradients && t.l.centered) {  // dE = da (x − b)ᵀ, and b takes part with −Eᵀ da
            b.each([&](int thread) {
                for (int e = thread; e < n * m; e += b.threads) {
                    const int k = e / n, j = e - k * n;
                    f[s.encoder_sum + e] = fused(-f[s.code_sum + k], f[s.bias + j], f[s.encoder_sum + e]);
                }
                for (int j = thread; j < n; j += b.threads)
                    for (int k = 0; k < m; ++k)
                        f[s.bias_sum + j] = fused(-f[s.code_sum + k], f[s.encoder + j * m + k], f[s.bias_sum + j]);
            });
        }  // No barrier: the sums that a thread has changed it reads itself below.
        const int cells = gradients ? n * m : 0, all = n * m, second = p.tied ? 0 : all;
        float* partial =
            s.slices > 1 ? t.l.partial + ((model - t.l.first_model) * s.slices + slice) * s.partial : nullptr;
        const auto put = [&](int64_t e, float value) {
            if (partial)
                partial[e] = value;
            else
                put_stacked_sum<T>(t, model, e, value);
        };
        b.each([&](int thread) {
            for (int e = thread; e < cells; e += b.threads) {
                put(e, f[s.encoder_sum + e]);
                if (!p.tied) put(all + e, f[s.decoder_sum + e]);
            }
            for (int j = thread; j < n; j += b.threads) put(all + second + j, f[s.bias_sum + j]);
            for (int k = thread; k < m; k += b.threads) put(all + second + n + k, f[s.code_sum + k]);
            if (thread == 0) put(all + second + n + m, loss);
        });
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
