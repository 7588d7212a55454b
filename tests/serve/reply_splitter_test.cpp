#include "serve/reply_splitter.h"

#include <gtest/gtest.h>

namespace fathom {
namespace {

// The reply as one, from pieces of `size` bytes.
ChatReply through(ChatStyle style, bool thinking, const std::string& text, size_t size) {
    ReplySplitter splitter(style, thinking, true);
    ChatReply reply;
    const auto add = [&](const ReplyDelta& delta) {
        reply.reasoning += delta.reasoning;
        reply.content += delta.content;
        for (const ToolCallDelta& call : delta.calls) {
            if (static_cast<size_t>(call.index) == reply.tool_calls.size()) reply.tool_calls.push_back({call.name, ""});
            reply.tool_calls[static_cast<size_t>(call.index)].arguments += call.arguments;
        }
    };
    for (size_t at = 0; at < text.size(); at += size) add(splitter.push(std::string_view(text).substr(at, size)));
    add(splitter.finish());
    return reply;
}

constexpr const char* kCall =
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": "
    "\"Köln\"}\n```<｜tool▁call▁end｜>\n"
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
constexpr const char* kPlainCall =
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Köln\"}<｜tool▁call▁end｜>"
    "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";

struct Case {
    ChatStyle style;
    bool thinking;
    std::string text;
};

std::vector<Case> cases() {
    return {{ChatStyle::kV3, false, "Just text, a < b and </thin air."},
            {ChatStyle::kV3, false, std::string("Let me look.") + kCall},
            {ChatStyle::kV3, false, "<think>\nHm.\n</think>\n\nYes."},
            {ChatStyle::kR1, true, "\nOne and one.\n\nIs two.\n</think>\n\nTwo."},
            {ChatStyle::kR1, true, "never ends"},
            {ChatStyle::kR1, true, std::string("Look it up.\n</think>\n\n") + kCall},
            {ChatStyle::kV31, true, std::string("Look it up.</think>") + kPlainCall},
            {ChatStyle::kV31, false, std::string("Here: ") + kPlainCall},
            {ChatStyle::kV2, false, " An answer with <think> in it. "},
            {ChatStyle::kV3, false, ""}};
}

TEST(ReplySplitter, AddsUpToWhatChatFormatParsesHoweverTheTextIsCut) {
    for (const Case& c : cases()) {
        const ChatReply expected = ChatFormat(c.style).parse(c.text, c.thinking);
        for (const size_t size : {1, 2, 3, 7, 20, 1000}) {
            const ChatReply found = through(c.style, c.thinking, c.text, size);
            EXPECT_EQ(found.reasoning, expected.reasoning) << c.text << " in pieces of " << size;
            EXPECT_EQ(found.content, expected.content) << c.text << " in pieces of " << size;
            ASSERT_EQ(found.tool_calls.size(), expected.tool_calls.size()) << c.text << " in pieces of " << size;
            for (size_t i = 0; i < expected.tool_calls.size(); ++i) {
                EXPECT_EQ(found.tool_calls[i].name, expected.tool_calls[i].name);
                EXPECT_EQ(found.tool_calls[i].arguments, expected.tool_calls[i].arguments) << "in pieces of " << size;
            }
        }
    }
}

TEST(ReplySplitter, ArgumentsComeInPiecesWithTheirIndex) {
    ReplySplitter splitter(ChatStyle::kV31, false, true);
    const ReplyDelta first = splitter.push("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\":");
    ASSERT_EQ(first.calls.size(), 1u);
    EXPECT_EQ(first.calls[0], (ToolCallDelta{0, "f", "{\"a\":"}));
    const ReplyDelta second = splitter.push(" 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}");
    ASSERT_EQ(second.calls.size(), 2u);
    EXPECT_EQ(second.calls[0], (ToolCallDelta{0, "", " 1}"}));
    EXPECT_EQ(second.calls[1].name, "g");
    EXPECT_EQ(second.calls[1].index, 1);
}

TEST(ReplySplitter, CallsAreTextWhenNoToolsWereGiven) {
    ReplySplitter splitter(ChatStyle::kV3, false, false);
    EXPECT_EQ(splitter.push("a<｜tool▁calls▁begin｜>b").content + splitter.finish().content, "a<｜tool▁calls▁begin｜>b");
}

}  // namespace
}  // namespace fathom
