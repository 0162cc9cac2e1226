// The layer's loss for stacks of very small networks: models across lanes.
//
//   h = f(E x), y = g(D h + b), loss = scale Σ I (t − y)² with t = x or |x|, and the gradients of E, D and b
//
// Layout     a lane is a model. Columns [c][n][lanes]: of every model its c-th sample that is not all zero; weights and
//            sums [n m][lanes]
// Owner      one worker a group of kLanes neighbouring models
// Zeros      all-zero samples share one closed-form term; a group with a model of which more than one entry in four is
//            not zero is transposed whole
// Order      a model's samples in order, one after the other, and nothing else: neither neighbours nor the way in
//            (entries, packed, transposed) change a bit, since a lane without a sample adds exact zeros
// Limits     what cpu/layer/columns.inl takes of activations none and ReLU, and n·m <= 32, batch <= 512, batch · n <=
//            8192
// Sums       in float32, never longer than the batch; the loss together with what its rounding takes
// Roof       one read of x from memory. 10,000 5 -> 2, batch 128, S = .99 (25.6 MB): .42 ms with x in the third-level
//            cache and .80 washed out of it, where a sum over x by PyTorch takes .21 and .70 (v4, two cores); about a
//            third of the time in cache is the scan of x
#pragma once
#include "cpu/layer/columns.inl"
#include "cpu/layer/entries.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kModelsMaxWeights = 32, kModelsMaxBatch = 512, kModelsMaxValues = 8192;

// A function of a model's shape alone, so that the number of models never changes the bits of one.
inline bool layer_models_fit(const LayerParams& p) {
    return layer_columns_fit(p) && is_floor(p.hidden_activation) && is_floor(p.output_activation) &&
           p.n_features * p.n_hidden <= kModelsMaxWeights && p.batch <= kModelsMaxBatch &&
           p.batch * p.n_features <= kModelsMaxValues;
}

// What a pass over columns reads and adds to. Arrays of vectors, a lane a model.
struct ModelsPass {
    int n, count;                // features, columns
    const float* x;              // [count][n][lanes]
    const F *encoder, *decoder;  // [m][n] [n][m] (tied: not read)
    const F *bias, *importance;  // [n] [n]
    FloorActivation<F> hidden, output;
    AnyLoss loss_function;
    uint32_t target_bits;                     // of the input
    F *encoder_sum, *decoder_sum, *bias_sum;  // [m][n] [n][m] [n]
    F loss, visited;                          // squared errors; samples that were not all zero
};

// kN = 0: n at run time. Sums stay in registers for the shapes that are listed, in L1 otherwise.
template <int kN, int kM, bool kTied>
void models_pass(ModelsPass& a) {
    constexpr int kMostN = kN ? kN : (int)kModelsMaxWeights / kM;
    constexpr int kE = kN ? kN * kM : 1, kD = kN && !kTied ? kN * kM : 1, kB = kN ? kN : 1;
    F local_e[kE], local_d[kD], local_b[kB], dz[kMostN];
    const int n = kN ? kN : a.n;
    F* ge = kN ? local_e : a.encoder_sum;
    F* gd = kN ? local_d : a.decoder_sum;
    F* gb = kN ? local_b : a.bias_sum;
    if (kN) {
#pragma GCC unroll 32
        for (int i = 0; i < kE; ++i) ge[i] = fzero();
#pragma GCC unroll 32
        for (int i = 0; i < kD; ++i) gd[i] = fzero();
#pragma GCC unroll 32
        for (int j = 0; j < kB; ++j) gb[j] = fzero();
    }
    if (!kN)
        for (int j = 0; j < kMostN; ++j) dz[j] = fzero();  // all that are read are written; compilers cannot know
    const FloorActivation<F> hidden = a.hidden, output = a.output;
    const F one = bcast(1.0f);
    F no_slope;  // a floor's is in what it is given
    F loss = fzero(), lost = fzero(), visited = fzero();
    for (const float *x = a.x, *end = x + (int64_t)a.count * n * kLanes; x < end; x += n * kLanes) {
        M some = mask_first(0);
        F h[kM], dh[kM];
#pragma GCC unroll 8
        for (int k = 0; k < kM; ++k) h[k] = dh[k] = fzero();
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j) {
            const F xj = load(x + j * kLanes);
            some = some | nonzero(xj);
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) h[k] = fmadd(a.encoder[k * n + j], xj, h[k]);
        }
