// The passes of the Gram form for a block: what a sample costs does not depend on m.
//
//   make_gram       G = W Wᵀ by rows of features (W [n][m]), once a batch; A and the sums of biases are cleared
//   gram_columns    y = g(G x + b), the loss, d = dL/dy; A += x dᵀ, the biases' gradient += d, for the samples of a list
//   gram_gradient   dW = (A + Aᵀ) W by rows of features, once a batch
//
// Layout     G, A and A + Aᵀ (in G's place) [n][stride]; a lane has four outputs of a sample, and each of the samples
//            that a warp takes at a time adds to an A of its own
// Zeros      a sample costs its entries a row of G and a row of A each
// Order      samples upwards in each slot; slots upwards, A before Aᵀ; sums over k and j upwards. A lane's loss is
//            summed in single precision over a list, in double over the batch
// Roof       n² m / 2 and n² m multiply-adds a batch, 2 n an entry, and some nine operations an output of a sample
#pragma once
#include "cuda/gram/shape.h"
#include "cuda/small/room.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

struct GramRoom : SmallRoom {
    const GramShape& g;

    TOYKERN_DEVICE float* gram() const { return at(g.gram); }
    TOYKERN_DEVICE float* sum() const { return at(g.sum); }
    TOYKERN_DEVICE float* bias_sum() const { return at(g.bias_sum); }
};

// Calls f(bi, bj) for blocks of 4 × 4 of a symmetric matrix [n][n], each on one side of the diagonal alone: block row
// bi meets those up to half of the rows further on, in a circle.
template <class F>
TOYKERN_DEVICE void each_symmetric_block(int thread, int threads, int n, const F& f) {
    const int blocks = (n + 3) / 4, width = blocks / 2 + 1;
    for (int i = thread; i < blocks * width; i += threads) {
        const int bi = i / width, ahead = i - bi * width;
        if (2 * ahead == blocks && bi >= ahead) continue;  // the other one has this pair
        const int bj = bi + ahead;
        f(bi, bj < blocks ? bj : bj - blocks);
    }
}

// A block and what mirrors it; zeros where a quad reaches beyond n.
TOYKERN_DEVICE void store_symmetric_block(float* to, int stride, int n, int bi, int bj, const float (&block)[4][4]) {
    const int i = 4 * bi, j = 4 * bj;
    TOYKERN_UNROLL
    for (int r = 0; r < 4; ++r) {
        Quad row, column;
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) {
            row.v[q] = j + q < n ? block[r][q] : 0.0f;
            column.v[q] = i + q < n ? block[q][r] : 0.0f;
        }
        if (i + r < n) store_quad(to + (i + r) * stride + j, row);
        if (bi != bj && j + r < n) store_quad(to + (j + r) * stride + i, column);
    }
}

TOYKERN_DEVICE void make_gram(const Block& b, const GramRoom& room) {
    const SmallShape& s = room.s;
    b.each([&](int t) {
        const int square = room.g.slots * s.n * room.g.stride, sums = room.g.slots * room.g.stride;
        for (int i = 4 * t; i < square; i += 4 * s.threads()) store_quad(room.sum() + i, Quad{});
        for (int i = 4 * t; i < sums; i += 4 * s.threads()) store_quad(room.bias_sum() + i, Quad{});
        each_symmetric_block(t, s.threads(), s.n, [&](int bi, int bj) {
            const float *a[4], *c[4];
            float block[4][4];
            TOYKERN_UNROLL
            for (int r = 0; r < 4; ++r) {
                a[r] = room.decoder() + min_of(4 * bi + r, s.n - 1) * s.row;
                c[r] = room.decoder() + min_of(4 * bj + r, s.n - 1) * s.row;
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) block[r][q] = 0.0f;
            }
            int k = 0;
            TOYKERN_NO_UNROLL
            for (; k + 4 <= s.m; k += 4) {
                Quad as[4], cs[4];
                TOYKERN_UNROLL
                for (int r = 0; r < 4; ++r) as[r] = load_quad(a[r] + k), cs[r] = load_quad(c[r] + k);
                TOYKERN_UNROLL
                for (int v = 0; v < 4; ++v) {
                    TOYKERN_UNROLL
                    for (int r = 0; r < 4; ++r) {
                        TOYKERN_UNROLL
                        for (int q = 0; q < 4; ++q) block[r][q] = fused(as[r].v[v], cs[q].v[v], block[r][q]);
                    }
                }
            }
            TOYKERN_NO_UNROLL
            for (; k < s.m; ++k) {
                TOYKERN_UNROLL
                for (int r = 0; r < 4; ++r) {
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q) block[r][q] = fused(a[r][k], c[q][k], block[r][q]);
                }
            }
            store_symmetric_block(room.gram(), room.g.stride, s.n, bi, bj, block);
        });
    });
}

