#include <fmt/format.h>
#include <memory>
#include <string>

#include "app/device.h"
#include "app/verb.h"
#include "checkpoint/checkpoint.h"

namespace fathom {
namespace {

struct ConvertOptions {
    std::string from, to, dtype;
};

void convert(const ConvertOptions& options, const Globals& globals) {
    if (std::filesystem::exists(options.to) && std::filesystem::equivalent(options.from, options.to)) {
        throw Error(ErrorKind::kUsage, "convert: IN and OUT are the same folder");
    }
    Device device(globals);
    LoadOptions load{.dtype = {}, .with_mtp = true};
    if (!options.dtype.empty()) load.dtype = options.dtype == "f32" ? DType::kF32 : DType::kBF16;
    const LoadedModel loaded = load_model(options.from, device.ops(), load);
    save_model(options.to, *loaded.model, device.ops(), {.tokenizer = options.from, .with_copies = loaded.has_copies});
    if (!globals.json) fmt::print("{} -> {}\n", options.from, options.to);
}

}  // namespace

void add_convert(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<ConvertOptions>();
    CLI::App* verb = app.add_subcommand("convert", "write a checkpoint again, as it is or in another type");
    verb->footer(
        "Examples:\n"
        "  fathom convert DeepSeek-V2-Lite copy              the same tensors, byte for byte\n"
        "  fathom convert runs/a/checkpoints/step-00001000 out --dtype bf16\n");
    verb->add_option("in", options->from, "checkpoint folder")->required()->type_name("IN");
    verb->add_option("out", options->to, "folder to write")->required()->type_name("OUT");
    verb->add_option("--dtype", options->dtype, "type of matrices and norms; default: as stored (FP8 stays FP8)")
        ->check(CLI::IsMember({"f32", "bf16"}))
        ->type_name("f32|bf16");
    verb->callback([options, &globals] { convert(*options, globals); });
}

}  // namespace fathom
