// The small interface that device code is written against, so that the very same source also runs on a CPU in the
// tests.
//
//   Warp      32 lanes in lock step. Code comes in phases, w.each([&](int lane) { … }), between collectives (shuffle,
//             ballot, scan, sync).
//   Block     warps between barriers: b.each([&](int thread) { … }) or b.each_warp([&](const Warp& w) { … }), then
//             b.sync().
//   Lane<T>   a value of each lane of a warp; PerThread<T> of each thread of a block. Read and written as v[lane],
//             v[thread].
//
// On the device a Lane<T> is one register of the thread, each() calls its argument once, and everything inlines away.
// On the host a Lane<T> holds 32 values and each() is a loop; lanes and warps run in ascending or, for the tests,
// descending order, so that a barrier that is missing changes the result. Control flow between collectives is the same
// for all lanes of a warp (a loop ends when w.any says so), as it is between barriers for all threads of a block.
//
// TOYKERN_DEVICE marks what is inlined, TOYKERN_DEVICE_CALL what is called, so that a rare path costs the common one no
// registers.
//
// Determinism: every collective has one order of operations, the same on both sides.
#pragma once
#include <cstdint>

#include "common/lanes.h"

#if defined(__CUDACC__)
#define TOYKERN_DEVICE __device__ __forceinline__
#define TOYKERN_DEVICE_CALL static __device__ __noinline__
#define TOYKERN_DEVICE_SPACE device_side
#define TOYKERN_UNROLL _Pragma("unroll")
#define TOYKERN_NO_UNROLL _Pragma("unroll 1")
#else
#define TOYKERN_DEVICE inline
#define TOYKERN_DEVICE_CALL static inline
#define TOYKERN_DEVICE_SPACE host_side
#define TOYKERN_UNROLL
#define TOYKERN_NO_UNROLL
#endif

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

constexpr int kWarpLanes = 32;
constexpr int kMaxThreads = 1024;

#if defined(__CUDACC__)

template <class T>
struct Lane {
    T value;
    TOYKERN_DEVICE T& operator[](int) { return value; }
    TOYKERN_DEVICE const T& operator[](int) const { return value; }
};
template <class T>
using PerThread = Lane<T>;

struct Warp {
    int lane;        // of this thread
    int number = 0;  // of this warp in its block
    template <class F>
    TOYKERN_DEVICE void each(const F& f) const {
        f(lane);
    }
    TOYKERN_DEVICE void sync() const { __syncwarp(); }
    TOYKERN_DEVICE uint32_t ballot(const Lane<bool>& v) const { return __ballot_sync(0xFFFFFFFFu, v.value); }
    TOYKERN_DEVICE bool any(const Lane<bool>& v) const { return __any_sync(0xFFFFFFFFu, v.value); }
    template <class T>
    TOYKERN_DEVICE Lane<T> shuffle(const Lane<T>& v, const Lane<int>& from) const {
        return {__shfl_sync(0xFFFFFFFFu, v.value, from.value)};
    }
    template <class T>
    TOYKERN_DEVICE Lane<T> shuffle_xor(const Lane<T>& v, int mask) const {
        return {__shfl_xor_sync(0xFFFFFFFFu, v.value, mask)};
    }
    // The value `delta` lanes below within runs of `width` lanes; a lane without one keeps its own.
    template <class T>
    TOYKERN_DEVICE Lane<T> shuffle_up(const Lane<T>& v, int delta, int width = kWarpLanes) const {
        return {__shfl_up_sync(0xFFFFFFFFu, v.value, delta, width)};
    }
    // The value of the lane `from` of each run of `width` lanes.
    template <class T>
    TOYKERN_DEVICE Lane<T> broadcast(const Lane<T>& v, int from, int width = kWarpLanes) const {
        return {__shfl_sync(0xFFFFFFFFu, v.value, from, width)};
    }
};

struct Block {
    int thread, threads;
    TOYKERN_DEVICE int warps() const { return threads / kWarpLanes; }
    template <class F>
    TOYKERN_DEVICE void each(const F& f) const {
        f(thread);
    }
    template <class F>
    TOYKERN_DEVICE void each_warp(const F& f) const {
        f(Warp{thread % kWarpLanes, thread / kWarpLanes});
    }
    TOYKERN_DEVICE void sync() const { __syncthreads(); }
    // The same block, but what the compiler has computed from `thread` so far is not kept in registers for what
    // follows.
    TOYKERN_DEVICE Block anew() const {
        Block b = *this;
        asm volatile("" : "+r"(b.thread));
        return b;
    }
};

TOYKERN_DEVICE int count_bits(uint32_t x) { return __popc(x); }
TOYKERN_DEVICE int leading_zeros(uint32_t x) { return __clz((int)x); }
TOYKERN_DEVICE void set_bits(uint32_t* shared, uint32_t bits) { atomicOr(shared, bits); }  // in any order
TOYKERN_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
TOYKERN_DEVICE double fused(double a, double b, double c) { return fma(a, b, c); }
TOYKERN_DEVICE float keep_bits(float x, uint32_t bits) { return __uint_as_float(__float_as_uint(x) & bits); }

