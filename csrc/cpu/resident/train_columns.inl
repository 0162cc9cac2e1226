// The resident step for small networks: samples across lanes.
//
//   h = f(E x), y = g(D h + b), loss = Σ_j I_j (t_j − y_j)², gradients of E, D and b, over one part of the batch
//
// Layout     weights [n][m] (all hidden units of a feature together), x [n][columns], one accumulator vector per
//            gradient entry
// Owner      one worker per part; weights are read as broadcasts from L1, accumulators stay in registers for the listed
//            shapes and in L1 otherwise
// Zeros      only non-empty samples become columns (rare units); all empty samples share one closed-form term
// Length     one class, compiled for every listed shape: its passes work on the same registers and are inlined into one
// Order      sums run over columns in the order of their samples, at most kSumColumns to a float, then over lanes by a
//            fixed tree: a function of the shape and the level only
// Limits     columns_fit() of forms.inl; train_tiles.inl takes the rest
// Roof       5 n m fused multiply-adds and about 7 n elementwise operations per sixteen samples
#pragma once
#include "common/loss.h"
#include "cpu/resident/forms.inl"
#include "cpu/resident/optimizer.inl"
#include "cpu/simd/lanes.h"
#include "cpu/stream/stream.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kSumColumns = 4096;  // a float lane adds up so many columns at most before its sum is put away

// What a pass over columns reads and adds to.
struct ColumnsPass {
    int n, count;                                        // features, columns
    int64_t stride;                                      // of a row of x
    const float *x, *clean;                              // [n][stride] input; the same without noise (the target)
    const float *encoder, *decoder, *bias, *importance;  // [n][m] [n][m] [n] [n]
    int32_t hidden_activation, output_activation;
    double hidden_option, output_option;
    AnyLoss loss_function;
    uint32_t target_bits;                     // of the input
    F *encoder_sum, *decoder_sum, *bias_sum;  // [n][m] [n][m] (tied: the same) [n]
    F* residual;                              // [n][2] scratch
    F loss;
};

// Columns come in runs of this many; the ones past the last are zeros.
constexpr int kColumnRun = 32;

// Lane groups that go side by side, where the registers last: each weight and each sum in L1 is then touched once for all
// of them. Each has a loss of its own.
template <int kN, int kM, bool kFloor>
constexpr int kColumnGroups = kN || kM > 5 || 2 * kLanes > kColumnRun || !kFloor ? 1 : 2;

// kN = 0: n at run time. kTied: decoder = encoder and so are their sums. A: FloorActivation, or CalledActivation for
// all others.
template <int kN, int kM, bool kTied, class A>
void columns_pass(ColumnsPass& a) {
    constexpr int kG = kColumnGroups<kN, kM, std::is_same<A, FloorActivation<F>>::value>;
    constexpr int kE = kN ? kN * kM : 1, kD = kN && !kTied ? kN * kM : 1, kB = kN ? kN : 1;
    F local_e[kE], local_d[kD], local_b[kB], local_r[kB];
    const int n = kN ? kN : a.n;
    F* ge = kN ? local_e : a.encoder_sum;
    F* gd = kTied ? ge : (kN ? local_d : a.decoder_sum);
    F* gb = kN ? local_b : a.bias_sum;
    F* d = kN ? local_r : a.residual;  // [n][kG]
    if (kN) {
#pragma GCC unroll 32
        for (int i = 0; i < kE; ++i) ge[i] = a.encoder_sum[i];
#pragma GCC unroll 32
        for (int i = 0; i < kD && !kTied; ++i) gd[i] = a.decoder_sum[i];
#pragma GCC unroll 32
        for (int j = 0; j < kB; ++j) gb[j] = a.bias_sum[j];
    }
    const A hidden = A::of(a.hidden_activation, a.hidden_option), output = A::of(a.output_activation, a.output_option);
    F loss[kG];
    for (int g = 0; g < kG; ++g) loss[g] = g ? fzero() : a.loss;
    for (int c = 0; c < a.count; c += kG * kLanes) {
        const float *x = a.x + c, *clean = a.clean + c;
        M lanes[kG];
        F h[kG][kM], dh[kG][kM], slope[kG][kM];
#pragma GCC unroll 2
        for (int g = 0; g < kG; ++g) {
            const int left = a.count - c - g * kLanes;
            lanes[g] = mask_first(left > 0 ? left : 0);
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) h[g][k] = dh[g][k] = fzero();
        }
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j)
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) {
                const F w = bcast(a.encoder[j * kM + k]);
#pragma GCC unroll 2
                for (int g = 0; g < kG; ++g) h[g][k] = fmadd(w, load(x + j * a.stride + g * kLanes), h[g][k]);
            }
