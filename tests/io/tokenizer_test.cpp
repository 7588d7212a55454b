#include "io/tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "base/rng.h"
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
    const Tokenizer& tokenizer = shared_tokenizer(GetParam());
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
    const Tokenizer& tokenizer = shared_tokenizer(GetParam());
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
    const Tokenizer& tokenizer = shared_tokenizer(GetParam());
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
    const Tokenizer& tokenizer = shared_tokenizer("deepseek-v3");
    for (const auto& line : json_lines(shared_text("deepseek-v3/vectors_special.jsonl")))
        EXPECT_EQ(tokenizer.encode(line.at("text").get<std::string>()), line.at("ids").get<Ids>());
    EXPECT_EQ(tokenizer.bos_id(), 0);
    EXPECT_EQ(tokenizer.eos_id(), 1);
    EXPECT_EQ(tokenizer.vocab_size(), 128815);
    EXPECT_EQ(tokenizer.id_of("<｜User｜>"), 128803);
    EXPECT_TRUE(tokenizer.is_special(0));
    EXPECT_FALSE(tokenizer.is_special(128803));
}

// tests/data/tokenizer: small files made for these tests, with the ids that the HF tokenizers package gives.
TEST(Tokenizer, GivesTheIdsOfTheHuggingFaceLibraryForEveryKindOfPart) {
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(FATHOM_TEST_DATA) / "tokenizer")) {
        SCOPED_TRACE(entry.path().filename().string());
        const auto file = nlohmann::json::parse(read_text(entry.path()));
        const Tokenizer tokenizer = Tokenizer::from_json(file.at("tokenizer").dump());
        for (const auto& line : file.at("vectors")) {
            const auto text = line.at("text").get<std::string>();
            const Ids expected = line.at("ids").get<Ids>();
            EXPECT_EQ(tokenizer.encode(text), expected) << nlohmann::json(text);
            if (!line.contains("decoded")) continue;
            EXPECT_EQ(replace_invalid_utf8(tokenizer.decode(expected)), line.at("decoded").get<std::string>());
        }
        ++files;
    }
    EXPECT_EQ(files, 13);
}

constexpr const char* kSmall =
    R"({"added_tokens":[{"id":5,"content":"<end>","special":true},{"id":6,"content":"<role>","special":false}],
    "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":false},
    "model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"Ã":3,"©":4},"merges":["a b"]}})";

TEST(Tokenizer, ReadsControlTokensAsTextWhenAskedTo) {
    const Tokenizer tokenizer = Tokenizer::from_json(kSmall);
    EXPECT_EQ(tokenizer.encode("ab<end>a<role>"), (Ids{2, 5, 0, 6}));
    EXPECT_EQ(tokenizer.encode("ab<end>a<role>", false), (Ids{2, 0}));  // this vocabulary lacks the other letters
    EXPECT_EQ(tokenizer.decode(Ids{2, 5, 6}), "ab<end><role>");
    EXPECT_EQ(tokenizer.decode(Ids{2, 5, 6}, true), "ab<role>");
    EXPECT_EQ(tokenizer.decode(Ids{-1, 700, 0}), "a");
    EXPECT_EQ(tokenizer.id_of("nothing"), std::nullopt);
}