#pragma GCC unroll 8
        for (int k = 0; k < kM; ++k) h[k] = keep(some, hidden.value(h[k], no_slope));
        visited = visited + keep(some, one);
        F column = fzero();
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j) {
            const F* w = kTied ? a.encoder + j : a.decoder + j * kM;
            const int step = kTied ? n : 1;
            F y = a.bias[j];
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) y = fmadd(w[k * step], h[k], y);
            const F r = keep(some, output.value(y, no_slope) - and_bits(load(x + j * kLanes), a.target_bits));
            const F d = output.back(y, no_slope, a.loss_function.add_to(column, r, a.importance[j]));
            dz[j] = d;
            gb[j] = gb[j] + d;
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) dh[k] = fmadd(w[k * step], d, dh[k]);
        }
        const F sum = loss + column;  // squares all add up: what rounding takes is kept beside (Fast2Sum; Dekker 1971)
        lost = lost + (column - (sum - loss));
        loss = sum;
#pragma GCC unroll 8
        for (int k = 0; k < kM; ++k) dh[k] = keep(some, hidden.back(h[k], no_slope, dh[k]));
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j) {
            const F xj = load(x + j * kLanes);
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) {
                F& e = ge[k * n + j];
                F& d = kTied ? e : gd[j * kM + k];
                d = fmadd(dz[j], h[k], d);
                e = fmadd(xj, dh[k], e);
            }
        }
    }
    const M finite = gt(bcast(__builtin_inff()), and_bits(lost, 0x7FFFFFFFu));  // a loss beyond float32 stays infinite
    a.loss = loss + keep(finite, lost);
    a.visited = visited;
    if (kN) {
#pragma GCC unroll 32
        for (int i = 0; i < kE; ++i) a.encoder_sum[i] = ge[i];
#pragma GCC unroll 32
        for (int i = 0; i < kD && !kTied; ++i) a.decoder_sum[i] = gd[i];
#pragma GCC unroll 32
        for (int j = 0; j < kB; ++j) a.bias_sum[j] = gb[j];
    }
}

using ModelsPassFunction = void (*)(ModelsPass&);

template <bool kTied>
inline ModelsPassFunction models_pass_for(int n, int m) {
    if (kTied) {
        if (n == 2 && m == 1) return models_pass<2, 1, true>;
        if (n == 3 && m == 1) return models_pass<3, 1, true>;
        if (n == 3 && m == 2) return models_pass<3, 2, true>;
        if (n == 4 && m == 2) return models_pass<4, 2, true>;
        if (n == 5 && m == 2) return models_pass<5, 2, true>;
        if (n == 6 && m == 2) return models_pass<6, 2, true>;
    }
    switch (m) {
        case 1: return models_pass<0, 1, kTied>;
        case 2: return models_pass<0, 2, kTied>;
        case 3: return models_pass<0, 3, kTied>;
        case 4: return models_pass<0, 4, kTied>;
        case 5: return models_pass<0, 5, kTied>;
        case 6: return models_pass<0, 6, kTied>;
        case 7: return models_pass<0, 7, kTied>;
        default: return models_pass<0, 8, kTied>;
    }
}

class LayerModels {
  public:
    void carve(Workspace& w, const LayerParams& p) {
        n_ = p.n_features, m_ = p.n_hidden, weights_ = n_ * m_, values_ = p.batch * n_;
        inverse_ = ((uint64_t)1 << 32) / (uint64_t)n_ + 1;  // at / n = at · inverse >> 32 for at < 2^32 / n
        vectors_ = (values_ + kLanes - 1) / kLanes;
        hits_ = w.take<uint32_t>((size_t)vectors_ + kLanes);
        rows_ = w.take<uint32_t>((size_t)p.batch + kLanes);
        x_ = w.take<float>((size_t)(values_ + kLanes) * kLanes);
        const size_t weights = (size_t)weights_ + kLanes, n = (size_t)n_ + kLanes;
        encoder_ = w.take<F>(weights);
        decoder_ = p.tied ? encoder_ : w.take<F>(weights);
        bias_ = w.take<F>(n);
        importance_ = w.take<F>(n);
        encoder_sum_ = w.take<F>(weights);
        decoder_sum_ = p.tied ? encoder_sum_ : w.take<F>(weights);
        bias_sum_ = w.take<F>(n);
        pass_ = p.tied ? models_pass_for<true>((int)n_, (int)m_) : models_pass_for<false>((int)n_, (int)m_);
    }

    void begin() {
        for (int v = 0; v < kLanes; ++v) hits_[vectors_ + v] = 0;  // read along with the last ones, never written
    }

