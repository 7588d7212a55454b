#include "rl/text_overlap.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <unordered_map>

#include "base/error.h"

namespace fathom {
namespace {

constexpr int64_t kWords = 4, kCharacters = 6;  // longest n-grams

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Length of the UTF-8 character at the beginning of `text`; broken bytes are characters of their own.
size_t character_length(std::string_view text) {
    const auto first = static_cast<unsigned char>(text.front());
    const size_t length = first < 0x80 ? 1 : first < 0xC2 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 1;
    return std::min(length, text.size());
}

// What Python's str.split() splits at.
bool is_space(std::string_view character) {
    if (character.size() == 1) {
        const auto c = static_cast<unsigned char>(character.front());
        return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
    }
    if (character == "\u0085" || character == "\u00A0" || character == "\u1680" || character == "\u3000") return true;
    return character == "\u2028" || character == "\u2029" || character == "\u202F" || character == "\u205F" ||
           (character >= "\u2000" && character <= "\u200A" && character.size() == 3);
}

template <class Visit>
void for_each_character(std::string_view text, const Visit& visit) {
    for (size_t length; !text.empty(); text.remove_prefix(length)) {
        length = character_length(text);
        visit(text.substr(0, length));
    }
}

std::vector<std::string> split_words(std::string_view text) {
    std::vector<std::string> words;
    bool inside = false;
    for_each_character(text, [&](std::string_view character) {
        const bool space = is_space(character);
        if (!space && !inside) words.emplace_back();
        if (!space) words.back() += character;
        inside = !space;
    });
    return words;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
    for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) text.replace(at, from.size(), to);
}

// Signs and brackets, but for ' , - and the period.
bool stands_alone(char c) {
    return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') || (c >= '(' && c <= '+') ||
           (c >= ':' && c <= '@') || c == '/';
}

// Puts a space between two characters, and behind or before both, wherever `first` and `second` say so. A pair that was split
// is behind us: its second character begins no other.
template <class First, class Second>
std::string split_pairs(const std::string& text, const First& first, const Second& second, bool space_behind) {
    std::string result;
    for (size_t i = 0; i < text.size(); ++i) {
        if (i + 1 == text.size() || !first(text[i]) || !second(text[i + 1])) {
            result += text[i];
            continue;
        }
        if (!space_behind) result += ' ';
        result += text[i];
        result += ' ';
        result += text[++i];
        if (space_behind) result += ' ';
    }
    return result;
}

struct Overlap {
    int64_t answer = 0, reference = 0, common = 0;  // n-grams

    Overlap& operator+=(const Overlap& other) {
        answer += other.answer, reference += other.reference, common += other.common;
        return *this;
    }
};

// N-grams of `n` neighbours, joined so that different ones stay different.
std::unordered_map<std::string, int64_t> count_ngrams(std::span<const std::string> units, int64_t n) {
    std::unordered_map<std::string, int64_t> counts;
    for (int64_t i = 0; i + n <= std::ssize(units); ++i) {
        std::string joined;
        for (int64_t j = i; j < i + n; ++j) joined += units[static_cast<size_t>(j)] + '\n';
        ++counts[joined];
    }
    return counts;
}

Overlap overlap(std::span<const std::string> answer, std::span<const std::string> reference, int64_t n) {
    const auto of_answer = count_ngrams(answer, n), of_reference = count_ngrams(reference, n);
    Overlap result;
    for (const auto& [ngram, count] : of_answer) {
        result.answer += count;
        const auto found = of_reference.find(ngram);
        if (found != of_reference.end()) result.common += std::min(count, found->second);
    }
    for (const auto& [ngram, count] : of_reference) result.reference += count;
    return result;
}

std::vector<std::string> characters(std::string_view text) {
    std::vector<std::string> result;
    for_each_character(text, [&](std::string_view character) {
        if (!is_space(character)) result.emplace_back(character);
    });
    return result;
}

}  // namespace

std::vector<std::string> bleu_tokens(std::string_view given) {
    std::string text(given);
    replace_all(text, "<skipped>", "");
    replace_all(text, "-\n", "");
    replace_all(text, "\n", " ");
    for (const auto& [from, to] : {std::pair{"&quot;", "\""}, {"&amp;", "&"}, {"&lt;", "<"}, {"&gt;", ">"}}) {
        replace_all(text, from, to);
    }
    std::string spaced = " ";
    for (const char c : text) stands_alone(c) ? spaced += {' ', c, ' '} : spaced += c;
    spaced += ' ';
    const auto digit = [](char c) { return is_digit(c); };
    const auto other = [](char c) { return !is_digit(c); };
    const auto point = [](char c) { return c == '.' || c == ','; };
    const auto dash = [](char c) { return c == '-'; };
    spaced = split_pairs(spaced, other, point, true);   // a period or comma that no digit precedes
    spaced = split_pairs(spaced, point, other, false);  // or follows
    spaced = split_pairs(spaced, digit, dash, true);
    return split_words(spaced);
}

Bleu corpus_bleu(std::span<const std::string> hypotheses, std::span<const std::string> references) {
    check(hypotheses.size() == references.size(), "corpus_bleu: as many hypotheses as references");
    Bleu bleu;
    std::array<Overlap, kWords> sums{};
    for (size_t i = 0; i < hypotheses.size(); ++i) {
        const auto answer = bleu_tokens(hypotheses[i]), reference = bleu_tokens(references[i]);
        bleu.length += std::ssize(answer), bleu.reference_length += std::ssize(reference);
        for (int64_t n = 1; n <= kWords; ++n) sums[static_cast<size_t>(n - 1)] += overlap(answer, reference, n);
    }
    const double ratio = bleu.length > 0 ? static_cast<double>(bleu.reference_length) / static_cast<double>(bleu.length) : 0;
    bleu.brevity_penalty = bleu.length == 0 ? 0 : ratio <= 1 ? 1 : std::exp(1 - ratio);
    if (std::ranges::all_of(sums, [](const Overlap& sum) { return sum.common == 0; })) return bleu;
    double log_sum = 0, smoothing = 1;
    for (size_t n = 0; n < sums.size(); ++n) {
        if (sums[n].answer == 0) return bleu;  // no sentence is that long
        const auto total = static_cast<double>(sums[n].answer);
        if (sums[n].common == 0) smoothing *= 2;
        bleu.precisions[n] = 100 * (sums[n].common == 0 ? 1 / smoothing : static_cast<double>(sums[n].common)) / total;
        log_sum += std::log(bleu.precisions[n]);
    }
    bleu.score = bleu.brevity_penalty * std::exp(log_sum / kWords);
    return bleu;
}

double corpus_chrf(std::span<const std::string> hypotheses, std::span<const std::string> references) {
    check(hypotheses.size() == references.size(), "corpus_chrf: as many hypotheses as references");
    std::array<Overlap, kCharacters> sums{};
    for (size_t i = 0; i < hypotheses.size(); ++i) {
        const auto answer = characters(hypotheses[i]), reference = characters(references[i]);
        for (int64_t n = 1; n <= kCharacters; ++n) {
            Overlap found = overlap(answer, reference, n);
            if (found.reference == 0) found.answer = 0;
            sums[static_cast<size_t>(n - 1)] += found;
        }
    }
    double precision = 0, recall = 0;
    int64_t orders = 0;
    for (const Overlap& sum : sums) {
        if (sum.answer == 0 || sum.reference == 0) continue;
        precision += static_cast<double>(sum.common) / static_cast<double>(sum.answer);
        recall += static_cast<double>(sum.common) / static_cast<double>(sum.reference);
        ++orders;
    }
    if (precision + recall == 0) return 0;
    precision /= static_cast<double>(orders), recall /= static_cast<double>(orders);
    constexpr double kBetaSquared = 4;
    return 100 * (1 + kBetaSquared) * precision * recall / (kBetaSquared * precision + recall);
}

std::string plain_answer(std::string_view text) {
    std::string kept;
    for (const char c : text) {
        const bool punctuation =
            (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
        if (!punctuation) kept += static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    }
    std::string result;
    for (const std::string& word : split_words(kept)) {
        if (word == "a" || word == "an" || word == "the") continue;
        result += (result.empty() ? "" : " ") + word;
    }
    return result;
}

double word_f1(std::string_view answer, std::string_view reference) {
    const auto said = split_words(plain_answer(answer)), wanted = split_words(plain_answer(reference));
    if (said.empty() || wanted.empty()) return said.empty() && wanted.empty() ? 1 : 0;
    const Overlap common = overlap(said, wanted, 1);
    return 2 * static_cast<double>(common.common) / static_cast<double>(common.answer + common.reference);
}

}  // namespace fathom
