#include "io/chat_examples.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/shuffle.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

[[noreturn]] void fail(const std::string& what) { throw Error(ErrorKind::kInput, what); }

std::string text_field(const Json& object, const char* key, const std::string& where) {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) return {};
    if (!found->is_string()) fail(fmt::format("{}.{} must be a text", where, key));
    return found->get<std::string>();
}

Role parse_role(const std::string& name, const std::string& where) {
    constexpr std::array<std::pair<std::string_view, Role>, 5> kRoles{{{"system", Role::kSystem},
                                                                       {"developer", Role::kSystem},
                                                                       {"user", Role::kUser},
                                                                       {"assistant", Role::kAssistant},
                                                                       {"tool", Role::kTool}}};
    for (const auto& [spelling, role] : kRoles) {
        if (name == spelling) return role;
    }
    fail(fmt::format("{}.role is \"{}\": it must be system, user, assistant or tool", where, name));
}

// OpenAI's {"function": {"name", "arguments"}}, or the function's fields alone; arguments may be an object.
ToolCall parse_tool_call(const Json& call, const std::string& where) {
    if (!call.is_object()) fail(where + " must be an object");
    const Json& function = call.contains("function") ? call["function"] : call;
    if (!function.is_object() || !function.contains("name")) fail(where + " has no function name");
    ToolCall result{text_field(function, "name", where), "{}"};
    if (const auto found = function.find("arguments"); found != function.end())
        result.arguments = found->is_string() ? found->get<std::string>() : found->dump();
    return result;
}

void append(ChatExample& example, const std::vector<int32_t>& tokens, bool learned) {
    example.tokens.insert(example.tokens.end(), tokens.begin(), tokens.end());
    example.learned.resize(example.tokens.size(), learned ? 1 : 0);
}

std::vector<ChatMessage> as_messages(const Json& value, Role role) {
    if (value.is_string()) return {{role, value.get<std::string>()}};
    return parse_messages(value);
}

// A prompt and what answers it.
std::vector<ChatExample> answer_examples(const Json& prompt, const Json& answer, const ChatFormat& format,
                                         const Tokenizer& tokenizer) {
    if (prompt.is_string() && answer.is_string())
        return {completion_example(prompt.get<std::string>(), answer.get<std::string>(), tokenizer)};
    std::vector<ChatMessage> messages = as_messages(prompt, Role::kUser);
    const std::vector<ChatMessage> reply = as_messages(answer, Role::kAssistant);
    messages.insert(messages.end(), reply.begin(), reply.end());
    return chat_examples(messages, format, tokenizer);
}

// The examples of one line.
std::vector<ChatExample> parse_example(const Json& line, const ChatFormat& format, const Tokenizer& tokenizer) {
    if (!line.is_object()) fail("must be a JSON object");
    if (line.contains("messages")) return chat_examples(parse_messages(line["messages"]), format, tokenizer);
    if (line.contains("prompt") && line.contains("completion"))
        return answer_examples(line["prompt"], line["completion"], format, tokenizer);
    if (line.contains("instruction") && line.contains("output")) {
        std::string user = text_field(line, "instruction", "line");
        if (const std::string input = text_field(line, "input", "line"); !input.empty()) user += "\n\n" + input;
        const std::array<ChatMessage, 2> messages{
            {{Role::kUser, user}, {Role::kAssistant, text_field(line, "output", "line")}}};
        return chat_examples(messages, format, tokenizer);
    }
    fail(R"(needs "messages", or "prompt" and "completion", or "instruction" and "output")");
}

struct Line {
    const std::filesystem::path* file;
    int64_t number;
    std::string_view text;
};

std::vector<Line> lines_of(const std::filesystem::path& file, std::string_view text) {
    std::vector<Line> lines;
    int64_t number = 1;
    for (size_t begin = 0; begin < text.size(); ++number) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        const std::string_view line = text.substr(begin, end - begin);
        if (line.find_first_not_of(" \t\r") != line.npos) lines.push_back({&file, number, line});
        begin = end + 1;
    }
    return lines;
}

