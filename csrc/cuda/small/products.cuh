// Products of a tile for a block of the small regime.
//
//   outputs         y = g(D h + b), the loss, the gradient at the outputs in the targets' place; for small m also the
//                   codes' gradient
//   feature_sums    sums over features: the codes of dense rows, the codes' gradient for larger m
//   gather_codes    the codes from a list of entries
//   add_gradient    sums over samples: the decoder's (and bias's) gradient, the encoder's from dense rows
//   add_entries     the encoder's gradient from a list of entries
//
// Layout     lanes are samples where weights are read (all lanes the same four floats at once), and pieces of the
//            gradient where samples are read (four at once); cuda/small/shape.h says who has what
// Order      a sum over features runs upwards within a share, shares are added in order; a sum over samples runs
//            upwards within a tile (dealt to `sums` copies by fours), tiles are added in order: the shape and the
//            model's own data decide
// Roof       n m (1/32 + 2/32) multiply-adds a sample and warp; each four of them need 1 load in outputs (m = 20: 0.7
//            of the instructions are multiply-adds), 9 in 80 to 7 in 24 in add_gradient
#pragma once
#include "cuda/small/room.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

template <int kValue>
struct Number {
    static constexpr int value = kValue;
};

struct SmallTile {
    int first;  // column of the list (or of the batch) that column 0 is
    int count;  // columns in use; the rest are nothing
};

// A code from its pre-activation, and its slope where that is kept.
template <class A>
TOYKERN_DEVICE void put_code(const SmallRoom& room, const SmallOptions<A>& o, int at, float a) {
    float slope;
    room.hidden()[at] = o.hidden.value(a, slope);
    if (kKeepsSlope<A>) room.slope()[at] = slope;
}

// ---- codes from entries: h[k] = f(Σ value · e[feature][k]) over a column's entries ----

template <class A>
TOYKERN_DEVICE void gather_codes(const Block& b, const SmallRoom& room, const SmallOptions<A>& o,
                                 const SmallTile& tile) {
    const SmallShape& s = room.s;
    const int shift = s.column_warps == 2 ? 6 : 5, items = (s.code_rows / 4) << shift;
    b.each([&](int t) {
        for (int i = t; i < items; i += s.threads()) {
            const int c = i & (s.columns - 1), k = (i >> shift) * 4;
            Quad h = {};
            if (c < tile.count) {
                const int end = room.first()[tile.first + c + 1];
                TOYKERN_NO_UNROLL  // one or two, as a rule
                for (int e = room.first()[tile.first + c]; e < end; ++e) {
                    const Quad w = load_quad(room.encoder() + (int)(room.place()[e] & 0xFFFFu) * s.row + k);
                    const float x = room.value()[e];
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q) h.v[q] = fused(x, w.v[q], h.v[q]);
                }
            }
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q)
                if (k + q < s.m) put_code(room, o, (k + q) * s.stride + c, h.v[q]);
        }
    });
}

// ---- outputs ----

// One output of one sample: its loss is added, its gradient returned.
template <class A>
TOYKERN_DEVICE float output_gradient(const SmallOptions<A>& o, float z, float target, float importance, bool valid,
                                     float& loss) {
    float slope;
    const float y = o.output.value(z, slope);
    const float r = valid ? y - keep_bits(target, o.target_bits) : 0.0f;
    return o.output.back(z, slope, o.loss.add_to(loss, r, importance));
}

// The codes of a sample in registers; the share's part of their gradient comes out of the same pass over the weights.
template <int kM, bool kTrain, class A>
TOYKERN_DEVICE void outputs_fused(const Block& b, const SmallRoom& room, const SmallOptions<A>& o,
                                  const SmallTile& tile, PerThread<double>& loss) {
    static_assert(!kKeepsSlope<A>, "the codes' slopes are in no register here");
    constexpr int kRow = (kM + 2 + 3) / 4 * 4;
    const SmallShape& s = room.s;
    b.each([&](int t) {
        const int lane = t & 31, warp = t >> 5;
        const int share = s.column_warps == 2 ? warp >> 1 : warp,
                  c = lane + (s.column_warps == 2 ? (warp & 1) * 32 : 0);
        const bool valid = c < tile.count;
        const int begin = share * s.n / s.feature_warps, end = (share + 1) * s.n / s.feature_warps;
        float h[kM], dh[kM], sum = 0.0f;
        TOYKERN_UNROLL
        for (int k = 0; k < kM; ++k) {
            h[k] = room.hidden()[k * s.stride + c];
            dh[k] = 0.0f;
        }
        const float* w = room.decoder() + begin * kRow;
        float* x = room.tile() + begin * s.stride + c;
        for (int j = begin; j < end; ++j, w += kRow, x += s.stride) {
            float v[kRow];
            TOYKERN_UNROLL
            for (int i = 0; i < kRow; i += 4) {
                const Quad quad = load_quad(w + i);
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) v[i + q] = quad.v[q];
            }
            float y = v[kM];
            TOYKERN_UNROLL
            for (int k = 0; k < kM; ++k) y = fused(v[k], h[k], y);
            const float d = output_gradient(o, y, *x, v[kM + 1], valid, sum);
            if (!kTrain) continue;
            *x = d;
            TOYKERN_UNROLL
            for (int k = 0; k < kM; ++k) dh[k] = fused(v[k], d, dh[k]);
        }
        if (kTrain) {
            float* to = room.code_gradient() + share * s.code_rows * s.stride + c;
            const A hidden =
                s.feature_warps == 1 ? o.hidden : A::of((int32_t)Activation::kNone, 0.0);  // or add_parts does
            TOYKERN_UNROLL
            for (int k = 0; k < kM; ++k) to[k * s.stride] = hidden.back(h[k], 0.0f, dh[k]);
        }
        loss[t] += (double)sum;
    });
}

