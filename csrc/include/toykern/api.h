// The seam between the binding and the kernels, and between the instruction-set levels and what picks among them.
#pragma once
#include <string>
#include <vector>

#include "toykern/cuda.h"
#include "toykern/layer.h"
#include "toykern/params.h"
#include "toykern/sparse.h"
#include "toykern/sparse_topology.h"

namespace toykern {

// ---- what a per-level kernel is handed (no std:: inline functions here: see cpu/simd/simd.h) ----

// The workers that hold one model together.
struct Team {
    int rank = 0, size = 1;
    void (*barrier)(void* meeting, int size) = nullptr;
    void* meeting = nullptr;
    __attribute__((always_inline)) void meet() const {
        if (size > 1) barrier(meeting, size);
    }
};

// Models still to be taken: next() gives a number, or -1 at the end.
struct Queue {
    int64_t (*take)(void*);
    void* context;
    __attribute__((always_inline)) int64_t next() const { return take(context); }
};

struct EntrySink {
    void (*put)(void* context, uint32_t sample, uint32_t feature, float value);
    void* context;
};

// A form: what one model's step takes of those that its network allows (cpu/resident/forms.inl).
enum class Form : int32_t { kColumns = 0, kTiles = 1, kGram = 2, kGeneral = 3, kConnections = 4, kAny = 5 };
constexpr const char* kFormNames[] = {"columns", "tiles", "gram", "general", "connections", "any"};

// The form that is taken wherever it can be, whatever it costs: to compare forms. kAny, the cheapest, unless
// force_form() said otherwise.
Form forced_form();

// A regime: the loop that a class of shapes is given to, here of the trainer. Sizes in bytes.
struct TrainRegime {
    const char* name;
    int (*parts)(const Network&, int64_t batch_size);  // of a batch, which as many threads may share
    // Which of its forms one model takes: that follows from the model's own distribution, too, and from how many
    // connections it has where it is sparse (-1: not said).
    Form (*form)(const Network&, const Distribution&, int64_t batch_size, int64_t model, int64_t connections,
                 void* worker);
    // How many models a worker should take at once, where p.threads workers share p.n_models.
    int64_t (*together)(const TrainParams& p);
    size_t (*shared_bytes)(const Network&, int64_t batch_size);
    size_t (*worker_bytes)(const Network&, const Distribution&, const FiniteData&);
    // The queue's numbers are of runs of p.together models.
    void (*train)(const TrainParams&, void* shared, void* worker, const Team&, const Queue&);
    void (*evaluate)(const EvaluateParams&, void* shared, void* worker, const Queue&);
};

// A regime of the fused layer. `entries`: the most that one model's input has, where it comes as entries.
struct LayerRegime {
    const char* name;
    int group;  // neighbouring models that the queue hands out as one
    size_t (*shared_bytes)(const LayerParams&, int64_t entries);
    size_t (*room_bytes)(const LayerParams&);
    void (*run)(const LayerParams&, int64_t entries, void* shared, void* room, const Team&, const Queue&);
};

// Everything one instruction-set level provides.
struct LevelTable {
    const char* name;
    int lanes;
    // finite: the data are a finite dataset; plain: see resident.inl
    TrainRegime (*pick_regime)(const Network&, bool finite, bool plain);
    size_t (*sample_bytes)(const Distribution&);
    void (*sample_rows)(const SampleParams&, int64_t model, void* memory);
    void (*sample_entries)(const SampleParams&, int64_t model, void* memory, const EntrySink&);
    size_t (*tables_room)(const Distribution&);
    void (*flat_tables)(const Distribution&, const TablesLayout&, int64_t first, int64_t last, void* memory, char* out);
    double (*spin_fma)(int64_t rounds, int64_t* operations);  // returns a value that depends on all of them
    uint32_t (*spin_words)(int64_t rounds, int64_t* words);
    const SparseKernels* (*sparse_kernels)();  // [3] in the order of Scalar
    const ChoiceKernels* (*choice_kernels)();
    LayerRegime (*pick_layer_regime)(const LayerParams&);
    bool (*entries_hold)(const int64_t* row_start, int64_t first, int64_t last, const int32_t* feature, int64_t entries,
                         int64_t n_features);
};

// What a build has beside the baseline: by the CPU it is for, unless TOYKERN_ONLY_BASE (tools/native_build.py).
#if !defined(TOYKERN_ONLY_BASE) && defined(__x86_64__)
#define TOYKERN_X86_LEVELS
#elif !defined(TOYKERN_ONLY_BASE) && defined(__aarch64__)
#define TOYKERN_ARM_LEVELS
#endif

const LevelTable* level_base();
#if defined(TOYKERN_X86_LEVELS)
const LevelTable* level_v3();
const LevelTable* level_v4();
#elif defined(TOYKERN_ARM_LEVELS)
const LevelTable* level_neon();
#endif

// ---- what the binding calls ----

std::vector<std::string> built_levels();      // best first
std::vector<std::string> available_levels();  // those that this CPU can run, best first
const LevelTable& level();                    // in use: TOYKERN_ISA or the best available
void set_level(const std::string& name);      // throws std::invalid_argument

// Asked for more memory than there is; what() says how much and for what.
struct OutOfMemory : std::exception {
    explicit OutOfMemory(std::string text) : text_(std::move(text)) {}
    const char* what() const noexcept override { return text_.c_str(); }

  private:
    std::string text_;
};

// Parallel work was done before a fork, and this is the child: OpenMP's threads are gone and it would hang.
struct ForkedChild : std::exception {
    const char* what() const noexcept override;
};

const char* train_regime(const Network& network, bool finite, bool plain);
Form train_form(const Network& network, const Distribution& data, int64_t batch_size, int64_t model,
                int64_t connections);
void force_form(Form form);  // of calls from now on, by any thread
void train(const TrainParams& params);
void evaluate(const EvaluateParams& params);
void sample(const SampleParams& params, int threads);

const char* layer_regime(const LayerParams& params);
void run_layer(const LayerParams& params);

// What is wrong with entries by row: a word for it ("" if nothing is), and in which row.
struct EntryFault {
    const char* what;
    int64_t row;
};
EntryFault check_entries(const int64_t* row_start, int64_t rows, const int32_t* feature, int64_t entries,
                         int64_t n_features, int threads);

struct Entries {
    std::vector<int64_t> model_start;  // [K + 1]
    std::vector<uint32_t> sample, feature;
    std::vector<float> value;
};
Entries sample_entries(const SampleParams& params);

// Multiply-adds and random words per second on `threads` cores at the level in use; the best of a few short runs.
double measure_fma(int threads);
double measure_words(int threads);

}  // namespace toykern