    void run(const LayerParams& p, int64_t group) {
        first_ = group * kLanes;
        const int64_t left = p.n_models - first_;
        many_ = (int)(left < kLanes ? left : kLanes);
        import(p.encoder, weights_, weights_, encoder_);
        if (!p.tied) import(p.decoder, weights_, weights_, decoder_);
        import(p.bias, n_, n_, bias_);
        import(p.importance, p.importance_stride, n_, importance_);
        columns_ = cleared_ = 0;
        if (p.x)
            dense(p);
        else
            for (int l = 0; l < many_; ++l) entries(p, l);
        ModelsPass a = arguments(p);
        pass_(a);
        add_empty(p, a);
        export_to(p, a);
    }

  private:
    static constexpr int64_t kAhead = 4;  // models; the scan is as fast as memory hands them over

    // [length] of each model, `stride` apart, across lanes; zero in lanes without a model.
    void import(const void* base, int64_t stride, int64_t length, F* to) const {
        if (!base) {
            for (int64_t q = 0; q < length; ++q) to[q] = fzero();
            return;
        }
        const float* from = static_cast<const float*>(base) + first_ * stride;
        for (int64_t q = 0; q < length; q += kLanes) {
            const M in = mask_first((int)(length - q < kLanes ? length - q : kLanes));
            for (int l = 0; l < kLanes; ++l) to[q + l] = l < many_ ? load_first(from + l * stride + q, in) : fzero();
            transpose(to + q);
        }
    }
    void export_rows(F* sums, int64_t length, F scale, void* base) const {
        if (!base) return;
        float* to = static_cast<float*>(base) + first_ * length;
        for (int64_t q = 0; q < length; q += kLanes) {
            const M in = mask_first((int)(length - q < kLanes ? length - q : kLanes));
            for (int r = 0; r < kLanes; ++r) sums[q + r] = sums[q + r] * scale;
            transpose(sums + q);
            for (int l = 0; l < many_; ++l) store_first(to + l * length + q, sums[q + l], in);
        }
    }
    ModelsPass arguments(const LayerParams& p) {
        ModelsPass a;
        a.n = (int)n_;
        a.count = (int)columns_;
        a.x = x_;
        a.encoder = encoder_;
        a.decoder = decoder_;
        a.bias = bias_;
        a.importance = importance_;
        a.hidden = FloorActivation<F>::of(p.hidden_activation, p.hidden_option);
        a.output = FloorActivation<F>::of(p.output_activation, p.output_option);
        a.loss_function = {p.loss_function};
        a.target_bits = target_bits(p.target);
        a.encoder_sum = encoder_sum_;
        a.decoder_sum = decoder_sum_;
        a.bias_sum = bias_sum_;
        for (int64_t q = 0; q < weights_; ++q) encoder_sum_[q] = decoder_sum_[q] = fzero();
        for (int64_t j = 0; j < n_; ++j) bias_sum_[j] = fzero();
        return a;
    }
    // All-zero samples: x = 0, h = 0, y = g(b).
    void add_empty(const LayerParams& p, ModelsPass& a) const {
        const F empty = bcast((float)p.batch) - a.visited;
        const M some = gt(empty, fzero());
        F loss = fzero();
        for (int64_t j = 0; j < n_; ++j) {
            F no_slope;
            const F y = keep(some, a.output.value(bias_[j], no_slope));
            const F d = a.output.back(bias_[j], no_slope, a.loss_function.add_to(loss, y, importance_[j]));
            bias_sum_[j] = fmadd(d, empty, bias_sum_[j]);
        }
        a.loss = fmadd(loss, empty, a.loss);
    }
    void export_to(const LayerParams& p, const ModelsPass& a) const {
        float loss[kLanes];
        store(loss, a.loss);
        for (int l = 0; l < many_; ++l)
            static_cast<float*>(p.loss)[first_ + l] = (float)((double)loss[l] * p.loss_scale);
        const F scale = bcast((float)(a.loss_function.gradient() * p.loss_scale));
        export_rows(encoder_sum_, weights_, scale, p.encoder_grad);
        if (!p.tied) export_rows(decoder_sum_, weights_, scale, p.decoder_grad);
        export_rows(bias_sum_, n_, scale, p.bias_grad);
    }

