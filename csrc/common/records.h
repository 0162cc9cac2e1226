// The loss record of one model under training: means over runs of record_every steps, cut anywhere by a stretch's end.
#pragma once
#include "common/stream.h"
#include "toykern/params.h"

namespace toykern {

class LossRecord {
  public:
    TOYKERN_HD LossRecord(const TrainParams& p, int64_t model)
        : p_(&p), model_(model), number_(p.first_step / p.record_every), carry_(p.loss_carry[model]) {
        open(p.first_step);
    }
    // The mean batch loss of the next step; false if it is not finite: the model has diverged at this step and its training ends.
    TOYKERN_HD bool add(int64_t step, double loss, bool writer) {
        if (!(loss - loss == 0.0)) {
            if (writer) p_->diverged_at[model_] = step;
            return false;
        }
        carry_ += loss;
        if (--left_ == 0) {
            if (writer && p_->loss_records)
                p_->loss_records[model_ * p_->n_records + number_] = (float)(carry_ / (double)length_);
            ++number_;
            carry_ = 0.0;
            open(step + 1);
        }
        return true;
    }
    TOYKERN_HD void close(bool writer) const {
        if (writer) p_->loss_carry[model_] = carry_;
    }

  private:
    TOYKERN_HD void open(int64_t step) {
        const int64_t first = number_ * p_->record_every, end = first + p_->record_every;
        length_ = (end < p_->total_steps ? end : p_->total_steps) - first;
        left_ = first + length_ - step;
    }

    const TrainParams* p_;
    int64_t model_, number_, left_, length_;
    double carry_;
};

}  // namespace toykern
