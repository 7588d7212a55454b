#include "app/device.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "cpu/cpu_ops.h"
#include "cpu/isa.h"

namespace fathom {
namespace {

// --device in parts.
struct Choice {
    enum class Kind : uint8_t { kAuto, kCpu, kCuda } kind = Kind::kAuto;
    int gpu = 0;
};

Choice parse(const std::string& device) {
    if (device == "auto") return {};
    if (device == "cpu") return {Choice::Kind::kCpu};
    Choice choice{Choice::Kind::kCuda};
    if (device == "cuda") return choice;
    constexpr std::string_view kPrefix = "cuda:";
    const char* const end = device.data() + device.size();
    if (device.starts_with(kPrefix)) {
        const auto [stop, error] = std::from_chars(device.data() + kPrefix.size(), end, choice.gpu);
        if (error == std::errc() && stop == end && choice.gpu >= 0 && device.size() > kPrefix.size()) return choice;
    }
    throw Error(ErrorKind::kUsage, fmt::format("--device {}: expected auto, cpu or cuda[:n]", device));
}

// The functions of cuda/plugin.h, which is not included: this build may have no CUDA at all.
struct Plugin {
    Ops* (*open)(int device, const char* compute, bool deterministic, char* message, int64_t size) = nullptr;
};

// Beside the program, where it is built; an installed one has it in lib/fathom beside bin.
std::filesystem::path plugin_path() {
    std::error_code ignored;
    const std::filesystem::path folder = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path(),
                                beside = folder / "libfathom_cuda.so",
                                installed = folder.parent_path() / "lib/fathom/libfathom_cuda.so";
    return !std::filesystem::exists(beside, ignored) && std::filesystem::exists(installed, ignored) ? installed : beside;
}

// Opened once and never closed: kernels and their memory live as long as the process.
Plugin open_plugin() {
    const std::filesystem::path path = plugin_path();
    if (!std::filesystem::exists(path)) {
        throw Error(ErrorKind::kDevice,
                    fmt::format("this build has no CUDA plug-in ({} is missing): build it with cmake --preset cuda, or use "
                                "--device cpu",
                                path.string()));
    }
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == nullptr)
        throw Error(ErrorKind::kDevice, fmt::format("the CUDA plug-in does not open: {}; use --device cpu", ::dlerror()));
    const auto version = reinterpret_cast<const char* (*)()>(::dlsym(library, "fathom_cuda_version"));
    Plugin plugin;
    plugin.open = reinterpret_cast<decltype(plugin.open)>(::dlsym(library, "fathom_cuda_open"));
    if (version == nullptr || plugin.open == nullptr || std::string_view(version()) != FATHOM_VERSION) {
        throw Error(ErrorKind::kDevice, fmt::format("{} belongs to another version of fathom, this is {}: build both together",
                                                    path.string(), FATHOM_VERSION));
    }
    return plugin;
}

std::unique_ptr<Ops> open_cuda(int gpu, const Globals& globals) {
    std::array<char, 512> message{};
    Ops* ops = open_plugin().open(gpu, globals.compute.c_str(), globals.deterministic, message.data(), message.size());
    if (ops == nullptr) throw Error(ErrorKind::kDevice, message.data());
    return std::unique_ptr<Ops>(ops);
}

// Whether the machine has a GPU of NVIDIA's, usable or not.
bool gpu_present() { return std::filesystem::exists("/dev/nvidia0"); }

// The GPU if there is one that works; null, and a warning where there is one that does not.
std::unique_ptr<Ops> open_automatically(const Globals& globals) {
    if (!gpu_present()) return nullptr;
    try {
        return open_cuda(0, globals);
    } catch (const Error& error) {
        fmt::print(stderr, "fathom: warning: computing on the CPU, although there is a GPU: {}\n", error.what());
        return nullptr;
    }
}

}  // namespace

void check_device(const Globals& globals) {
    if (parse(globals.device).kind == Choice::Kind::kCuda) (void)open_plugin();
}

Device::Device(const Globals& globals, bool keeps_f32) : threads_(globals.threads) {
    const Choice choice = parse(globals.device);
    if (choice.kind == Choice::Kind::kCuda) ops_ = open_cuda(choice.gpu, globals);
    if (choice.kind == Choice::Kind::kAuto) ops_ = open_automatically(globals);
    if (ops_ != nullptr) return;
    const Isa isa = choose_isa();
    ops_ = std::make_unique<CpuOps>(threads_, keeps_f32 ? std::min(isa, Isa::kAvx512) : isa, globals.deterministic);
}

}  // namespace fathom
