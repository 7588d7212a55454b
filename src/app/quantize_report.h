// What a quantized model costs: its size, and what it says differently from the original.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "app/generate_model.h"
#include "infer/divergence.h"

namespace fathom {

inline constexpr std::string_view kMtpLeftOut =
    "the MTP modules are left out: add --mtp to keep them, as llama.cpp reads them since late 2026";

// The first `limit` tokens of a text's documents, with BOS before each as the model expects it. Throws Error{kInput} for less
// than two.
[[nodiscard]] std::vector<int32_t> read_text_tokens(const Tokenizer& tokenizer, const std::string& file, int64_t limit);

// Of a GGUF file, or of all shards of a folder.
[[nodiscard]] int64_t model_bytes(const std::string& path);

// The model at `changed` against the original, over tokens in windows of `context`.
[[nodiscard]] Divergence measure_divergence(const DeepSeek& original, const std::string& changed, Ops& ops,
                                            std::span<const int32_t> tokens, int64_t context, ProgressMode progress);

struct QuantizeReport {
    std::string in, out, type, method;
    std::map<std::string, int64_t> bytes_by_type;
    std::vector<std::string> rounded;     // experts that saw too few tokens for the method
    std::vector<std::string> left_alone;  // matrices that do not fit the type
    std::optional<Divergence> measured;

    void print(bool json) const;
};

}  // namespace fathom
