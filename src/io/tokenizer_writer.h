// Writes a trained vocabulary as tokenizer.json and tokenizer_config.json, laid out as DeepSeek-V3's.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "io/bpe_trainer.h"

namespace fathom {

// DeepSeek-V3's control tokens in its order, with R1's think tags: the first kLeadingControlTokens (BOS, EOS, padding) have
// the ids 0, 1, 2; the others stand behind the learnt tokens.
[[nodiscard]] std::vector<std::string> deepseek_v3_control_tokens();
inline constexpr int kLeadingControlTokens = 3;

// `control`: deepseek_v3_control_tokens() and perhaps more. Ids: 3 control tokens, the learnt ones, the other control tokens.
// The files are complete or absent; throws Error{kIo}.
void write_tokenizer(const std::filesystem::path& folder, const LearntMerges& learnt, const std::vector<std::string>& control);

}  // namespace fathom
