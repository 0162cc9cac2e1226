// The autoencoder layer: forward, loss and all gradients of stacked models on one given batch.
//
//   a = E x + c, h = f(a), z = D h + b, y = g(z), loss = scale Σ I (t − y)² + l1 Σ |h|, gradients by the chain rule
//
// Passes     0 mark the non-zero inputs (one scan of x), merge all-zero samples into one row with a weight
//            1 h: chunks of features × blocks of rows
//            2 z, y, loss, dz, dh by blocks of rows; dD, db by tiles of 64 features; one chunk after the other, so the
//            output never exists 3 da, then dE (and the gradient of x) by tiles of 64 features
// Entries    a SparseBatch of a model that has many goes through dense tiles as well; the choice follows their number
//            alone
// Zeros      where few inputs of a block are not zero, or few dz, the products over them go through lists
//            (cpu/layer/lists.inl); the choice follows counts in fixed blocks
// Length     the passes share one set of panels and counts; apart they would hand twenty pointers to each other
// Owner      a block of rows or a tile of features belongs to one worker; the team meets between passes
// Order      sums over features run in order of chunks, sums over samples in order of rows: bits depend on shapes and
//            data alone
// Limits     none: any shape, memory as in cpu/layer/plan.inl; more than one segment of rows adds to the gradients of
//            the one before
// Roof       2 n m fused multiply-adds a row each for z, dh and dD (and h, dE where x is dense). 16,384 -> 256, batch
//            1024, S = .999: the three products alone are 25.8 GFLOP, the whole call ran at 266 GFLOP/s of 501 (v4, two
//            cores; MKL's products: 165 to 195)
#pragma once
#include "cpu/layer/output.inl"
#include "cpu/layer/pack.inl"
#include "cpu/top_codes.inl"
#include "toykern/api.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// One entry by list costs as much as so many in a dense product.
TOYKERN_INLINE int64_t list_cost(int64_t m) { return m >= 96 ? 5 : m >= 32 ? 8 : 12; }

template <class T>
class Layer {
  public:
    Layer(const LayerParams& p, int64_t entries, void* shared, void* room, const Team& team) : p_(p), team_(team) {
        Workspace sw(shared), rw(room);
        sh_.carve(sw, p, entries);
        room_.carve(rw, p);
        s_ = sh_.s;
        task_ = (LayerTask)p.task;
        row_ = output_row_for<T>(task_, p.output_activation);
        hidden_ = AnyActivation<V>::of(p.hidden_activation, p.hidden_option);
        gated_ = keeps_gate(p);
        z_needed_ = task_ != LayerTask::kBackward || !p.output;
        weight_grads_ = p.encoder_grad || p.decoder_grad;
    }

    void run(int64_t model) {
        model_ = model;
        at_models();
        int64_t active = 0;
        double loss = 0.0;
        for (int64_t first = 0; first < p_.batch; first += s_.rows) {
            segment(first, least(s_.rows, p_.batch - first), first > 0);
            if (team_.rank == 0) loss += segment_loss();
            if (team_.rank == 0) active += n_active_;
        }
        if (team_.rank == 0 && p_.loss) at(p_.loss, 0)[model] = (T)loss;
        if (team_.rank == 0 && p_.active) p_.active[model] = active;
        team_.meet();
    }

  private:
    static constexpr int kStep = Lane<T>::kCount;
    using V = typename Lane<T>::Vector;

