// The readout of a tile through the hidden units that are on alone: what is off costs nothing, forward or back.
//
//   forward          z += h D
//   backward         D's gradient += hᵀ d, and dL/dh = d Dᵀ where a unit is on, as a list
//   then either      spread, dL/dh as dense rows; or, of few units and few entries, bias_gradient and input_gradient
//
// Layout     decoder D and its gradient [m][op], z and d [rows][op], codes and dL/dh [rows][mp]; what is on as a list by
//            row and, for the gradient, sorted by unit
// Owner      one worker; outputs go in panels of lane groups that stay in registers over the units of a row, or over the
//            rows of a unit. Where many are on, units (and rows) go in slabs, so that what is read again stays in L1
// Order      units in order within a row, rows in order within a unit
// Limits     activations whose off units give 0 and pass nothing back (ReLU, top-k)
// Roof       a multiply-add and a load for a lane group of a unit that is on, three times: of the loads, which are two a
//            cycle, as many as of the multiply-adds
#pragma once
#include "cpu/resident/general_codes.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kActivePanel = kLanes == 16 ? 12 : 6;
// A panel of a slab is 24 KB, and so are the rows of D that are read again and again.
constexpr int64_t kSlabUnits = 32, kSlabRows = 32, kSlabFloats = 8192;

class ActiveCodes {
  public:
    void carve(Workspace& w, int64_t rows, int64_t n_hidden, int64_t most) {
        m_ = n_hidden, most_ = most;
        const size_t room = (size_t)most + 2 * kLanes;
        unit_ = w.take<uint32_t>(room), row_ = w.take<uint32_t>(room);
        value_ = w.take<float>(room), sorted_value_ = w.take<float>(room), back_ = w.take<float>(room);
        row_start_ = w.take<int64_t>((size_t)rows + 1), cursor_ = w.take<int64_t>((size_t)rows);
        unit_start_ = w.take<int64_t>((size_t)(n_hidden * ((rows + kSlabRows - 1) / kSlabRows)) + 1);
    }
    // Lists what is on; false, and nothing to be used, if that is more than there is room for.
    bool list(int64_t rows, const float* h, const float* kept, int64_t mp) {
        rows_ = rows;
        int64_t count = 0;
        for (int64_t r = 0; r < rows; ++r) {
            row_start_[r] = count;
            for (int64_t k = 0; k < mp; k += kLanes) {
                const M on = nonzero(load(kept + r * mp + k));
                const int64_t many = __builtin_popcount(bits(on));
                if (count + many > most_) return false;
                store_packed(unit_ + count, ulane() + ubcast((uint32_t)k), on);
                store_packed((uint32_t*)(value_ + count), as_words(load(h + r * mp + k)), on);
                count += many;
            }
        }
        row_start_[rows] = count;
        // Some sixteen units of a row in a slab pay for taking up its outputs and putting them down again.
        slab_ = count ? 16 * rows * m_ / count : m_;
        slab_ = slab_ < kSlabUnits ? kSlabUnits : slab_;
        slab_rows_ = count * 8 > rows * m_ ? kSlabRows : rows;
        return true;
    }
    void forward(const float* d, int64_t op, float* z) {
        for (int64_t lane = 0; lane < op; lane += kActivePanel * kLanes)
            panels(op - lane, [&]<int kV>() { forward_panel<kV>(d + lane, op, z + lane); });
    }
    // d [rows][op] is what goes back.
    void backward(const float* d, const float* decoder, int64_t op, float* decoder_gradient) {
        sort();
        for (int64_t lane = 0; lane < op; lane += kActivePanel * kLanes)
            panels(op - lane, [&]<int kV>() { gradient_panel<kV>(d + lane, op, decoder_gradient + lane); });
        // As many rows of D as stay in L1; four units at a time share what is read of d.
        int64_t slab = kSlabFloats / op;
        slab = slab < 4 ? 4 : slab;
        for (int64_t r = 0; r < rows_; ++r) cursor_[r] = row_start_[r];
        for (int64_t first = 0; first < m_; first += slab)
            for (int64_t r = 0; r < rows_; ++r) {
                int64_t e = cursor_[r];
                const int64_t end = row_start_[r + 1], last = first + slab;
                for (; e + 4 <= end && unit_[e] < last; e += 4) products<4>(d + r * op, decoder, op, e);
                for (; e + 4 > end && e < end && unit_[e] < last; ++e) products<1>(d + r * op, decoder, op, e);
                cursor_[r] = e;
            }
    }
    // ± `slope` to dL/dh by the sign of h; returns Σ |h|.
    double add_l1(float slope) {
        double sum = 0.0;
        for (int64_t e = 0; e < row_start_[rows_]; ++e) {
            const float h = value_[e];
            back_[e] += h > 0.0f ? slope : h < 0.0f ? -slope : 0.0f;
            sum += __builtin_fabs((double)h);
        }
        return sum;
    }
    // Whether so few are on that an entry of the input had better visit them one by one.
    bool rare(int64_t mp) const { return row_start_[rows_] * kLanes < rows_ * mp; }
    void spread(float* dh, int64_t mp) const {
        for (int64_t i = 0; i < rows_ * mp; i += kLanes) store(dh + i, fzero());
        for (int64_t r = 0; r < rows_; ++r)
            for (int64_t e = row_start_[r]; e < row_start_[r + 1]; ++e) dh[r * mp + unit_[e]] = back_[e];
    }
    void bias_gradient(float* gradient) const {
        for (int64_t e = 0; e < row_start_[rows_]; ++e) gradient[unit_[e]] += back_[e];
    }
    // gradient [features][mp] += xᵀ dL/dh, x by its entries.
    void input_gradient(int64_t entries, const uint32_t* row, const uint32_t* feature, const float* value,
                        float* gradient, int64_t mp) const {
        for (int64_t i = 0; i < entries; ++i) {
            float* const to = gradient + (int64_t)feature[i] * mp;
            for (int64_t e = row_start_[row[i]]; e < row_start_[row[i] + 1]; ++e) to[unit_[e]] += value[i] * back_[e];
        }
    }

