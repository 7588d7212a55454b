#include "io/chat_examples.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "base/error.h"
#include "base/file.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

class ChatExamplesTest : public testing::Test {
protected:
    Tokenizer tokenizer = Tokenizer::load(FATHOM_TEST_DATA "/resume/tokenizer");
    ThreadPool threads{2};
    fs::path file = fs::path(testing::TempDir()) / "chats.jsonl";

    [[nodiscard]] ChatFormat format(ChatStyle style) const {
        return ChatFormat(style, std::string(tokenizer.token_bytes(*tokenizer.bos_id())),
                          std::string(tokenizer.token_bytes(*tokenizer.eos_id())));
    }
    [[nodiscard]] std::string text(const ChatExample& example, bool learned) const {
        std::string result;
        for (size_t i = 0; i < example.tokens.size(); ++i) {
            if ((example.learned[i] != 0) == learned) result += tokenizer.token_bytes(example.tokens[i]);
        }
        return result;
    }
    [[nodiscard]] ChatExamples read(const std::string& lines, ChatExamplesOptions options = {.max_length = 1000}) {
        write_text_atomically(file, lines);
        return read_chat_examples(std::span(&file, 1), format(ChatStyle::kV3), tokenizer, options, threads);
    }
};

const std::vector<ChatMessage> kTwoTurns{{Role::kSystem, "Be kind."},
                                         {Role::kUser, "Hi"},
                                         {Role::kAssistant, "Hello", "a greeting"},
                                         {Role::kUser, "Bye"},
                                         {Role::kAssistant, "Farewell", "a parting"}};

TEST_F(ChatExamplesTest, TurnsThatRepeatTheirPastShareOneSequence) {
    std::vector<ChatMessage> plain = kTwoTurns;
    for (ChatMessage& message : plain) message.reasoning.clear();
    for (const ChatStyle style : {ChatStyle::kV2, ChatStyle::kV3}) {
        const auto examples = chat_examples(plain, format(style), tokenizer);
        ASSERT_EQ(examples.size(), 1U);
        const std::string eos(tokenizer.token_bytes(*tokenizer.eos_id()));
        const std::string space = style == ChatStyle::kV2 ? " " : "";
        EXPECT_EQ(text(examples[0], true), space + "Hello" + eos + space + "Farewell" + eos);
    }
}

TEST_F(ChatExamplesTest, EveryTurnIsLearnedBehindThePromptAChatWouldGiveIt) {
    for (const ChatStyle style : {ChatStyle::kV2, ChatStyle::kV3, ChatStyle::kR1, ChatStyle::kV31}) {
        const ChatFormat f = format(style);
        const auto examples = chat_examples(kTwoTurns, f, tokenizer);
        for (const size_t turn : {2, 4}) {
            const std::string prompt = f.prompt(std::span(kTwoTurns).first(turn), true), reply = f.reply(kTwoTurns[turn], true);
            bool found = false;
            for (const ChatExample& example : examples) {
                const std::string all = tokenizer.decode(example.tokens);
                const size_t at = all.find(prompt + reply);
                found |= at == 0;
            }
            EXPECT_TRUE(found) << "style " << static_cast<int>(style) << ", turn " << turn;
        }
        const ChatReply parsed = f.parse(f.reply(kTwoTurns[2], true), true);
        EXPECT_EQ(parsed.content, "Hello");
        EXPECT_EQ(parsed.reasoning, style == ChatStyle::kV2 ? "" : "a greeting");
    }
    EXPECT_EQ(chat_examples(kTwoTurns, format(ChatStyle::kR1), tokenizer).size(), 2U) << "past thinking is not prompted";
}

TEST_F(ChatExamplesTest, PromptAndCompletionAreTextBetweenBosAndEos) {
    const ChatExamples found = read("{\"prompt\": \"2+2=\", \"completion\": \"4\"}\n");
    ASSERT_EQ(found.examples.size(), 1U);
    const std::string bos(tokenizer.token_bytes(*tokenizer.bos_id())), eos(tokenizer.token_bytes(*tokenizer.eos_id()));
    EXPECT_EQ(text(found.examples[0], false), bos + "2+2=");
    EXPECT_EQ(text(found.examples[0], true), "4" + eos);
}

TEST_F(ChatExamplesTest, ListsOfMessagesAndInstructionsSayTheSame) {
    const auto a = read(R"({"messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "4"}]})");
    const auto b =
        read(R"({"prompt": [{"role": "user", "content": "2?"}], "completion": [{"role": "assistant", "content": "4"}]})");
    const auto c = read(R"({"instruction": "2?", "output": "4"})");
    EXPECT_EQ(a.examples, b.examples);
    EXPECT_EQ(a.examples, c.examples);
}

