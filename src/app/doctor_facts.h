// What a machine tells about itself: the facts behind `fathom doctor`.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

struct CpuFacts {
    std::string model;
    int cores = 0;                       // online
    int available = 0;                   // this process may use (affinity)
    std::optional<double> cgroup_limit;  // cores' worth of time
    std::vector<std::string> features;   // those that matter to fathom, as /proc/cpuinfo spells them
    int64_t l1d = 0, l2 = 0, l3 = 0;     // bytes; 0 unknown
};

struct MemoryFacts {
    int64_t total = 0, available = 0;     // bytes
    std::optional<int64_t> cgroup_limit;  // bytes
};

[[nodiscard]] CpuFacts read_cpu_facts();
[[nodiscard]] MemoryFacts read_memory_facts();

// Shared libraries in this process, by their file names ("libfmt.so.9.1.0"), without those of the C and C++ run time.
[[nodiscard]] std::vector<std::string> loaded_libraries();

// "key : value" or "key=value" lines, keys and values trimmed, quotes removed; the first of equal keys wins.
[[nodiscard]] std::map<std::string, std::string> parse_fields(std::string_view text, char separator);

// The content of cgroup 2's cpu.max, "200000 100000" or "max 100000", in cores.
[[nodiscard]] std::optional<double> parse_cpu_max(std::string_view text);

}  // namespace fathom
