// DeepSeek-V3's three split patterns as one hand-written pass, about ten times the speed of the regular expressions.
#pragma once

#include <string_view>
#include <vector>

#include "io/pretokenizer_unicode.h"

namespace fathom {

// Appends the same pieces as PreTokenizer(deepseek_v3_splits()) would. `text` must be valid UTF-8.
void split_deepseek_v3(std::string_view text, const CharacterClasses& classes, std::vector<std::string_view>& pieces);

}  // namespace fathom