TEST_F(ChatExamplesTest, LongOnesAreCutOrLeftOutAndCounted) {
    const std::string lines = "{\"prompt\": \"a\", \"completion\": \"b b b b b b b b b b b b\"}\n{\"prompt\": \"" +
                              std::string(50, '7') + "\", \"completion\": \"b\"}\n";
    const ChatExamples cut = read(lines, {.max_length = 6});
    EXPECT_EQ(cut.examples.size(), 1U) << "of the other nothing would be learned";
    EXPECT_EQ(cut.examples[0].tokens.size(), 6U);
    EXPECT_EQ(cut.cut, 2);
    EXPECT_EQ(cut.dropped, 1);
    EXPECT_EQ(read(lines, {.max_length = 6, .drop_overlong = true}).dropped, 2);
}

TEST_F(ChatExamplesTest, BadLinesAreNamed) {
    for (const char* line :
         {"{", "[]", "{}", "{\"messages\": []}", "{\"messages\": 3}", "{\"messages\": [{\"role\": \"user\"}]}",
          R"({"messages": [{"role": "poet", "content": "x"}]})", R"({"messages": [{"role": "user", "content": 3}]})",
          R"({"messages": [{"role": "assistant", "content": "first"}]})", R"({"prompt": 1, "completion": 2})",
          R"({"prompt": "only"})", R"({"messages": [{"role": "assistant", "content": "", "tool_calls": 1}]})"}) {
        try {
            (void)read("\n" + std::string(line) + "\n");
            ADD_FAILURE() << line;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("chats.jsonl:2: "), std::string::npos) << error.what();
        }
    }
}

TEST_F(ChatExamplesTest, BatchesHoldWholeExamplesAndEveryOneOncePerEpoch) {
    std::vector<ChatExample> examples;
    for (int32_t i = 0; i < 23; ++i) {
        ChatExample example;
        example.tokens.assign(static_cast<size_t>(2 + i % 7), i);
        example.learned.assign(example.tokens.size(), 1);
        example.learned[0] = 0;
        examples.push_back(example);
    }
    ChatLoader loader(examples, {.max_tokens = 16, .seed = 3});
    std::vector<int32_t> order;
    while (order.size() < 46) {
        const TokenBatch batch = *loader.next();
        ASSERT_LE(batch.tokens.size(), 16U);
        for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
            const auto begin = static_cast<size_t>(batch.cu_seqlens[s]), end = static_cast<size_t>(batch.cu_seqlens[s + 1]);
            order.push_back(batch.tokens[begin]);
            ASSERT_EQ(end - begin, static_cast<size_t>(2 + order.back() % 7));
            EXPECT_EQ(batch.positions[end - 1], static_cast<int32_t>(end - begin) - 1);
            EXPECT_EQ(batch.targets[end - 1], kNoTarget);
            EXPECT_EQ(batch.targets[begin], order.back());
        }
    }
    for (const size_t epoch : {0, 23})
        EXPECT_EQ(
            std::set<int32_t>(order.begin() + static_cast<long>(epoch), order.begin() + static_cast<long>(epoch) + 23).size(),
            23U);
    EXPECT_FALSE(std::equal(order.begin(), order.begin() + 23, order.begin() + 23)) << "another order every epoch";
}

TEST_F(ChatExamplesTest, ARestoredLoaderGoesOnWithTheSameBatches) {
    std::vector<ChatExample> examples(11, ChatExample{{1, 2, 3}, {0, 1, 1}});
    for (size_t i = 0; i < examples.size(); ++i) examples[i].tokens[0] = static_cast<int32_t>(i);
    ChatLoader a(examples, {.max_tokens = 7, .seed = 3}), b(examples, {.max_tokens = 7, .seed = 3});
    for (int i = 0; i < 8; ++i) (void)a.next();
    b.restore(a.state());
    for (int i = 0; i < 8; ++i) EXPECT_EQ(a.next(), b.next());
    EXPECT_THROW(b.restore({0, 12}), Error);
    EXPECT_THROW(b.restore({-1, 0}), Error);
}

TEST(ShiftedTokens, AreThereWhereTargetsAreMasked) {
    TokenBatch batch;
    batch.tokens = {5, 6, 7, 8};
    batch.positions = {0, 1, 2, 0};
    batch.targets = {kNoTarget, 7, kNoTarget, 9};  // 8 goes on with 9 behind the row
    batch.cu_seqlens = {0, 3, 4};
    EXPECT_EQ(shifted_tokens(batch, 1), (std::vector<int32_t>{6, 7, kNoTarget, 9}));
    EXPECT_EQ(shifted_tokens(batch, 2), (std::vector<int32_t>{7, kNoTarget, kNoTarget, kNoTarget}));
}

}  // namespace
}  // namespace fathom
