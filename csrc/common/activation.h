// Every activation, told once, over a lane type (common/lanes.h): what all loops of both backends compute.
//
// An activation is a struct with
//   at(z, option)          y = f(z) and the slope f′(z)
//   kSelects               the slope is 0 or 1, so the way back selects: what is off stays 0 whatever the error is, as
//                          in PyTorch
//   slope_of(y, option)    f′ from the output, where that is enough (kSlopeFromOutput); a saved output then needs no z
// and f(0) is kAtZero, so that all-zero samples of a layer without a bias have codes of zero.
//
// A loop holds one of two things, which have the same members:
//   FloorActivation    none (bound −∞) and ReLU (bound 0), which differ in a number; for loops that list these two
//   AnyActivation      all that there are, by a branch that goes the same way for the whole loop
// To add one: its number in toykern/network.h, its struct and its case here. docs/adding_an_option.md has the rest.
#pragma once
#include "common/functions.h"
#include "toykern/network.h"

namespace toykern {

template <class V>
struct Activated {
    V y, slope;
};

struct NoActivation {
    static constexpr bool kSelects = true, kSlopeFromOutput = true;
    static constexpr double kAtZero = 0.0;
    template <class V>
    TOYKERN_MATHS Activated<V> at(V z, V) {
        return {z, Lanes<V>::all(1.0)};
    }
    template <class V>
    TOYKERN_MATHS V slope_of(V, V) {
        return Lanes<V>::all(1.0);
    }
};

// The slope at 0 is 0; a NaN goes through.
struct Relu {
    static constexpr bool kSelects = true, kSlopeFromOutput = true;
    static constexpr double kAtZero = 0.0;
    template <class V>
    TOYKERN_MATHS Activated<V> at(V z, V option) {
        return {fmax(Lanes<V>::all(0.0), z), slope_of(z, option)};
    }
    template <class V>
    TOYKERN_MATHS V slope_of(V y, V) {
        return keep(gt_or_nan(y, Lanes<V>::all(0.0)), Lanes<V>::all(1.0));
    }
};

// z Φ(z) with the slope Φ(z) + z φ(z) (Hendrycks & Gimpel 2016).
struct Gelu {
    static constexpr bool kSelects = false, kSlopeFromOutput = false;
    static constexpr double kAtZero = 0.0;
    template <class V>
    TOYKERN_MATHS Activated<V> at(V z, V) {
        V distribution, density;
        normal_of(z, distribution, density);
        return {z * distribution, fmadd(z, density, distribution)};
    }
    template <class V>
    TOYKERN_MATHS V slope_of(V y, V) {
        return y;  // never asked for: two z have the same output
    }
};

// z above 0, option · z elsewhere; the slope at 0 is the option, as in PyTorch. The option is at least 0, so that y
// tells the slope.
struct LeakyRelu {
    static constexpr bool kSelects = false, kSlopeFromOutput = true;
    static constexpr double kAtZero = 0.0;
    template <class V>
    TOYKERN_MATHS Activated<V> at(V z, V option) {
        const V slope = slope_of(z, option);
        return {z * slope, slope};
    }
    template <class V>
    TOYKERN_MATHS V slope_of(V y, V option) {
        const V one = Lanes<V>::all(1.0), above = keep(gt_or_nan(y, Lanes<V>::all(0.0)), one);
        return fmadd(one - above, option, above);
    }
};

// log(1 + e^z), with the slope 1 / (1 + e^−z); exact where z is large, so without PyTorch's threshold.
struct Softplus {
    static constexpr bool kSelects = false, kSlopeFromOutput = false;
    static constexpr double kAtZero = 0.69314718055994530942;
    template <class V>
    TOYKERN_MATHS Activated<V> at(V z, V) {
        const V one = Lanes<V>::all(1.0), zero = Lanes<V>::all(0.0);
        const V e = exp_minus(magnitude(z)), above = keep(gt_or_nan(z, zero), one);
        return {fmax(zero, z) + log_of_one_and(e), fmadd(one - above, e, above) / (one + e)};
    }
    template <class V>
    TOYKERN_MATHS V slope_of(V y, V) {
        return y;  // never asked for: it is 1 − e^−y, which has no digits left where y is small
    }
};

// z², with the slope 2 z.
struct Square {
    static constexpr bool kSelects = false, kSlopeFromOutput = false;
    static constexpr double kAtZero = 0.0;
    template <class V>
    TOYKERN_MATHS Activated<V> at(V z, V) {
        return {z * z, z + z};
    }
    template <class V>
    TOYKERN_MATHS V slope_of(V y, V) {
        return y;  // never asked for: z and −z have the same output
    }
};

// z e^z (what Jermyn et al. 2022 ran as SoLU), with the slope (1 + z) e^z.
struct XExp {
    static constexpr bool kSelects = false, kSlopeFromOutput = false;
    static constexpr double kAtZero = 0.0;
    template <class V>
    TOYKERN_MATHS Activated<V> at(V z, V) {
        const V one = Lanes<V>::all(1.0), small = exp_minus(magnitude(z));
        const auto above = gt_or_nan(z, Lanes<V>::all(0.0));
        const V e = keep(above, one / small) + (small - keep(above, small));  // e^z
        return {z * e, fmadd(z, e, e)};
    }
    template <class V>
    TOYKERN_MATHS V slope_of(V y, V) {
        return y;  // never asked for: two z have the same output
    }
};

#define TOYKERN_ACTIVATION(kind, CALL)                                                          \
    switch (kind) {                                                                             \
        case (int32_t)Activation::kRelu: return CALL(Relu);                                     \
        case (int32_t)Activation::kGelu: return CALL(Gelu);                                     \
        case (int32_t)Activation::kLeakyRelu: return CALL(LeakyRelu);                           \
        case (int32_t)Activation::kSoftplus: return CALL(Softplus);                             \
        case (int32_t)Activation::kSquare: return CALL(Square);                                 \
        case (int32_t)Activation::kXExp: return CALL(XExp);                                     \
        default: return CALL(NoActivation); /* top-k and SoLU too, which are not elementwise */ \
    }

// By number: the slope selects; the saved output tells the slope; f(0).
TOYKERN_SHARED bool slope_selects(int32_t kind){
#define TOYKERN_CALL(A) A::kSelects
    TOYKERN_ACTIVATION(kind, TOYKERN_CALL)
#undef TOYKERN_CALL
} TOYKERN_SHARED bool slope_from_output(int32_t kind){
#define TOYKERN_CALL(A) A::kSlopeFromOutput
    TOYKERN_ACTIVATION(kind, TOYKERN_CALL)
#undef TOYKERN_CALL
} TOYKERN_SHARED double activation_at_zero(int32_t kind){
#define TOYKERN_CALL(A) A::kAtZero
    TOYKERN_ACTIVATION(kind, TOYKERN_CALL)
#undef TOYKERN_CALL
}  // Of all codes of a sample together.
TOYKERN_SHARED bool is_rowwise(int32_t kind) {
    return kind == (int32_t)Activation::kTopK || kind == (int32_t)Activation::kSolu;
}
// None and ReLU are a floor; loops that list these two ask this.
TOYKERN_SHARED bool is_floor(int32_t kind) {
    return kind == (int32_t)Activation::kNone || kind == (int32_t)Activation::kRelu;
}
TOYKERN_SHARED bool has_floors_alone(const Network& net) {
    return is_floor(net.hidden_activation) && is_floor(net.output_activation);
}

template <class V>
struct FloorActivation {
    V floor;

