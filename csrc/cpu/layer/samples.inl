// Every pass of the layer for small networks: samples across lanes, float or double.
//
//   h = f(E x + c), y = g(D h + b); forward: y; loss: scale Σ I ρ(y − t), t = x or |x|, and the gradients of E, D, b and
//   c; backward: those from dy
//
// Layout     a strip of as many samples as there are lanes, in columns [n][lanes] of L1; weights by feature [n][m]
// Owner      one worker a model
// Zeros      are computed: a strip costs 4 n m multiply-adds whatever is in it, less than to look for them
// Order      of a sample's sums: features, hidden units; over samples: strips in order in the lanes, at most kHeldStrips
//            of them, then a fixed tree, then those in order. A lane beyond the batch adds exact zeros
// Limits     m <= 8, n·m <= 128, no top-k, L1, target tensor or gradient to x: layer.inl takes the rest. Of float32
//            losses it has those that columns.inl does not take
// Roof       one read of x and one write of y where the batch is long. 5 -> 2, batch 1024: 5,120 values are put into
//            columns one by one, which is about half of a forward pass
#pragma once
#include "cpu/layer/columns.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kSamplesMaxHidden = 8, kSamplesMaxWeights = 128;
constexpr int kHeldStrips = 64;

// A function of one model's shape and options alone.
inline bool layer_samples_fit(const LayerParams& p) {
    return p.hidden_activation != (int32_t)Activation::kTopK && p.n_hidden <= kSamplesMaxHidden &&
           p.n_features * p.n_hidden <= kSamplesMaxWeights && p.target != (int32_t)Target::kTensor && !p.l1 &&
           !p.x_grad && !p.value_grad && !p.active;
}

template <class T>
class LayerSamples {
  public:
    void carve(Workspace& w, const LayerParams& p) {
        n_ = p.n_features, m_ = p.n_hidden;
        const size_t n = (size_t)n_, m = (size_t)m_, weights = n * m;
        x_ = w.take<T>(n * kStep);
        other_ = w.take<T>(n * kStep);
        saved_ = w.take<T>(p.task == (int32_t)LayerTask::kBackward && p.output ? n * kStep : 0);
        encoder_ = w.take<T>(weights);
        decoder_ = p.tied ? encoder_ : w.take<T>(weights);
        // Sums and totals: encoder, decoder unless tied, b, c.
        length_ = (int64_t)weights * (p.tied ? 1 : 2) + n_ + m_;
        sums_ = w.take<V>((size_t)length_);
        totals_ = w.take<T>((size_t)length_);
        hidden_ = AnyActivation<V>::of(p.hidden_activation, p.hidden_option);
        output_ = AnyActivation<V>::of(p.output_activation, p.output_option);
    }

    void run(const LayerParams& p, int64_t i) {
        const int64_t weights = n_ * m_, values = p.batch * n_;
        const T* encoder = at(p.encoder, i * weights);
        for (int64_t k = 0; k < m_; ++k)
            for (int64_t j = 0; j < n_; ++j) encoder_[j * m_ + k] = encoder[k * n_ + j];
        if (!p.tied) __builtin_memcpy(decoder_, at(p.decoder, i * weights), sizeof(T) * (size_t)weights);
        bias_ = at(p.bias, i * n_);
        code_bias_ = at(p.hidden_bias, i * m_);
        importance_ = at(p.importance, i * p.importance_stride);
        encoder_sum_ = sums_;
        decoder_sum_ = p.tied ? sums_ : sums_ + weights;
        bias_sum_ = sums_ + length_ - n_ - m_;
        hidden_sum_ = sums_ + length_ - m_;
        for (int64_t q = 0; q < length_; ++q) sums_[q] = Lane<T>::zero(), totals_[q] = (T)0;
        loss_ = Lane<T>::zero();
        double loss = 0.0;
        const T* x = at(p.x, i * p.x_stride);
        const T *saved = at(p.output, i * values), *grad = at(p.output_grad, i * values);
        int held = 0;
        for (int64_t s = 0; s < p.batch; s += kStep) {
            count_ = (int)(p.batch - s < kStep ? p.batch - s : kStep);
            if (x)
                to_columns(x + s * n_, x_);
            else
                entries(p, p.row_start + i * p.row_stride + s);
            if (grad) to_columns(grad + s * n_, other_);
            if (grad && saved) to_columns(saved + s * n_, saved_);
            strip(p);
            if (p.task == (int32_t)LayerTask::kForward) {
                from_columns(static_cast<T*>(p.output) + i * values + s * n_);
            } else if (++held == kHeldStrips || s + kStep >= p.batch) {
                loss += (double)fsum(loss_);
                put_away();
                held = 0;
            }
        }
        if (p.loss) static_cast<T*>(p.loss)[i] = (T)(loss * p.loss_scale);
        export_to(p, i);
    }

  private:
    static constexpr int kStep = Lane<T>::kCount;
    using V = typename Lane<T>::Vector;

    static const T* at(const void* base, int64_t offset) {
        return base ? static_cast<const T*>(base) + offset : nullptr;
    }

    void to_columns(const T* from, T* to) const {
        if (count_ < kStep)
            for (int64_t q = 0; q < n_ * kStep; ++q) to[q] = (T)0;
        for (int l = 0; l < count_; ++l, from += n_)
            for (int64_t j = 0; j < n_; ++j) to[j * kStep + l] = from[j];
    }
    void entries(const LayerParams& p, const int64_t* start) const {
        for (int64_t q = 0; q < n_ * kStep; ++q) x_[q] = (T)0;
        const T* value = static_cast<const T*>(p.value);
        for (int l = 0; l < count_; ++l)
            for (int64_t e = start[l]; e < start[l + 1]; ++e) x_[p.feature[e] * kStep + l] = value[e];
    }
    void from_columns(T* to) const {
        for (int l = 0; l < count_; ++l, to += n_)
            for (int64_t j = 0; j < n_; ++j) to[j] = other_[j * kStep + l];
    }