// Any m: kF features of a sample at a time, codes and weights read four by four.
template <int kF, bool kTrain, class A>
TOYKERN_DEVICE void outputs_blocked(const Block& b, const SmallRoom& room, const SmallOptions<A>& o,
                                    const SmallTile& tile, PerThread<double>& loss) {
    const SmallShape& s = room.s;
    b.each([&](int t) {
        const int lane = t & 31, warp = t >> 5;
        const int share = s.column_warps == 2 ? warp >> 1 : warp,
                  c = lane + (s.column_warps == 2 ? (warp & 1) * 32 : 0);
        const bool valid = c < tile.count;
        float sum = 0.0f;
        for (int j0 = share * kF; j0 < s.n; j0 += s.feature_warps * kF) {
            const float* w[kF];
            float y[kF];
            TOYKERN_UNROLL
            for (int f = 0; f < kF; ++f) {
                w[f] = room.decoder() + (j0 + f < s.n ? j0 + f : s.n - 1) * s.row;
                y[f] = 0.0f;
            }
            const float* from = room.hidden() + c;
            for (int k = 0; k < s.hidden_rows; k += 4, from += 4 * s.stride) {  // the row of ones brings the bias
                float h[4];
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) h[q] = from[q * s.stride];
                TOYKERN_UNROLL
                for (int f = 0; f < kF; ++f) {
                    const Quad v = load_quad(w[f] + k);
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q) y[f] = fused(v.v[q], h[q], y[f]);
                }
            }
            TOYKERN_UNROLL
            for (int f = 0; f < kF; ++f) {
                if (j0 + f >= s.n) continue;
                float& x = room.tile()[(j0 + f) * s.stride + c];
                const float d = output_gradient(o, y[f], x, w[f][s.m + 1], valid, sum);
                if (kTrain) x = d;
            }
        }
        loss[t] += (double)sum;
    });
}

template <bool kTrain, class A>
TOYKERN_DEVICE void outputs_any(const Block& b, const SmallRoom& room, const SmallOptions<A>& o, const SmallTile& tile,
                                PerThread<double>& loss) {
    switch (room.s.output_features) {
        case 4: return outputs_blocked<4, kTrain>(b, room, o, tile, loss);
        case 5: return outputs_blocked<5, kTrain>(b, room, o, tile, loss);
        case 6: return outputs_blocked<6, kTrain>(b, room, o, tile, loss);
        case 7: return outputs_blocked<7, kTrain>(b, room, o, tile, loss);
        default: return outputs_blocked<8, kTrain>(b, room, o, tile, loss);
    }
}

// ---- sums over features: code_gradient[part][k] = Σ_j from[j] · weights[j][k] over the part's share of the features
// ----

template <int kQuads>
TOYKERN_DEVICE void feature_sum(const float* from, int stride, const float* w, int row, int count, float* to,
                                int most) {
    float sum[4 * kQuads];
    TOYKERN_UNROLL
    for (int k = 0; k < 4 * kQuads; ++k) sum[k] = 0.0f;
    for (int j = 0; j < count; ++j, from += stride, w += row) {
        const float x = *from;
        TOYKERN_UNROLL
        for (int i = 0; i < kQuads; ++i) {
            const Quad v = load_quad(w + 4 * i);
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) sum[4 * i + q] = fused(x, v.v[q], sum[4 * i + q]);
        }
    }
    TOYKERN_UNROLL
    for (int k = 0; k < 4 * kQuads; ++k)
        if (k < most) to[k * stride] = sum[k];
}

