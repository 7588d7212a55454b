// Conversations as clients send them.
#include <fmt/format.h>
#include <algorithm>
#include <array>

#include "base/error.h"
#include "serve/request_fields.h"

namespace fathom {
namespace {

Role read_role(Fields& message) {
    const std::string role = message.required_string("role");
    if (role == "system" || role == "developer") return Role::kSystem;
    if (role == "user") return Role::kUser;
    if (role == "assistant") return Role::kAssistant;
    if (role == "tool" || role == "function") return Role::kTool;
    message.fail("role", fmt::format("\"{}\" is none of system, developer, user, assistant, tool", role));
}

std::vector<ToolCall> read_tool_calls(Fields& message) {
    std::vector<ToolCall> calls;
    const Json* list = message.find("tool_calls");
    if (list == nullptr) return calls;
    if (!list->is_array()) message.fail("tool_calls", "must be an array");
    for (size_t i = 0; i < list->size(); ++i) {
        Fields call((*list)[i], fmt::format("{}[{}]", message.name_of("tool_calls"), i));
        auto function = call.object("function");
        if (!function) call.fail("function", "this field is required");
        calls.push_back({function->required_string("name"), function->string("arguments").value_or("{}")});
    }
    return calls;
}

ChatMessage read_message(const Json& json, const std::string& name) {
    Fields fields(json, name);
    ChatMessage message{read_role(fields), {}};
    if (const Json* content = fields.find("content")) message.content = read_text(*content, fields.name_of("content"));
    if (message.role == Role::kAssistant) {
        message.tool_calls = read_tool_calls(fields);
        message.reasoning = fields.string("reasoning_content").value_or(fields.string("reasoning").value_or(""));
    } else {
        (void)fields.require("content");
    }
    return message;
}

// DeepSeek's thinking.type, vLLM's chat_template_kwargs, and OpenAI's reasoning_effort.
std::optional<bool> read_thinking(Fields& fields) {
    std::optional<bool> thinking;
    if (const auto effort = fields.string("reasoning_effort")) {
        constexpr std::array kEfforts{"none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"};
        if (std::ranges::find(kEfforts, *effort) == kEfforts.end())
            fields.fail("reasoning_effort", fmt::format("\"{}\" is none of {}", *effort, fmt::join(kEfforts, ", ")));
        thinking = *effort != "none";
    }
    if (auto kwargs = fields.object("chat_template_kwargs")) {
        for (const char* key : {"thinking", "enable_thinking"}) {
            if (const auto wanted = kwargs->boolean(key)) thinking = wanted;
        }
    }
    if (auto object = fields.object("thinking")) {
        const std::string type = object->required_string("type");
        if (type != "enabled" && type != "disabled" && type != "adaptive") object->fail("type", "must be enabled or disabled");
        thinking = type != "disabled";
    }
    return thinking;
}

}  // namespace

std::string read_text(const Json& content, const std::string& name) {
    if (content.is_string()) return content.get<std::string>();
    if (!content.is_array()) throw ApiError(400, name + ": must be a string or an array of parts", name);
    std::string text;
    for (size_t i = 0; i < content.size(); ++i) {
        if (content[i].is_string()) {
            text += content[i].get<std::string>();
            continue;
        }
        Fields part(content[i], fmt::format("{}[{}]", name, i));
        const std::string type = part.required_string("type");
        if (type != "text" && type != "input_text" && type != "output_text" && type != "refusal") {
            part.fail("type", fmt::format("\"{}\" is not supported: this model reads text only", type));
        }
        text += type == "refusal" ? part.required_string("refusal") : part.required_string("text");
    }
    return text;
}

std::vector<Tool> read_openai_tools(Fields& fields) {
    std::vector<Tool> tools;
    const Json* list = fields.find("tools");
    if (list == nullptr) return tools;
    if (!list->is_array()) fields.fail("tools", "must be an array");
    for (size_t i = 0; i < list->size(); ++i) {
        Fields item((*list)[i], fmt::format("tools[{}]", i));
        if (item.string("type").value_or("function") != "function") item.fail("type", "only functions are supported");
        // The Responses API has the function's fields in the tool itself.
        const auto nested = item.object("function");
        Fields function = nested ? *nested : item;
        Tool tool{function.required_string("name"), function.string("description").value_or("")};
        if (const auto parameters = function.object("parameters")) tool.parameters = parameters->json();
        tool.strict = function.flag("strict");
        tools.push_back(std::move(tool));
    }
    return tools;
}

void read_tool_choice(Fields& fields, ChatRequest& chat) {
    const Json* choice = fields.find("tool_choice");
    if (choice == nullptr) return;
    if (choice->is_string()) {
        const auto text = choice->get<std::string>();
        if (text == "none") {
            chat.tool_choice = ToolChoice::kNone;
        } else if (text == "required") {
            chat.tool_choice = ToolChoice::kRequired;
        } else if (text != "auto") {
            fields.fail("tool_choice", "must be none, auto, required, or an object that names a function");
        }
    } else {
        auto named = *fields.object("tool_choice");
        auto function = named.object("function");
        chat.chosen_tool = function ? function->required_string("name") : named.required_string("name");
        chat.tool_choice = ToolChoice::kNamed;
        const bool known = std::ranges::any_of(chat.tools, [&](const Tool& tool) { return tool.name == chat.chosen_tool; });
        if (!known) fields.fail("tool_choice", fmt::format("there is no tool \"{}\" in tools", chat.chosen_tool));
    }
    if (chat.tool_choice != ToolChoice::kNone && chat.tool_choice != ToolChoice::kAuto && chat.tools.empty()) {
        fields.fail("tool_choice", "a tool must be used, but tools is empty");
    }
}

ChatRequest read_chat(Fields& fields) {
    ChatRequest chat;
    const Json& messages = fields.require("messages");
    if (!messages.is_array() || messages.empty()) fields.fail("messages", "must be an array of at least one message");
    for (size_t i = 0; i < messages.size(); ++i)
        chat.messages.push_back(read_message(messages[i], fmt::format("messages[{}]", i)));
    chat.tools = read_openai_tools(fields);
    read_tool_choice(fields, chat);
    chat.thinking = read_thinking(fields);
    return chat;
}

AnswerFormat read_chat_format(Fields& fields, const ChatRequest& chat, const ServedModel& model) {
    AnswerFormat format = read_answer_format(fields);
    if (!model.format) return format;
    for (const std::string& text : model.format->stop_texts()) format.stops.push_back(text);
    format.chat = true;
    format.style = model.style();
    format.thinking = chat.thinks(model);
    format.tools = !chat.tools.empty() && chat.tool_choice != ToolChoice::kNone;
    return format;
}

bool ChatRequest::thinks(const ServedModel& model) const {
    switch (model.style()) {
        case ChatStyle::kR1:
            return thinking.value_or(true);
        case ChatStyle::kV31:
            return thinking.value_or(false);
        default:
            return false;
    }
}

std::vector<int32_t> ChatRequest::prompt(const ServedModel& model, const std::string& param) const {
    std::vector<ChatMessage> told = messages;
    const bool with_tools = !tools.empty() && tool_choice != ToolChoice::kNone;
    if (!model.format) {  // a base model goes on with the text
        std::string text;
        for (const ChatMessage& message : told) {
            if (!text.empty() && !text.ends_with('\n')) text += "\n";
            text += message.content;
        }
        std::vector<int32_t> ids = model.encode(text);
        check_length(ids, model, param);
        return ids;
    }
    if (with_tools) told.insert(told.begin(), {Role::kSystem, tool_instructions(tools, model.style())});
    try {
        // System texts are joined in their order: what the client says comes before the tools.
        if (with_tools) std::ranges::stable_sort(told, {}, [](const ChatMessage& m) { return m.role != Role::kSystem; });
        if (with_tools)
            std::rotate(told.begin(), told.begin() + 1,
                        std::ranges::find_if(told, [](const ChatMessage& m) { return m.role != Role::kSystem; }));
        std::vector<int32_t> ids = model.tokenizer->encode(model.format->prompt(told, thinks(model)));
        check_length(ids, model, param);
        return ids;
    } catch (const Error& error) {
        throw ApiError(400, fmt::format("{}: {}", param, error.what()), param);
    }
}

std::string tool_instructions(const std::vector<Tool>& tools, ChatStyle style) {
    std::string text = "## Tools\nYou have access to the following tools:\n";
    for (const Tool& tool : tools) {
        text +=
            fmt::format("\n### {}\nDescription: {}\n\nParameters: {}\n", tool.name, tool.description, dump(tool.parameters));
    }
    const bool fenced = style != ChatStyle::kV31;
    const std::string_view call = fenced ? "function<｜tool▁sep｜>tool_call_name\n```json\ntool_call_arguments\n```"
                                         : "tool_call_name<｜tool▁sep｜>tool_call_arguments";
    text += fmt::format(
        "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{}<｜tool▁call▁end｜>{{{{additional_tool_calls}}}}<｜tool▁calls▁end｜>\n\n"
        "Where:\n"
        "- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
        "- For multiple tool calls, chain them directly without separators or spaces\n",
        call);
    return text;
}

}  // namespace fathom
