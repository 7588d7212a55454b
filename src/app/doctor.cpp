// `fathom doctor`: what fathom finds on this machine, and what might bother it.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gnu/libc-version.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "app/doctor_facts.h"
#include "app/table.h"
#include "app/verb.h"
#include "base/error.h"
#include "cpu/isa.h"
#include "cpu/roofline.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

// One line for people and one member of the JSON object.
struct Fact {
    const char* label;
    const char* key;
    std::string text;
    Json value;
};

std::string bytes_text(int64_t bytes) { return bytes > 0 ? human_bytes(static_cast<double>(bytes)) : "unknown"; }

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
}

void add_cpu(std::vector<Fact>& facts, std::vector<std::string>& warnings) {
    const CpuFacts cpu = read_cpu_facts();
    facts.push_back({"processor", "cpu_model", cpu.model, cpu.model});
    std::string cores = fmt::format("{} online, {} available to this process", cpu.cores, cpu.available);
    if (cpu.cgroup_limit) cores += fmt::format(", limited by the cgroup to the time of {:g}", *cpu.cgroup_limit);
    facts.push_back(
        {"cores", "cores", cores, {{"online", cpu.cores}, {"available", cpu.available}, {"cgroup_limit", nullptr}}});
    if (cpu.cgroup_limit) {
        facts.back().value["cgroup_limit"] = *cpu.cgroup_limit;
        if (*cpu.cgroup_limit < cpu.available - 0.01) {
            warnings.push_back(fmt::format("the cgroup grants less time than there are cores: try --threads {}",
                                           std::max(1, static_cast<int>(*cpu.cgroup_limit))));
        }
    }
    facts.push_back({"instructions", "isa_features", fmt::format("{}", fmt::join(cpu.features, " ")), cpu.features});
    facts.push_back({"caches",
                     "cache_bytes",
                     fmt::format("L1d {}, L2 {}, L3 {}", bytes_text(cpu.l1d), bytes_text(cpu.l2), bytes_text(cpu.l3)),
                     {{"l1d", cpu.l1d}, {"l2", cpu.l2}, {"l3", cpu.l3}}});
    try {
        const std::string isa(name_of(choose_isa()));
        facts.push_back({"kernels", "kernels", isa, isa});
    } catch (const Error& error) {
        facts.push_back({"kernels", "kernels", "none", nullptr});
        warnings.emplace_back(error.what());
    }
}

void add_memory(std::vector<Fact>& facts, std::vector<std::string>& warnings) {
    const MemoryFacts memory = read_memory_facts();
    std::string text = fmt::format("{}, {} available", bytes_text(memory.total), bytes_text(memory.available));
    Json value{{"total", memory.total}, {"available", memory.available}, {"cgroup_limit", nullptr}};
    if (memory.cgroup_limit) {
        text += fmt::format(", limited by the cgroup to {}", bytes_text(*memory.cgroup_limit));
        value["cgroup_limit"] = *memory.cgroup_limit;
    }
    facts.push_back({"memory", "memory_bytes", text, value});
    if (memory.available < int64_t{1} << 30) warnings.emplace_back("less than 1 GiB of memory is available");
}

void add_software(std::vector<Fact>& facts) {
    utsname system{};
    ::uname(&system);
    const std::string kernel = fmt::format("{} {}", system.sysname, system.release);
    facts.push_back({"version", "version", "fathom " FATHOM_VERSION, FATHOM_VERSION});
    facts.push_back({"system", "system", kernel, kernel});
    const std::string compiler = fmt::format("g++ {}, glibc {} at run time", __VERSION__, ::gnu_get_libc_version());
    facts.push_back({"built with", "compiler", compiler, {{"compiler", __VERSION__}, {"glibc", ::gnu_get_libc_version()}}});
    const auto libraries = loaded_libraries();
    facts.push_back({"libraries", "libraries", fmt::format("{}", fmt::join(libraries, " ")), libraries});
    const std::string headers = fmt::format("CLI11 {}, nlohmann json {}.{}.{}", CLI11_VERSION, NLOHMANN_JSON_VERSION_MAJOR,
                                            NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH);
    facts.push_back({"headers", "headers", headers, headers});
    facts.push_back({"devices", "devices", "cpu (this build has no CUDA back end)", {"cpu"}});
}

void add_terminal(std::vector<Fact>& facts) {
    const bool terminal = ::isatty(STDOUT_FILENO) != 0, unicode = stdout_draws_unicode();
    const std::string name = environment("TERM");
    facts.push_back(
        {"terminal",
         "terminal",
         terminal ? fmt::format("{}, {}", name.empty() ? "TERM unset" : name, unicode ? "UTF-8" : "no UTF-8 locale") : "none",
         {{"is_terminal", terminal}, {"term", name}, {"utf8", unicode}}});
}

void add_bench(std::vector<Fact>& facts, const Globals& globals) {
    ThreadPool threads(globals.threads);
    const Roofline roofline = measure_roofline(threads);
    facts.push_back({"threads", "threads", fmt::format("{}", threads.size()), threads.size()});
    facts.push_back({"read bandwidth", "read_bytes_per_second",
                     fmt::format("{:.1f} GB/s", roofline.read_bytes_per_second / 1e9), roofline.read_bytes_per_second});
    facts.push_back({"f32 multiply-add", "f32_flops_per_second",
                     fmt::format("{:.0f} GFLOP/s", roofline.f32_flops_per_second / 1e9), roofline.f32_flops_per_second});
    const auto of_cpus_that_have_it = [&](const char* label, const char* key, double rate) {
        facts.push_back({label, key, rate > 0 ? fmt::format("{:.0f} Gop/s", rate / 1e9) : "this CPU has none", rate});
    };
    of_cpus_that_have_it("bf16 pairs", "bf16_flops_per_second", roofline.bf16_flops_per_second);
    of_cpus_that_have_it("int8 fours", "int8_ops_per_second", roofline.int8_ops_per_second);
    of_cpus_that_have_it("fp16 multiply-add", "fp16_flops_per_second", roofline.fp16_flops_per_second);
    of_cpus_that_have_it("bf16 tiles", "bf16_tile_flops_per_second", roofline.bf16_tile_flops_per_second);
    of_cpus_that_have_it("int8 tiles", "int8_tile_ops_per_second", roofline.int8_tile_ops_per_second);
}

void doctor(bool bench, const Globals& globals) {
    std::vector<Fact> facts;
    std::vector<std::string> warnings;
    add_software(facts);
    add_cpu(facts, warnings);
    add_memory(facts, warnings);
    add_terminal(facts);
    if (bench) add_bench(facts, globals);
    if (globals.json) {
        Json object;
        for (const Fact& fact : facts) object[fact.key] = fact.value;
        object["warnings"] = warnings;
        fmt::print("{}\n", object.dump(2));
        return;
    }
    for (const Fact& fact : facts) fmt::print("{:<18}{}\n", fact.label, fact.text);
    for (const std::string& warning : warnings) fmt::print("{:<18}{}\n", "warning", warning);
}

}  // namespace

void add_doctor(CLI::App& app, Globals& globals) {
    CLI::App* verb = app.add_subcommand("doctor", "show processor, memory, libraries and limits as fathom sees them");
    verb->footer(
        "Examples:\n"
        "  fathom doctor\n"
        "  fathom doctor --bench --json     also measure memory bandwidth and f32 rate");
    auto bench = std::make_shared<bool>(false);
    verb->add_flag("--bench", *bench, "measure read bandwidth and f32 multiply-add rate (about a second)");
    verb->callback([bench, &globals] { doctor(*bench, globals); });
}

}  // namespace fathom
