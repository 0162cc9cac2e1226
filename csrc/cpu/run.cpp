// Kernels across cores: who takes which model, in memory made beforehand.
//
// With models enough, every thread is a team of one and takes models from a common queue. With fewer models than
// threads, all threads form one team and share each model's batch (where its shape has parts to share). Neither choice
// changes a bit of any model.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <ctime>
#include <numeric>

#include "common/optimizer_step.h"
#include "cpu/threads/workers.h"

namespace toykern {
namespace {
bool went_parallel = false, forked_after = false;
}

void guard_fork(int threads) {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { forked_after = went_parallel; });
    (void)registered;
    if (forked_after) throw ForkedChild();
    if (threads > 1) went_parallel = true;
}

const char* ForkedChild::what() const noexcept {
    return "toykern was used with several threads before this process was forked, and their pool does not survive a "
           "fork; start "
           "child processes with the 'spawn' (or 'forkserver') method of multiprocessing instead";
}

const char* train_regime(const Network& network, bool finite, bool plain) {
    return level().pick_regime(network, finite, plain).name;
}

namespace {
std::atomic<Form> forced{Form::kAny};
}
Form forced_form() { return forced; }
void force_form(Form form) { forced = form; }

Form train_form(const Network& network, const Distribution& data, int64_t batch_size, int64_t model,
                int64_t connections) {
    const TrainRegime regime = level().pick_regime(network, false, true);
    Room worker(1, regime.worker_bytes(network, data, FiniteData{}), "a look at the form of the step");
    return regime.form(network, data, batch_size, model, connections, worker.piece(0));
}

namespace {

// Adam's bias corrections depend on the step alone: once for all models.
struct Corrections {
    std::vector<double> first, second;
    explicit Corrections(const TrainParams& p) {
        if ((Optimizer)p.optimizer == Optimizer::kSGD) return;
        for (int64_t step = p.first_step; step < p.first_step + p.steps; ++step) {
            first.push_back(1.0 - std::pow(p.beta1, (double)(step + 1)));
            second.push_back(std::sqrt(1.0 - std::pow(p.beta2, (double)(step + 1))));
        }
    }
};

}  // namespace

void step_scales(const TrainParams& p, double* out) {
    const Corrections corrections(p);
    for (int64_t t = 0; t < p.steps; ++t, out += 3) {
        const bool adam = !corrections.first.empty();
        out[0] = p.lr_factor[t];
        out[1] = adam ? p.lr_factor[t] / corrections.first[(size_t)t] : p.lr_factor[t];
        out[2] = adam ? 1.0 / corrections.second[(size_t)t] : 1.0;
    }
}

bool fill_tables(const Distribution& data, const TablesLayout& layout, int64_t n_models, char* out, int threads) {
    const LevelTable& l = level();
    guard_fork(threads);
    threads = workers_for(n_models, threads);
    Room workers((size_t)threads, l.tables_room(data), "the stream's tables");
    parallel(threads, [&] {
        const int64_t t = thread_rank(), team = team_size();
        const int64_t first = t * n_models / team, last = (t + 1) * n_models / team;
        l.flat_tables(data, layout, first, last, workers.piece((size_t)t), out + first * (int64_t)layout.bytes);
    });
    bool mixed = false;
    for (int64_t i = 0; i < n_models; ++i) {
        const UnitTables& head = *reinterpret_cast<const UnitTables*>(out + i * (int64_t)layout.bytes);
        mixed = mixed || (head.rare.n_units && head.n_frequent);
    }
    return mixed;
}

void train(const TrainParams& given) {
    const Corrections corrections(given);
    TrainParams p = given;
    p.correction1 = corrections.first.data();
    p.correction2 = corrections.second.data();
    const LevelTable& l = level();
    const TrainRegime regime = l.pick_regime(p.network, p.finite.rows > 0, !p.l1 && plain_update(p));
    const int parts = regime.parts(p.network, p.batch_size);
    p.together = 1;
    guard_fork(p.threads);
    if (p.n_models < p.threads && parts > 1) {
        const int size = std::min(p.threads, parts);
        Room shared(1, regime.shared_bytes(p.network, p.batch_size), "the shared model");
        Room workers((size_t)size, regime.worker_bytes(p.network, p.data, p.finite), "training");
        Meeting meeting;
        parallel(size, [&] {
            [[maybe_unused]] FlushDenormals flush;
            Team team;
            team.rank = thread_rank();
            team.size = team_size();
            team.barrier = Meeting::wait;
            team.meeting = &meeting;
            CountingQueue queue{0, p.n_models};
            regime.train(p, shared.piece(0), workers.piece((size_t)team.rank), team,
                         Queue{CountingQueue::take, &queue});
        });
        return;
    }
    p.together = regime.together(p);
    const int64_t runs = (p.n_models + p.together - 1) / p.together;
    const int threads = workers_for(runs, p.threads);
    Room shared((size_t)threads, regime.shared_bytes(p.network, p.batch_size), "the models in hand");
    Room workers((size_t)threads, regime.worker_bytes(p.network, p.data, p.finite), "training");
    over_models(runs, threads, [&](size_t t, const Queue& queue) {
        regime.train(p, shared.piece(t), workers.piece(t), Team(), queue);
    });
}

