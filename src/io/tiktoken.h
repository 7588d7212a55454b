// tiktoken.model, the vocabulary of Moonlight and Kimi-K2: one line "base64-of-the-bytes rank" per token.
#pragma once

#include <string_view>

#include "io/tokenizer_parts.h"

namespace fathom {

// `config`: the text of tokenizer_config.json, whose added_tokens_decoder names the special tokens behind the base
// vocabulary; "" = none. Throws Error{kInput} with the line number.
[[nodiscard]] TokenizerParts parse_tiktoken(std::string_view ranks, std::string_view config);

}  // namespace fathom
