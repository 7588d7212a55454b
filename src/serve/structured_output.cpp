#include "serve/structured_output.h"

#include <fmt/format.h>
#include <algorithm>

#include "base/error.h"
#include "serve/grammar_text.h"

namespace fathom {
namespace {

using E = GrammarExpr;

constexpr size_t kMostGrammars = 64;

void shift_rules(GrammarExpr& expr, int32_t by) {
    if (expr.kind == E::Kind::kRule) expr.id += by;
    for (GrammarExpr& part : expr.parts) shift_rules(part, by);
}

// Appends the rules of `added`; returns the number that its whole has now.
int32_t append(Grammar& grammar, Grammar added) {
    const auto first = static_cast<int32_t>(grammar.size());
    for (GrammarExpr& rule : added) {
        shift_rules(rule, first);
        grammar.push_back(std::move(rule));
    }
    return first;
}

Grammar arguments_of(const Tool& tool) {
    Json schema = tool.parameters;
    if (schema.empty()) return any_json_object();
    if (!schema.contains("type")) schema["type"] = "object";
    try {
        return parse_json_schema(schema);
    } catch (const Error& error) {
        throw error.within(fmt::format("the parameters of \"{}\"", tool.name));
    }
}

// Control tokens that write a tool call.
struct CallTokens {
    int32_t calls_begin, calls_end, call_begin, call_end, separator;
};

std::optional<CallTokens> call_tokens(const Tokenizer& tokenizer) {
    const auto begin = tokenizer.id_of("<｜tool▁calls▁begin｜>"), end = tokenizer.id_of("<｜tool▁calls▁end｜>"),
               call = tokenizer.id_of("<｜tool▁call▁begin｜>"), call_end = tokenizer.id_of("<｜tool▁call▁end｜>"),
               separator = tokenizer.id_of("<｜tool▁sep｜>");
    if (!begin || !end || !call || !call_end || !separator) return std::nullopt;
    return CallTokens{*begin, *end, *call, *call_end, *separator};
}

// One or more calls of `tools` as the model's format writes them, from behind the token that opens them.
Grammar calls_grammar(const std::vector<Tool>& tools, const CallTokens& tokens, ChatStyle style, bool opened,
                      int64_t more_calls) {
    Grammar grammar(1);
    const bool fenced = style != ChatStyle::kV31;
    std::vector<E> calls;
    for (const Tool& tool : tools) {
        const E arguments = E::rule(append(grammar, arguments_of(tool)));
        std::vector<E> call{E::token(tokens.call_begin)};
        if (fenced) {
            for (E part : {E::literal("function"), E::token(tokens.separator), E::literal(tool.name + "\n```json\n"), arguments,
                           E::literal("\n```")})
                call.push_back(std::move(part));
        } else {
            for (E part : {E::literal(tool.name), E::token(tokens.separator), arguments}) call.push_back(std::move(part));
        }
        call.push_back(E::token(tokens.call_end));
        calls.push_back(E::sequence(std::move(call)));
    }
    grammar.push_back(E::choice(std::move(calls)));
    const E call = E::rule(static_cast<int32_t>(grammar.size()) - 1);
    const E more = E::repeat(fenced ? E::sequence({E::literal("\n"), call}) : call, 0, more_calls);
    std::vector<E> whole;
    if (!opened) whole = {E::repeat(E::literal("\n"), 0, 2), E::token(tokens.calls_begin)};
    for (const E& part : {call, more, E::token(tokens.calls_end)}) whole.push_back(part);
    grammar[0] = E::sequence(std::move(whole));
    return grammar;
}

std::string tools_key(const std::vector<Tool>& tools) {
    std::string key;
    for (const Tool& tool : tools) key += tool.name + "\n" + dump(tool.parameters) + "\n";
    return key;
}

std::optional<StructuredOutput> tool_output(Fields& fields, const ServedModel& model, const ChatRequest& chat) {
    if (chat.tools.empty() || chat.tool_choice == ToolChoice::kNone) return std::nullopt;
    const bool must = chat.tool_choice == ToolChoice::kRequired || chat.tool_choice == ToolChoice::kNamed;
    const bool strict = std::ranges::any_of(chat.tools, &Tool::strict);
    if (!must && !strict) return std::nullopt;
    std::vector<Tool> tools = chat.tools;
    if (chat.tool_choice == ToolChoice::kNamed)
        std::erase_if(tools, [&](const Tool& tool) { return tool.name != chat.chosen_tool; });
    for (Tool& tool : tools) {
        if (!must && !tool.strict) tool.parameters = Json::object();  // it may be called with anything
    }
    const auto tokens = model.format && model.style() != ChatStyle::kV2 ? call_tokens(*model.tokenizer) : std::nullopt;
    if (!tokens) {
        if (!must) return std::nullopt;
        if (tools.size() > 1) fields.fail("tool_choice", "this model has no way to choose among tools: name one");
        return StructuredOutput{
            model.grammars->get("tools", "arguments\n" + tools_key(tools), [&] { return arguments_of(tools.front()); }),
            std::nullopt, tools.front().name};
    }
    const int64_t more_calls = fields.boolean("parallel_tool_calls").value_or(true) ? 32 : 0;
    const std::string key =
        fmt::format("calls {} {} {}\n{}", must, static_cast<int>(model.style()), more_calls, tools_key(tools));
    const auto grammar =
        model.grammars->get("tools", key, [&] { return calls_grammar(tools, *tokens, model.style(), !must, more_calls); });
    if (!must) return StructuredOutput{grammar, tokens->calls_begin, {}};
    return StructuredOutput{grammar, std::nullopt, {}};
}

using Compiled = std::shared_ptr<TokenGrammar>;

// `field`: of the request, whose fault it is when this cannot be compiled.
Compiled schema_grammar(const std::string& field, const Json& schema, const ServedModel& model) {
    return model.grammars->get(field, "schema\n" + dump(schema), [&] { return parse_json_schema(schema); });
}
Compiled regex_grammar(const std::string& field, const std::string& regex, const ServedModel& model) {
    return model.grammars->get(field, "regex\n" + regex, [&] { return Grammar{parse_regex(regex)}; });
}
Compiled gbnf_grammar(const std::string& field, const std::string& text, const ServedModel& model) {
    return model.grammars->get(field, "gbnf\n" + text, [&] { return parse_gbnf(text); });
}
Compiled choice_grammar(const std::string& field, const std::vector<std::string>& texts, const ServedModel& model) {
    std::string key = "choice";
    for (const std::string& text : texts) key += "\n" + dump(Json(text));
    return model.grammars->get(field, key, [&] {
        std::vector<E> parts;
        for (const std::string& text : texts) parts.push_back(E::literal(text));
        return Grammar{E::choice(std::move(parts))};
    });
}
Compiled json_grammar(const ServedModel& model) {
    return model.grammars->get("response_format", "json object", [] { return any_json_object(); });
}

// A schema may come as JSON or as its text.
Compiled schema_field(Fields& fields, const std::string& key, const std::string& field, const ServedModel& model) {
    const Json& given = fields.require(key);
    if (!given.is_string()) return schema_grammar(field, given, model);
    const Json parsed = Json::parse(given.get<std::string>(), nullptr, false);
    if (parsed.is_discarded()) fields.fail(key, "this text is no JSON");
    return schema_grammar(field, parsed, model);
}

Compiled read_format(Fields format, const std::string& field, const ServedModel& model) {
    const std::string type = format.required_string("type");
    if (type == "text") return nullptr;
    if (type == "json_object") {
        if (const Json* schema = format.find("schema")) return schema_grammar(field, *schema, model);
        return json_grammar(model);
    }
    if (type != "json_schema") format.fail("type", fmt::format("\"{}\" is none of text, json_object, json_schema", type));
    auto nested = format.object("json_schema");  // chat completions; the Responses API has the fields in the format itself
    return schema_field(nested ? *nested : format, "schema", field, model);
}

// vLLM's words, with and without guided_ in front.
Compiled read_guided(Fields& fields, const std::string& prefix, const ServedModel& model) {
    const std::string json = prefix + "json", regex = prefix + "regex", choice = prefix + "choice",
                      grammar = prefix + "grammar";
    std::string given;
    for (const std::string& key : {regex, choice, grammar, json}) {
        const Json* value = fields.find(key);
        if (value == nullptr || (value->is_string() && value->get_ref<const std::string&>().empty())) continue;
        if (!given.empty()) fields.fail(key, fmt::format("{} binds the answer already: give one of them", given));
        given = key;
    }
    if (given.empty()) return prefix.empty() && fields.flag("json_object") ? json_grammar(model) : nullptr;
    const std::string field = fields.name_of(given);
    if (given == regex) return regex_grammar(field, *fields.string(regex), model);
    if (given == grammar) return gbnf_grammar(field, *fields.string(grammar), model);
    if (given == json) return schema_field(fields, json, field, model);
    const std::vector<std::string> texts = fields.strings(choice);
    if (texts.empty()) fields.fail(choice, "must hold at least one text");
    return choice_grammar(field, texts, model);
}

Compiled read_text_format(Fields& fields, const ServedModel& model) {
    if (auto format = fields.object("response_format")) return read_format(*format, "response_format", model);
    if (auto text = fields.object("text")) {
        auto format = text->object("format");
        return format ? read_format(*format, "text.format", model) : nullptr;
    }
    if (auto structured = fields.object("structured_outputs")) return read_guided(*structured, "", model);
    if (auto guided = read_guided(fields, "guided_", model)) return guided;
    if (const auto text = fields.string("grammar"); text && !text->empty()) return gbnf_grammar("grammar", *text, model);
    return nullptr;
}

}  // namespace

std::shared_ptr<TokenGrammar> GrammarCache::find(const std::string& key) {
    const std::lock_guard lock(mutex_);
    const auto found = std::ranges::find(known_, key, [](const auto& entry) -> const std::string& { return entry.first; });
    if (found == known_.end()) return nullptr;
    known_.splice(known_.begin(), known_, found);
    return found->second;
}

std::shared_ptr<TokenGrammar> GrammarCache::add(const std::string& key, const Grammar& grammar) {
    const std::lock_guard lock(mutex_);
    if (!trie_) {
        std::vector<std::pair<std::string, int32_t>> tokens;
        for (int32_t id = 0; id < tokenizer_.vocab_size(); ++id) {
            const std::string text(tokenizer_.token_bytes(id));
            const bool control =
                tokenizer_.is_special(id) || text.starts_with("<｜") || text == "<think>" || text == "</think>";
            if (!control) tokens.emplace_back(text, id);
        }
        trie_.emplace(std::move(tokens), tokenizer_.vocab_size());
    }
    auto compiled = std::make_shared<TokenGrammar>(grammar, *trie_);
    known_.emplace_front(key, compiled);
    if (known_.size() > kMostGrammars) known_.pop_back();
    return compiled;
}

std::optional<StructuredOutput> read_structured_output(Fields& fields, const ServedModel& model, const ChatRequest* chat) {
    std::optional<StructuredOutput> result;
    if (chat != nullptr) result = tool_output(fields, model, *chat);
    auto text = read_text_format(fields, model);
    if (!result && text) result = StructuredOutput{std::move(text), std::nullopt, {}};
    if (result && chat != nullptr && chat->thinks(model) && !result->starts_after) {
        result->starts_after = model.tokenizer->id_of("</think>");
    }
    return result;
}

void constrain(const std::optional<StructuredOutput>& structure, const ServedModel& model, std::vector<Request>& requests,
               AnswerFormat& format) {
    if (!structure) return;
    for (Request& request : requests) {
        if (request.stop_ids.empty())
            request.stop_ids = model.stop_ids;  // ignore_eos: where the grammar ends, nothing else may come
        request.constraint = std::make_shared<GrammarConstraint>(structure->grammar, request.stop_ids, structure->starts_after);
    }
    if (structure->call_name.empty()) return;
    format.chat = format.whole_text_is_call = true;
    format.call_name = structure->call_name;
}

}  // namespace fathom
