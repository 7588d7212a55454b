#include "rl/text_overlap.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

// Made by tools/make_text_overlap_vectors.py with sacrebleu.
const Json& vectors() {
    static const Json json = Json::parse(read_text(std::filesystem::path(FATHOM_TEST_DATA) / "text/sacrebleu.json"));
    return json;
}

TEST(TextOverlap, BleuAndChrfAreSacrebleus) {
    ASSERT_GE(vectors()["corpora"].size(), 9u);
    for (const Json& corpus : vectors()["corpora"]) {
        const auto hypotheses = corpus["hypotheses"].get<std::vector<std::string>>(),
                   references = corpus["references"].get<std::vector<std::string>>();
        const Bleu bleu = corpus_bleu(hypotheses, references);
        EXPECT_NEAR(bleu.score, corpus["bleu"].get<double>(), 1e-9) << corpus["name"];
        EXPECT_NEAR(bleu.brevity_penalty, corpus["bp"].get<double>(), 1e-12) << corpus["name"];
        EXPECT_EQ(bleu.length, corpus["length"]) << corpus["name"];
        EXPECT_EQ(bleu.reference_length, corpus["reference_length"]) << corpus["name"];
        for (size_t n = 0; n < 4; ++n)
            EXPECT_NEAR(bleu.precisions[n], corpus["precisions"][n].get<double>(), 1e-9) << corpus["name"] << n;
        EXPECT_NEAR(corpus_chrf(hypotheses, references), corpus["chrf"].get<double>(), 1e-9) << corpus["name"];
    }
    for (const Json& pair : vectors()["sentences"]) {
        const std::string hypothesis = pair["hypothesis"], reference = pair["reference"];
        EXPECT_NEAR(corpus_chrf(std::span(&hypothesis, 1), std::span(&reference, 1)), pair["chrf"].get<double>(), 1e-9)
            << hypothesis;
    }
}

TEST(TextOverlap, TokensAreThoseOf13a) {
    for (const Json& line : vectors()["tokens"]) {
        EXPECT_EQ(bleu_tokens(line["text"].get<std::string>()), line["tokens"].get<std::vector<std::string>>()) << line["text"];
    }
}

TEST(TextOverlap, ShortAnswersAgreeBeyondCaseArticlesAndPunctuation) {
    EXPECT_EQ(plain_answer("  The well-to-do  Farmer, a man. "), "welltodo farmer man");
    EXPECT_EQ(word_f1("the farmer!", "A Farmer"), 1);
    EXPECT_NEAR(word_f1("a poor old farmer", "farmer and wife"), 2.0 * 1 / (3 + 3), 1e-12);
    EXPECT_NEAR(word_f1("no no no", "no"), 2.0 * 1 / (3 + 1), 1e-12);
    EXPECT_EQ(word_f1("", "farmer"), 0);
    EXPECT_EQ(word_f1("the", "an"), 1);
}

}  // namespace
}  // namespace fathom