    TOYKERN_MATHS FloorActivation of(int32_t kind, double) {
        return {Lanes<V>::all(kind == (int32_t)Activation::kRelu ? 0.0 : -__builtin_inf())};
    }
    // y; the slope is in y and z alike.
    TOYKERN_HD __attribute__((always_inline)) V value(V z, V&) const { return fmax(floor, z); }
    // Where the slope is not 0, given z or y.
    TOYKERN_HD __attribute__((always_inline)) auto on(V z, V) const { return gt_or_nan(z, floor); }
    // dL/dz from dL/dy = d.
    TOYKERN_HD __attribute__((always_inline)) V back(V z, V, V d) const { return keep(gt_or_nan(z, floor), d); }
};

template <class V>
struct AnyActivation {
    V option;
    int32_t kind;
    bool selects;

    TOYKERN_MATHS AnyActivation of(int32_t kind, double option) {
        return {Lanes<V>::all(option), kind, slope_selects(kind)};
    }
    TOYKERN_HD __attribute__((always_inline)) Activated<V> at(V z) const {
#define TOYKERN_CALL(A) A::at(z, option)
        TOYKERN_ACTIVATION(kind, TOYKERN_CALL)
#undef TOYKERN_CALL
    } TOYKERN_HD __attribute__((always_inline)) V slope_of(V y) const {
#define TOYKERN_CALL(A) A::slope_of(y, option)
        TOYKERN_ACTIVATION(kind, TOYKERN_CALL)
#undef TOYKERN_CALL
    } TOYKERN_HD __attribute__((always_inline)) V value(V z, V& slope) const {
        const Activated<V> a = at(z);
        slope = a.slope;
        return a.y;
    }
    TOYKERN_HD __attribute__((always_inline)) auto on(V, V slope) const { return nonzero(slope); }
    TOYKERN_HD __attribute__((always_inline)) V back(V, V slope, V d) const {
        return selects ? keep(nonzero(slope), d) : d * slope;
    }
};

}  // namespace toykern