#else

// Whether lanes, threads and warps run from the last to the first.
inline bool& host_descending() {
    static thread_local bool descending = false;
    return descending;
}

// Runs them so within its lifetime.
class HostOrder {
  public:
    explicit HostOrder(bool descending) : saved_(host_descending()) { host_descending() = descending; }
    ~HostOrder() { host_descending() = saved_; }
    HostOrder(const HostOrder&) = delete;
    HostOrder& operator=(const HostOrder&) = delete;

  private:
    bool saved_;
};

template <class T>
struct Lane {
    T value[kWarpLanes];
    T& operator[](int lane) { return value[lane]; }
    const T& operator[](int lane) const { return value[lane]; }
};
template <class T>
struct PerThread {
    T value[kMaxThreads];
    T& operator[](int thread) { return value[thread]; }
    const T& operator[](int thread) const { return value[thread]; }
};

template <class F>
inline void host_each(int count, const F& f) {
    const bool descending = host_descending();
    for (int i = 0; i < count; ++i) f(descending ? count - 1 - i : i);
}

struct Warp {
    int lane = 0;
    int number = 0;
    template <class F>
    void each(const F& f) const {
        host_each(kWarpLanes, f);
    }
    void sync() const {}
    uint32_t ballot(const Lane<bool>& v) const {
        uint32_t mask = 0;
        for (int l = 0; l < kWarpLanes; ++l) mask |= (uint32_t)v[l] << l;
        return mask;
    }
    bool any(const Lane<bool>& v) const { return ballot(v) != 0; }
    template <class T>
    Lane<T> shuffle(const Lane<T>& v, const Lane<int>& from) const {
        Lane<T> r;
        for (int l = 0; l < kWarpLanes; ++l) r[l] = v[from[l] & (kWarpLanes - 1)];
        return r;
    }
    template <class T>
    Lane<T> shuffle_xor(const Lane<T>& v, int mask) const {
        Lane<T> r;
        for (int l = 0; l < kWarpLanes; ++l) r[l] = v[l ^ mask];
        return r;
    }
    template <class T>
    Lane<T> shuffle_up(const Lane<T>& v, int delta, int width = kWarpLanes) const {
        Lane<T> r;
        for (int l = 0; l < kWarpLanes; ++l) r[l] = l % width < delta ? v[l] : v[l - delta];
        return r;
    }
    template <class T>
    Lane<T> broadcast(const Lane<T>& v, int from, int width = kWarpLanes) const {
        Lane<T> r;
        for (int l = 0; l < kWarpLanes; ++l) r[l] = v[l / width * width + from % width];
        return r;
    }
};

struct Block {
    int thread = 0, threads;
    int warps() const { return threads / kWarpLanes; }
    template <class F>
    void each(const F& f) const {
        host_each(threads, f);
    }
    template <class F>
    void each_warp(const F& f) const {
        host_each(warps(), [&](int w) { f(Warp{0, w}); });
    }
    void sync() const {}
    Block anew() const { return *this; }
};

inline int count_bits(uint32_t x) { return __builtin_popcount(x); }
inline int leading_zeros(uint32_t x) { return x ? __builtin_clz(x) : 32; }
inline void set_bits(uint32_t* shared, uint32_t bits) { *shared |= bits; }
inline float fused(float a, float b, float c) { return fused_on_host(a, b, c); }
inline double fused(double a, double b, double c) { return fused_on_host(a, b, c); }
inline float keep_bits(float x, uint32_t bits) {
    union {
        float f;
        uint32_t u;
    } both = {x};
    both.u &= bits;
    return both.f;
}

#endif

template <class T>
TOYKERN_DEVICE T min_of(T a, T b) {
    return a < b ? a : b;
}

// Inclusive sums over runs of `width` lanes, in log2(width) rounds.
template <class T>
TOYKERN_DEVICE Lane<T> running_sum(const Warp& w, Lane<T> v, int width = kWarpLanes) {
    for (int delta = 1; delta < width; delta *= 2) {
        const Lane<T> below = w.shuffle_up(v, delta, width);
        w.each([&](int lane) {
            if (lane % width >= delta) v[lane] = v[lane] + below[lane];
        });
    }
    return v;
}

// The sum over runs of `width` lanes, in every lane: a butterfly, so all lanes hold the same bits.
template <class T>
TOYKERN_DEVICE Lane<T> sum_of_lanes(const Warp& w, Lane<T> v, int width = kWarpLanes) {
    for (int mask = width / 2; mask > 0; mask /= 2) {
        const Lane<T> other = w.shuffle_xor(v, mask);
        w.each([&](int lane) { v[lane] = v[lane] + other[lane]; });
    }
    return v;
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