void evaluate(const EvaluateParams& p) {
    const TrainRegime regime = level().pick_regime(p.network, p.finite.rows > 0, !p.l1);
    guard_fork(p.threads);
    const int threads = workers_for(p.n_models, p.threads);
    Room shared((size_t)threads, regime.shared_bytes(p.network, p.batch_size), "the models in hand");
    Room workers((size_t)threads, regime.worker_bytes(p.network, p.data, p.finite), "evaluation");
    over_models(p.n_models, threads,
                [&](size_t t, const Queue& queue) { regime.evaluate(p, shared.piece(t), workers.piece(t), queue); });
}

void sample(const SampleParams& p, int threads) {
    const LevelTable& l = level();
    guard_fork(threads);
    threads = workers_for(p.n_models, threads);
    Room workers((size_t)threads, l.sample_bytes(p.data), "sampling");
    over_models(p.n_models, threads, [&](size_t t, const Queue& queue) {
        for (int64_t i; (i = queue.next()) >= 0;) l.sample_rows(p, i, workers.piece(t));
    });
}

Entries sample_entries(const SampleParams& p) {
    const LevelTable& l = level();
    Room worker(1, l.sample_bytes(p.data), "sampling");
    Entries all;
    all.model_start.push_back(0);
    const EntrySink sink = {[](void* context, uint32_t s, uint32_t f, float v) {
                                auto& e = *static_cast<Entries*>(context);
                                e.sample.push_back(s);
                                e.feature.push_back(f);
                                e.value.push_back(v);
                            },
                            &all};
    for (int64_t i = 0; i < p.n_models; ++i) {
        const size_t first = all.sample.size();
        l.sample_entries(p, i, worker.piece(0), sink);
        const size_t count = all.sample.size() - first;
        std::vector<size_t> order(count);
        std::iota(order.begin(), order.end(), first);
        const auto before = [&](size_t a, size_t b) {
            return all.sample[a] != all.sample[b] ? all.sample[a] < all.sample[b] : all.feature[a] < all.feature[b];
        };
        if (!std::is_sorted(order.begin(), order.end(), before)) {
            std::sort(order.begin(), order.end(), before);
            Entries sorted;
            for (size_t k : order) {
                sorted.sample.push_back(all.sample[k]);
                sorted.feature.push_back(all.feature[k]);
                sorted.value.push_back(all.value[k]);
            }
            std::copy(sorted.sample.begin(), sorted.sample.end(), all.sample.begin() + (std::ptrdiff_t)first);
            std::copy(sorted.feature.begin(), sorted.feature.end(), all.feature.begin() + (std::ptrdiff_t)first);
            std::copy(sorted.value.begin(), sorted.value.end(), all.value.begin() + (std::ptrdiff_t)first);
        }
        all.model_start.push_back((int64_t)all.sample.size());
    }
    return all;
}

namespace {

// Seconds of its core that the calling thread has had.
double thread_seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Best rate over five runs of about ten milliseconds on every thread at once, by what each has had of its core: a busy
// machine lowers it as little as it can.
template <class Spin>
double measure(int threads, int64_t rounds, const Spin& spin) {
    threads = std::max(1, threads);
    double best = 0.0;
    guard_fork(threads);
    for (int run = 0; run < 5; ++run) {
        std::vector<double> done((size_t)threads), seconds((size_t)threads);
        parallel(threads, [&] {
            const double start = thread_seconds();
            const auto t = (size_t)thread_rank();
            int64_t operations = 0;
            volatile double sink = (double)spin(rounds, &operations);
            (void)sink;
            done[t] = (double)operations;
            seconds[t] = thread_seconds() - start;
        });
        const double total = std::accumulate(done.begin(), done.end(), 0.0);
        best = std::max(best, total / *std::max_element(seconds.begin(), seconds.end()));
    }
    return best;
}

}  // namespace

double measure_fma(int threads) { return measure(threads, 4000000, level().spin_fma); }
double measure_words(int threads) { return measure(threads, 400000, level().spin_words); }

}  // namespace toykern