// The samples of columns 0 … columns - 1 of the list. No lane reads what another writes.
template <class A>
TOYKERN_DEVICE void gram_columns(const Block& b, const GramRoom& room, const SmallOptions<A>& o, int columns,
                                 PerThread<double>& loss) {
    const SmallShape& s = room.s;
    const int stride = room.g.stride;
    b.each([&](int t) {
        const int slot = t / room.g.lanes, first = 4 * (t - slot * room.g.lanes);  // of the lane's outputs
        if (slot >= room.g.slots || slot >= columns) return;
        Quad bias, importance;
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) {  // of an output that is not there nothing comes
            const float* row = room.decoder() + min_of(first + q, s.n - 1) * s.row + s.m;
            bias.v[q] = row[0];
            importance.v[q] = first + q < s.n ? row[1] : 0.0f;
        }
        const float* const gram = room.gram() + first;
        float* const sum = room.sum() + slot * s.n * stride + first;
        float* const bias_sum = room.bias_sum() + slot * stride + first;
        Quad biases = load_quad(bias_sum);
        float losses = 0.0f;
        const uint32_t* const place = room.place();
        const float* const value = room.value();
        const uint16_t* const starts = room.first();
        struct Sample {
            int next, last;  // entries after the first: one or two in all, as a rule
            int feature;     // of the first
            float x;
        };
        const auto sample = [&](int c) {
            const int e = starts[c];
            return Sample{e + 1, starts[c + 1], (int)(place[e] & 0xFFFFu), value[e]};
        };
        Sample following = sample(slot);
        TOYKERN_NO_UNROLL
        for (int c = slot; c < columns; c += room.g.slots) {
            const Sample now = following;  // the one that follows is on its way while this one is made
            if (c + room.g.slots < columns) following = sample(c + room.g.slots);
            Quad y = bias, target = {};
            const auto take_entry = [&](int f, float xf) {
                const Quad row = load_quad(gram + f * stride);
                const float kept = keep_bits(xf, o.target_bits);
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) {
                    y.v[q] = fused(xf, row.v[q], y.v[q]);
                    target.v[q] = f - first == q ? kept : target.v[q];
                }
            };
            take_entry(now.feature, now.x);
            TOYKERN_NO_UNROLL
            for (int i = now.next; i < now.last; ++i) take_entry((int)(place[i] & 0xFFFFu), value[i]);
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) {
                float slope;  // a floor's is in its value
                const float error = o.output.value(y.v[q], slope) - target.v[q];
                y.v[q] = o.output.back(y.v[q], slope, o.loss.add_to(losses, error, importance.v[q]));
                biases.v[q] += y.v[q];
            }
            const auto add_products = [&](int f, float xf) {
                Quad row = load_quad(sum + f * stride);
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) row.v[q] = fused(xf, y.v[q], row.v[q]);
                store_quad(sum + f * stride, row);
            };
            add_products(now.feature, now.x);
            TOYKERN_NO_UNROLL
            for (int i = now.next; i < now.last; ++i) add_products((int)(place[i] & 0xFFFFu), value[i]);
        }
        store_quad(bias_sum, biases);
        loss[t] += (double)losses;
    });
}

// Into the sums that the update reads. Barriers before and after are the caller's.
TOYKERN_DEVICE void gram_gradient(const Block& b, const GramRoom& room) {
    const SmallShape& s = room.s;
    const int stride = room.g.stride, square = s.n * stride;
    b.each([&](int t) {
        each_symmetric_block(t, s.threads(), s.n, [&](int bi, int bj) {
            float block[4][4];
            TOYKERN_UNROLL
            for (int r = 0; r < 4; ++r) {
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) block[r][q] = 0.0f;
            }
            TOYKERN_NO_UNROLL
            for (int slot = 0; slot < room.g.slots; ++slot) {
                const float* const from = room.sum() + slot * square;
                TOYKERN_UNROLL
                for (int r = 0; r < 4; ++r) {
                    const Quad row = load_quad(from + min_of(4 * bi + r, s.n - 1) * stride + 4 * bj);
                    const Quad column = load_quad(from + min_of(4 * bj + r, s.n - 1) * stride + 4 * bi);
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q) {
                        block[r][q] += row.v[q];
                        block[q][r] += column.v[q];
                    }
                }
            }
            store_symmetric_block(room.gram(), stride, s.n, bi, bj, block);
        });
    });
    b.sync();  // A + Aᵀ is there for all
    b.each([&](int t) {
        float* const to = room.decoder_sum();
        for (int i = t; i < s.n; i += s.threads()) {
            float sum = 0.0f;
            for (int slot = 0; slot < room.g.slots; ++slot) sum += room.bias_sum()[slot * stride + i];
            to[i * s.row + s.m] = sum;
        }
        const int pairs = (s.n + 1) / 2, quads = (s.m + 3) / 4;
        for (int item = t; item < pairs * quads; item += s.threads()) {
            const int k = item / pairs, i = 2 * (item - k * pairs), other = min_of(i + 1, s.n - 1);
            const float *a = room.gram() + i * stride, *c = room.gram() + other * stride;
            const float* w = room.decoder() + 4 * k;
            Quad upper = {}, lower = {};
            const auto add = [&](float xa, float xc) {
                const Quad row = load_quad(w);
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) {
                    upper.v[q] = fused(xa, row.v[q], upper.v[q]);
                    lower.v[q] = fused(xc, row.v[q], lower.v[q]);
                }
                w += s.row;
            };
            int j = 0;
            TOYKERN_NO_UNROLL
            for (; j + 4 <= s.n; j += 4) {
                const Quad as = load_quad(a + j), cs = load_quad(c + j);
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) add(as.v[q], cs.v[q]);
            }
            TOYKERN_NO_UNROLL
            for (; j < s.n; ++j) add(a[j], c[j]);
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) {
                if (4 * k + q >= s.m) continue;
                to[i * s.row + 4 * k + q] = upper.v[q];
                if (other > i) to[other * s.row + 4 * k + q] = lower.v[q];
            }
        }
    });
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
