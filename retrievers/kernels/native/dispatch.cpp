#include "dispatch.h"

#include <stdexcept>

namespace ragq {

namespace {

struct Set {
    const Loops* loops;
    bool (*available)();
};

const std::vector<Set>& sets() {
    static const std::vector<Set> all = {
        {&loops_scalar, [] { return true; }},
#if defined(__x86_64__)
        {&loops_avx2,
         [] {
             return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("popcnt");
         }},
        {&loops_avx512,
         [] {
             return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
                    __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("popcnt");
         }},
#elif defined(__aarch64__)
        {&loops_neon, [] { return true; }},  // part of every AArch64
#endif
    };
    return all;
}

}  // namespace

std::vector<std::string> built_sets() {
    std::vector<std::string> names;
    for (const Set& set : sets()) names.push_back(set.loops->name);
    return names;
}

std::vector<std::string> available_sets() {
    std::vector<std::string> names;
    for (const Set& set : sets())
        if (set.available()) names.push_back(set.loops->name);
    return names;
}

const Loops& loops_of(const std::string& name) {
    for (const Set& set : sets())
        if (name == set.loops->name && set.available()) return *set.loops;
    throw std::invalid_argument("instruction set '" + name + "' is not available");
}

}  // namespace ragq
