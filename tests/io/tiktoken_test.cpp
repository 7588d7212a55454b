#include "io/tiktoken.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tokenizer_vectors.h"

namespace fathom {
namespace {

const std::filesystem::path kFolder = std::filesystem::path(FATHOM_TEST_DATA) / "tiktoken";

// tests/data/tiktoken: ranks made for this test, ids from the tiktoken package with Kimi's pattern.
TEST(Tiktoken, GivesTheIdsOfThePythonPackage) {
    const Tokenizer tokenizer = Tokenizer::load(kFolder);
    const auto lines = test::json_lines(read_text(kFolder / "vectors.jsonl"));
    ASSERT_GT(lines.size(), 200u);
    for (const auto& line : lines) {
        const auto text = line.at("text").get<std::string>();
        const auto expected = line.at("ids").get<std::vector<int32_t>>();
        EXPECT_EQ(tokenizer.encode(text), expected) << text;
        EXPECT_EQ(tokenizer.decode(expected), text);
    }
}

TEST(Tiktoken, NamesAndReservesTheTokensBehindTheBaseVocabulary) {
    const Tokenizer tokenizer = Tokenizer::load(kFolder);
    EXPECT_EQ(tokenizer.vocab_size(), 1200 + 256);
    EXPECT_EQ(tokenizer.bos_id(), 1200);
    EXPECT_EQ(tokenizer.eos_id(), 1201);
    EXPECT_EQ(std::vector(tokenizer.stop_ids().begin(), tokenizer.stop_ids().end()), (std::vector<int32_t>{1201, 1202}));
    EXPECT_EQ(tokenizer.id_of("<|reserved_token_1300|>"), 1300);
    EXPECT_TRUE(tokenizer.is_special(1202));
    EXPECT_FALSE(tokenizer.is_special(1207));
}

TEST(Tiktoken, RefusesDamagedFilesNamingTheLine) {
    const auto message = [](std::string_view ranks) -> std::string {
        try {
            (void)Tokenizer::from_tiktoken(ranks);
        } catch (const Error& e) {
            EXPECT_EQ(e.kind(), ErrorKind::kInput);
            return e.what();
        }
        return "accepted";
    };
    EXPECT_NE(message("IQ== 0\nIg==").find("line 2"), std::string::npos);
    EXPECT_NE(message("I?== 0\n").find("base64"), std::string::npos);
    EXPECT_NE(message("IQ== x\n").find("rank"), std::string::npos);
    EXPECT_NE(message("IQ== 99999999999\n").find("rank"), std::string::npos);
    EXPECT_NE(message("IQ== 0\nIg== 0\n").find("twice"), std::string::npos);
    EXPECT_NE(message("").find("no tokens"), std::string::npos);
    EXPECT_THROW((void)Tokenizer::from_tiktoken("IQ== 0\n", "{"), Error);
    EXPECT_EQ(message("IQ== 0\nIg== 1\n"), "accepted");
}

}  // namespace
}  // namespace fathom
