#include "io/pretokenizer.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/rng.h"

namespace fathom {
namespace {

using Pieces = std::vector<std::string_view>;

Pieces split(const PreTokenizer& pretokenizer, std::string_view text) {
    Pieces pieces;
    pretokenizer.split(text, pieces);
    return pieces;
}

// Characters at which the patterns decide: every class, both neighbours of every range, spaces of all kinds.
const std::vector<std::string> kAlphabet = {
    " ",  "  ", "\n",     "\r",     "\t",         "\u00a0", "\u3000", "\u2028", "\u180e",    "\u0085", "\x1c", "a",
    "B",  "é",  "ß",      "1",      "22",         "٣",      "½",      "一",     "龥",        "龦",     "か",   "カ",
    "・", "ー", "\u3099", "\u0301", "\u0903",     ".",      "!",      "'",      "“",         "$",      "€",    "+",
    "^",  "`",  "｜",     "𐐀",      "😀",          "\u200d", "\ufe0f", "\u20e3", "가",        "\ud7fb", "ก",    "\x7f",
    "ǅ",  "ʰ",  "ª",      "\ue000", "\U0010ffff", "㐀",     "𠀀",     "々",     "\U000e0100"};

TEST(PreTokenizer, HandWrittenDeepseekV3SplitsAsTheRegularExpressionsDo) {
    const PreTokenizer fast(deepseek_v3_splits()), exact(deepseek_v3_splits(), PreTokenizer::Engine::kRegex);
    Rng rng(1);
    for (int round = 0; round < 20000; ++round) {
        std::string text;
        for (uint64_t left = rng.below(25); left > 0; --left) text += kAlphabet[rng.below(kAlphabet.size())];
        ASSERT_EQ(split(fast, text), split(exact, text)) << text;
    }
}

TEST(PreTokenizer, HandWrittenDeepseekV3KnowsEveryCharacter) {
    const PreTokenizer fast(deepseek_v3_splits()), exact(deepseek_v3_splits(), PreTokenizer::Engine::kRegex);
    std::string text;
    for (char32_t code = 0; code < 0x110000; ++code) {
        if (code >= 0xD800 && code <= 0xDFFF) continue;
        text += 'a';
        append_utf8(code, text);
        append_utf8(code, text);
        text += "b ";
        append_utf8(code, text);
        if (code % 512 == 511) {
            ASSERT_EQ(split(fast, text), split(exact, text)) << "up to code point " << static_cast<uint32_t>(code);
            text.clear();
        }
    }
}

TEST(PreTokenizer, PiecesOfDeepseekV3JoinToTheText) {
    const PreTokenizer fast(deepseek_v3_splits());
    EXPECT_EQ(split(fast, "It's 12345 o'clock!\n\n  Über"),
              (Pieces{"It", "'s", " ", "123", "45", " o", "'clock", "!\n\n", " ", " Über"}));
    EXPECT_TRUE(split(fast, "").empty());
}

TEST(PreTokenizer, AMillionSpacesOrLettersNeedNoStack) {
    for (const auto& steps : {deepseek_v3_splits(), kimi_splits(), std::vector{byte_level_split()}}) {
        const PreTokenizer pretokenizer(steps, PreTokenizer::Engine::kRegex);
        EXPECT_EQ(split(pretokenizer, std::string(1000000, ' ')).size(), 1u);
        EXPECT_EQ(split(pretokenizer, std::string(1000000, 'x')).size(), 1u);
    }
}

TEST(PreTokenizer, BehavioursKeepJoinOrDropTheMatches) {
    const auto pieces = [](SplitBehavior behavior, bool invert) {
        return split(PreTokenizer({{"-", behavior, invert}}), "the-final--countdown");
    };
    EXPECT_EQ(pieces(SplitBehavior::kRemoved, false), (Pieces{"the", "final", "countdown"}));
    EXPECT_EQ(pieces(SplitBehavior::kIsolated, false), (Pieces{"the", "-", "final", "-", "-", "countdown"}));
    EXPECT_EQ(pieces(SplitBehavior::kMergedWithPrevious, false), (Pieces{"the-", "final-", "-", "countdown"}));
    EXPECT_EQ(pieces(SplitBehavior::kMergedWithNext, false), (Pieces{"the", "-final", "-", "-countdown"}));
    EXPECT_EQ(pieces(SplitBehavior::kContiguous, false), (Pieces{"the", "-", "final", "--", "countdown"}));
    EXPECT_EQ(pieces(SplitBehavior::kRemoved, true), (Pieces{"-", "-", "-"}));
}

TEST(Regex, TakesScriptsAndSpacesAsOtherEnginesDo) {
    Regex::Scratch scratch;
    Match match;
    EXPECT_FALSE(Regex("\\p{Han}").find("・", 0, scratch, match));  // U+30FB: Script_Extensions only
    EXPECT_TRUE(Regex("\\p{Han}").find("月", 0, scratch, match));
    EXPECT_FALSE(Regex("\\s").find("\u180e", 0, scratch, match));
    EXPECT_FALSE(Regex("[\\s]").find("\u180e", 0, scratch, match));
    EXPECT_TRUE(Regex("\\S").find("\u180e", 0, scratch, match));
    EXPECT_TRUE(Regex("\\s").find("\u0085", 0, scratch, match));
    const Regex letters("[\\p{L}&&[^\\p{Han}]]+");
    ASSERT_TRUE(letters.find("月ab月", 0, scratch, match));
    EXPECT_EQ(match.begin, 3u);
    EXPECT_EQ(match.end, 5u);
}

TEST(Regex, SaysWhatIsWrongWithAPattern) {
    EXPECT_THROW(Regex("(a"), Error);
    EXPECT_THROW(Regex("[a-z&&[^b]]"), Error);
    EXPECT_THROW(Regex("\\p{Nonsense}"), Error);
}

}  // namespace
}  // namespace fathom