#pragma GCC unroll 2
        for (int g = 0; g < kG; ++g)
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) h[g][k] = hidden.value(h[g][k], slope[g][k]);
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j) {
            F y[kG];
#pragma GCC unroll 2
            for (int g = 0; g < kG; ++g) y[g] = bcast(a.bias[j]);
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) {
                const F w = bcast(a.decoder[j * kM + k]);
#pragma GCC unroll 2
                for (int g = 0; g < kG; ++g) y[g] = fmadd(w, h[g][k], y[g]);
            }
            F sum = gb[j];
#pragma GCC unroll 2
            for (int g = 0; g < kG; ++g) {
                const F t = and_bits(load(clean + j * a.stride + g * kLanes), a.target_bits);
                F at_output;  // the slope there
                const F r = keep(lanes[g], output.value(y[g], at_output) - t);
                y[g] = output.back(y[g], at_output, a.loss_function.add_to(loss[g], r, bcast(a.importance[j])));
                d[j * kG + g] = y[g];
                sum = sum + y[g];
            }
            gb[j] = sum;
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) {
                const F w = bcast(a.decoder[j * kM + k]);
#pragma GCC unroll 2
                for (int g = 0; g < kG; ++g) dh[g][k] = fmadd(w, y[g], dh[g][k]);
            }
        }
#pragma GCC unroll 2
        for (int g = 0; g < kG; ++g)
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) dh[g][k] = hidden.back(h[g][k], slope[g][k], dh[g][k]);
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j) {
            F xj[kG], dj[kG];
#pragma GCC unroll 2
            for (int g = 0; g < kG; ++g) xj[g] = load(x + j * a.stride + g * kLanes), dj[g] = d[j * kG + g];
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) {
                F e = ge[j * kM + k], t = kTied ? fzero() : gd[j * kM + k];
#pragma GCC unroll 2
                for (int g = 0; g < kG; ++g) {
                    (kTied ? e : t) = fmadd(dj[g], h[g][k], kTied ? e : t);
                    e = fmadd(xj[g], dh[g][k], e);
                }
                ge[j * kM + k] = e;
                if (!kTied) gd[j * kM + k] = t;
            }
        }
    }
    a.loss = loss[0];
    for (int g = 1; g < kG; ++g) a.loss = a.loss + loss[g];
    if (kN) {
#pragma GCC unroll 32
        for (int i = 0; i < kE; ++i) a.encoder_sum[i] = ge[i];
#pragma GCC unroll 32
        for (int i = 0; i < kD && !kTied; ++i) a.decoder_sum[i] = gd[i];
#pragma GCC unroll 32
        for (int j = 0; j < kB; ++j) a.bias_sum[j] = gb[j];
    }
}

using ColumnsPassFunction = void (*)(ColumnsPass&);

template <bool kTied, class A>
inline ColumnsPassFunction columns_pass_of(int n, int m) {
    if (kTied && std::is_same<A, FloorActivation<F>>::value) {
        if (n == 2 && m == 1) return columns_pass<2, 1, true, FloorActivation<F>>;
        if (n == 3 && m == 1) return columns_pass<3, 1, true, FloorActivation<F>>;
        if (n == 3 && m == 2) return columns_pass<3, 2, true, FloorActivation<F>>;
        if (n == 4 && m == 2) return columns_pass<4, 2, true, FloorActivation<F>>;
        if (n == 5 && m == 2) return columns_pass<5, 2, true, FloorActivation<F>>;
        if (n == 6 && m == 2) return columns_pass<6, 2, true, FloorActivation<F>>;
    }
    switch (m) {
        case 1: return columns_pass<0, 1, kTied, A>;
        case 2: return columns_pass<0, 2, kTied, A>;
        case 3: return columns_pass<0, 3, kTied, A>;
        case 4: return columns_pass<0, 4, kTied, A>;
        case 5: return columns_pass<0, 5, kTied, A>;
        case 6: return columns_pass<0, 6, kTied, A>;
        case 7: return columns_pass<0, 7, kTied, A>;
        default: return columns_pass<0, 8, kTied, A>;
    }
}

