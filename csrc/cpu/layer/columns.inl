// The layer's loss for small networks: samples across lanes, by the trainer's own pass (columns_pass.inl).
//
//   h = f(E x), y = g(D h + b), loss = scale Σ I (t − y)² with t = x or |x|, and the gradients of E, D and b
//
// Layout     x as given, [B][n]; the samples of a strip that are not all zero become columns [n][stride] in L1
// Owner      one worker a model
// Zeros      all-zero samples share one closed-form term; a strip of which more than one entry in four is not zero is
//            transposed whole
// Order      as in train_columns.inl, strips in order
// Limits     float32, m <= 8, n·m <= 128, no hidden bias, top-k, GELU, codes that are not 0 where x is, L1, gradient to
//            x or target tensor: layer.inl takes the rest
// Roof       one read of x from memory; the pass over columns as in columns_pass.inl
#pragma once
#include "cpu/layer/layer.inl"
#include "cpu/resident/columns_pass.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// GELU outputs stay with layer.inl, which had them first: their bits would be others here.
constexpr int64_t kLayerColumnsMaxWeights = 128;
inline bool layer_columns_fit(const LayerParams& p) {
    const bool activations = p.hidden_activation != (int32_t)Activation::kTopK &&
                             activation_at_zero(p.hidden_activation) == 0.0 &&
                             p.output_activation != (int32_t)Activation::kGelu;
    return activations && !p.is_double && p.task == (int32_t)LayerTask::kLoss && p.n_hidden <= kColumnsMaxHidden &&
           p.n_features * p.n_hidden <= kLayerColumnsMaxWeights && p.target != (int32_t)Target::kTensor &&
           !p.hidden_bias && !p.l1 && !p.x_grad && !p.value_grad && !p.active;
}

class LayerColumns {
  public:
    void carve(Workspace& w, const LayerParams& p) {
        n_ = p.n_features, m_ = p.n_hidden, weights_ = n_ * m_;
        length_ = weights_ * (p.tied ? 1 : 2) + n_;
        capacity_ = (int)(16384 / n_) & ~(kColumnRun - 1);
        capacity_ = capacity_ < 128 ? 128 : (capacity_ > 512 ? 512 : capacity_);
        stride_ = capacity_ + 16;
        inverse_ = ((uint64_t)1 << 32) / (uint64_t)n_ + 1;  // at / n = at · inverse >> 32 for at < 2^32 / n
        places_ = w.take<uint32_t>((size_t)(capacity_ * n_) + kLanes);
        const size_t length = (size_t)length_, n = (size_t)n_;
        x_ = w.take<float>(n * (size_t)stride_);
        encoder_ = w.take<float>((size_t)weights_);
        decoder_ = p.tied ? encoder_ : w.take<float>((size_t)weights_);
        bias_ = w.take<float>(n + kLanes);
        importance_ = w.take<float>(n + kLanes);
        sums_ = w.take<F>(length + 16);
        residual_ = w.take<F>(2 * n);
        scratch_ = w.take<float>(length + 32);
        g_ = w.take<float>(length + 32);
    }

    void run(const LayerParams& p, int64_t i) {
        import(p, i);
        pass_ = columns_pass_for((int)n_, (int)m_, p.tied, p.hidden_activation, p.output_activation);
        loss_ = 0.0;
        visited_ = held_ = 0;
        columns_ = cleared_ = 0;
        if (p.x)
            dense(static_cast<const float*>(p.x) + i * p.x_stride, p.batch);
        else
            entries(p, i);
        pass();
        put_away();
        if (p.batch > visited_) loss_ += empty_columns(args_, p.batch - visited_, g_ + length_ - n_);
        static_cast<float*>(p.loss)[i] = (float)(loss_ * p.loss_scale);
        export_to(p, i);
    }

  private:
    void import(const LayerParams& p, int64_t i) {
        const float* encoder = static_cast<const float*>(p.encoder) + i * weights_;
        for (int64_t k = 0; k < m_; ++k)
            for (int64_t j = 0; j < n_; ++j) encoder_[j * m_ + k] = encoder[k * n_ + j];
        if (!p.tied)
            __builtin_memcpy(decoder_, static_cast<const float*>(p.decoder) + i * weights_, 4 * (size_t)weights_);
        const float* bias = p.bias ? static_cast<const float*>(p.bias) + i * n_ : nullptr;
        const float* importance = static_cast<const float*>(p.importance) + i * p.importance_stride;
        for (int64_t j = 0; j < n_; ++j) bias_[j] = bias ? bias[j] : 0.0f, importance_[j] = importance[j];
        for (int64_t q = 0; q < length_; ++q) sums_[q] = fzero();
        for (int64_t q = 0; q < length_; q += kLanes) store(g_ + q, fzero());
        args_.n = (int)n_;
        args_.stride = stride_;
        args_.x = args_.clean = x_;
        args_.encoder = encoder_;
        args_.decoder = decoder_;
        args_.bias = bias_;
        args_.importance = importance_;
        args_.hidden_activation = p.hidden_activation;
        args_.output_activation = p.output_activation;
        args_.hidden_option = p.hidden_option;
        args_.output_option = p.output_option;
        args_.loss_function = {p.loss_function};
        args_.target_bits = target_bits(p.target);
        args_.encoder_sum = sums_;
        args_.decoder_sum = p.tied ? sums_ : sums_ + weights_;
        args_.bias_sum = sums_ + length_ - n_;
        args_.residual = residual_;
        args_.loss = fzero();
    }
    void export_to(const LayerParams& p, int64_t i) const {
        const float scale = (float)(AnyLoss{p.loss_function}.gradient() * p.loss_scale);
        if (p.encoder_grad) {
            float* to = static_cast<float*>(p.encoder_grad) + i * weights_;
            for (int64_t k = 0; k < m_; ++k)
                for (int64_t j = 0; j < n_; ++j) to[k * n_ + j] = scale * g_[j * m_ + k];
        }
        if (p.decoder_grad) {
            float* to = static_cast<float*>(p.decoder_grad) + i * weights_;
            for (int64_t q = 0; q < weights_; ++q) to[q] = scale * g_[weights_ + q];
        }
        if (p.bias_grad) {
            float* to = static_cast<float*>(p.bias_grad) + i * n_;
            for (int64_t j = 0; j < n_; ++j) to[j] = scale * g_[length_ - n_ + j];
        }
    }

