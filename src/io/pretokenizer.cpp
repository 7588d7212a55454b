#include "io/pretokenizer.h"

#include "io/pretokenizer_deepseek.h"

namespace fathom {
namespace {

struct Part {
    Match range;
    bool is_match;
};

// The matches of `pattern` and the gaps between them, in order.
void find_parts(std::string_view text, const Regex& pattern, bool invert, Regex::Scratch& scratch, std::vector<Part>& parts) {
    parts.clear();
    size_t done = 0;
    Match match;
    for (size_t from = 0; from <= text.size() && pattern.find(text, from, scratch, match);) {
        if (match.begin > done) parts.push_back({{done, match.begin}, invert});
        if (match.end > match.begin) parts.push_back({match, !invert});
        done = std::max(done, match.end);
        from = match.end;
        if (match.end == match.begin) {  // step over one character, or the same empty match would come again
            if (from == text.size()) break;
            from += first_character(text.substr(from)).length;
        }
    }
    if (done < text.size()) parts.push_back({{done, text.size()}, invert});
}

// Joins matches to their neighbours as the behaviour says. Removed is left to the caller.
void merge_parts(SplitBehavior behavior, std::vector<Part>& parts) {
    std::vector<Part> merged;
    const bool contiguous = behavior == SplitBehavior::kContiguous, next = behavior == SplitBehavior::kMergedWithNext;
    for (size_t i = 0; i < parts.size(); ++i) {
        const Part& part = parts[i];
        const Part* before = i > 0 ? &parts[i - 1] : nullptr;
        const bool joins = before && (contiguous ? part.is_match == before->is_match
                                      : next     ? before->is_match && !part.is_match
                                                 : part.is_match && !before->is_match);
        if (joins)
            merged.back().range.end = part.range.end;
        else
            merged.push_back(part);
    }
    parts = std::move(merged);
}

}  // namespace

std::vector<SplitStep> deepseek_v3_splits() {
    return {{"\\p{N}{1,3}"},
            {"[一-龥\u3040-ゟ゠-ヿ]+"},
            {"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
             "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"}};
}

std::vector<SplitStep> kimi_splits() {
    const std::string upper = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]";
    const std::string lower = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]";
    const std::string lead = "[^\\r\\n\\p{L}\\p{N}]?", contraction = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
    return {{"[\\p{Han}]+|" + lead + upper + "*" + lower + "+" + contraction + "|" + lead + upper + "+" + lower + "*" +
             contraction + "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}};
}

SplitStep byte_level_split() { return {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"}; }

PreTokenizer::PreTokenizer(std::vector<SplitStep> steps, Engine engine) : steps_(std::move(steps)) {
    if (engine == Engine::kAuto && steps_ == deepseek_v3_splits()) {
        classes_ = std::make_unique<CharacterClasses>();
        return;
    }
    for (const SplitStep& step : steps_) patterns_.emplace_back(step.pattern);
}

void PreTokenizer::split(std::string_view text, std::vector<std::string_view>& pieces) const {
    if (classes_)
        split_deepseek_v3(text, *classes_, pieces);
    else if (!text.empty())
        split_by_patterns(text, pieces);
}

void PreTokenizer::split_by_patterns(std::string_view text, std::vector<std::string_view>& pieces) const {
    Regex::Scratch scratch;
    std::vector<Part> parts;
    std::vector<std::string_view> current = {text}, cut;
    for (size_t s = 0; s < steps_.size(); ++s) {
        cut.clear();
        for (std::string_view piece : current) {
            find_parts(piece, patterns_[s], steps_[s].invert, scratch, parts);
            const SplitBehavior behavior = steps_[s].behavior;
            const bool removed = behavior == SplitBehavior::kRemoved;
            if (!removed && behavior != SplitBehavior::kIsolated) merge_parts(behavior, parts);
            for (const Part& part : parts)
                if (!(removed && part.is_match))
                    cut.push_back(piece.substr(part.range.begin, part.range.end - part.range.begin));
        }
        std::swap(current, cut);
    }
    pieces.insert(pieces.end(), current.begin(), current.end());
}

}  // namespace fathom
