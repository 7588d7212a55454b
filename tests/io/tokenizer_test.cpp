#include "io/tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "tokenizer_vectors.h"

namespace fathom {
namespace {

using test::json_lines;
using test::shared_text;
using test::shared_tokenizer;
using Ids = std::vector<int32_t>;

class PublishedVectors : public testing::TestWithParam<std::string> {
protected:
    void SetUp() override {
        if (!std::filesystem::exists(test::shared_tokenizers())) GTEST_SKIP() << "needs ../shared/data/tokenizers";
    }
};

TEST_P(PublishedVectors, GiveTheSameIdsAndDecodeToTheText) {
    const Tokenizer tokenizer = shared_tokenizer(GetParam());
    const auto lines = json_lines(shared_text("vectors.jsonl"));
    ASSERT_EQ(lines.size(), 405u);
    for (const auto& line : lines) {
        const auto text = line.at("text").get<std::string>();
        const Ids expected = line.at("ids").at(GetParam()).get<Ids>();
        EXPECT_EQ(tokenizer.encode(text), expected) << text;
        EXPECT_EQ(tokenizer.decode(expected), text);
    }
}

TEST_P(PublishedVectors, OfLlamaCppGiveTheSameIds) {
    const Tokenizer tokenizer = shared_tokenizer(GetParam());
    if (GetParam() == "deepseek-v3") {
        for (const auto& line : json_lines(shared_text("deepseek-v3/vectors_llamacpp_inputs.jsonl")))
            EXPECT_EQ(tokenizer.encode(line.at("text").get<std::string>()), line.at("ids").get<Ids>());
        return;
    }
    const std::string inputs = shared_text(GetParam() + "/vectors.inp"), separator = "\n__ggml_vocab_test__\n";
    std::istringstream outputs(shared_text(GetParam() + "/vectors.out"));
    int count = 0;
    for (size_t begin = 0; begin < inputs.size(); ++count) {
        const size_t end = std::min(inputs.find(separator, begin), inputs.size());
        std::string line;
        if (!std::getline(outputs, line)) break;
        std::istringstream numbers(line);
        const Ids expected{std::istream_iterator<int32_t>(numbers), {}};
        EXPECT_EQ(tokenizer.encode(inputs.substr(begin, end - begin)), expected) << "case " << count;
        begin = end + separator.size();
    }
    EXPECT_GE(count, 46);
}

INSTANTIATE_TEST_SUITE_P(Shared, PublishedVectors, testing::Values("deepseek-v3", "deepseek-llm", "deepseek-coder"),
                         [](const auto& suite) {
                             std::string name = suite.param;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

class WikiText : public testing::TestWithParam<std::string> {};

TEST_P(WikiText, ChunkOfAThirdPartyGivesTheSameIds) {
    if (!std::filesystem::exists(test::shared_tokenizers())) GTEST_SKIP() << "needs ../shared/data/tokenizers";
    const Tokenizer tokenizer = shared_tokenizer(GetParam());
    const auto lines = json_lines(shared_text(GetParam() + "/wikitext_chunk.jsonl"));
    Ids ids = tokenizer.encode(lines.at(0).at("text").get<std::string>());
    ids.insert(ids.begin(), tokenizer.bos_id().value());
    const Ids expected = lines.at(0).at("ids_with_bos").get<Ids>();
    EXPECT_EQ(ids, expected);
}

INSTANTIATE_TEST_SUITE_P(Shared, WikiText, testing::Values("deepseek-v3", "deepseek-llm"),
                         [](const auto& suite) { return std::string(suite.param == "deepseek-v3" ? "v3" : "llm"); });

TEST(DeepseekV3Tokenizer, FindsSpecialTokensInsideText) {
    if (!std::filesystem::exists(test::shared_tokenizers())) GTEST_SKIP() << "needs ../shared/data/tokenizers";
    const Tokenizer tokenizer = shared_tokenizer("deepseek-v3");
    for (const auto& line : json_lines(shared_text("deepseek-v3/vectors_special.jsonl")))
        EXPECT_EQ(tokenizer.encode(line.at("text").get<std::string>()), line.at("ids").get<Ids>());
    EXPECT_EQ(tokenizer.bos_id(), 0);
    EXPECT_EQ(tokenizer.eos_id(), 1);
    EXPECT_EQ(tokenizer.vocab_size(), 128815);
    EXPECT_EQ(tokenizer.id_of("<｜User｜>"), 128803);
    EXPECT_TRUE(tokenizer.is_special(0));
    EXPECT_FALSE(tokenizer.is_special(128803));
}

}  // namespace
}  // namespace fathom