    // ---- what this model's arrays are ----
    const T* at(const void* base, int64_t offset) const {
        return base ? static_cast<const T*>(base) + offset : nullptr;
    }
    T* at(void* base, int64_t offset) const { return base ? static_cast<T*>(base) + offset : nullptr; }
    void at_models() {
        const int64_t i = model_, weights = s_.n * s_.m, values = p_.batch * s_.n;
        encoder_ = at(p_.encoder, i * weights);
        decoder_ = at(p_.decoder, i * weights);
        bias_ = at(p_.bias, i * s_.n);
        hidden_bias_ = at(p_.hidden_bias, i * s_.m);
        x_ = at(p_.x, i * p_.x_stride);
        row_start_ = p_.row_start ? p_.row_start + i * p_.row_stride : nullptr;
        value_ = at(p_.value, 0);
        target_ = at(p_.target_values, i * p_.target_stride);
        importance_ = at(p_.importance, i * p_.importance_stride);
        l1_ = p_.l1 ? *at(p_.l1, i * p_.l1_stride) * (T)p_.l1_scale : (T)0;
        output_ = at(p_.output, i * values);
        output_grad_ = at(p_.output_grad, i * values);
        encoder_grad_ = at(p_.encoder_grad, i * weights);
        decoder_grad_ = at(p_.decoder_grad, i * weights);
        bias_grad_ = at(p_.bias_grad, i * s_.n);
        hidden_bias_grad_ = at(p_.hidden_bias_grad, i * s_.m);
        x_grad_ = at(p_.x_grad, i * values);
        value_grad_ = at(p_.value_grad, i * p_.value_grad_stride);
        target_grad_ = at(p_.target_grad, i * values);
        full_ = row_start_ && (row_start_[p_.batch] - row_start_[0]) * list_cost(s_.m) > values;
    }

    void segment(int64_t first, int64_t samples, bool add) {
        first_ = first, samples_ = samples, add_ = add;
        if (team_.rank == 0) n_active_ = 0;
        find_rows();
        hidden();
        outputs();
        if (task_ != LayerTask::kForward) encoder_gradients();
        team_.meet();
    }

