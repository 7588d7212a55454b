// Prompts of long contexts.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fathom {

// `hay` with `needle` as a paragraph of its own, at the paragraph boundary nearest to `depth` (0: in front, 1: at the end).
[[nodiscard]] std::string with_needle(std::string_view hay, std::string_view needle, double depth);

}  // namespace fathom