std::vector<ChatExample> parse_line(const Line& line, const ChatFormat& format, const Tokenizer& tokenizer) {
    const std::string where = fmt::format("{}:{}", line.file->string(), line.number);
    try {
        return parse_example(Json::parse(line.text), format, tokenizer);
    } catch (const Json::exception& error) {
        throw Error(ErrorKind::kInput, fmt::format("{}: not a line of JSON ({})", where, error.what()));
    } catch (const Error& error) {
        throw error.within(where);
    }
}

void keep(ChatExamples& result, ChatExample&& example, const ChatExamplesOptions& options) {
    const auto limit = static_cast<size_t>(options.max_length);
    if (options.learn_prompts) std::ranges::fill(example.learned, uint8_t{1});
    const bool overlong = example.tokens.size() > limit;
    if (overlong && !options.drop_overlong) {
        example.tokens.resize(limit);
        example.learned.resize(limit);
        ++result.cut;
    }
    if (example.tokens.size() > limit || !example.teaches()) {
        ++result.dropped;
        return;
    }
    result.examples.push_back(std::move(example));
}

}  // namespace

// The first token is never predicted.
bool ChatExample::teaches() const {
    return learned.size() > 1 && std::find(learned.begin() + 1, learned.end(), 1) != learned.end();
}

std::vector<ChatMessage> parse_messages(const Json& messages) {
    if (!messages.is_array() || messages.empty()) fail("messages must be a list that is not empty");
    std::vector<ChatMessage> result;
    for (size_t i = 0; i < messages.size(); ++i) {
        const std::string where = fmt::format("messages[{}]", i);
        const Json& object = messages[i];
        if (!object.is_object()) fail(where + " must be an object");
        ChatMessage message{parse_role(text_field(object, "role", where), where), text_field(object, "content", where)};
        message.reasoning = text_field(object, object.contains("reasoning") ? "reasoning" : "reasoning_content", where);
        if (const auto calls = object.find("tool_calls"); calls != object.end() && !calls->is_null()) {
            if (!calls->is_array()) fail(where + ".tool_calls must be a list");
            for (const Json& call : *calls) message.tool_calls.push_back(parse_tool_call(call, where + ".tool_calls"));
        }
        result.push_back(std::move(message));
    }
    return result;
}

std::vector<ChatExample> chat_examples(std::span<const ChatMessage> messages, const ChatFormat& format,
                                       const Tokenizer& tokenizer) {
    std::vector<ChatExample> result;
    std::string said;  // the text of the last sequence
    for (size_t i = 0; i < messages.size(); ++i) {
        if (messages[i].role != Role::kAssistant) continue;
        if (i == 0) fail("messages[0] is the assistant's: there is nothing that it answers");
        const bool thinking = !messages[i].reasoning.empty();
        const std::string prompt = format.prompt(messages.first(i), thinking), reply = format.reply(messages[i], thinking);
        const bool goes_on = !result.empty() && prompt.starts_with(said);
        if (!goes_on) {
            result.emplace_back();
            said.clear();
        }
        append(result.back(), tokenizer.encode(std::string_view(prompt).substr(said.size())), false);
        append(result.back(), tokenizer.encode(reply), true);
        said = prompt + reply;
    }
    if (result.empty()) fail("no message is the assistant's: there is nothing to learn");
    return result;
}

ChatExample completion_example(std::string_view prompt, std::string_view completion, const Tokenizer& tokenizer) {
    ChatExample example;
    if (const auto bos = tokenizer.bos_id()) append(example, {*bos}, false);
    append(example, tokenizer.encode(prompt, false), false);
    append(example, tokenizer.encode(completion, false), true);
    if (const auto eos = tokenizer.eos_id()) append(example, {*eos}, true);
    return example;
}