    // ---- samples to columns ----
    const float* input(const LayerParams& p, int l) const {
        return static_cast<const float*>(p.x) + (first_ + l) * p.x_stride;
    }
    void dense(const LayerParams& p) {
        for (int l = 0; l < many_; ++l) {
            const float* from = input(p, l);
            const int64_t count = scan(from);
            if (4 * count > values_) {
                transpose_all(p);
                return;
            }
            pick(from, l);
        }
    }
    TOYKERN_INLINE static F get(const float* from, int64_t v, int64_t values) {
        return values - v >= kLanes ? load(from + v) : load_first(from + v, mask_first((int)(values - v)));
    }
    // hits_ = of each vector of the model's input, the lanes that are not zero; how many they are in all.
    int64_t scan(const float* from) {
        uint32_t* const hits = hits_;
        const int64_t values = values_, whole = values / kLanes;
        const float* const ahead = from + kAhead * values;  // models that come next, most often
        int64_t count = 0;
        for (int64_t v = 0; v < whole; ++v) {
            __builtin_prefetch(ahead + v * kLanes);
            hits[v] = bits(nonzero(load(from + v * kLanes)));
            count += __builtin_popcount(hits[v]);
        }
        if (whole * kLanes < values) {
            hits[whole] = bits(nonzero(get(from, whole * kLanes, values)));
            count += __builtin_popcount(hits[whole]);
        }
        return count;
    }
    // Entries to columns. Vectors without an entry, the most of them, are passed over by whole words, since a branch
    // for each would be guessed wrong too often.
    void pick(const float* from, int l) {
        const int64_t n = n_;
        const uint64_t inverse = inverse_;
        int64_t column = -1, sample_end = 0;  // place of the entry after the current sample
        float* to = nullptr;
        for (int64_t first = 0; first < vectors_; first += 64) {
            uint64_t word = 0;
            for (int64_t v = first; v < first + 64 && v < vectors_; v += kLanes)
                word |= (uint64_t)(bits(eq(load(hits_ + v), ubcast(0))) ^ bits(mask_first(kLanes))) << (v - first);
            for (; word; word &= word - 1) {
                const int64_t v = first + __builtin_ctzll(word);
                for (uint32_t hit = hits_[v]; hit; hit &= hit - 1) {
                    const int64_t at = v * kLanes + __builtin_ctz(hit);
                    if (at >= sample_end) {
                        sample_end = (int64_t)(((uint64_t)at * inverse) >> 32) * n + n;
                        to = open(++column) - (sample_end - n) * kLanes + l;
                    }
                    to[at * kLanes] = from[at];
                }
            }
        }
        columns_ = column + 1 > columns_ ? column + 1 : columns_;
    }
    void transpose_all(const LayerParams& p) {
        columns_ = p.batch;
        for (int64_t v = 0; v < values_; v += kLanes) {
            F block[kLanes];
            for (int l = 0; l < kLanes; ++l) block[l] = l < many_ ? get(input(p, l), v, values_) : fzero();
            transpose(block);
            for (int r = 0; r < kLanes; ++r) store(x_ + (v + r) * kLanes, block[r]);
        }
    }
    void entries(const LayerParams& p, int l) {
        const int64_t* start = p.row_start + (first_ + l) * p.row_stride;
        const int64_t rows = nonempty_rows(start, p.batch, rows_);
        const float* value = static_cast<const float*>(p.value);
        for (int64_t column = 0; column < rows; ++column) {
            float* to = open(column) + l;
            const int64_t s = rows_[column];
            for (int64_t e = start[s]; e < start[s + 1]; ++e) to[p.feature[e] * kLanes] = value[e];
        }
        columns_ = rows > columns_ ? rows : columns_;
    }
    // Where column c is; zero before the first model of the group writes to it.
    TOYKERN_INLINE float* open(int64_t column) {
        float* to = x_ + column * n_ * kLanes;
        if (column == cleared_) {
            for (int64_t j = 0; j < n_; ++j) store(to + j * kLanes, fzero());
            ++cleared_;
        }
        return to;
    }

    int64_t n_, m_, weights_, values_, vectors_, first_, columns_, cleared_;  // columns: filled; made zero
    int many_;                                                                // models of the group
    uint32_t *hits_, *rows_;                                                  // [vectors + lanes]; [batch + lanes]
    float* x_;                                                                // [batch][n][lanes]
    F *encoder_, *decoder_, *bias_, *importance_;                             // in whole lane groups
    F *encoder_sum_, *decoder_sum_, *bias_sum_;
    uint64_t inverse_;
    ModelsPassFunction pass_;
};

inline size_t layer_models_bytes(const LayerParams& p) {
    Workspace w;
    LayerModels models;
    models.carve(w, p);
    return w.bytes();
}
inline void run_layer_models(const LayerParams& p, int64_t, void*, void* room, const Team& team, const Queue& queue) {
    Workspace w(room);
    LayerModels models;
    models.carve(w, p);
    models.begin();
    for (int64_t group; (group = queue.next()) >= 0;)
        if (team.rank == 0) models.run(p, group);
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
