// Sparse rows and columns of the layer: which entries of a dense matrix are not zero, and sums over lists of them.
//
//   mark           bit j of words[j / 64]: entry j of a row is not zero (NaN is not)
//   combine        out = Σ_i value[i] · base[index[i]], rows of whole lane groups
//   ColumnLists    the entries of up to 64 columns, each column's in the order of its rows
//
// Order      every sum runs over its list in order
// Roof       combine: one fused multiply-add and one load for each lane group of an entry; the sums stay in registers
//            for 8 lane groups
#pragma once
#include "cpu/resident/products.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kWordBits = 64;

template <class T>
inline int64_t mark(const T* row, int64_t n, uint64_t* words) {
    constexpr int kStep = Lane<T>::kCount;
    int64_t count = 0;
    for (int64_t j0 = 0; j0 < n; j0 += kWordBits) {
        const int64_t many = n - j0 < kWordBits ? n - j0 : kWordBits;
        uint64_t word = 0;
        int64_t j = 0;
        for (; j + kStep <= many; j += kStep) word |= (uint64_t)bits(nonzero(load(row + j0 + j))) << j;
        if (j < many) word |= (uint64_t)bits(nonzero(load_first(row + j0 + j, Lane<T>::first(many - j)))) << j;
        *words++ = word;
        count += __builtin_popcountll(word);
    }
    return count;
}

// A list of (index, value).
template <class T>
struct List {
    int32_t* index;
    T* value;
    int64_t count;
    TOYKERN_INLINE void add(int64_t i, T v) {
        index[count] = (int32_t)i;
        value[count++] = v;
    }
};

template <int kV, class T>
TOYKERN_INLINE void combine_strip(T* out, const List<T>& list, const T* base, int64_t row, bool add) {
    using V = typename Lane<T>::Vector;
    constexpr int kStep = Lane<T>::kCount;
    V sum[kV];
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) sum[v] = add ? load(out + v * kStep) : Lane<T>::zero();
    for (int64_t i = 0; i < list.count; ++i) {
        const T* from = base + list.index[i] * row;
        const V value = bcast(list.value[i]);
#pragma GCC unroll 8
        for (int v = 0; v < kV; ++v) sum[v] = fmadd(value, load(from + v * kStep), sum[v]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) store(out + v * kStep, sum[v]);
}

// out [lanes] (+)= Σ value[i] · base[index[i]·row + …]; lanes a multiple of a lane group.
template <class T>
inline void combine(T* out, int64_t lanes, const List<T>& list, const T* base, int64_t row, bool add) {
    constexpr int kStep = Lane<T>::kCount;
    if (add && !list.count) return;
    int64_t k = 0;
    for (; k + 8 * kStep <= lanes; k += 8 * kStep) combine_strip<8>(out + k, list, base + k, row, add);
    if (k + 4 * kStep <= lanes) combine_strip<4>(out + k, list, base + k, row, add), k += 4 * kStep;
    for (; k < lanes; k += kStep) combine_strip<1>(out + k, list, base + k, row, add);
}

// Sum of products of two rows of whole lane groups.
template <class T>
inline T dot(const T* a, const T* b, int64_t lanes) {
    auto sum = Lane<T>::zero();
    for (int64_t k = 0; k < lanes; k += Lane<T>::kCount) sum = fmadd(load(a + k), load(b + k), sum);
    return fsum(sum);
}

// Up to 64 lists that share one block of memory: gather the words of all rows, then fill.
template <class T>
struct ColumnLists {
    int32_t* index;
    T* value;
    uint64_t* words;  // of the rows that have an entry in these columns, side by side
    int32_t* rows;
    int64_t n_rows;
    int64_t start[kWordBits + 1], end[kWordBits];

    // word(r) are the entries of row r; returns how many there are in all.
    template <class Word>
    TOYKERN_INLINE int64_t gather(int64_t n, const Word& word) {
        int64_t count = 0;
        n_rows = 0;
        for (int64_t r = 0; r < n; ++r) {
            const uint64_t w = word(r);
            words[n_rows] = w;
            rows[n_rows] = (int32_t)r;
            n_rows += w != 0;
            count += __builtin_popcountll(w);
        }
        return count;
    }
    // from(r): row r's value of the first column.
    template <class From>
    TOYKERN_INLINE void fill(const From& from) {
        clear();
        for (int64_t i = 0; i < n_rows; ++i) count(words[i]);
        place();
        for (int64_t i = 0; i < n_rows; ++i) {
            const T* row = from(rows[i]);
            for (uint64_t word = words[i]; word; word &= word - 1) {
                const int c = __builtin_ctzll(word);
                add(c, rows[i], row[c]);
            }
        }
    }

    TOYKERN_INLINE void clear() {
        for (int c = 0; c <= kWordBits; ++c) start[c] = 0;
    }
    TOYKERN_INLINE void count(uint64_t word) {
        for (; word; word &= word - 1) ++start[__builtin_ctzll(word) + 1];
    }
    TOYKERN_INLINE void place() {
        for (int c = 0; c < kWordBits; ++c) {
            end[c] = start[c];
            start[c + 1] += start[c];
        }
    }
    TOYKERN_INLINE void add(int column, int64_t row, T v) {
        index[end[column]] = (int32_t)row;
        value[end[column]++] = v;
    }
    TOYKERN_INLINE List<T> list(int column) const {
        return {index + start[column], value + start[column], end[column] - start[column]};
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