TEST(Tokenizer, NamesWhatIsWrongWithAFile) {
    const auto message = [](std::string_view from, std::string_view to) -> std::string {
        std::string text = kSmall;
        const size_t at = text.find(from);
        EXPECT_NE(at, std::string::npos);
        try {
            (void)Tokenizer::from_json(text.replace(at, from.size(), to));
        } catch (const Error& e) {
            EXPECT_EQ(e.kind(), ErrorKind::kInput);
            return e.what();
        }
        return "accepted";
    };
    EXPECT_NE(message("\"a b\"", "\"a c\"").find("merges[0]"), std::string::npos);
    EXPECT_NE(message("\"a b\"", "\"ab\"").find("merges[0]"), std::string::npos);
    EXPECT_NE(message("\"a b\"", "7").find("type"), std::string::npos);
    EXPECT_NE(message("\"b\":1", "\"b\":0").find("twice"), std::string::npos);
    EXPECT_NE(message("\"b\":1", "\"b\":-1").find("range"), std::string::npos);
    EXPECT_NE(message("\"b\":1", "\"b\":1e9").find("too large"), std::string::npos);
    EXPECT_NE(message("\"BPE\"", "\"Unigram\"").find("Unigram"), std::string::npos);
    EXPECT_NE(message("\"ByteLevel\"", "\"Metaspace\"").find("Metaspace"), std::string::npos);
    EXPECT_NE(message("\"model\"", "\"noodle\"").find("model"), std::string::npos);
    EXPECT_NE(message("]}}", "").find("JSON"), std::string::npos) << "truncated";
}

TEST(Tokenizer, NamesTheFileThatIsWrong) {
    const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "fathom_bad_tokenizer";
    std::filesystem::create_directories(folder);
    write_text_atomically(folder / "tokenizer.json", "{\"model\": ");
    for (const auto& path : {folder, folder / "tokenizer.json"}) try {
            (void)Tokenizer::load(path);
            ADD_FAILURE() << "accepted";
        } catch (const Error& e) {
            EXPECT_NE(std::string(e.what()).find((folder / "tokenizer.json").string()), std::string::npos) << e.what();
        }
    EXPECT_THROW((void)Tokenizer::load(folder / "missing.json"), Error);
}

TEST(DeepseekV3Tokenizer, EncodesAnyBytesWithoutLoss) {
    if (!std::filesystem::exists(test::shared_tokenizers())) GTEST_SKIP() << "needs ../shared/data/tokenizers";
    const Tokenizer& tokenizer = shared_tokenizer("deepseek-v3");
    Rng rng(5);
    for (int round = 0; round < 2000; ++round) {
        std::string bytes;
        for (uint64_t left = rng.below(40); left > 0; --left) bytes += static_cast<char>(rng.below(2) ? rng.below(256) : 'a');
        const Ids ids = tokenizer.encode(bytes);
        ASSERT_EQ(tokenizer.decode(ids), bytes);
        StreamDecoder stream(tokenizer, false);
        std::string streamed;
        for (const int32_t id : ids) streamed += stream.push(id);
        streamed += stream.finish();
        ASSERT_EQ(streamed, replace_invalid_utf8(bytes));
    }
}

TEST(StreamDecoder, LetsOnlyWholeCharactersOut) {
    const Tokenizer tokenizer = Tokenizer::from_json(kSmall);
    StreamDecoder stream(tokenizer, true);
    EXPECT_EQ(stream.push(0), "a");
    EXPECT_EQ(stream.push(3), "");  // C3
    EXPECT_EQ(stream.push(5), "");  // special, skipped
    EXPECT_EQ(stream.push(4), "é");
    EXPECT_EQ(stream.push(4), "\uFFFD");  // A9 alone
    EXPECT_EQ(stream.push(3), "");
    EXPECT_EQ(stream.push(0), "\uFFFDa");
    EXPECT_EQ(stream.push(3), "");
    EXPECT_EQ(stream.finish(), "\uFFFD");
    EXPECT_EQ(stream.finish(), "");
}

TEST(ReplaceInvalidUtf8, PutsOneMarkForEachMaximalPart) {
    EXPECT_EQ(replace_invalid_utf8("a\xF0\x9F\x98z"), "a\uFFFDz");
    EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");  // a surrogate
    EXPECT_EQ(replace_invalid_utf8("\xC0\x80"), "\uFFFD\uFFFD");            // overlong
    EXPECT_EQ(replace_invalid_utf8("ok é 😀"), "ok é 😀");
}

}  // namespace
}  // namespace fathom
