#include "app/doctor_facts.h"

#include <gtest/gtest.h>
#include <algorithm>

namespace fathom {
namespace {

TEST(DoctorFacts, FieldsAreTrimmedAndTheFirstWins) {
    const auto fields =
        parse_fields("model name\t: AMD EPYC\nflags\t\t: fma avx2\n\nmodel name\t: another\nNAME=\"Debian\"", ':');
    EXPECT_EQ(fields.at("model name"), "AMD EPYC");
    EXPECT_EQ(fields.at("flags"), "fma avx2");
    EXPECT_EQ(parse_fields("NAME=\"Debian 12\"\n", '=').at("NAME"), "Debian 12");
    EXPECT_TRUE(parse_fields("", ':').empty());
}

TEST(DoctorFacts, TheCgroupGrantsAQuotaOfAPeriod) {
    EXPECT_EQ(parse_cpu_max("150000 100000\n"), 1.5);
    EXPECT_EQ(parse_cpu_max("max 100000\n"), std::nullopt);
    EXPECT_EQ(parse_cpu_max(""), std::nullopt);
    EXPECT_EQ(parse_cpu_max("1000 0"), std::nullopt);
}

TEST(DoctorFacts, ThisMachineHasAProcessorAndMemory) {
    const CpuFacts cpu = read_cpu_facts();
    EXPECT_FALSE(cpu.model.empty());
    EXPECT_GE(cpu.cores, 1);
    EXPECT_TRUE(cpu.available >= 1 && cpu.available <= cpu.cores);
    EXPECT_TRUE(std::ranges::find(cpu.features, "avx2") != cpu.features.end()) << "what fathom needs to run at all";
    const MemoryFacts memory = read_memory_facts();
    EXPECT_GT(memory.available, 0);
    EXPECT_GE(memory.total, memory.available);
}

TEST(DoctorFacts, ListsTheLibrariesInThisProcess) {
    const auto libraries = loaded_libraries();
    const auto has = [&](std::string_view begin) {
        return std::ranges::any_of(libraries, [&](const std::string& name) { return name.starts_with(begin); });
    };
    EXPECT_TRUE(has("libfmt.so."));
    EXPECT_FALSE(has("libc.so")) << "the run time is reported by version";
}

}  // namespace
}  // namespace fathom
