// The losses, told once, over a lane type (common/lanes.h).
//
//   squared error    Σ_j I_j (y_j − t_j)²;  the gradient at y_j is 2 I_j (y_j − t_j)
#pragma once
#include "common/lanes.h"
#include "toykern/network.h"

namespace toykern {

// Adds one output's part to `sum`; returns half its gradient: the 2 goes with the mean, which is the update's or the
// scale's.
template <class V>
TOYKERN_MATHS V add_squared_error(V error, V importance, V& sum) {
    const V weighted = error * importance;
    sum = fmadd(weighted, error, sum);
    return weighted;
}

// What a target keeps of the bits of a float input: all, or all but the sign.
TOYKERN_SHARED uint32_t target_bits(int32_t target) {
    return target == (int32_t)Target::kMagnitude ? 0x7FFFFFFFu : 0xFFFFFFFFu;
}

// The loss is the sum over samples and features times this; the gradient twice that.
TOYKERN_SHARED double mean_factor(const Network& net, int64_t batch_size) {
    return 1.0 / ((double)batch_size * (net.loss_sum ? 1.0 : (double)net.n_features));
}

}  // namespace toykern
