#include "app/quantize_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "app/table.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "io/text_documents.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

std::string human(int64_t bytes) { return human_bytes(static_cast<double>(bytes)); }

// "a, b and 5 more"
std::string some_of(std::span<const std::string> names) {
    constexpr size_t kShown = 3;
    const auto shown = names.first(std::min(kShown, names.size()));
    return fmt::format("{}{}", fmt::join(shown, ", "),
                       names.size() > kShown ? fmt::format(" and {} more", names.size() - kShown) : "");
}

nlohmann::ordered_json as_json(const QuantizeReport& r, int64_t before, int64_t after) {
    nlohmann::ordered_json object{{"in", r.in},
                                  {"out", r.out},
                                  {"type", r.type},
                                  {"method", r.method},
                                  {"bytes_before", before},
                                  {"bytes_after", after},
                                  {"bytes_by_type", r.bytes_by_type},
                                  {"rounded_to_nearest", r.rounded},
                                  {"left_alone", r.left_alone}};
    if (!r.measured) return object;
    object["tokens"] = r.measured->tokens;
    object["perplexity_before"] = r.measured->perplexity_original();
    object["perplexity_after"] = r.measured->perplexity_changed();
    object["kl"] = r.measured->mean_kl();
    object["same_best"] = r.measured->agreement();
    return object;
}

}  // namespace

std::vector<int32_t> read_text_tokens(const Tokenizer& tokenizer, const std::string& file, int64_t limit) {
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

int64_t model_bytes(const std::string& path) {
    if (!fs::is_directory(path)) return static_cast<int64_t>(fs::file_size(path));
    int64_t bytes = 0;
    for (const auto& entry : fs::directory_iterator(path))
        if (entry.path().extension() == ".safetensors") bytes += static_cast<int64_t>(entry.file_size());
    return bytes;
}

Divergence measure_divergence(const DeepSeek& original, const std::string& changed, Ops& ops, std::span<const int32_t> tokens,
                              int64_t context, ProgressMode mode) {
    const LoadedModel loaded = load_model(changed, ops, {});
    Progress progress("evaluate", std::ssize(tokens) - 1, "tokens", mode);
    const Divergence result = divergence(original, *loaded.model, ops, tokens, context, [&](const Divergence& d) {
        throw_if_interrupted();
        progress.update(d.tokens, fmt::format("KL {:.5f}", d.mean_kl()));
    });
    progress.finish();
    return result;
}

void QuantizeReport::print(bool json) const {
    const int64_t before = model_bytes(in), after = model_bytes(out);
    if (json) {
        fmt::print("{}\n", as_json(*this, before, after).dump(2));
        return;
    }
    Table table({{"model", "model"},
                 {"size", "bytes", true},
                 {"perplexity", "perplexity", true},
                 {"KL, nats", "kl", true},
                 {"same best token", "same_best", true}});
    const auto size = [](int64_t bytes) { return Cell(bytes, human(bytes)); };
    const auto number = [](double value, const char* format) { return Cell(value, fmt::format(fmt::runtime(format), value)); };
    if (measured) {
        table.add({in, size(before), number(measured->perplexity_original(), "{:.4f}"), "", ""});
        table.add({out, size(after), number(measured->perplexity_changed(), "{:.4f}"), number(measured->mean_kl(), "{:.5f}"),
                   number(100 * measured->agreement(), "{:.2f} %")});
    } else {
        table.add({in, size(before), "", "", ""});
        table.add({out, size(after), "", "", ""});
    }
    table.print(false);
    std::string types;
    for (const auto& [name, bytes] : bytes_by_type)
        types += fmt::format("{}{} {}", types.empty() ? "" : ", ", name, human(bytes));
    fmt::print("types: {}\n", types);
    if (!rounded.empty())
        fmt::print("rounded to nearest, because too few tokens of the text came to them: {}\n", some_of(rounded));
    if (!left_alone.empty()) fmt::print("left alone, because their columns are no whole groups: {}\n", some_of(left_alone));
}

}  // namespace fathom
