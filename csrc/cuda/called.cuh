// Activations for loops of a device that list none: by a call, so that a loop's code does not hold every activation
// many times over.
//
// The mathematics is common/activation.h over a float. A loop that is templated on its activation takes
// FloorActivation<float> (none and ReLU, in the pass itself) or CalledActivation (all that there are, with their slopes
// kept beside the codes).
#pragma once
#include <type_traits>

#include "common/activation.h"
#include "cuda/warp.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

TOYKERN_DEVICE_CALL Activated<float> activated(AnyActivation<float> activation, float z) { return activation.at(z); }

struct CalledActivation : AnyActivation<float> {
    TOYKERN_MATHS CalledActivation of(int32_t kind, double option) { return {AnyActivation<float>::of(kind, option)}; }
    TOYKERN_DEVICE float value(float z, float& slope) const {
        const Activated<float> a = activated(*this, z);
        slope = a.slope;
        return a.y;
    }
};

// Whether the slope has to be kept: a floor's is told by its value.
template <class A>
constexpr bool kKeepsSlope = !std::is_same<A, FloorActivation<float>>::value;

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
