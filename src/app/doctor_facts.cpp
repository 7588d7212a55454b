#include <fmt/format.h>
#include <link.h>
#include <sched.h>
#include <unistd.h>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "app/doctor_facts.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFeatures[] = {"avx2",     "fma",      "f16c",        "avx512f",     "avx512bw",
                                     "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
                                     "amx_tile", "amx_bf16", "amx_int8"};

// Files of /proc and /sys have no size, so they cannot be mapped; a missing one reads as empty.
std::string read_system_file(const fs::path& path) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

std::optional<int64_t> parse_integer(std::string_view text) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() ? std::optional(value) : std::nullopt;
}

std::string trimmed(std::string_view text) {
    const size_t begin = text.find_first_not_of(" \t\n\""), end = text.find_last_not_of(" \t\n\"");
    return begin == text.npos ? "" : std::string(text.substr(begin, end - begin + 1));
}

// The tightest limit on the way from this process's cgroup to the root; `read` gives that of one folder.
template <class Read>
auto tightest_cgroup_limit(Read&& read) -> decltype(read(fs::path())) {
    decltype(read(fs::path())) tightest;
    const std::string line = read_system_file("/proc/self/cgroup");  // "0::/user.slice/..."
    const size_t colons = line.find("::");
    fs::path folder = "/sys/fs/cgroup" + (colons == line.npos ? "" : trimmed(std::string_view(line).substr(colons + 2)));
    for (; folder.string().starts_with("/sys/fs/cgroup"); folder = folder.parent_path()) {
        const auto limit = read(folder);
        if (limit && (!tightest || *limit < *tightest)) tightest = limit;
        if (!folder.has_relative_path()) break;
    }
    return tightest;
}

// What the first core sees. sysconf(3) counts all slices of a processor's L3, of which a core uses one.
int64_t cache_bytes(const char* index) {
    return parse_integer(read_system_file(fs::path("/sys/devices/system/cpu/cpu0/cache") / index / "size")).value_or(0) * 1024;
}

}  // namespace

std::map<std::string, std::string> parse_fields(std::string_view text, char separator) {
    std::map<std::string, std::string> fields;
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        const std::string_view line = text.substr(begin, end - begin);
        const size_t at = line.find(separator);
        if (at != line.npos) fields.emplace(trimmed(line.substr(0, at)), trimmed(line.substr(at + 1)));
        begin = end + 1;
    }
    return fields;
}

std::optional<double> parse_cpu_max(std::string_view text) {
    const size_t blank = text.find(' ');
    const auto quota = parse_integer(text.substr(0, blank));
    const auto period = blank == text.npos ? std::nullopt : parse_integer(text.substr(blank + 1));
    if (!quota || !period || *period <= 0) return std::nullopt;
    return static_cast<double>(*quota) / static_cast<double>(*period);
}

CpuFacts read_cpu_facts() {
    auto fields = parse_fields(read_system_file("/proc/cpuinfo"), ':');
    CpuFacts facts;
    facts.model = fields["model name"];
    facts.cores = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
    cpu_set_t set;
    facts.available = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : facts.cores;
    facts.cgroup_limit =
        tightest_cgroup_limit([](const fs::path& folder) { return parse_cpu_max(read_system_file(folder / "cpu.max")); });
    const std::string flags = " " + fields["flags"] + " ";
    for (const char* feature : kFeatures) {
        if (flags.find(fmt::format(" {} ", feature)) != flags.npos) facts.features.emplace_back(feature);
    }
    facts.l1d = cache_bytes("index0");
    facts.l2 = cache_bytes("index2");
    facts.l3 = cache_bytes("index3");
    return facts;
}

MemoryFacts read_memory_facts() {
    auto fields = parse_fields(read_system_file("/proc/meminfo"), ':');  // "24576000 kB"
    MemoryFacts facts;
    facts.total = parse_integer(fields["MemTotal"]).value_or(0) * 1024;
    facts.available = parse_integer(fields["MemAvailable"]).value_or(0) * 1024;
    facts.cgroup_limit =
        tightest_cgroup_limit([](const fs::path& folder) { return parse_integer(read_system_file(folder / "memory.max")); });
    return facts;
}

std::vector<std::string> loaded_libraries() {
    std::vector<std::string> names;
    const auto visit = [](dl_phdr_info* info, size_t, void* list) {
        const fs::path path = info->dlpi_name;
        std::error_code failed;
        const std::string name = fs::canonical(path, failed).filename().string();  // links are named by ABI, files by version
        const bool run_time = name.starts_with("libc.") || name.starts_with("libm.") || name.starts_with("ld-") ||
                              name.starts_with("libgcc_s") || name.starts_with("libstdc++");
        if (!failed && !name.empty() && name.find(".so") != name.npos && !run_time) {
            static_cast<std::vector<std::string>*>(list)->push_back(name);
        }
        return 0;
    };
    ::dl_iterate_phdr(visit, &names);
    std::ranges::sort(names);
    return names;
}

}  // namespace fathom
