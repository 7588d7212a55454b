#include "io/chat_format.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tokenizer_vectors.h"

namespace fathom {
namespace {

const std::string kBos = "<｜begin▁of▁sentence｜>", kEos = "<｜end▁of▁sentence｜>";

const std::vector<ChatMessage> kTalk = {{Role::kSystem, "Be brief."},
                                        {Role::kUser, "2+2?"},
                                        {Role::kAssistant, "<think>easy</think>4"},
                                        {Role::kSystem, "Be kind."},
                                        {Role::kUser, "3+3?"}};

const std::vector<ChatMessage> kTools = {
    {Role::kUser, "Weather?"},
    {Role::kAssistant, "", "", {{"get", "{\"city\": \"Rome\"}"}, {"get", "{\"city\": \"Oslo\"}"}}},
    {Role::kTool, "20"},
    {Role::kTool, "5"}};

TEST(ChatFormat, V2SpeaksInPlainWords) {
    EXPECT_EQ(ChatFormat(ChatStyle::kV2)
                  .prompt(std::vector<ChatMessage>{
                      {Role::kSystem, "S"}, {Role::kUser, "u1"}, {Role::kAssistant, "a1"}, {Role::kUser, "u2"}}),
              kBos + "S\n\nUser: u1\n\nAssistant: a1" + kEos + "User: u2\n\nAssistant:");
    EXPECT_THROW((void)ChatFormat(ChatStyle::kV2).prompt(kTools), Error);
}

// Both as the chat template of V3's tokenizer_config.json renders them under Jinja.
TEST(ChatFormat, V3IsWhatItsOwnTemplateRenders) {
    const ChatFormat v3(ChatStyle::kV3);
    EXPECT_EQ(v3.prompt(kTalk),
              kBos + "Be brief.\n\nBe kind.<｜User｜>2+2?<｜Assistant｜>4" + kEos + "<｜User｜>3+3?<｜Assistant｜>");
    const std::string calls =
        kBos +
        "<｜User｜>Weather?<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n"
        "{\"city\": \"Rome\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n"
        "{\"city\": \"Oslo\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>" +
        kEos +
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>20<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>5<｜tool▁output▁end｜>"
        "<｜tool▁outputs▁end｜>";
    EXPECT_EQ(v3.prompt(kTools), calls);
    std::vector<ChatMessage> further = kTools;
    further.push_back({Role::kAssistant, "Warm and cold."});
    further.push_back({Role::kUser, "Thanks"});
    EXPECT_EQ(v3.prompt(further), calls + "Warm and cold." + kEos + "<｜User｜>Thanks<｜Assistant｜>");
}

TEST(ChatFormat, R1OpensTheThinkingItself) {
    const ChatFormat r1(ChatStyle::kR1);
    EXPECT_TRUE(r1.prompt(kTalk, true).ends_with("<｜User｜>3+3?<｜Assistant｜><think>\n"));
    EXPECT_NE(r1.prompt(kTalk, true).find("<｜Assistant｜>4" + kEos), std::string::npos);
}

TEST(ChatFormat, V31SaysWhetherToThink) {
    const ChatFormat v31(ChatStyle::kV31);
    const std::string start =
        kBos + "Be brief.\n\nBe kind.<｜User｜>2+2?<｜Assistant｜></think>4" + kEos + "<｜User｜>3+3?<｜Assistant｜>";
    EXPECT_EQ(v31.prompt(kTalk, true), start + "<think>");
    EXPECT_EQ(v31.prompt(kTalk, false), start + "</think>");
    EXPECT_EQ(v31.prompt(kTools),
              kBos +
                  "<｜User｜>Weather?<｜Assistant｜></"
                  "think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>{\"city\": \"Rome\"}"
                  "<｜tool▁call▁end｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>{\"city\": "
                  "\"Oslo\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>" +
                  kEos + "<｜tool▁output▁begin｜>20<｜tool▁output▁end｜><｜tool▁output▁begin｜>5<｜tool▁output▁end｜>");
}

TEST(ChatFormat, LeavesALastAssistantMessageOpen) {
    const std::vector<ChatMessage> prefix = {{Role::kUser, "u"}, {Role::kAssistant, "Once"}};
    EXPECT_TRUE(ChatFormat(ChatStyle::kV3).prompt(prefix).ends_with("<｜Assistant｜>Once"));
    EXPECT_TRUE(ChatFormat(ChatStyle::kV2).prompt(prefix).ends_with("Assistant: Once"));
}

TEST(ChatFormat, SplitsThinkingFromContent) {
    const ChatFormat r1(ChatStyle::kR1);
    for (const char* reply : {"hm\n</think>\n\n6", "<think>\nhm\n</think>\n\n6<｜end▁of▁sentence｜>"}) {
        EXPECT_EQ(r1.parse(reply, true).reasoning, "hm");
        EXPECT_EQ(r1.parse(reply, true).content, "6");
    }
    EXPECT_EQ(r1.parse("still thinking", true).reasoning, "still thinking");
    EXPECT_EQ(r1.parse("still thinking", true).content, "");
    EXPECT_EQ(ChatFormat(ChatStyle::kV3).parse("plain").content, "plain");
}

TEST(ChatFormat, ReadsToolCallsBack) {
    for (const ChatStyle style : {ChatStyle::kV3, ChatStyle::kR1, ChatStyle::kV31}) {
        const ChatFormat format(style);
        const std::string prompt = format.prompt(kTools);
        const size_t begin = prompt.find("<｜tool▁calls▁begin｜>"), end = prompt.find(kEos);
        const ChatReply reply = format.parse("Let me look." + prompt.substr(begin, end + kEos.size() - begin));
        EXPECT_EQ(reply.content, "Let me look.");
        ASSERT_EQ(reply.tool_calls.size(), 2u);
        EXPECT_EQ(reply.tool_calls[1].name, "get");
        EXPECT_EQ(reply.tool_calls[1].arguments, "{\"city\": \"Oslo\"}");
    }
}

TEST(ChatFormat, SurvivesBrokenReplies) {
    const ChatFormat v3(ChatStyle::kV3);
    EXPECT_TRUE(v3.parse("").content.empty());
    EXPECT_EQ(v3.parse("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>cut").tool_calls.size(), 0u);
    EXPECT_EQ(v3.parse("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>x<｜tool▁call▁end｜>").tool_calls.size(), 1u);
    EXPECT_EQ(v3.parse("<think>").content, "");
}

TEST(ChatFormat, IsChosenByWhatTheTokenizerCanSay) {
    if (!std::filesystem::exists(test::shared_tokenizers())) GTEST_SKIP() << "needs ../shared/data/tokenizers";
    const Tokenizer &v3 = test::shared_tokenizer("deepseek-v3"), &v2 = test::shared_tokenizer("deepseek-llm");
    EXPECT_EQ(ChatFormat::choose(v3, "deepseek_v3", "DeepSeek-V3").style(), ChatStyle::kV3);
    EXPECT_EQ(ChatFormat::choose(v3, "deepseek_v3", "DeepSeek-R1").style(), ChatStyle::kR1);
    EXPECT_EQ(ChatFormat::choose(v3, "deepseek_v3", "DeepSeek-V3.1").style(), ChatStyle::kV31);
    EXPECT_EQ(ChatFormat::choose(v2, "deepseek_v2").style(), ChatStyle::kV2);
}

}  // namespace
}  // namespace fathom
