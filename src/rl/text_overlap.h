// How much a text agrees with a reference: BLEU and chrF of translations, F1 of short answers.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

// Corpus BLEU (Papineni et al. 2002) as sacrebleu 2 computes it by default: tokenizer 13a, orders 1 to 4, orders without a
// match smoothed exponentially, one reference each, case kept. 0 to 100.
struct Bleu {
    double score = 0, brevity_penalty = 0;
    std::array<double, 4> precisions{};  // in per cent
    int64_t length = 0, reference_length = 0;
};
// As many hypotheses as references.
[[nodiscard]] Bleu corpus_bleu(std::span<const std::string> hypotheses, std::span<const std::string> references);

// Corpus chrF (Popovic 2015) as sacrebleu 2 computes it by default (chrF2): characters without white space, orders 1 to 6, beta
// 2. 0 to 100. A corpus of one pair is the sentence's score.
[[nodiscard]] double corpus_chrf(std::span<const std::string> hypotheses, std::span<const std::string> references);

// The tokens that BLEU counts.
[[nodiscard]] std::vector<std::string> bleu_tokens(std::string_view text);

// SQuAD's measures of a short answer (Rajpurkar et al. 2016): ASCII case, punctuation and the articles a, an, the do not count.
[[nodiscard]] std::string plain_answer(std::string_view text);
// F1 over the words of both, 0 to 1; two empty answers agree.
[[nodiscard]] double word_f1(std::string_view answer, std::string_view reference);

}  // namespace fathom