    // ---- samples to columns ----
    void dense(const float* x, int64_t batch) {
        for (int64_t s = 0; s < batch; s += capacity_) {
            const int64_t samples = batch - s < capacity_ ? batch - s : capacity_, values = samples * n_;
            const float* from = x + s * n_;
            int64_t count = 0;
            for (int64_t v = 0; v < values; v += kLanes) {
                __builtin_prefetch(from + values + v);  // what comes next, the next model's most often
                const M active = nonzero(get(from, v, values));
                store_packed(places_ + count, ulane() + ubcast((uint32_t)v), active);  // no branch to guess wrong
                count += __builtin_popcount(bits(active));
            }
            if (4 * count > values) {
                pass();  // what was gathered before
                transpose_strip(from, samples);
                continue;
            }
            if (columns_ + samples > capacity_) pass();
            pick(from, count);
        }
    }
    TOYKERN_INLINE static F get(const float* from, int64_t v, int64_t values) {
        return values - v >= kLanes ? load(from + v) : load_first(from + v, mask_first((int)(values - v)));
    }
    // The samples that are not all zero, by the places of their entries.
    void pick(const float* from, int64_t count) {
        int64_t sample_end = 0;  // place of the entry after the current sample
        for (int64_t i = 0; i < count; ++i) {
            const int64_t at = places_[i];
            if (at >= sample_end) {
                sample_end = (int64_t)(((uint64_t)at * inverse_) >> 32) * n_ + n_;
                open_column();
            }
            x_[(at - sample_end + n_) * stride_ + columns_ - 1] = from[at];
        }
    }
    void transpose_strip(const float* from, int64_t samples) {
        for (int64_t c = 0; c < samples; c += kColumnRun) clear_run();
        columns_ = (int)samples;
        const U step = mullo(ulane(), ubcast((uint32_t)n_));
        int64_t c = 0;
        for (; c + kLanes <= samples; c += kLanes)
            for (int64_t j = 0; j < n_; ++j) store(x_ + j * stride_ + c, gather(from + c * n_ + j, step));
        for (; c < samples; ++c)
            for (int64_t j = 0; j < n_; ++j) x_[j * stride_ + c] = from[c * n_ + j];
        pass();
    }
    void entries(const LayerParams& p, int64_t i) {
        const int64_t* start = p.row_start + i * p.row_stride;
        const float* value = static_cast<const float*>(p.value);
        for (int64_t s = 0; s < p.batch; ++s) {
            if (start[s] == start[s + 1]) continue;
            if (columns_ == capacity_) pass();
            open_column();
            for (int64_t e = start[s]; e < start[s + 1]; ++e) x_[p.feature[e] * stride_ + columns_ - 1] = value[e];
        }
    }
    TOYKERN_INLINE void open_column() {
        if (columns_ == cleared_) clear_run();
        ++columns_;
    }
    void clear_run() {
        for (float *x = x_ + cleared_, *end = x + n_ * stride_; x < end; x += stride_)
            for (int v = 0; v < kColumnRun; v += kLanes) store(x + v, fzero());
        cleared_ += kColumnRun;
    }
    void pass() {
        if (columns_ > 0) {
            args_.count = columns_;
            pass_(args_);
            loss_ += (double)fsum(args_.loss);
            args_.loss = fzero();
            visited_ += columns_;
            if ((held_ += columns_) >= kSumColumns) put_away();
        }
        columns_ = cleared_ = 0;
    }
    void put_away() {
        sum_lanes(sums_, (int)length_, scratch_);
        for (int64_t q = 0; q < length_; q += kLanes) store(g_ + q, load(g_ + q) + load(scratch_ + q));
        for (int64_t q = 0; q < length_; ++q) sums_[q] = fzero();
        held_ = 0;
    }

    int64_t n_, m_, weights_, length_, visited_, held_;
    int capacity_, stride_, columns_, cleared_;  // columns filled; made zero
    float *x_, *encoder_, *decoder_, *bias_, *importance_, *scratch_, *g_;
    F *sums_, *residual_;
    uint32_t* places_;  // [capacity n + lanes] where a strip's entries are not zero
    uint64_t inverse_;
    ColumnsPassFunction pass_;
    ColumnsPass args_;
    double loss_;
};

inline size_t layer_columns_bytes(const LayerParams& p) {
    Workspace w;
    LayerColumns columns;
    columns.carve(w, p);
    return w.bytes();
}
inline size_t no_shared_bytes(const LayerParams&, int64_t) { return 0; }
inline void run_layer_columns(const LayerParams& p, int64_t, void*, void* room, const Team& team, const Queue& queue) {
    Workspace w(room);
    LayerColumns columns;
    columns.carve(w, p);
    for (int64_t i; (i = queue.next()) >= 0;)
        if (team.rank == 0) columns.run(p, i);
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
