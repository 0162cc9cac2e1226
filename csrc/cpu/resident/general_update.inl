// One optimiser step of all tensors of the model in hand.
#pragma once
#include "cpu/resident/optimizer.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// One tensor of the model in hand as flat arrays in the caller's layout.
struct FlatTensor {
    Role role;
    float *value, *gradient, *state[kMostStates];
    int64_t rows, columns;
    bool frozen;
};

inline int64_t step_room(const Network&) { return 1; }

inline void general_step(const TrainParams& p, int64_t model, int64_t step, float scale, FlatTensor* tensors, int count,
                         const Team& team, double*) {
    const UpdateConstants c = step_constants(p, model, step);
    if (team.rank) return;
    for (int i = 0; i < count; ++i)
        if (FlatTensor& t = tensors[i]; !t.frozen)
            optimizer_step(c, t.value, t.gradient, t.state[0], t.state[1], t.rows * t.columns, scale);
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