  private:
    template <class Body>
    static void panels(int64_t lanes, const Body& body) {
        const int64_t vectors = lanes / kLanes;
        if (vectors >= kActivePanel) return body.template operator()<kActivePanel>();
        switch (vectors) {
            case 1: return body.template operator()<1>();
            case 2: return body.template operator()<2>();
            case 3: return body.template operator()<3>();
            case 4: return body.template operator()<4>();
            case 5: return body.template operator()<5>();
            case 6: return body.template operator()<6>();
            case 7: return body.template operator()<7>();
            case 8: return body.template operator()<8>();
            case 9: return body.template operator()<9>();
            case 10: return body.template operator()<10>();
            default: return body.template operator()<11>();
        }
    }
    template <int kV>
    void forward_panel(const float* d, int64_t op, float* z) {
        for (int64_t r = 0; r < rows_; ++r) cursor_[r] = row_start_[r];
        for (int64_t first = 0; first < m_; first += slab_)
            for (int64_t r = 0; r < rows_; ++r) {
                const int64_t end = row_start_[r + 1], last = first + slab_;
                int64_t e = cursor_[r];
                if (e == end || unit_[e] >= last) continue;
                F sum[kV];
#pragma GCC unroll 12
                for (int v = 0; v < kV; ++v) sum[v] = load(z + r * op + v * kLanes);
                do {
                    const F h = bcast(value_[e]);
                    const float* from = d + (int64_t)unit_[e] * op;
#pragma GCC unroll 12
                    for (int v = 0; v < kV; ++v) sum[v] = fmadd(h, load(from + v * kLanes), sum[v]);
                } while (++e < end && unit_[e] < last);
#pragma GCC unroll 12
                for (int v = 0; v < kV; ++v) store(z + r * op + v * kLanes, sum[v]);
                cursor_[r] = e;
            }
    }
    // Rows and values by slab of rows and unit, a counting sort.
    void sort() {
        const int64_t keys = m_ * ((rows_ + slab_rows_ - 1) / slab_rows_);
        for (int64_t k = 0; k <= keys; ++k) unit_start_[k] = 0;
        for (int64_t r = 0; r < rows_; ++r)
            for (int64_t e = row_start_[r]; e < row_start_[r + 1]; ++e)
                ++unit_start_[r / slab_rows_ * m_ + unit_[e] + 1];
        for (int64_t k = 0; k < keys; ++k) unit_start_[k + 1] += unit_start_[k];
        for (int64_t r = 0; r < rows_; ++r) {
            int64_t* const next = unit_start_ + r / slab_rows_ * m_;
            for (int64_t e = row_start_[r]; e < row_start_[r + 1]; ++e) {
                const int64_t at = next[unit_[e]]++;
                row_[at] = (uint32_t)r;
                sorted_value_[at] = value_[e];
            }
        }
        for (int64_t k = keys; k > 0; --k) unit_start_[k] = unit_start_[k - 1];
        unit_start_[0] = 0;
    }
    template <int kV>
    void gradient_panel(const float* d, int64_t op, float* all) const {
        for (int64_t k = 0; k < m_ * ((rows_ + slab_rows_ - 1) / slab_rows_); ++k) {
            if (unit_start_[k] == unit_start_[k + 1]) continue;
            float* const gradient = all - k / m_ * m_ * op;  // of slab number k / m
            F sum[kV];
#pragma GCC unroll 12
            for (int v = 0; v < kV; ++v) sum[v] = load(gradient + k * op + v * kLanes);
            for (int64_t e = unit_start_[k]; e < unit_start_[k + 1]; ++e) {
                const F h = bcast(sorted_value_[e]);
                const float* from = d + (int64_t)row_[e] * op;
#pragma GCC unroll 12
                for (int v = 0; v < kV; ++v) sum[v] = fmadd(h, load(from + v * kLanes), sum[v]);
            }
#pragma GCC unroll 12
            for (int v = 0; v < kV; ++v) store(gradient + k * op + v * kLanes, sum[v]);
        }
    }
    // dL/dh of units e … e + kU - 1 of the list, all of one row.
    template <int kU>
    void products(const float* d, const float* decoder, int64_t op, int64_t e) {
        F sum[kU];
        const float* from[kU];
#pragma GCC unroll 4
        for (int u = 0; u < kU; ++u) sum[u] = fzero(), from[u] = decoder + (int64_t)unit_[e + u] * op;
        for (int64_t j = 0; j < op; j += kLanes) {
            const F x = load(d + j);
#pragma GCC unroll 4
            for (int u = 0; u < kU; ++u) sum[u] = fmadd(x, load(from[u] + j), sum[u]);
        }
#pragma GCC unroll 4
        for (int u = 0; u < kU; ++u) back_[e + u] = fsum(sum[u]);
    }

    int64_t m_, most_, rows_, slab_, slab_rows_;
    uint32_t *unit_, *row_;
    float *value_, *sorted_value_, *back_;
    int64_t *row_start_, *cursor_, *unit_start_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