inline ColumnsPassFunction columns_pass_for(int n, int m, bool tied, int32_t hidden, int32_t output) {
    if (is_floor(hidden) && is_floor(output))
        return tied ? columns_pass_of<true, FloorActivation<F>>(n, m)
                    : columns_pass_of<false, FloorActivation<F>>(n, m);
    return tied ? columns_pass_of<true, CalledActivation>(n, m) : columns_pass_of<false, CalledActivation>(n, m);
}

// All-zero samples: x = 0, h = 0, y = g(b). Adds their bias gradient; returns their loss.
inline double empty_columns(const ColumnsPass& a, int64_t count, float* bias_g) {
    const CalledActivation output = CalledActivation::of(a.output_activation, a.output_option);
    const F times = bcast((float)count);
    F loss = fzero();
    for (int64_t j = 0; j < a.n; j += kLanes) {
        const M m = mask_first(a.n - (int)j < kLanes ? a.n - (int)j : kLanes);
        F slope;
        const F b = load_first(a.bias + j, m), y = keep(m, output.value(b, slope));
        const F d = output.back(b, slope, a.loss_function.add_to(loss, y, load_first(a.importance + j, m)));
        store_first(bias_g + j, fmadd(d, times, load_first(bias_g + j, m)), m);
    }
    return (double)fsum(loss) * (double)count;
}

// Weights and optimiser state of the model in hand; shared by all workers of a team.
struct ColumnsModel {
    int64_t n, m, weights, length;  // weights = n m; length = all tensors, one after another
    bool tied, has_bias, sparse;
    float *p, *s1, *s2;       // [length] by role; the encoder as [n][m]
    float* connected;         // [weights] 1 or 0 (sparse)
    const float* importance;  // [n]
    float* importance_room;
    TensorShape shape[kRoles];
    Frozen frozen;

    static int64_t least_samples(const Network& net) { return least_samples_of(net); }
    void carve(Workspace& w, const Network& net) {
        n = net.n_features, m = net.n_hidden, weights = n * m;
        tied = net.tied, has_bias = net.has_bias, sparse = net.sparse;
        length = 0;
        for (int32_t role = 0; role < kRoles; ++role) {
            shape[role] = tensor_shape(net, (Role)role);
            length += elements(shape[role]);
        }
        p = w.take<float>((size_t)length + 16);
        s1 = w.take<float>((size_t)length + 16);
        s2 = w.take<float>((size_t)length + 16);
        importance_room = w.take<float>((size_t)n);
        importance = importance_room;
        connected = w.take<float>(sparse ? (size_t)weights : 0);
    }
    template <class T>
    T* tensor(T* a, Role role) const {
        return a + shape[(int32_t)role].offset;
    }
    template <class T>
    T* encoder(T* a) const {
        return tensor(a, Role::kEncoder);
    }
    template <class T>
    T* decoder(T* a) const {
        return tensor(a, tied ? Role::kEncoder : Role::kDecoder);
    }
    template <class T>
    T* bias(T* a) const {
        return tensor(a, Role::kBias);
    }

    void attach(const ModelArrays&) {}  // nothing stays with the caller
    void load_model(const ModelArrays& a) {
        import(p, a.parameter);
        import(s1, a.state[0]);
        import(s2, a.state[1]);
        for (int64_t j = 0; j < n; ++j) importance_room[j] = a.importance[j];
        for (int64_t j = 0; j < n && sparse; ++j)
            for (int64_t k = 0; k < m; ++k) connected[j * m + k] = (float)a.connected[k * n + j];
    }
    void store_model(const ModelArrays& a) const {
        export_to(p, a.parameter);
        export_to(s1, a.state[0]);
        export_to(s2, a.state[1]);
    }

    // Between the caller's arrays and the resident ones; absent arrays are zeros.
    void import(float* to, const ModelArrays::Of& from) const {
        const float *encoder_from = from[Role::kEncoder], *decoder_from = from[Role::kDecoder],
                    *bias_from = from[Role::kBias];
        for (int64_t j = 0; j < n; ++j)
            for (int64_t k = 0; k < m; ++k) encoder(to)[j * m + k] = encoder_from ? encoder_from[k * n + j] : 0.0f;
        if (!tied)
            for (int64_t i = 0; i < weights; ++i) decoder(to)[i] = decoder_from ? decoder_from[i] : 0.0f;
        for (int64_t j = 0; j < n; ++j) bias(to)[j] = bias_from ? bias_from[j] : 0.0f;
    }
    void export_to(const float* from, const ModelArrays::Of& to) const {
        float *encoder_to = to[Role::kEncoder], *decoder_to = to[Role::kDecoder], *bias_to = to[Role::kBias];
        for (int64_t j = 0; j < n && encoder_to; ++j)
            for (int64_t k = 0; k < m; ++k) encoder_to[k * n + j] = encoder(from)[j * m + k];
        if (!tied && decoder_to)
            for (int64_t i = 0; i < weights; ++i) decoder_to[i] = decoder(from)[i];
        for (int64_t j = 0; j < n && bias_to; ++j) bias_to[j] = bias(from)[j];
    }

