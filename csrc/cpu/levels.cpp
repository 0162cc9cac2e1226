// Which instruction-set level runs: the best that the CPU has, or TOYKERN_ISA.
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "toykern/api.h"

namespace toykern {
namespace {

struct Candidate {
    const LevelTable* table;
    bool runs;
};

std::vector<Candidate> candidates() {
    std::vector<Candidate> all;
#if defined(TOYKERN_X86_LEVELS)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    all.push_back({level_v4(), v4});
    all.push_back({level_v3(), v3});
#elif defined(TOYKERN_ARM_LEVELS)
    all.push_back({level_neon(), true});  // no 64-bit ARM CPU that runs programs is without it
#endif
    all.push_back({level_base(), true});
    return all;
}

std::atomic<const LevelTable*> current{nullptr};

}  // namespace

std::vector<std::string> built_levels() {
    std::vector<std::string> names;
    for (const Candidate& c : candidates()) names.push_back(c.table->name);
    return names;
}

std::vector<std::string> available_levels() {
    std::vector<std::string> names;
    for (const Candidate& c : candidates())
        if (c.runs) names.push_back(c.table->name);
    return names;
}

void set_level(const std::string& name) {
    std::string known;
    for (const Candidate& c : candidates()) {
        if (name == c.table->name && c.runs) {
            current = c.table;
            return;
        }
        if (c.runs) known += (known.empty() ? "" : ", ") + std::string(c.table->name);
    }
    throw std::invalid_argument("instruction-set level '" + name + "' is not available here; available: " + known);
}

const LevelTable& level() {
    if (!current) {
        const char* asked = std::getenv("TOYKERN_ISA");
        set_level(asked && *asked ? asked : available_levels().front());
    }
    return *current;
}

}  // namespace toykern
