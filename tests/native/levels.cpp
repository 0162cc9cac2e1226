// The entry points of one instruction-set level (its name is the argument): a line for each case, with a hash of all
// that came out. tests/test_other_cpus.py compares levels and CPUs.
//
// Lines that begin with "stream" or "choice" are to be the same everywhere, the others where levels have as many lanes
// and the same multiply-add.
#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/tensors.h"
#include "hash.h"
#include "toykern/api.h"

using namespace toykern;

namespace {

Lines lines;

template <class T>
std::vector<T> drawn(size_t count, double low, double high, uint64_t seed) {
    Random random{seed};
    std::vector<T> values(count);
    for (T& v : values) v = (T)random.between(low, high);
    return values;
}
template <class T>
void put(const std::string& name, const std::vector<T>& values) {
    for (const T v : values)
        if constexpr (std::is_floating_point_v<T>)
            lines.of[name].add(v);
        else
            lines.of[name].add((uint64_t)v);
}

// ---- feature distributions ----

// Features that are independent, or in units of three; each with a probability of its own, between p and 2p.
struct Features {
    std::vector<int64_t> unit_start;
    std::vector<uint32_t> member;
    std::vector<uint8_t> kind;
    std::vector<double> probability;
    Distribution data = {};

    Features(int64_t n, double p, Magnitude magnitude = Magnitude::kUniform, UnitKind units = UnitKind::kSingle) {
        const int64_t size = units == UnitKind::kSingle ? 1 : 3;
        for (int64_t i = 0; i < n; ++i) {
            member.push_back((uint32_t)i);
            const int64_t within = units == UnitKind::kCorrelated ? i / size : i;
            probability.push_back(std::fmin(1.0, p * (1.0 + (double)(within % 7) / 7.0)));
        }
        for (int64_t i = 0; i < n; i += size) {
            unit_start.push_back(i);
            kind.push_back((uint8_t)units);
        }
        unit_start.push_back(n);
        data.n_features = n;
        data.n_units = (int64_t)kind.size();
        data.unit_start = unit_start.data(), data.unit_member = member.data(), data.unit_kind = kind.data();
        data.probability = probability.data();
        data.magnitude = (int32_t)magnitude;
    }
    Features(const Features&) = delete;
};

void sample_lines(const std::string& name, const Distribution& data) {
    const std::vector<int64_t> seed = {7, (int64_t)1 << 40};
    SampleParams p = {};
    p.data = data;
    p.n_models = 2, p.batch_size = 333;
    p.seed = seed.data(), p.seed_stride = 1, p.step = 5;
    std::vector<float> clean((size_t)(2 * 333 * data.n_features)), noisy(clean.size());
    p.clean = clean.data(), p.noisy = data.noise > 0.0f ? noisy.data() : nullptr;
    sample(p, 2);
    put("stream " + name, clean), put("stream " + name, noisy);
    const Entries entries = sample_entries(p);
    put("stream entries " + name, entries.sample), put("stream entries " + name, entries.feature);
    put("stream entries " + name, entries.value);
}

void streams() {
    for (int magnitude = 0; magnitude < 6; ++magnitude)
        for (const double p : {0.003, 0.05, 0.12, 0.4}) {  // the last of them are frequent, in part or all
            const Features features(37, p, (Magnitude)magnitude);
            sample_lines(std::string(kMagnitudeNames[magnitude]) + " " + std::to_string(p), features.data);
        }
    for (const UnitKind kind : {UnitKind::kCorrelated, UnitKind::kExclusive})
        for (const double p : {0.01, 0.15}) {
            const Features features(30, p, Magnitude::kUniform, kind);
            sample_lines("units " + std::to_string((int)kind) + " " + std::to_string(p), features.data);
        }
    Features noisy(21, 0.02);
    noisy.data.noise = 0.1f;
    sample_lines("noise", noisy.data);
    const Features sure(20, 1.0), wide(700, 0.001);
    sample_lines("sure", sure.data), sample_lines("wide", wide.data);
    Features subset(40, 0.0);
    subset.data.joint = (int32_t)Joint::kSubset, subset.data.n_active = 3;
    sample_lines("subset", subset.data);
    Features copula(19, 0.1);
    const auto loading = drawn<float>(19 * 2, -0.6, 0.6, 3), unique = drawn<float>(19, 0.5, 0.8, 4),
               threshold = drawn<float>(19, 0.5, 2.0, 5);
    const std::vector<uint32_t> end(19, 2);
    copula.data.joint = (int32_t)Joint::kCopula, copula.data.n_factors = 2;
    copula.data.loading = loading.data(), copula.data.loading_end = end.data();
    copula.data.unique = unique.data(), copula.data.threshold = threshold.data();
    sample_lines("copula", copula.data);
}

// ---- the trainer ----

struct Case {
    int64_t n = 5, m = 2, models = 3, batch = 256;
    double p = 0.02;
    Network net = {};
    Optimizer optimizer = Optimizer::kAdamW;
    Form form = Form::kAny;
    int64_t finite_rows = 0;
    int threads = 1;
};

Network network(int64_t n, int64_t m, Activation hidden = Activation::kNone, Activation output = Activation::kRelu) {
    Network net = {};
    net.n_features = net.n_outputs = n, net.n_hidden = m;
    net.tied = net.has_bias = true;
    net.hidden_activation = (int32_t)hidden, net.output_activation = (int32_t)output;
    return net;
}

void train_line(const std::string& name, Case c) {
    c.net.n_features = c.net.n_outputs = c.n, c.net.n_hidden = c.m;
    const Features features(c.n, c.p);
    const auto models = (size_t)c.models;
    constexpr int64_t kSteps = 9, kRecords = 3;

    TrainParams p = {};
    p.network = c.net;
    p.data = features.data;
    p.n_models = c.models, p.batch_size = c.batch, p.threads = c.threads;
    std::vector<std::vector<float>> values, states;
    for (int32_t role = 0; role < kRoles; ++role) {
        if (!has_role(c.net, (Role)role)) continue;
        TensorView& view = p.tensors[role];
        view.shape = tensor_shape(c.net, (Role)role);
        const size_t count = models * (size_t)elements(view.shape);
        values.push_back(drawn<float>(count, -0.7, 0.7, 100 + (uint64_t)role));
        view.data = values.back().data();
        for (int s = 0; s < kMostStates && kStateNames[(int)c.optimizer][s]; ++s) {
            states.emplace_back(count, 0.0f);
            view.state[s] = states.back().data();
        }
    }
    const auto lr = drawn<double>(models, 0.005, 0.02, 11), decay = drawn<double>(models, 0.0, 0.1, 12);
    const auto importance = drawn<float>((size_t)c.n, 0.5, 1.5, 13);
    const std::vector<double> schedule(kSteps, 0.75), nbeta(models, 3.0);
    std::vector<int64_t> seed, diverged(models, -1);
    for (size_t i = 0; i < models; ++i) seed.push_back(1000 + (int64_t)i);
    std::vector<float> records(models * kRecords);
    std::vector<double> carry(models);
    p.seed = seed.data(), p.importance = importance.data();
    p.optimizer = (int32_t)c.optimizer;
    p.beta1 = 0.9, p.beta2 = c.optimizer == Optimizer::kSGD ? 0.0 : 0.99, p.eps = 1e-8;
    p.norm_clamp = 10.0, p.debias_step = true;
    p.nbeta = nbeta.data();
    p.lr = lr.data(), p.weight_decay = decay.data(), p.lr_factor = schedule.data();
    p.steps = p.total_steps = kSteps, p.record_every = kSteps / kRecords;
    p.loss_records = records.data(), p.n_records = kRecords, p.loss_carry = carry.data();
    p.diverged_at = diverged.data();
    const auto rows = drawn<float>(models * (size_t)(c.finite_rows * c.n), -1.0, 1.0, 14);
    p.finite.rows = c.finite_rows;
    if (c.finite_rows) p.finite.input = rows.data(), p.finite.per_model = true;
    force_form(c.form);
    if (!c.finite_rows && c.form != Form::kAny && train_form(c.net, p.data, c.batch, 0, -1) != c.form)
        lines.of["not taken: " + name].add((uint64_t)1);
    train(p);

    EvaluateParams e = {};
    e.network = c.net, e.data = p.data, e.finite = p.finite, e.n_models = c.models, e.batch_size = c.batch;
    e.batches = 2, e.seed = seed.data(), e.importance = importance.data(), e.threads = c.threads;
    std::copy(p.tensors, p.tensors + kRoles, e.tensors);
    std::vector<double> loss(models);
    e.loss = loss.data();
    evaluate(e);
    force_form(Form::kAny);

    const std::string title = "train " + name;
    for (const auto& v : values) put(title, v);
    for (const auto& v : states) put(title, v);
    put(title, records), put(title, carry), put(title, loss), put(title, diverged);
    for (size_t i = 0; i < models; ++i)  // a hash of NaNs would show nothing
        if (!std::isfinite(loss[i])) lines.of["not finite: " + name].add((uint64_t)i);
}

void training() {
    for (const Optimizer optimizer :
         {Optimizer::kSGD, Optimizer::kAdam, Optimizer::kAdamW, Optimizer::kLAMB, Optimizer::kSGLD})
        for (const auto& [n, m] : {std::pair<int64_t, int64_t>{5, 2}, {40, 6}, {70, 21}}) {
            Case c;
            c.n = n, c.m = m, c.net = network(n, m), c.optimizer = optimizer;
            train_line(std::string(kOptimizerNames[(int)optimizer]) + " " + std::to_string(n), c);
        }
    for (const Form form : {Form::kColumns, Form::kTiles, Form::kGram})
        for (const double p : {0.004, 0.05, 0.3}) {
            if (form == Form::kGram && p > 0.1) continue;  // which takes rare features alone
            for (const bool tied : {true, false}) {
                Case c;
                c.n = 33, c.m = 5, c.p = p, c.form = form, c.net = network(33, 5), c.net.tied = tied;
                train_line(std::string(kFormNames[(int)form]) + (tied ? " tied " : " untied ") + std::to_string(p), c);
            }
        }
    for (const int64_t models : {17, 40}) {  // enough to go side by side
        Case c;
        c.models = models, c.p = 0.01, c.net = network(5, 2);
        train_line("side by side " + std::to_string(models), c);
    }
    for (const Activation hidden : {Activation::kNone, Activation::kRelu, Activation::kGelu, Activation::kSolu})
        for (const Activation output : {Activation::kNone, Activation::kLeakyRelu, Activation::kSoftplus}) {
            Case c;
            c.n = 24, c.m = 11, c.p = 0.1, c.net = network(24, 11, hidden, output), c.net.output_option = 0.1;
            const std::string both = std::string(kActivationNames[(int)hidden]) + " " + kActivationNames[(int)output];
            train_line("activations " + both, c);
        }
    for (const Loss loss : {Loss::kCrossEntropy, Loss::kBatchCrossEntropy}) {
        Case c;
        c.n = 18, c.m = 4, c.p = 0.2, c.net = network(18, 4), c.net.loss = (int32_t)loss, c.net.has_hidden_bias = true;
        train_line(kLossNames[(int)loss], c);
    }
    Case wide;
    wide.n = 300, wide.m = 90, wide.models = 1, wide.batch = 1024, wide.p = 0.03, wide.threads = 3;
    wide.net = network(300, 90, Activation::kRelu);
    train_line("shared by threads", wide);
    Case finite;
    finite.n = 30, finite.m = 4, finite.finite_rows = 50, finite.batch = 32, finite.net = network(30, 4);
    train_line("dataset", finite);
}

// ---- the layer ----

template <class T>
void layer_line(const std::string& name, int64_t models, int64_t batch, int64_t n, int64_t m, Activation hidden,
                bool tied) {
    const auto size = [](int64_t a, int64_t b, int64_t c = 1) { return (size_t)(a * b * c); };
    const auto encoder = drawn<T>(size(models, m, n), -0.8, 0.8, 21), decoder = drawn<T>(encoder.size(), -0.8, 0.8, 22);
    const auto bias = drawn<T>(size(models, n), -0.4, 0.2, 23), importance = drawn<T>((size_t)n, 0.2, 2.0, 24);
    auto x = drawn<T>(size(models, batch, n), -3.0, 1.0, 25);
    for (T& v : x) v = v > 0 ? v : 0;  // a quarter of them active
    const auto output_grad = drawn<T>(x.size(), -1.0, 1.0, 26);
    std::vector<T> output(x.size()), loss((size_t)models), encoder_grad(encoder.size()), bias_grad(bias.size()),
        decoder_grad(tied ? 0 : encoder.size()), x_grad(x.size());

    LayerParams p = {};
    p.is_double = sizeof(T) == sizeof(double), p.tied = tied;
    p.hidden_activation = (int32_t)hidden, p.output_activation = (int32_t)Activation::kRelu, p.top_k = 2;
    p.n_models = models, p.batch = batch, p.n_features = n, p.n_hidden = m, p.threads = 2;
    p.encoder = encoder.data(), p.decoder = tied ? nullptr : decoder.data(), p.bias = bias.data();
    p.x = x.data(), p.x_stride = batch * n;
    p.importance = importance.data();
    p.loss_scale = 1.0 / (double)(batch * n), p.l1_scale = 1.0 / (double)batch;
    p.output = output.data();
    run_layer(p);
    p.task = (int32_t)LayerTask::kBackward;
    p.output_grad = output_grad.data();
    p.encoder_grad = encoder_grad.data(), p.bias_grad = bias_grad.data();
    p.decoder_grad = tied ? nullptr : decoder_grad.data();
    p.x_grad = x_grad.data();
    const std::string title = "layer " + name;
    const auto put_gradients = [&] {
        put(title, encoder_grad), put(title, decoder_grad), put(title, bias_grad), put(title, x_grad);
    };
    put(title, output);
    run_layer(p);
    put_gradients();
    p.task = (int32_t)LayerTask::kLoss;
    p.output = nullptr, p.output_grad = nullptr, p.loss = loss.data(), p.x_grad = nullptr;
    run_layer(p);
    put(title, loss), put_gradients();
}

void layers() {
    const struct {
        const char* name;
        int64_t models, batch, n, m;
    } shapes[] = {
        {"models", 19, 40, 5, 2}, {"columns", 2, 300, 60, 7}, {"samples", 2, 70, 35, 20}, {"blocks", 2, 130, 150, 70}};
    for (const auto& s : shapes)
        for (const Activation hidden : {Activation::kNone, Activation::kRelu, Activation::kTopK})
            for (const bool tied : {true, false}) {
                const std::string name =
                    std::string(s.name) + " " + kActivationNames[(int)hidden] + (tied ? " tied" : " untied");
                layer_line<float>(name + " float", s.models, s.batch, s.n, s.m, hidden, tied);
                layer_line<double>(name + " double", s.models, s.batch, s.n, s.m, hidden, tied);
            }
}

// ---- sparse layers ----

template <class T>
void sparse_line(const std::string& name, Scalar scalar, const std::function<T(float)>& stored) {
    constexpr int64_t kModels = 2, kOut = 45, kIn = 70, kCapacity = kOut * 9, kBatch = 83;
    Random random{31};
    std::vector<int64_t> row_start, column_start((size_t)(kModels * (kIn + 1)));
    std::vector<int32_t> column, row((size_t)(kModels * kCapacity)), slot(row.size());
    for (int64_t k = 0; k < kModels; ++k) {
        row_start.push_back(0);
        for (int64_t r = 0; r < kOut; ++r) {
            int32_t at = (int32_t)(random.word() % 8);
            const int64_t of_row = (int64_t)(random.word() % 10);
            for (int64_t i = 0; i < of_row; ++i, at += 1 + (int32_t)(random.word() % 6)) column.push_back(at);
            row_start.push_back((int64_t)column.size() - k * kCapacity);
        }
        column.resize((size_t)((k + 1) * kCapacity));
    }
    SparseTransposeParams t = {};
    t.n_models = kModels, t.out_features = kOut, t.in_features = kIn, t.capacity = kCapacity, t.threads = 1;
    t.row_start = row_start.data(), t.column = column.data(), t.column_start = column_start.data();
    t.row = row.data(), t.slot = slot.data();
    sparse_transpose(t);

    const auto numbers = [&](int64_t count, uint64_t seed) {
        std::vector<T> made;
        for (const float v : drawn<float>((size_t)count, -1.0, 1.0, seed)) made.push_back(stored(v));
        return made;
    };
    const auto x = numbers(kModels * kBatch * kIn, 32), values = numbers(kModels * kCapacity, 33),
               bias = numbers(kModels * kOut, 34), dy = numbers(kModels * kBatch * kOut, 35);
    std::vector<T> y(dy.size()), dx(x.size()), dvalues(values.size()), dbias(bias.size());
    SparseLinearParams p = {};
    p.topology = {kModels,    kOut,       kIn, kCapacity, row_start.data(), column.data(), column_start.data(),
                  row.data(), slot.data()};
    p.scalar = (int32_t)scalar, p.batch_size = kBatch, p.relu = true, p.threads = 2;
    p.x = x.data(), p.x_model_stride = kBatch * kIn, p.values = values.data(), p.bias = bias.data(), p.y = y.data();
    sparse_linear_forward(p);
    p.dy = dy.data(), p.dx = dx.data(), p.dvalues = dvalues.data(), p.dbias = dbias.data();
    sparse_linear_backward(p);
    const std::string title = "sparse " + name;
    put(title, y), put(title, dx), put(title, dvalues), put(title, dbias);
}

void choices() {
    auto score = drawn<float>(5000, -1.0, 1.0, 41);
    for (float& v : score) v = std::floor(v * 50.0f) / 50.0f;  // many of them equal
    const std::vector<int64_t> counts = {300, 70}, taken = {5, 6, 2000, 4999}, seeds = {3, 4}, ids = {0, 1};
    LargestParams largest = {};
    largest.score = score.data(), largest.counts = counts.data(), largest.taken = taken.data(), largest.n_taken = 4;
    largest.groups = 2, largest.size = 2500, largest.absolute = true, largest.threads = 1;
    put("choice largest", sparse_largest(largest));
    largest.ties = {seeds.data(), 2500, 0, 9u, 17u};
    put("choice largest, ties drawn", sparse_largest(largest));
    RandomPlacesParams places = {};
    places.taken = taken.data(), places.counts = counts.data(), places.seeds = seeds.data(), places.ids = ids.data();
    places.n_taken = 4, places.groups = 2, places.size = 2500, places.tag = 9, places.step = 17, places.threads = 1;
    put("choice places", sparse_random_places(places));
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) return 2;
    set_level(arguments[1]);
    streams();
    training();
    layers();
    sparse_line<float>("float32", Scalar::kFloat32, [](float v) { return v; });
    sparse_line<double>("float64", Scalar::kFloat64, [](float v) { return (double)v; });
    sparse_line<uint16_t>("bfloat16", Scalar::kBFloat16, [](float v) {
        uint32_t bits;
        std::memcpy(&bits, &v, sizeof(bits));
        return (uint16_t)(bits >> 16);
    });
    choices();
    lines.print();
}