    int64_t gradient_length() const { return length; }
    void prepare(const Team&) const {}  // nothing follows from the weights before a batch

    // One optimiser step from the gradients of all parts, [parts][stride], added in order. The weights' gradient goes
    // to `gradient_out` [m][n] too, unless that is null.
    void update(const TrainParams& params, int64_t model, int64_t step, float scale, float* g, int64_t stride,
                int parts, const Team& team, float* gradient_out) const {
        if (team.rank) return;
        const UpdateConstants constants = step_constants(params, model, step);
        for (int part = 1; part < parts; ++part)
            for (int64_t i = 0; i < length; i += kLanes) store(g + i, load(g + i) + load(g + part * stride + i));
        for (int64_t j = 0; j < n && gradient_out; ++j)
            for (int64_t k = 0; k < m; ++k) gradient_out[k * n + j] = g[j * m + k] * scale;
        if (sparse) mask_gradient(g, connected, weights);
        const int64_t trained = has_bias ? length : shape[(int32_t)Role::kBias].offset;
        if (!frozen.any()) return optimizer_step(constants, p, g, s1, s2, trained, scale);
        for (int32_t role = 0; role < kRoles; ++role) {
            const int64_t from = shape[role].offset, many = elements(shape[role]);
            if (!frozen.of[role] && from + many <= trained)
                optimizer_step(constants, p + from, g + from, s1 + from, s2 + from, many, scale);
        }
    }
};

// Draws one part of a batch and adds up its gradients.
class ColumnsWorker {
  public:
    void carve(Workspace& w, const Network& net, const Distribution& data, const FiniteData&) {
        tables_.carve(w, data);
        const size_t n = (size_t)net.n_features, weights = n * (size_t)net.n_hidden;
        capacity_ = (int)(16384 / n) & ~31;
        capacity_ = capacity_ < 128 ? 128 : (capacity_ > 512 ? 512 : capacity_);
        if (capacity_ < (int)n) capacity_ = ((int)n + 31) & ~31;  // a sample of n entries has to fit
        rare_.carve(w, tables_);
        frequent_.carve(w, tables_);
        rows_.carve(w, tables_);
        // Samples of many entries fill a run of columns only where the list may be longer than the run.
        entries_ = weights > kTinyWeights ? capacity_ * (int)(n < 16 ? n : 16) : capacity_;
        entries_ = entries_ < (int)n ? (int)n : entries_;
        list_.carve(w, tables_, (size_t)entries_ + n);
        stride_ = capacity_ + 16;  // rows a power of two apart would fall on the same cache sets
        x_ = w.take<float>(n * (size_t)stride_);
        clean_ = w.take<float>(data.noise > 0.0f ? n * (size_t)stride_ : 0);
        row_ = w.take<float>(2 * 32 * n);
        sums_ = w.take<F>(weights * (net.tied ? 1 : 2) + n + 16);
        residual_ = w.take<F>(2 * n);
        scratch_ = w.take<float>((weights * 2 + n + 32));
        net_ = net;
        pass_ = columns_pass_for((int)n, (int)net.n_hidden, net.tied, net.hidden_activation, net.output_activation);
    }
    void set_up(int64_t model, int64_t, int64_t) { tables_.set_up(model); }
    const StreamTables& tables_of(int64_t model) {
        tables_.set_up(model);
        return tables_;
    }
    void choose(ColumnsModel&, int64_t) const {}  // there is one form
    // Which form the model that was set up takes, of all that there are.
    Form form(int64_t batch_size) const { return pick_form(net_, tables_, batch_size, true); }

