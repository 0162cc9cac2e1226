// What a block of the small regime works on: one model in shared memory, and the options of its network.
#pragma once
#include "common/loss.h"
#include "cuda/called.cuh"
#include "cuda/small/shape.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// Four floats that are read and written together.
struct alignas(16) Quad {
    float v[4];
};
TOYKERN_DEVICE Quad load_quad(const float* from) { return *reinterpret_cast<const Quad*>(from); }
TOYKERN_DEVICE void store_quad(float* to, const Quad& q) { *reinterpret_cast<Quad*>(to) = q; }

// What warps tell each other.
struct SmallExchange {
    uint64_t time[8];
    double loss[8];
    uint32_t kept[8], opens[8], ended[8];
    uint32_t active;
    char* workspace;  // of this block
};
static_assert(sizeof(SmallExchange) <= kSmallExchangeBytes, "room for the exchange");

struct SmallRoom {
    const SmallShape& s;
#if defined(__CUDACC__)
    // Named where it is used, so that the compiler knows it for shared memory, in called functions too.
    static TOYKERN_DEVICE char* base() {
        extern __shared__ __align__(16) char small_memory[];
        return small_memory;
    }
#else
    char* memory;
    char* base() const { return memory; }
#endif

    TOYKERN_DEVICE float* at(uint32_t offset) const { return reinterpret_cast<float*>(base() + offset); }
    TOYKERN_DEVICE float* decoder() const { return at(s.decoder); }
    TOYKERN_DEVICE float* encoder() const { return at(s.encoder); }
    TOYKERN_DEVICE float* decoder_sum() const { return at(s.decoder_sum); }
    TOYKERN_DEVICE float* encoder_sum() const { return at(s.encoder_sum); }
    TOYKERN_DEVICE float* tile() const { return at(s.tile); }
    TOYKERN_DEVICE float* hidden() const { return at(s.hidden); }
    TOYKERN_DEVICE float* code_gradient() const { return at(s.code_gradient); }
    TOYKERN_DEVICE float* slope() const { return at(s.slope); }
    TOYKERN_DEVICE uint32_t* place() const { return reinterpret_cast<uint32_t*>(base() + s.place); }
    TOYKERN_DEVICE float* value() const { return at(s.value); }
    TOYKERN_DEVICE uint16_t* first() const { return reinterpret_cast<uint16_t*>(base() + s.first); }
    TOYKERN_DEVICE uint32_t* bits() const { return reinterpret_cast<uint32_t*>(base() + s.bits); }
    TOYKERN_DEVICE SmallExchange& exchange() const { return *reinterpret_cast<SmallExchange*>(base() + s.exchange); }
    // Moment 0 or 1 of parameter set 0 (decoder rows and biases) or 1 (encoder rows of untied networks).
    TOYKERN_DEVICE float* moments(int moment, int set) const {
        return reinterpret_cast<float*>((s.moments_shared ? base() : exchange().workspace) + s.moments) +
               (moment * s.parameter_sets() + set) * s.n * s.row;
    }
    TOYKERN_DEVICE float* rows() const {
        return reinterpret_cast<float*>((s.rows_shared ? base() : exchange().workspace) + s.rows);
    }
    TOYKERN_DEVICE int row_of(int i) const { return (int)(((uint64_t)(uint32_t)i * s.row_magic) >> 32); }
};

// A: FloorActivation<float> or CalledActivation.
template <class A>
struct SmallOptions {
    A hidden, output;
    AnyLoss loss;
    uint32_t target_bits;  // what of a target's bits counts: all but the sign for |x|

    TOYKERN_DEVICE explicit SmallOptions(const Network& net)
        : hidden(A::of(net.hidden_activation, net.hidden_option)),
          output(A::of(net.output_activation, net.output_option)),
          loss{net.loss},
          target_bits(toykern::target_bits(net.target)) {}
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
