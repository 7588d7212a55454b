// fathom quantize: a model in fewer bits, and what that costs.
#include <fmt/format.h>
#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/generate_model.h"
#include "app/importance.h"
#include "app/table.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "checkpoint/gguf_save.h"
#include "infer/divergence.h"
#include "io/text_documents.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

struct Options {
    std::string in, out, type = "q4_k", calibrate, evaluate;
    int64_t calibration_tokens = 16384, evaluation_tokens = 8192, context = 512;
};

GgufType parse_type(const std::string& name) {
    if (name == "f32") return {DType::kF32};
    if (name == "f16") return {DType::kF16};
    if (name == "bf16") return {DType::kBF16};
    if (const auto block = block_type_from_name(name)) return {DType::kU8, *block};
    throw Error(ErrorKind::kUsage,
                fmt::format("--type {}: expected f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, "
                            "q5_k, q6_k, iq4_nl, iq4_xs or mxfp4",
                            name));
}

// The first tokens of a text's documents, with BOS before each as the model expects it.
std::vector<int32_t> read_tokens(const Tokenizer& tokenizer, const std::string& file, int64_t limit) {
    TextDocuments documents(file);
    std::vector<int32_t> tokens;
    for (auto range = documents.next(); range && std::ssize(tokens) < limit; range = documents.next()) {
        if (tokenizer.bos_id()) tokens.push_back(*tokenizer.bos_id());
        const std::vector<int32_t> ids = tokenizer.encode(documents.text(*range), false);
        tokens.insert(tokens.end(), ids.begin(), ids.end());
    }
    tokens.resize(std::min(tokens.size(), static_cast<size_t>(limit)));
    if (tokens.size() < 2) throw Error(ErrorKind::kInput, fmt::format("{}: too little text", file));
    return tokens;
}

int64_t bytes_of(const fs::path& path) {
    if (!fs::is_directory(path)) return static_cast<int64_t>(fs::file_size(path));
    int64_t bytes = 0;
    for (const auto& entry : fs::directory_iterator(path))
        if (entry.path().extension() == ".safetensors") bytes += static_cast<int64_t>(entry.file_size());
    return bytes;
}

Divergence compare(const Options& options, const DeepSeek& original, Device& device, const Tokenizer& tokenizer,
                   const Globals& globals) {
    const std::vector<int32_t> tokens = read_tokens(tokenizer, options.evaluate, options.evaluation_tokens);
    const LoadedModel changed = load_model(options.out, device.ops(), {});
    Progress progress("evaluate", std::ssize(tokens) - 1, "tokens", globals.progress());
    const Divergence result =
        divergence(original, *changed.model, device.ops(), tokens, options.context, [&](const Divergence& d) {
            throw_if_interrupted();
            progress.update(d.tokens, fmt::format("KL {:.5f}", d.mean_kl()));
        });
    progress.finish();
    return result;
}

void report(const Options& options, const std::map<std::string, int64_t>& bytes_by_type,
            const std::optional<Divergence>& measured, bool json) {
    const int64_t before = bytes_of(options.in), after = bytes_of(options.out);
    if (json) {
        nlohmann::ordered_json object{{"in", options.in},       {"out", options.out},   {"type", options.type},
                                      {"bytes_before", before}, {"bytes_after", after}, {"bytes_by_type", bytes_by_type}};
        if (measured) {
            object["tokens"] = measured->tokens;
            object["perplexity_before"] = measured->perplexity_original();
            object["perplexity_after"] = measured->perplexity_changed();
            object["kl"] = measured->mean_kl();
            object["same_best"] = measured->agreement();
        }
        fmt::print("{}\n", object.dump(2));
        return;
    }
    Table table({{"model", "model"},
                 {"size", "bytes", true},
                 {"perplexity", "perplexity", true},
                 {"KL, nats", "kl", true},
                 {"same best token", "same_best", true}});
    const auto size = [](int64_t bytes) { return Cell(bytes, human_bytes(static_cast<double>(bytes))); };
    const auto number = [](double value, const char* format) { return Cell(value, fmt::format(fmt::runtime(format), value)); };
    if (measured) {
        table.add({options.in, size(before), number(measured->perplexity_original(), "{:.4f}"), "", ""});
        table.add({options.out, size(after), number(measured->perplexity_changed(), "{:.4f}"),
                   number(measured->mean_kl(), "{:.5f}"), number(100 * measured->agreement(), "{:.2f} %")});
    } else {
        table.add({options.in, size(before), "", "", ""});
        table.add({options.out, size(after), "", "", ""});
    }
    table.print(false);
    std::string types;
    for (const auto& [type, bytes] : bytes_by_type)
        types += fmt::format("{}{} {}", types.empty() ? "" : ", ", type, human_bytes(static_cast<double>(bytes)));
    fmt::print("types: {}\n", types);
}