    // Sum of importance-weighted squared errors over samples first … last - 1; their gradients (half of them: the
    // factor 2 and the mean are the update's) into g [length].
    double accumulate(const ColumnsModel& model, const StreamKey& key, int64_t first, int64_t last, float* g) {
        n_sums_ = (int)model.length;
        for (int i = 0; i < n_sums_; ++i) sums_[i] = fzero();
        for (int i = 0; i < n_sums_; i += kLanes) store(g + i, fzero());
        g_ = g;
        loss_ = 0.0;
        held_ = visited_ = 0;
        pass_args(model);
        if (tables_.data->noise > 0.0f || (!tables_.plain && tables_.n_frequent))
            from_rows(key, first, last);
        else if (tables_.n_frequent)
            from_frequent(key, first, last);
        else
            from_list(key, first, last);
        put_away();
        if (last - first > visited_) loss_ += empty_columns(args_, last - first - visited_, model.bias(g));
        return loss_;
    }

  private:
    void pass_args(const ColumnsModel& model) {
        args_.n = (int)model.n;
        args_.stride = stride_;
        args_.x = x_;
        args_.clean = tables_.data->noise > 0.0f ? clean_ : x_;
        args_.encoder = model.encoder(model.p);
        args_.decoder = model.decoder(model.p);
        args_.bias = model.bias(model.p);
        args_.importance = model.importance;
        args_.hidden_activation = net_.hidden_activation;
        args_.output_activation = net_.output_activation;
        args_.hidden_option = net_.hidden_option;
        args_.output_option = net_.output_option;
        args_.loss_function = {net_.loss};
        args_.target_bits = target_bits(net_.target);
        args_.encoder_sum = sums_;
        args_.decoder_sum = model.decoder(sums_);
        args_.bias_sum = model.bias(sums_);
        args_.residual = residual_;
        args_.loss = fzero();
    }
    // Adds the lanes' sums to the gradient and begins them anew, so that long batches lose no digits.
    void put_away() {
        sum_lanes(sums_, n_sums_, scratch_);
        for (int i = 0; i < n_sums_; i += kLanes) store(g_ + i, load(g_ + i) + load(scratch_ + i));
        for (int i = 0; i < n_sums_; ++i) sums_[i] = fzero();
        held_ = 0;
    }
    // Pass over the first `count` columns. The ones from `filled` to the end of the run are made zeros here.
    void run(int count, int filled) {
        if (count <= 0) return;
        for (int j = 0; j < args_.n; ++j)
            for (int c = filled; c < (count + kColumnRun - 1) / kColumnRun * kColumnRun; ++c) {
                x_[(size_t)j * stride_ + c] = 0.0f;
                if (args_.clean != x_) clean_[(size_t)j * stride_ + c] = 0.0f;
            }
        args_.count = count;
        pass_(args_);
        visited_ += count;
        loss_ += (double)fsum(args_.loss);
        args_.loss = fzero();
        if ((held_ += count) >= kSumColumns) put_away();
    }
    void clear(int columns) {
        const int64_t stride = stride_, n = args_.n;
        for (int c = 0; c < columns; c += kColumnRun)
            for (float *x = x_ + c, *end = x + n * stride; x < end; x += stride)
                for (int v = 0; v < kColumnRun; v += kLanes) store(x + v, fzero());
    }

    // Rare units only: the non-empty samples become columns.
    void from_list(const StreamKey& key, int64_t first, int64_t last) {
        rare_.begin(key, first, last);
        list_.count = 0;
        while (!rare_.done() || list_.count) {
            while (!rare_.done() && list_.count <= entries_) rare_.refill(list_);
            int64_t used = list_.count < entries_ ? list_.count : entries_;
            if (used < list_.count || !rare_.done())  // leave a sample that may go on for the next round
                while (used > 0 && (used == list_.count || list_.sample[used] == list_.sample[used - 1])) --used;
            clear((int)(used < capacity_ ? used : capacity_));
            run(fill_columns(used), capacity_);
            list_.drop(used);
        }
    }
    // Columns of up to capacity_ samples among the first `entries` of the list, which become as many as were used;
    // returns how many columns.
    int fill_columns(int64_t& entries) {
        U before = ubcast(0xFFFFFFFFu), columns = ubcast(0xFFFFFFFFu);
        const U stride = ubcast((uint32_t)stride_);
        const EntryList list = list_;
        float* x = x_;
        const U nowhere = ubcast((uint32_t)capacity_);  // past the last column: what lanes without an entry write to
        uint32_t last[kLanes];
        for (int64_t i = 0; i < entries; i += kLanes) {
            const U sample = load(list.sample + i);
            const M lanes = mask_first((int)(entries - i < kLanes ? entries - i : kLanes)),
                    opens = and_not(lanes, eq(sample, shift_in(sample, before)));
            before = sample;
            const U column = columns + count_upto(opens);
            columns = last_lane(column);
            if (i > capacity_ - kLanes) {  // from here on there may be more samples than columns
                store(last, columns);
                if (last[0] + 1u > (uint32_t)capacity_) {
                    const M within = lanes & lt(column, nowhere);
                    const U place = mullo(load(list.feature + i), stride) + column;
                    scatter_all(x, select(within, place, nowhere), load(list.value + i));
                    entries = i + __builtin_popcount(bits(within));
                    return capacity_;
                }
            }
            const U place = mullo(load(list.feature + i), stride) + column;
            scatter_all(x, select(lanes, place, nowhere), load(list.value + i));
        }
        store(last, columns);
        return (int)(last[0] + 1u);
    }

