// The loss of a tile's outputs and the way back through them, for every loss: of each output, of a sample's outputs
// together, or of those of a whole batch.
//
//   squared error         Σ_j I_j (g(z_j) − t_j)²
//   cross-entropy         Σ_j I_j t_j (lse(z) − z_j), z a sample's outputs; what goes back is softmax(z) Σ_j I_j t_j − I ⊙ t
//   batch cross-entropy   the same with one softmax over the outputs of all samples of the batch, and with targets
//                         softmax(T) over all of theirs (Jermyn & Shlegeris 2022): a first round over the batch finds both
//                         normalisers (survey), a second one the loss
//
// Layout     z and what goes back, in its place, [rows][op]; targets [rows][op]; pads go back as 0
// Weights    a tile of one sample may stand for `times` equal ones
// Order      rows in order; over a row, lane groups in order and lanes by the fixed tree
// Roof       an elementwise pass in L2, or two
#pragma once
#include "common/loss.h"
#include "cpu/resident/general_codes.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// Σ w e^x over what came so far, as a sum beside the largest x, so that nothing overflows.
struct Normaliser {
    float largest;
    double sum, weighted;
    void begin() { largest = -__builtin_inff(), sum = weighted = 0.0; }
    void rescale(float to) {
        if (to <= largest) return;
        const double factor = __builtin_exp((double)largest - (double)to);
        largest = to, sum *= factor, weighted *= factor;
    }
};

struct GeneralOutputs {
    int64_t o, op;
    int32_t activation, loss;
    double option;
    uint32_t target_bits;
    const float* importance;      // [op], pads 0
    float* room;                  // [op]
    Normaliser outputs, targets;  // of a batch

    bool surveys() const { return loss == (int32_t)Loss::kBatchCrossEntropy; }
    void begin() { outputs.begin(), targets.begin(); }

    void survey(int64_t rows, const float* z, const float* target, double times) {
        for (int64_t r = 0; r < rows; ++r, z += op, target += op) {
            outputs.rescale(row_maximum(z, o));
            outputs.sum += times * (double)exponentials(z, o, op, outputs.largest, room);
            targets.rescale(row_maximum(target, o, target_bits));
            targets.sum += times * (double)exponentials(target, o, op, targets.largest, room, target_bits);
            F weighted = fzero();
            for (int64_t j = 0; j < op; j += kLanes) weighted = fmadd(load(room + j), load(importance + j), weighted);
            targets.weighted += times * (double)fsum(weighted);
        }
    }
    // z becomes what goes back, times `times`; returns the loss of the tile.
    double loss_of(int64_t rows, float* z, const float* target, double times) {
        double sum = 0.0;
        if (loss == (int32_t)Loss::kCrossEntropy)
            for (int64_t r = 0; r < rows; ++r) sum += sample(z + r * op, target + r * op);
        else if (surveys())
            for (int64_t r = 0; r < rows; ++r) sum += of_batch(z + r * op, target + r * op);
        else
            sum = elementwise(rows, z, target);
        const F factor = bcast((float)times);
        for (int64_t i = 0; i < rows * op && times != 1.0; i += kLanes) store(z + i, load(z + i) * factor);
        return sum * times;
    }

  private:
    double elementwise(int64_t rows, float* z, const float* target) const {
        const auto g = AnyActivation<F>::of(activation, option);
        const AnyLoss function = {loss};
        F sum = fzero();
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < op; j += kLanes) {
                const F value = load(z + r * op + j);
                const Activated<F> a = g.at(value);
                const F error = a.y - and_bits(load(target + r * op + j), target_bits);
                store(z + r * op + j, g.back(value, a.slope, function.add_to(sum, error, load(importance + j))));
            }
        return (double)fsum(sum);
    }
    double sample(float* z, const float* target) const {
        const float largest = row_maximum(z, o), total = exponentials(z, o, op, largest, room);
        F mass = fzero(), below = fzero();  // Σ I t, Σ I t (largest − z)
        for (int64_t j = 0; j < o; j += kLanes) {
            const F t = and_bits(load(target + j), target_bits) * load(importance + j);
            mass = mass + t;
            below = fmadd(t, keep(lanes_within(o, j), bcast(largest) - load(z + j)), below);
        }
        const float all = fsum(mass);
        const F share = bcast(all / total);
        for (int64_t j = 0; j < op; j += kLanes) {
            const F t = j < o ? and_bits(load(target + j), target_bits) * load(importance + j) : fzero();
            store(z + j, fmadd(load(room + j), share, fzero() - t));
        }
        return (double)all * __builtin_log((double)total) + (double)fsum(below);
    }
    double of_batch(float* z, const float* target) const {
        const float mass = (float)(targets.weighted / targets.sum);
        exponentials(target, o, op, targets.largest, room, target_bits);
        const F normal = bcast((float)(1.0 / targets.sum));
        const F lse = bcast((float)((double)outputs.largest + __builtin_log(outputs.sum)));
        const F share = bcast((float)((double)mass / outputs.sum));
        F sum = fzero();
        for (int64_t j = 0; j < op; j += kLanes) {
            const F t = load(room + j) * normal * load(importance + j);
            const F out = keep(j < o ? lanes_within(o, j) : mask_first(0), load(z + j));
            sum = fmadd(t, lse - out, sum);
            const F e =
                keep(j < o ? lanes_within(o, j) : mask_first(0), toykern::exp_minus(bcast(outputs.largest) - out));
            store(z + j, fmadd(e, share, fzero() - t));
        }
        return (double)fsum(sum);
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