TOYKERN_DEVICE void feature_sums(const Block& b, const SmallRoom& room, const float* from, const float* weights) {
    const SmallShape& s = room.s;
    const int groups = (s.m + 7) / 8;
    b.each([&](int t) {
        const int lane = t & 31, warp = t >> 5;
        const int share = s.column_warps == 2 ? warp >> 1 : warp,
                  c = lane + (s.column_warps == 2 ? (warp & 1) * 32 : 0);
        for (int i = share; i < groups * s.code_parts; i += s.feature_warps) {
            const int part = i / groups, k = (i - part * groups) * 8;
            const int begin = part * s.n / s.code_parts, end = (part + 1) * s.n / s.code_parts;
            const float* x = from + begin * s.stride + c;
            const float* w = weights + begin * s.row + k;
            float* to = room.code_gradient() + (part * s.code_rows + k) * s.stride + c;
            if (k + 4 < s.m)
                feature_sum<2>(x, s.stride, w, s.row, end - begin, to, s.m - k);
            else
                feature_sum<1>(x, s.stride, w, s.row, end - begin, to, s.m - k);
        }
    });
}

// Adds the parts: into the codes of dense rows, or in place into the codes' gradient, which then goes back through the
// activation.
template <class A>
TOYKERN_DEVICE void add_parts(const Block& b, const SmallRoom& room, const SmallOptions<A>& o, bool codes) {
    const SmallShape& s = room.s;
    const int shift = s.column_warps == 2 ? 6 : 5, items = s.m << shift;
    b.each([&](int t) {
        for (int i = t; i < items; i += s.threads()) {
            const int at = (i >> shift) * s.stride + (i & (s.columns - 1));
            float sum = room.code_gradient()[at];
            TOYKERN_NO_UNROLL
            for (int part = 1; part < s.code_parts; ++part)
                sum += room.code_gradient()[part * s.code_rows * s.stride + at];
            if (codes)
                put_code(room, o, at, sum);
            else
                room.code_gradient()[at] =
                    o.hidden.back(room.hidden()[at], kKeepsSlope<A> ? room.slope()[at] : 0.0f, sum);
        }
    });
}

// ---- sums over samples: to[copy][j][k] += Σ_c from[j][c] · codes[k][c], k < rows ----

template <int kF, int kH>
TOYKERN_DEVICE void add_gradient(const Block& b, const SmallRoom& room, const float* from, const float* codes, int rows,
                                 const SmallTile& tile, float* to, int copies) {
    const SmallShape& s = room.s;
    const int blocks = (s.n + kF - 1) / kF, groups = (rows + kH - 1) / kH, items = blocks * groups * copies;
    b.each([&](int t) {
        for (int i = t; i < items; i += s.threads()) {
            const int rest = i / blocks, block = i - rest * blocks, copy = rest / groups,
                      k0 = (rest - copy * groups) * kH;
            const float *x[kF], *h[kH];
            float sum[kF][kH];
            TOYKERN_UNROLL
            for (int f = 0; f < kF; ++f) {
                const int j = block + f * blocks;
                x[f] = from + (j < s.n ? j : s.n - 1) * s.stride;
            }
            TOYKERN_UNROLL
            for (int k = 0; k < kH; ++k) {
                h[k] = codes + (k0 + k < rows ? k0 + k : rows - 1) * s.stride;
                TOYKERN_UNROLL
                for (int f = 0; f < kF; ++f) sum[f][k] = 0.0f;
            }
            TOYKERN_NO_UNROLL
            for (int c = 4 * copy; c < tile.count; c += 4 * copies) {
                Quad xs[kF];
                TOYKERN_UNROLL
                for (int f = 0; f < kF; ++f) xs[f] = load_quad(x[f] + c);
                TOYKERN_UNROLL
                for (int k = 0; k < kH; ++k) {
                    const Quad hs = load_quad(h[k] + c);
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q) {
                        TOYKERN_UNROLL
                        for (int f = 0; f < kF; ++f) sum[f][k] = fused(xs[f].v[q], hs.v[q], sum[f][k]);
                    }
                }
            }
            TOYKERN_UNROLL
            for (int f = 0; f < kF; ++f) {
                const int j = block + f * blocks;
                TOYKERN_UNROLL
                for (int k = 0; k < kH; ++k)
                    if (j < s.n && k0 + k < rows) to[(copy * s.n + j) * s.row + k0 + k] += sum[f][k];
            }
        }
    });
}

