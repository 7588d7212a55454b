#include <fmt/format.h>
#include <memory>
#include <string>

#include "app/device.h"
#include "app/quantize_report.h"
#include "app/verb.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_save.h"
#include "io/gguf_tokenizer.h"

namespace fathom {
namespace {

struct ConvertOptions {
    std::string from, to, dtype;
    bool merged_kv_b = false, mtp = false;
};

bool has_tokenizer(const std::filesystem::path& folder) {
    return std::filesystem::exists(folder / "tokenizer.json") || std::filesystem::exists(folder / "tiktoken.model");
}

std::optional<DType> dtype_of(const std::string& name) {
    if (name.empty()) return std::nullopt;
    return name == "f32" ? DType::kF32 : name == "f16" ? DType::kF16 : DType::kBF16;
}

void to_gguf(const ConvertOptions& options, Device& device, bool quiet) {
    const LoadedModel loaded = load_model(options.from, device.ops(), {.with_mtp = options.mtp, .pack = false});
    if (!options.mtp && has_mtp_modules(loaded) && !quiet) fmt::print(stderr, "{}\n", kMtpLeftOut);
    GgufSaveOptions save{.name = std::filesystem::path(options.from).stem().string(), .merged_kv_b = options.merged_kv_b};
    if (const auto dtype = dtype_of(options.dtype)) save.type = GgufType{*dtype};
    if (loaded.gguf)
        save.tokenizer_of = &loaded.gguf->view();
    else if (has_tokenizer(options.from))
        save.tokenizer = options.from;
    save_gguf(options.to, *loaded.model, save, device.threads());
}

void to_folder(const ConvertOptions& options, Device& device) {
    LoadOptions load{.dtype = dtype_of(options.dtype), .head = HeadKind::kAny, .with_mtp = true, .pack = false};
    const bool from_gguf = is_gguf(options.from);
    if (from_gguf && !load.dtype) load.dtype = DType::kBF16;
    const LoadedModel loaded = load_model(options.from, device.ops(), load);
    SaveOptions save{.with_copies = loaded.has_copies};
    if (!from_gguf) save.tokenizer = options.from;
    save_model(options.to, *loaded.model, device.ops(), save);
    if (from_gguf) write_gguf_tokenizer(loaded.gguf->view(), options.to);
}

void convert(const ConvertOptions& options, const Globals& globals) {
    if (std::filesystem::exists(options.to) && std::filesystem::equivalent(options.from, options.to)) {
        throw Error(ErrorKind::kUsage, "convert: IN and OUT are the same");
    }
    if (std::filesystem::is_directory(options.to) && !std::filesystem::is_empty(options.to)) {
        throw Error(
            ErrorKind::kUsage,
            fmt::format("{}: this folder is not empty, and what is in it would be mixed with the new model; choose another "
                        "OUT or empty it",
                        options.to));
    }
    Device device(globals);
    if (options.to.ends_with(".gguf")) {
        to_gguf(options, device, globals.quiet);
    } else {
        if (options.dtype == "f16") throw Error(ErrorKind::kUsage, "--dtype f16: for GGUF files; folders take f32 or bf16");
        to_folder(options, device);
    }
    if (!globals.json) fmt::print("{} -> {}\n", options.from, options.to);
}

}  // namespace

void add_convert(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<ConvertOptions>();
    CLI::App* verb = app.add_subcommand("convert", "write a checkpoint again: in another type, to GGUF or from it");
    verb->footer(
        "Examples:\n"
        "  fathom convert DeepSeek-V2-Lite copy              the same tensors, byte for byte\n"
        "  fathom convert runs/a/checkpoints/step-00001000 out --dtype bf16\n"
        "  fathom convert DeepSeek-V2-Lite v2-lite.gguf      for llama.cpp; fathom quantize writes fewer bits\n"
        "  fathom convert v2-lite-q4_k.gguf folder           numbers of the blocks as bf16, with the tokenizer\n");
    verb->add_option("in", options->from, "checkpoint folder or GGUF file")->required()->type_name("IN");
    verb->add_option("out", options->to, "folder to write, or a file that ends in .gguf")->required()->type_name("OUT");
    verb->add_option("--dtype", options->dtype,
                     "type of matrices and norms; default: as stored (FP8 stays FP8; GGUF's blocks become bf16 in a folder)")
        ->check(CLI::IsMember({"f32", "bf16", "f16"}))
        ->type_name("f32|bf16|f16");
    verb->add_flag("--merged-kv-b", options->merged_kv_b, "GGUF: one attn_kv_b, for llama.cpp from before May 2025");
    verb->add_flag("--mtp", options->mtp, "GGUF: with the MTP modules, which llama.cpp reads since late 2026");
    verb->callback([options, &globals] { convert(*options, globals); });
}

}  // namespace fathom