std::vector<int32_t> conversation_tokens(const Json& prompt, const Json& answer, const ChatFormat& format,
                                         const Tokenizer& tokenizer) {
    return answer_examples(prompt, answer, format, tokenizer).back().tokens;
}

ChatExamples read_chat_examples(std::span<const std::filesystem::path> files, const ChatFormat& format,
                                const Tokenizer& tokenizer, const ChatExamplesOptions& options, ThreadPool& threads) {
    std::vector<std::string> texts;
    std::vector<Line> lines;
    texts.reserve(files.size());
    for (const auto& file : files) {
        texts.push_back(read_text(file));
        const std::vector<Line> more = lines_of(file, texts.back());
        lines.insert(lines.end(), more.begin(), more.end());
    }
    std::vector<std::vector<ChatExample>> parsed(lines.size());
    threads.parallel_for(std::ssize(lines), 16, [&](int64_t begin, int64_t end, int) {
        for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
            parsed[i] = parse_line(lines[i], format, tokenizer);
    });
    ChatExamples result;
    result.conversations = std::ssize(lines);
    for (auto& examples : parsed) {
        for (ChatExample& example : examples) keep(result, std::move(example), options);
    }
    return result;
}

TokenBatch pack_examples(std::span<const ChatExample* const> examples) {
    TokenBatch batch;
    batch.cu_seqlens.push_back(0);
    for (const ChatExample* example : examples) {
        const size_t length = example->tokens.size();
        for (size_t i = 0; i < length; ++i) {
            batch.tokens.push_back(example->tokens[i]);
            batch.positions.push_back(static_cast<int32_t>(i));
            const bool learned = i + 1 < length && example->learned[i + 1] != 0;
            batch.targets.push_back(learned ? example->tokens[i + 1] : kNoTarget);
        }
        batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
    }
    return batch;
}

ChatLoader::ChatLoader(std::vector<ChatExample> examples, const ChatLoaderOptions& options)
    : examples_(std::move(examples)),
      options_(options) {
    check(!examples_.empty() && options_.max_tokens > 0, "ChatLoader: batches of at least one example");
    for (const ChatExample& example : examples_)
        check(std::ssize(example.tokens) <= options_.max_tokens, "ChatLoader: every example fits a batch");
    begin_epoch(0);
}

void ChatLoader::begin_epoch(int64_t epoch) {
    epoch_ = epoch;
    position_ = 0;
    order_.resize(examples_.size());
    std::iota(order_.begin(), order_.end(), 0);
    if (!options_.shuffle) return;
    Rng rng(options_.seed, static_cast<uint64_t>(epoch));
    shuffle(order_, rng);
}

std::optional<TokenBatch> ChatLoader::next() {
    std::vector<const ChatExample*> chosen;
    int64_t room = options_.max_tokens;
    while (true) {
        if (position_ == std::ssize(order_)) {
            if (!options_.shuffle) break;
            begin_epoch(epoch_ + 1);
        }
        const ChatExample& example = examples_[static_cast<size_t>(order_[static_cast<size_t>(position_)])];
        room -= std::ssize(example.tokens);
        if (room < 0) break;
        chosen.push_back(&example);
        ++position_;
    }
    return chosen.empty() ? std::nullopt : std::optional(pack_examples(chosen));
}

void ChatLoader::restore(const State& state) {
    if (state.epoch < 0 || (state.epoch > 0 && !options_.shuffle) || state.position < 0 ||
        state.position > std::ssize(examples_)) {
        throw Error(ErrorKind::kInput,
                    fmt::format("no place of this data: epoch {}, example {} of {}; resume with the data and the sequence "
                                "length the run was begun with",
                                state.epoch, state.position, examples_.size()));
    }
    if (state.epoch != epoch_) begin_epoch(state.epoch);
    position_ = state.position;
}

}  // namespace fathom
