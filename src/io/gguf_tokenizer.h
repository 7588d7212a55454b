// The tokenizer inside a GGUF file <-> Hugging Face's files.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "io/gguf.h"

namespace fathom {

// The texts of tokenizer.json and tokenizer_config.json.
struct TokenizerFiles {
    std::string tokenizer_json, tokenizer_config;
};

// Throws Error{kInput}: no tokenizer in the file, one that is not byte-level BPE, or split patterns under an unknown name
// (known: deepseek-llm, deepseek-coder, deepseek-v3, kimi-k2, gpt-2).
[[nodiscard]] TokenizerFiles tokenizer_files_of_gguf(const GgufView& file);
// The same as files of `folder`; nothing when the file has no tokenizer.
void write_gguf_tokenizer(const GgufView& file, const std::filesystem::path& folder);

// The tokenizer.* keys for the tokenizer in `folder`, padded to `vocab_size` tokens. Throws Error{kInput} for a tokenizer whose
// split patterns GGUF has no name for.
[[nodiscard]] std::vector<std::pair<std::string, GgufValue>> gguf_tokenizer_metadata(const std::filesystem::path& folder,
                                                                                     int64_t vocab_size);

}  // namespace fathom