    // ---- pass 0: rows ----
    bool merge_empty() const { return task_ == LayerTask::kLoss && p_.target != (int32_t)Target::kTensor && !x_grad_; }
    void find_rows() {
        const int64_t blocks = blocks_of(samples_, kRowBlock);
        for (int64_t b = team_.rank; b < blocks; b += team_.size)
            for (int64_t s = b * kRowBlock; s < least(samples_, (b + 1) * kRowBlock); ++s)
                sh_.found[s] = x_ ? mark(x_ + (first_ + s) * s_.n, s_.n, sh_.words + s * s_.n_words)
                                  : row_start_[first_ + s + 1] - row_start_[first_ + s];
        team_.meet();
        if (team_.rank == 0) {
            int64_t rows = 0, empty = 0, first_empty = -1;
            for (int64_t s = 0; s < samples_; ++s) {
                if (merge_empty() && sh_.found[s] == 0) {
                    if (!empty++) first_empty = s;
                    continue;
                }
                sh_.sample[rows] = s;
                sh_.weight[rows++] = (T)1;
            }
            if (empty) {
                sh_.sample[rows] = first_empty;
                sh_.weight[rows++] = (T)empty;
            }
            *sh_.n_rows = rows;
            if (!x_ && !full_ && (encoder_grad_ || value_grad_)) sort_entries(rows);
        }
        team_.meet();
        rows_ = *sh_.n_rows;
        in_place_ = rows_ == samples_ && rows_ > 0 && sh_.sample[rows_ - 1] == rows_ - 1;
        blocks_ = blocks_of(rows_, kRowBlock);
    }
    // Entries by feature, each feature's in the order of the rows.
    void sort_entries(int64_t rows) {
        int64_t* start = sh_.column_start;
        for (int64_t j = 0; j < s_.n + 2; ++j) start[j] = 0;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t e = row_first(r); e < row_last(r); ++e) ++start[p_.feature[e] + 2];
        for (int64_t j = 2; j < s_.n + 2; ++j) start[j] += start[j - 1];
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t e = row_first(r); e < row_last(r); ++e) {
                const int64_t to = start[p_.feature[e] + 1]++;
                sh_.column_at[to] = e;
                sh_.column_row[to] = (int32_t)r;
            }
    }
    int64_t row_first(int64_t r) const { return row_start_[first_ + sh_.sample[r]]; }
    int64_t row_last(int64_t r) const { return row_start_[first_ + sh_.sample[r] + 1]; }
    const T* input(int64_t r) const { return x_ + (first_ + sh_.sample[r]) * s_.n; }
    const uint64_t* words(int64_t r) const { return sh_.words + sh_.sample[r] * s_.n_words; }
    int64_t block_end(int64_t block) const { return least(rows_, (block + 1) * kRowBlock); }

    // ---- weights ----
    int64_t chunk_end(int64_t j0) const { return least(s_.n, j0 + s_.chunk); }
    T* encoder_rows(int64_t j) const { return sh_.encoder_rows + (s_.keep ? j : j % s_.chunk) * s_.mp; }
    T* decoder_rows(int64_t j) const { return s_.separate ? sh_.decoder_rows + j % s_.chunk * s_.mp : encoder_rows(j); }

    void prepare_encoder(int64_t j0, int64_t j1) {
        for (int64_t t = j0 / kWordBits + team_.rank; t * kWordBits < j1; t += team_.size)
            feature_rows(encoder_, s_, t * kWordBits, encoder_rows(t * kWordBits));
    }
    // ---- pass 1: codes ----
    void hidden() {
        if (s_.keep && !add_) {
            prepare_encoder(0, s_.n);
            team_.meet();
        }
        for (int64_t j0 = 0; j0 < s_.n; j0 += s_.chunk) {
            if (!s_.keep) {
                prepare_encoder(j0, chunk_end(j0));
                team_.meet();
            }
            for (int64_t b = team_.rank; b < blocks_; b += team_.size) hidden_block(b, j0, chunk_end(j0));
            if (!s_.keep) team_.meet();
        }
        for (int64_t b = team_.rank; b < blocks_; b += team_.size)
            for (int64_t r = b * kRowBlock; r < block_end(b); ++r) activate_hidden(r);
        team_.meet();
        if (weight_grads_ && task_ != LayerTask::kForward) pack_codes(sh_.h, s_, rows_, sh_.h_packed, team_);
    }
    void hidden_block(int64_t b, int64_t j0, int64_t j1) {
        const int64_t r0 = b * kRowBlock, r1 = block_end(b);
        int64_t count = 0;
        if (x_)
            for (int64_t r = r0; r < r1; ++r)
                for (int64_t w = j0 / kWordBits; w * kWordBits < j1; ++w) count += __builtin_popcountll(words(r)[w]);
        if (count * list_cost(s_.m) > (r1 - r0) * (j1 - j0)) {
            const T* a = in_place_ ? input(r0) + j0 : gather_rows(r0, r1, j0, j1);
            multiply_all<T>({a,
                             in_place_ ? s_.n : s_.chunk,
                             1,
                             {encoder_rows(j0), s_.mp, j1 - j0, nullptr},
                             sh_.h + r0 * s_.mp,
                             s_.mp,
                             j0 > 0},
                            r1 - r0, s_.mp, room_.panel);
            return;
        }
        if (full_) {
            multiply_all<T>({lay_out(r0, r1, j0, j1),
                             s_.chunk,
                             1,
                             {encoder_rows(j0), s_.mp, j1 - j0, nullptr},
                             sh_.h + r0 * s_.mp,
                             s_.mp,
                             j0 > 0},
                            r1 - r0, s_.mp, room_.panel);
            return;
        }
        for (int64_t r = r0; r < r1; ++r) {
            row_entries(r, j0, j1, true);
            combine(sh_.h + r * s_.mp, s_.mp, room_.list, encoder_rows(j0), s_.mp, j0 > 0);
        }
    }
    const T* gather_rows(int64_t r0, int64_t r1, int64_t j0, int64_t j1) {
        for (int64_t r = r0; r < r1; ++r)
            __builtin_memcpy(room_.x + (r - r0) * s_.chunk, input(r) + j0, (size_t)(j1 - j0) * sizeof(T));
        return room_.x;
    }
    // The entries of a block of rows and a chunk as dense rows.
    const T* lay_out(int64_t r0, int64_t r1, int64_t j0, int64_t j1) {
        for (int64_t r = r0; r < r1; ++r) {
            T* to = room_.x + (r - r0) * s_.chunk;
            for (int64_t j = 0; j < j1 - j0; ++j) to[j] = (T)0;
            row_entries(r, j0, j1, true);
            for (int64_t i = 0; i < room_.list.count; ++i) to[room_.list.index[i]] = room_.list.value[i];
        }
        return room_.x;
    }
    // room_.list = the entries of a row in a chunk; chunks are asked for in order, the row's cursor knows where it is.
    void row_entries(int64_t r, int64_t j0, int64_t j1, bool wanted) {
        List<T>& list = room_.list;
        list.count = 0;
        if (x_) {
            const T* x = input(r);
            for (int64_t w = j0 / kWordBits; wanted && w * kWordBits < j1; ++w)
                for (uint64_t word = words(r)[w]; word; word &= word - 1) {
                    const int64_t j = w * kWordBits + __builtin_ctzll(word);
                    list.add(j - j0, x[j]);
                }
            return;
        }
        if (j0 == 0) sh_.cursor[r] = row_first(r);
        int64_t e = sh_.cursor[r];
        for (const int64_t end = row_last(r); e < end && p_.feature[e] < j1; ++e)
            if (wanted) list.add(p_.feature[e] - j0, value_[e]);
        sh_.cursor[r] = e;
    }
    void activate_hidden(int64_t r) {
        T* h = sh_.h + r * s_.mp;
        V sum = Lane<T>::zero();
        const V zero = Lane<T>::zero();
        for (int64_t k = 0; k < s_.mp; k += kStep) {
            const auto in = Lane<T>::first(s_.m - k);
            V a = load(h + k);
            if (hidden_bias_) a = a + load_first(hidden_bias_ + k, in);
            const Activated<V> code = hidden_.at(a);
            store(h + k, keep(in, code.y));  // pads stay 0, whatever f(0) is
            if (gated_) store(sh_.gate + r * s_.mp + k, code.slope);
        }
        if (p_.hidden_activation == (int32_t)Activation::kTopK)
            keep_largest(h, s_.m, s_.mp, p_.top_k, room_.list.index, sh_.gate + r * s_.mp);
        sh_.row_loss[r] = 0.0;
        if (l1_ != (T)0)
            for (int64_t k = 0; k < s_.mp; k += kStep) sum = sum + magnitude(load(h + k));
        sh_.row_l1[r] = (double)fsum(sum);
        if (task_ != LayerTask::kForward)
            for (int64_t k = 0; k < s_.mp; k += kStep) store(sh_.dh + r * s_.mp + k, zero);
    }
    // ---- pass 2: outputs, loss, gradients at the output and what follows from them ----
    void outputs() {
        for (int64_t j0 = 0; j0 < s_.n; j0 += s_.chunk) {
            const int64_t j1 = chunk_end(j0);
            prepare_chunk(j0, j1);
            team_.meet();
            for (int64_t b = team_.rank; b < blocks_; b += team_.size) output_block(b, j0, j1);
            team_.meet();
            if (team_.rank == 0)
                for (int64_t b = 0; b < blocks_; ++b) n_active_ += sh_.block_active[b];
            if (task_ == LayerTask::kForward) continue;
            for (int64_t t = team_.rank; j0 + t * kWordBits < j1; t += team_.size) output_tile(t, j0, j1);
        }
    }
    void prepare_chunk(int64_t j0, int64_t j1) {
        if (z_needed_) pack_lanes(p_.tied ? encoder_ : decoder_, !p_.tied, s_, j0, j1, sh_.decoder_lanes, team_);
        if (task_ != LayerTask::kForward) {
            if (s_.separate)
                for (int64_t t = j0 / kWordBits + team_.rank; t * kWordBits < j1; t += team_.size)
                    copy_rows(decoder_, s_, t * kWordBits, decoder_rows(t * kWordBits));
            else if (!s_.keep)
                prepare_encoder(j0, j1);
        }
        if (team_.rank == 0)
            for (int64_t j = 0; j < s_.chunk; ++j) {
                sh_.bias[j] = bias_ && j0 + j < j1 ? bias_[j0 + j] : (T)0;
                sh_.importance[j] = importance_ && j0 + j < j1 ? importance_[j0 + j] : (T)0;
            }
    }
    void output_block(int64_t b, int64_t j0, int64_t j1) {
        const int64_t r0 = b * kRowBlock, r1 = block_end(b), lanes = blocks_of(j1 - j0, kStep) * kStep;
        const int64_t chunk_words = s_.chunk / kWordBits;
        T* z = sh_.z + r0 * s_.z_row;
        if (z_needed_)
            multiply_packed(sh_.h + r0 * s_.mp, s_.mp, (int64_t)1, sh_.decoder_lanes, s_.m, z, s_.z_row, false, r1 - r0,
                            lanes);
        OutputRow<T> row = {};
        row.count = j1 - j0;
        row.bias = sh_.bias;
        row.option = (T)p_.output_option;
        row.loss_function = {p_.loss_function};
        row.importance = sh_.importance;
        row.bias_sum = sh_.bias_sum + b * s_.chunk;
        row.target_magnitude = p_.target == (int32_t)Target::kMagnitude;
        for (int64_t j = 0; j < s_.chunk; ++j) row.bias_sum[j] = (T)0;
        for (int64_t r = r0; r < r1; ++r) {
            const int64_t at = (first_ + sh_.sample[r]) * s_.n + j0;
            row.z = sh_.z + r * s_.z_row;
            row.active = sh_.active + r * chunk_words;
            row.scale = sh_.weight[r] * (T)(row.loss_function.gradient() * p_.loss_scale);
            row.output = output_ + at;
            if (task_ == LayerTask::kBackward) {
                row.output_grad = output_grad_ + at;
                row.saved = output_ ? output_ + at : nullptr;
            }
            if (task_ == LayerTask::kLoss) aim(row, r, j0, j1, at);
            row_(row);
            if (task_ == LayerTask::kLoss) {
                sh_.row_loss[r] += row.loss;
                if (!x_) forget_entries(r, row);
            }
        }
        sh_.block_active[b] = row.n_active;
        if (task_ != LayerTask::kForward) code_gradients(r0, r1, j0, j1, row.n_active);
    }
    // Where a row's target is, and where its gradient goes.
    void aim(OutputRow<T>& row, int64_t r, int64_t j0, int64_t j1, int64_t at) {
        row.direct_grad = nullptr;
        if (p_.target == (int32_t)Target::kTensor) {
            row.target = target_ + at;
            if (target_grad_) row.direct_grad = target_grad_ + at;
            if (!x_) room_.list.count = 0;
            return;
        }
        if (x_) {
            row.target = x_ + at;
            if (x_grad_) row.direct_grad = x_grad_ + at;
            return;
        }
        if (j0 == 0 && r % kRowBlock == 0)
            for (int64_t j = 0; j < s_.chunk; ++j) room_.target[j] = (T)0;
        row_entries(r, j0, j1, true);
        const List<T>& list = room_.list;
        for (int64_t i = 0; i < list.count; ++i) room_.target[list.index[i]] = list.value[i];
        row.target = room_.target;
        if (value_grad_) row.direct_grad = room_.direct;
    }
    void forget_entries(int64_t r, const OutputRow<T>& row) {
        const List<T>& list = room_.list;
        for (int64_t i = 0; i < list.count; ++i) {
            if (value_grad_ && row.direct_grad == room_.direct)
                value_grad_[sh_.cursor[r] - list.count + i] += room_.direct[list.index[i]];
            room_.target[list.index[i]] = (T)0;
        }
    }
    // dh += dz · decoder of a block of rows and a chunk.
    void code_gradients(int64_t r0, int64_t r1, int64_t j0, int64_t j1, int64_t active) {
        if (active * list_cost(s_.m) > (r1 - r0) * (j1 - j0)) {
            multiply_all<T>({sh_.z + r0 * s_.z_row,
                             s_.z_row,
                             1,
                             {decoder_rows(j0), s_.mp, j1 - j0, nullptr},
                             sh_.dh + r0 * s_.mp,
                             s_.mp,
                             true},
                            r1 - r0, s_.mp, room_.panel);
            return;
        }
        for (int64_t r = r0; r < r1; ++r) {
            const T* z = sh_.z + r * s_.z_row;
            const uint64_t* active_words = sh_.active + r * (s_.chunk / kWordBits);
            List<T>& list = room_.list;
            list.count = 0;
            for (int64_t w = 0; j0 + w * kWordBits < j1; ++w)
                for (uint64_t word = active_words[w]; word; word &= word - 1) {
                    const int64_t j = w * kWordBits + __builtin_ctzll(word);
                    list.add(j, z[j]);
                }
            combine(sh_.dh + r * s_.mp, s_.mp, list, decoder_rows(j0), s_.mp, true);
        }
    }
    // dD and db of a tile of 64 features.
    void output_tile(int64_t t, int64_t j0, int64_t j1) {
        const int64_t c0 = t * kWordBits, many = least(kWordBits, j1 - j0 - c0), chunk_words = s_.chunk / kWordBits;
        if (bias_grad_)
            for (int64_t c = c0; c < c0 + many; ++c) {
                T sum = add_ ? bias_grad_[j0 + c] : (T)0;
                for (int64_t b = 0; b < blocks_; ++b) sum += sh_.bias_sum[b * s_.chunk + c];
                bias_grad_[j0 + c] = sum;
            }
        T* to = p_.tied ? encoder_grad_ : decoder_grad_;
        if (!to) return;
        ColumnLists<T>& lists = room_.columns;
        const int64_t count = lists.gather(rows_, [&](int64_t r) { return sh_.active[r * chunk_words + t]; });
        if (count * list_cost(s_.m) > rows_ * many) {
            multiply_packed(sh_.z + c0, (int64_t)1, s_.z_row, sh_.h_packed, rows_, room_.tile, s_.mp, false, many,
                            s_.mp);
        } else {
            lists.fill([&](int64_t r) { return sh_.z + r * s_.z_row + c0; });
            for (int64_t c = 0; c < many; ++c)
                combine(room_.tile + c * s_.mp, s_.mp, lists.list((int)c), sh_.h, s_.mp, false);
        }
        put_tile(room_.tile, s_, to, p_.tied, j0 + c0, many, add_);
    }
    // ---- pass 3: gradients behind the codes ----
    void encoder_gradients() {
        for (int64_t b = team_.rank; b < blocks_; b += team_.size) gate_block(b);
        team_.meet();
        if (team_.rank == 0 && hidden_bias_grad_)
            for (int64_t k = 0; k < s_.m; ++k) {
                T sum = add_ ? hidden_bias_grad_[k] : (T)0;
                for (int64_t b = 0; b < blocks_; ++b) sum += sh_.hidden_sum[b * s_.mp + k];
                hidden_bias_grad_[k] = sum;
            }
        if (encoder_grad_ && (x_ || full_)) {
            pack_codes(sh_.dh, s_, rows_, sh_.dh_packed, team_);
            team_.meet();
        }
        if (encoder_grad_ || value_grad_)
            for (int64_t t = team_.rank; t < s_.n_words; t += team_.size) encoder_tile(t * kWordBits);
        if (x_grad_) input_gradients();
    }
    void gate_block(int64_t b) {
        const V zero = Lane<T>::zero();
        T* sums = sh_.hidden_sum + b * s_.mp;
        for (int64_t k = 0; k < s_.mp; k += kStep) store(sums + k, zero);
        for (int64_t r = b * kRowBlock; r < block_end(b); ++r) {
            const T *h = sh_.h + r * s_.mp, *gate = sh_.gate + r * s_.mp;
            T* dh = sh_.dh + r * s_.mp;
            const V l1 = bcast((T)(l1_ * sh_.weight[r]));
            for (int64_t k = 0; k < s_.mp; k += kStep) {
                const V code = load(h + k);
                V d = load(dh + k);
                if (l1_ != (T)0) d = d + signed_like(l1, code);
                if (p_.hidden_activation == (int32_t)Activation::kTopK)
                    d = keep(nonzero(load(gate + k)), d);
                else
                    d = hidden_.back(code, gated_ ? load(gate + k) : hidden_.slope_of(code), d);
                store(dh + k, d);
                store(sums + k, load(sums + k) + d);
            }
        }
    }
    // dE of 64 features: Σ over rows of x · da.
    void encoder_tile(int64_t j0) {
        const int64_t many = least(kWordBits, s_.n - j0), w = j0 / kWordBits;
        const bool add = add_ || p_.tied;
        if (!x_) {
            full_ ? full_tile(j0, many, add) : entries_tile(j0, many, add);
            return;
        }
        ColumnLists<T>& lists = room_.columns;
        const int64_t count = lists.gather(rows_, [&](int64_t r) { return words(r)[w]; });
        if (count == 0 && add) return;
        if (count * list_cost(s_.m) > rows_ * many) {
            const T* a = input(0) + j0;
            if (!in_place_) {
                for (int64_t r = 0; r < rows_; ++r)
                    __builtin_memcpy(room_.x + r * kWordBits, input(r) + j0, (size_t)many * sizeof(T));
                a = room_.x;
            }
            multiply_packed(a, (int64_t)1, in_place_ ? s_.n : kWordBits, sh_.dh_packed, rows_, room_.tile, s_.mp, false,
                            many, s_.mp);
        } else {
            lists.fill([&](int64_t r) { return input(r) + j0; });
            for (int64_t c = 0; c < many; ++c)
                combine(room_.tile + c * s_.mp, s_.mp, lists.list((int)c), sh_.dh, s_.mp, false);
        }
        put_tile(room_.tile, s_, encoder_grad_, true, j0, many, add);
    }
    void entries_tile(int64_t j0, int64_t many, bool add) {
        const int64_t *start = sh_.column_start, *at = sh_.column_at;
        if (value_grad_) feature_rows(encoder_, s_, j0, room_.weights);
        bool any = false;
        for (int64_t c = 0; c < many; ++c) {
            T* to = room_.tile + c * s_.mp;
            const int64_t first = start[j0 + c], last = start[j0 + c + 1];
            any = any || first < last;
            bool begun = false;
            for (int64_t e = first; e < last;) {  // a frequent feature has more entries than a list has room
                List<T>& list = room_.list;
                const int64_t end = least(last, e + s_.chunk);
                list.count = 0;
                for (; e < end; ++e) {
                    list.add(sh_.column_row[e], value_[at[e]]);
                    if (value_grad_)
                        value_grad_[at[e]] += dot(sh_.dh + sh_.column_row[e] * s_.mp, room_.weights + c * s_.mp, s_.mp);
                }
                combine(to, s_.mp, list, sh_.dh, s_.mp, begun);
                begun = true;
            }
            if (!begun)
                for (int64_t k = 0; k < s_.mp; k += kStep) store(to + k, Lane<T>::zero());
        }
        if (encoder_grad_ && (any || !add)) put_tile(room_.tile, s_, encoder_grad_, true, j0, many, add);
    }
    // The same where entries are so many that a dense product is cheaper.
    void full_tile(int64_t j0, int64_t many, bool add) {
        if (value_grad_) feature_rows(encoder_, s_, j0, room_.weights);
        for (int64_t r = 0; r < rows_; ++r) {
            T* to = room_.x + r * kWordBits;
            for (int64_t c = 0; c < kWordBits; ++c) to[c] = (T)0;
            int64_t e = row_first(r);
            for (int64_t last = row_last(r); e < last;) {  // the first entry that is not before the tile
                const int64_t middle = e + (last - e) / 2;
                p_.feature[middle] < j0 ? e = middle + 1 : last = middle;
            }
            for (; e < row_last(r) && p_.feature[e] < j0 + many; ++e) {
                const int64_t c = p_.feature[e] - j0;
                to[c] = value_[e];
                if (value_grad_) value_grad_[e] += dot(sh_.dh + r * s_.mp, room_.weights + c * s_.mp, s_.mp);
            }
        }
        if (!encoder_grad_) return;
        multiply_packed(room_.x, (int64_t)1, kWordBits, sh_.dh_packed, rows_, room_.tile, s_.mp, false, many, s_.mp);
        put_tile(room_.tile, s_, encoder_grad_, true, j0, many, add);
    }
    // dx += da · E, through z's memory.
    void input_gradients() {
        for (int64_t j0 = 0; j0 < s_.n; j0 += s_.chunk) {
            const int64_t j1 = chunk_end(j0), lanes = blocks_of(j1 - j0, kStep) * kStep;
            team_.meet();
            pack_lanes(encoder_, false, s_, j0, j1, sh_.decoder_lanes, team_);
            team_.meet();
            for (int64_t b = team_.rank; b < blocks_; b += team_.size) {
                const int64_t r0 = b * kRowBlock, r1 = block_end(b);
                multiply_packed(sh_.dh + r0 * s_.mp, s_.mp, (int64_t)1, sh_.decoder_lanes, s_.m, sh_.z + r0 * s_.z_row,
                                s_.z_row, false, r1 - r0, lanes);
                for (int64_t r = r0; r < r1; ++r) {
                    T* to = x_grad_ + (first_ + sh_.sample[r]) * s_.n + j0;
                    for (int64_t j = 0; j < j1 - j0; ++j) to[j] += sh_.z[r * s_.z_row + j];
                }
            }
        }
    }

    double segment_loss() const {
        if (task_ != LayerTask::kLoss) return 0.0;
        double squares = 0.0, codes = 0.0;
        for (int64_t r = 0; r < rows_; ++r) {
            squares += (double)sh_.weight[r] * sh_.row_loss[r];
            codes += (double)sh_.weight[r] * sh_.row_l1[r];
        }
        return squares * p_.loss_scale + (l1_ != (T)0 ? codes * (double)l1_ : 0.0);
    }

    const LayerParams& p_;
    const Team& team_;
    LayerShared<T> sh_;
    LayerRoom<T> room_;
    LayerSizes s_;
    LayerTask task_;
    OutputRowFunction<T> row_;
    AnyActivation<V> hidden_;
    bool gated_;
    bool z_needed_, weight_grads_;

    int64_t model_, first_, samples_, rows_, blocks_, n_active_;
    bool add_, in_place_, full_;  // full: entries so many that they are laid out as dense rows
    const T *encoder_, *decoder_, *bias_, *hidden_bias_, *x_, *value_, *target_, *importance_, *output_grad_;
    const int64_t* row_start_;
    T l1_;
    T *output_, *encoder_grad_, *decoder_grad_, *bias_grad_, *hidden_bias_grad_, *x_grad_, *value_grad_, *target_grad_;
};

template <class T>
struct LayerOf {
    static size_t shared_bytes(const LayerParams& p, int64_t entries) {
        Workspace w;
        LayerShared<T> shared;
        shared.carve(w, p, entries);
        return w.bytes();
    }
    static size_t room_bytes(const LayerParams& p) {
        Workspace w;
        LayerRoom<T> room;
        room.carve(w, p);
        return w.bytes();
    }
    static void run(const LayerParams& p, int64_t entries, void* shared, void* room, const Team& team,
                    const Queue& queue) {
        Layer<T> layer(p, entries, shared, room, team);
        for (int64_t i; (i = queue.next()) >= 0;) layer.run(i);
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