void quantize(const Options& options, const Globals& globals) {
    const GgufType type = parse_type(options.type);
    if (!options.out.ends_with(".gguf")) throw Error(ErrorKind::kUsage, "quantize: OUT is a file that ends in .gguf");
    if (fs::exists(options.out) && fs::equivalent(options.in, options.out))
        throw Error(ErrorKind::kUsage, "quantize: IN and OUT are the same file");
    ModelOptions source;
    source.model = options.in;
    source.pack = false;
    const bool text = !options.calibrate.empty() || !options.evaluate.empty();
    OpenModel model(source, globals, text ? OpenModel::Text::kNeeded : OpenModel::Text::kWanted);
    Importance importance;
    if (!options.calibrate.empty()) {
        const auto tokens = read_tokens(*model.tokenizer(), options.calibrate, options.calibration_tokens);
        importance = measure_importance(model.model(), model.device().threads(), tokens, options.context, globals.progress());
    }
    std::map<std::string, int64_t> bytes_by_type;
    Progress progress("quantize", 0, "bytes", globals.progress());
    GgufSaveOptions save{.type = type, .name = fs::path(options.in).stem().string()};
    if (model.gguf() != nullptr)
        save.tokenizer_of = model.gguf();
    else if (model.tokenizer() != nullptr)
        save.tokenizer = options.in;
    if (!importance.empty()) save.importance = &importance;
    int64_t before = 0;
    save.progress = [&](const std::string& tensor, const GgufType& given, int64_t done, int64_t total) {
        throw_if_interrupted();
        bytes_by_type[given.name()] += done - before;
        before = done;
        progress.update(done, fmt::format("{} {} of {}", tensor, human_bytes(static_cast<double>(done)),
                                          human_bytes(static_cast<double>(total))));
    };
    save_gguf(options.out, model.model(), save, model.device().threads());
    progress.finish();
    std::optional<Divergence> measured;
    if (!options.evaluate.empty()) measured = compare(options, model.model(), model.device(), *model.tokenizer(), globals);
    report(options, bytes_by_type, measured, globals.json);
}

}  // namespace

void add_quantize(CLI::App& app, Globals& globals) {
    auto o = std::make_shared<Options>();
    CLI::App* verb = app.add_subcommand("quantize", "write a model in fewer bits as a GGUF file, and measure what that costs");
    verb->footer(
        "Examples:\n"
        "  fathom quantize models/stories stories-q8_0.gguf --type q8_0 --eval stories.txt\n"
        "  fathom quantize MODEL model-q4_k.gguf --type q4_k --calibrate text.txt --eval held-out.txt\n");
    verb->add_option("in", o->in, "a Hugging Face model folder, or a GGUF file")->required()->type_name("IN");
    verb->add_option("out", o->out, "the GGUF file to write")->required()->type_name("OUT");
    verb->add_option("--type", o->type,
                     "of the matrices: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k to q6_k, iq4_nl, iq4_xs, mxfp4")
        ->type_name("TYPE");
    verb->add_option("--calibrate", o->calibrate,
                     "text by whose activations columns are weighted (an importance matrix); none: all alike")
        ->type_name("FILE");
    verb->add_option("--eval", o->evaluate, "text on which both models are compared: perplexity, KL divergence, agreement")
        ->type_name("FILE");
    const auto tokens = [&](const char* name, int64_t& value, const char* help) {
        verb->add_option(name, value, help)->type_name("N")->check(CLI::Range(int64_t{2}, int64_t{1} << 40));
    };
    tokens("--calibration-tokens", o->calibration_tokens, "read at most this many of --calibrate");
    tokens("--eval-tokens", o->evaluation_tokens, "read at most this many of --eval");
    tokens("--context", o->context, "tokens of a window, in both");
    verb->callback([o, &globals] { quantize(*o, globals); });
}

}  // namespace fathom