    // Frequent single units, perhaps with rare ones among them: every sample is a column.
    void from_frequent(const StreamKey& key, int64_t first, int64_t last) {
        frequent_.begin(key, first);
        rare_.begin(key, first, last);
        list_.count = 0;
        for (int64_t s = first; s < last; s += capacity_) {
            const int columns = (int)(last - s < capacity_ ? last - s : capacity_);
            if (tables_.n_frequent < (uint32_t)args_.n) clear(columns);
            for (int c = 0; c < columns; c += 16) {
                frequent_.next16();
                fill_frequent(c);
            }
            fill_rare(s, columns);
            run(columns, (columns + 15) & ~15);
        }
    }
    TOYKERN_INLINE void fill_frequent(int column) {
        const float* values = frequent_.values(0) + frequent_.offset();
        const int64_t stride = stride_;
        if (tables_.all_always && tables_.n_frequent == (uint32_t)args_.n) {
            for (int j = 0; j < args_.n; ++j)
                for (int v = 0; v < 16; v += kLanes) store(x_ + j * stride + column + v, load(values + 16 * j + v));
            return;
        }
        const uint32_t* gates = frequent_.gates();
        const int shift = frequent_.shift();
        for (uint32_t d = 0; d < tables_.n_frequent; ++d) {
            float* to = x_ + (int64_t)tables_.frequent_feature[d] * stride + column;
            for (int v = 0; v < 16; v += kLanes) {
                const M m = mask_bits(gates[d] >> (shift + v));
                store(to + v, load_dealt(values, m));
                values += __builtin_popcount(bits(m));
            }
        }
    }
    void fill_rare(int64_t start, int columns) {
        for (;;) {
            int64_t used = 0;
            for (; used < list_.count && list_.sample[used] < start + columns; ++used)
                x_[(size_t)list_.feature[used] * stride_ + (list_.sample[used] - start)] = list_.value[used];
            const bool more = used == list_.count && !rare_.done();
            list_.drop(used);
            if (!more) return;
            rare_.refill(list_);
        }
    }

    // Groups among frequent units, or noise: through dense rows.
    void from_rows(const StreamKey& key, int64_t first, int64_t last) {
        const size_t n = (size_t)args_.n;
        rows_.begin(key, first, last);
        int column = 0;
        while (!rows_.done()) {
            float *clean = row_, *noisy = row_ + 32 * n;
            const int rows = rows_.next32(clean, n);
            const bool noise = tables_.data->noise > 0.0f;
            if (noise) rows_.add_noise(clean, noisy, n, rows);
            for (int s = 0; s < rows; ++s)
                for (size_t j = 0; j < n; ++j) {
                    x_[j * stride_ + column + s] = (noise ? noisy : clean)[s * n + j];
                    if (noise) clean_[j * stride_ + column + s] = clean[s * n + j];
                }
            column += rows;
            if (column + 32 > capacity_ || rows_.done()) {
                run(column, column);
                column = 0;
            }
        }
    }

    Network net_;
    StreamTables tables_;
    RareCursor rare_;
    FrequentCursor frequent_;
    RowCursor rows_;
    EntryList list_;
    int capacity_, entries_, stride_;  // columns of a run, entries of it, and between rows of x_
    float *x_, *clean_, *row_, *scratch_;
    F *sums_, *residual_;
    ColumnsPassFunction pass_;
    ColumnsPass args_;
    int64_t visited_, held_;  // columns of this part so far; those in sums_
    int n_sums_;
    double loss_;
    float* g_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
