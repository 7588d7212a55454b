// Pre-tokenization: cuts text into the pieces inside which BPE may merge.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/pretokenizer_regex.h"
#include "io/pretokenizer_unicode.h"

namespace fathom {

// What becomes of the matches of a split pattern; the names are tokenizer.json's.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
    std::string pattern;
    SplitBehavior behavior = SplitBehavior::kIsolated;
    bool invert = false;  // the gaps count as matches

    bool operator==(const SplitStep&) const = default;
};

// The patterns of DeepSeek-V3, R1, V3.1 and V3.2.
[[nodiscard]] std::vector<SplitStep> deepseek_v3_splits();

// The pattern of Moonlight and Kimi-K2 (kept in their Python code, not in a file).
[[nodiscard]] std::vector<SplitStep> kimi_splits();

// GPT-2's pattern: what tokenizer.json's ByteLevel means by "use_regex".
[[nodiscard]] SplitStep byte_level_split();

// Applies the steps one after the other, each to the pieces the one before it left. Immutable; safe from several threads.
class PreTokenizer {
public:
    // kAuto: the hand-written matcher where the steps are DeepSeek-V3's. kRegex: always the regular expressions (its oracle).
    enum class Engine { kAuto, kRegex };

    // Throws Error{kInput} when a pattern does not compile.
    explicit PreTokenizer(std::vector<SplitStep> steps, Engine engine = Engine::kAuto);

    // Appends the pieces of `text` (valid UTF-8), views into it, in order; no piece is empty.
    void split(std::string_view text, std::vector<std::string_view>& pieces) const;

private:
    std::vector<SplitStep> steps_;
    std::vector<Regex> patterns_;
    std::unique_ptr<const CharacterClasses> classes_;  // set: use the hand-written matcher

    void split_by_patterns(std::string_view text, std::vector<std::string_view>& pieces) const;
};

}  // namespace fathom
