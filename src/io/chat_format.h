// Conversations to prompts and replies back to messages, in the formats DeepSeek's models were trained on.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer.h"

namespace fathom {

enum class Role { kSystem, kUser, kAssistant, kTool };

struct ToolCall {
    std::string name;
    std::string arguments;  // JSON text
};

struct ChatMessage {
    Role role;
    std::string content;
    std::string reasoning = {};  // an assistant's thinking; past turns are prompted without it
    std::vector<ToolCall> tool_calls = {};
};

// kV2: "User: ...\n\nAssistant:" in plain words (V2, V2-Lite, V1 chat). kV3: role tokens. kR1: V3's with a reply that opens
// with <think>. kV31: role tokens, and think tags that say whether to think.
enum class ChatStyle { kV2, kV3, kR1, kV31 };

struct ChatReply {
    std::string reasoning;
    std::string content;
    std::vector<ToolCall> tool_calls;
};

class ChatFormat {
public:
    // `bos` and `eos`: the texts of these tokens, V3's by default.
    explicit ChatFormat(ChatStyle style, std::string bos = "<｜begin▁of▁sentence｜>",
                        std::string eos = "<｜end▁of▁sentence｜>");

    // By what the tokenizer can say: no <｜User｜> token means kV2, role tokens mean kV3. `model_type` and `name`
    // (config.json's model_type and the model's folder or served name) tell the rest: a name with "R1" means kR1, "V3.1" kV31.
    [[nodiscard]] static ChatFormat choose(const Tokenizer& tokenizer, std::string_view model_type = {},
                                           std::string_view name = {});

    // The prompt up to where the model's reply begins; a last message of the assistant is left open to be continued. BOS is in
    // it, so it is encoded as it stands. `thinking` matters to kR1 and kV31. Texts of all system messages come first, joined by
    // empty lines. Throws Error{kInput} for roles the format cannot say (tools in kV2).
    [[nodiscard]] std::string prompt(std::span<const ChatMessage> messages, bool thinking = false) const;

    // What the model should write after prompt(the messages before, thinking) to say `message`, end of turn included; parse()
    // gives the message back. `thinking` false leaves out the message's reasoning.
    [[nodiscard]] std::string reply(const ChatMessage& message, bool thinking = false) const;

    // Splits what the model wrote after such a prompt. Text without </think> after a thinking prompt is all reasoning: the
    // reply was cut. Spaces at the seams are dropped; an end-of-sentence token at the end, too.
    [[nodiscard]] ChatReply parse(std::string_view reply, bool thinking = false) const;

    [[nodiscard]] ChatStyle style() const { return style_; }

    // Texts that end a reply although they are no token (kV2 models may go on with the user's turn).
    [[nodiscard]] std::vector<std::string> stop_texts() const;

private:
    ChatStyle style_;
    std::string bos_, eos_;

    [[nodiscard]] std::string prompt_v2(std::span<const ChatMessage> messages) const;
    [[nodiscard]] std::string prompt_v3(std::span<const ChatMessage> messages, bool thinking) const;
    [[nodiscard]] std::string tool_calls(const ChatMessage& message) const;
    [[nodiscard]] std::string assistant_turn(const ChatMessage& message, Role before, bool open) const;
};

}  // namespace fathom