    void strip(const LayerParams& p) {
        switch (m_) {
            case 1: return pass<1>(p);
            case 2: return pass<2>(p);
            case 3: return pass<3>(p);
            case 4: return pass<4>(p);
            case 5: return pass<5>(p);
            case 6: return pass<6>(p);
            case 7: return pass<7>(p);
            default: return pass<8>(p);
        }
    }
    template <int kM>
    void pass(const LayerParams& p) {
        const auto task = (LayerTask)p.task;
        const auto in = Lane<T>::first(count_);
        const V zero = Lane<T>::zero();
        const int64_t n = n_;
        const AnyLoss loss_function{p.loss_function};
        const bool magnitudes = p.target == (int32_t)Target::kMagnitude;
        V h[kM], slope[kM], dh[kM];
#pragma GCC unroll 8
        for (int k = 0; k < kM; ++k) h[k] = code_bias_ ? bcast(code_bias_[k]) : zero, dh[k] = zero;
        for (int64_t j = 0; j < n; ++j) {
            const V x = load(x_ + j * kStep);
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) h[k] = fmadd(bcast(encoder_[j * kM + k]), x, h[k]);
        }
#pragma GCC unroll 8
        for (int k = 0; k < kM; ++k) h[k] = hidden_.value(h[k], slope[k]);
        for (int64_t j = 0; j < n; ++j) {
            const T* d = decoder_ + j * kM;
            V z = bias_ ? bcast(bias_[j]) : zero, slope_out, dz;
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) z = fmadd(bcast(d[k]), h[k], z);
            if (task == LayerTask::kBackward && p.output) {
                dz = load(other_ + j * kStep) * output_.slope_of(load(saved_ + j * kStep));
            } else {
                const V y = output_.value(z, slope_out);
                if (task == LayerTask::kForward) {
                    store(other_ + j * kStep, y);
                    continue;
                }
                if (task == LayerTask::kBackward) {
                    dz = load(other_ + j * kStep) * slope_out;
                } else {
                    const V given = load(x_ + j * kStep), t = magnitudes ? magnitude(given) : given;
                    dz =
                        output_.back(z, slope_out, loss_function.add_to(loss_, keep(in, y - t), bcast(importance_[j])));
                }
            }
            dz = keep(in, dz);
            bias_sum_[j] = bias_sum_[j] + dz;
            V* sum = decoder_sum_ + j * kM;
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) {
                sum[k] = fmadd(dz, h[k], sum[k]);
                dh[k] = fmadd(bcast(d[k]), dz, dh[k]);
            }
        }
        if (task == LayerTask::kForward) return;
#pragma GCC unroll 8
        for (int k = 0; k < kM; ++k) {
            dh[k] = hidden_.back(h[k], slope[k], dh[k]);
            hidden_sum_[k] = hidden_sum_[k] + dh[k];
        }
        for (int64_t j = 0; j < n; ++j) {
            const V x = load(x_ + j * kStep);
            V* sum = encoder_sum_ + j * kM;
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) sum[k] = fmadd(x, dh[k], sum[k]);
        }
    }

    void put_away() {
        for (int64_t q = 0; q < length_; ++q) {
            totals_[q] += fsum(sums_[q]);
            sums_[q] = Lane<T>::zero();
        }
        loss_ = Lane<T>::zero();
    }
    void export_to(const LayerParams& p, int64_t i) const {
        const bool of_loss = p.task == (int32_t)LayerTask::kLoss;
        const T scale = of_loss ? (T)(AnyLoss{p.loss_function}.gradient() * p.loss_scale) : (T)1;
        const int64_t weights = n_ * m_;
        if (T* to = static_cast<T*>(p.encoder_grad))
            for (int64_t k = 0; k < m_; ++k)
                for (int64_t j = 0; j < n_; ++j) to[i * weights + k * n_ + j] = scale * totals_[j * m_ + k];
        const T* from = totals_ + weights;
        if (T* to = static_cast<T*>(p.decoder_grad))
            for (int64_t q = 0; q < weights; ++q) to[i * weights + q] = scale * from[q];
        from = totals_ + length_ - n_ - m_;
        if (T* to = static_cast<T*>(p.bias_grad))
            for (int64_t j = 0; j < n_; ++j) to[i * n_ + j] = scale * from[j];
        if (T* to = static_cast<T*>(p.hidden_bias_grad))
            for (int64_t k = 0; k < m_; ++k) to[i * m_ + k] = scale * from[n_ + k];
    }

    int64_t n_, m_, length_;
    int count_;               // samples of the strip at hand
    T *x_, *other_, *saved_;  // [n][lanes]: the input; dy, or y on the way out; y that was saved
    T *encoder_, *decoder_, *totals_;
    const T *bias_, *code_bias_, *importance_;
    V *sums_, *encoder_sum_, *decoder_sum_, *bias_sum_, *hidden_sum_;
    V loss_;
    AnyActivation<V> hidden_, output_;
};

template <class T>
inline size_t layer_samples_bytes(const LayerParams& p) {
    Workspace w;
    LayerSamples<T> samples;
    samples.carve(w, p);
    return w.bytes();
}
template <class T>
inline void run_layer_samples(const LayerParams& p, int64_t, void*, void* room, const Team& team, const Queue& queue) {
    Workspace w(room);
    LayerSamples<T> samples;
    samples.carve(w, p);
    for (int64_t i; (i = queue.next()) >= 0;)
        if (team.rank == 0) samples.run(p, i);
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