template <int kH>
TOYKERN_DEVICE void decoder_gradient_by(const Block& b, const SmallRoom& room, const SmallTile& tile) {
    const auto add = [&](auto features) {
        add_gradient<decltype(features)::value, kH>(b, room, room.tile(), room.hidden(), room.s.m + 1, tile,
                                                    room.decoder_sum(), room.s.sums);
    };
    switch (room.s.piece_features) {
        case 2: return add(Number<2>{});
        case 3: return add(Number<3>{});
        default: return add(Number<4>{});
    }
}

// Of the decoder and the biases. kM = 0: m > kSmallFusedHidden.
template <int kM>
TOYKERN_DEVICE void add_decoder_gradient(const Block& b, const SmallRoom& room, const SmallTile& tile) {
    if constexpr (kM > 0) {
        add_gradient<2, small_piece_hidden(kM + 1)>(b, room, room.tile(), room.hidden(), kM + 1, tile,
                                                    room.decoder_sum(), room.s.sums);
    } else {
        switch (room.s.piece_hidden) {
            case 5: return decoder_gradient_by<5>(b, room, tile);
            case 6: return decoder_gradient_by<6>(b, room, tile);
            case 7: return decoder_gradient_by<7>(b, room, tile);
            default: return decoder_gradient_by<8>(b, room, tile);
        }
    }
}

// ---- dense rows: their codes, and the encoder's gradient ----

template <class A>
TOYKERN_DEVICE_CALL void encode_rows(Block b, SmallRoom room, SmallOptions<A> o) {
    feature_sums(b, room, room.rows(), room.encoder());
    b.sync();  // parts come from several warps where these share the features; codes go to all of them
    add_parts(b, room, o, true);
    b.sync();
}

TOYKERN_DEVICE_CALL void add_rows_gradient(Block b, SmallRoom room, SmallTile tile) {
    add_gradient<2, 4>(b, room, room.rows(), room.code_gradient(), room.s.m, tile, room.encoder_sum(), 1);
}

// ---- the encoder's gradient from entries: to[feature][k] += Σ value · gradient of the column's code ----

// Column number and value of the tile's entries of feature j among its 32 columns from 32 v on, in order.
template <class F>
TOYKERN_DEVICE void each_entry_of(const SmallRoom& room, const SmallTile& tile, int j, int v, const F& f) {
    for (uint32_t left = room.bits()[j * room.s.column_warps + v]; left; left &= left - 1u) {
        const int c = 32 * v + count_bits((left & (0u - left)) - 1u);
        int e = room.first()[tile.first + c];
        while ((int)(room.place()[e] & 0xFFFFu) != j) ++e;
        f(c, room.value()[e]);
    }
}

// bits [n][column_warps]: columns of the tile in which the feature has an entry. Small m: a thread has all hidden units
// of a feature (and, where there are copies of the sums, 32 of the columns); larger m: four hidden units of a feature.
template <int kM>
TOYKERN_DEVICE void add_entries(const Block& b, const SmallRoom& room, const SmallTile& tile, float* to) {
    const SmallShape& s = room.s;
    b.each([&](int t) {
        if constexpr (kM > 0) {
            const int runs = s.tied && s.sums >= s.column_warps ? s.column_warps : 1, words = s.column_warps / runs;
            for (int i = t; i < s.n * runs; i += s.threads()) {
                const int run = i >= s.n ? 1 : 0, j = i - run * s.n;
                float sum[kM] = {};
                for (int v = run * words; v < (run + 1) * words; ++v)
                    each_entry_of(room, tile, j, v, [&](int c, float x) {
                        const float* from = room.code_gradient() + c;
                        TOYKERN_UNROLL
                        for (int k = 0; k < kM; ++k) sum[k] = fused(x, from[k * s.stride], sum[k]);
                    });
                float* at = to + (run * s.n + j) * s.row;
                TOYKERN_UNROLL
                for (int k = 0; k < kM; ++k) at[k] += sum[k];
            }
        } else {
            for (int i = t; i < s.n * (s.code_rows / 4); i += s.threads()) {
                const int group = i / s.n, j = i - group * s.n;
                Quad sum = {};
                bool any = false;
                for (int v = 0; v < s.column_warps; ++v)
                    each_entry_of(room, tile, j, v, [&](int c, float x) {
                        const float* from = room.code_gradient() + 4 * group * s.stride + c;
                        TOYKERN_UNROLL
                        for (int q = 0; q < 4; ++q) sum.v[q] = fused(x, from[q * s.stride], sum.v[q]);
                        any = true;
                    });
                if (!any) continue;
                float* at = to + j * s.row + 4 * group;
                Quad g = load_quad(at);
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) g.v[q] += sum.v[q];
                store_quad(at, g);
            }
        }
    });
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
