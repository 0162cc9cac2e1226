// The loss record of one model under training: means over runs of record_every steps, cut anywhere by a stretch's end.
#pragma once
#include "common/stream/stream.h"
#include "toykern/params.h"

namespace toykern {

class LossRecord {
  public:
    LossRecord() = default;
    TOYKERN_HD LossRecord(const TrainParams& p, int64_t model) : carry_(p.loss_carry[model]) { open(p, p.first_step); }

    // The mean batch loss of the next step; false if it is not finite: the model has diverged at this step and its
    // training ends.
    TOYKERN_HD bool add(const TrainParams& p, int64_t model, int64_t step, double loss, bool writer) {
        if (!(loss - loss == 0.0)) {
            if (writer) p.diverged_at[model] = step;
            return false;
        }
        carry_ += loss;
        if (--left_ == 0) {
            const int64_t number = step / p.record_every;
            const double length = (double)(step + 1 - number * p.record_every);
            if (writer && p.loss_records) p.loss_records[model * p.n_records + number] = (float)(carry_ / length);
            if ((step + 1) % p.record_every == 0)
                carry_ = 0.0;  // of a shorter last record it is kept: a run may be made longer
            open(p, step + 1);
        }
        return true;
    }
    TOYKERN_HD void close(const TrainParams& p, int64_t model, bool writer) const {
        if (writer) p.loss_carry[model] = carry_;
    }

  private:
    TOYKERN_HD void open(const TrainParams& p, int64_t step) {
        const int64_t end = (step / p.record_every + 1) * p.record_every;
        left_ = (uint32_t)((end < p.total_steps ? end : p.total_steps) - step);
    }

    double carry_;
    uint32_t left_;  // steps
};

}  // namespace toykern
