#include "serve/grammar_text.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace fathom {
namespace {

bool matches(const Grammar& grammar, std::string_view text) {
    GrammarAutomaton automaton(grammar);
    int32_t state = automaton.start();
    for (const char c : text) state = automaton.step(state, static_cast<uint8_t>(c));
    return state != GrammarAutomaton::kDead && automaton.accepting(state);
}

bool regex(const char* pattern, std::string_view text) { return matches({parse_regex(pattern)}, text); }
bool schema(const char* json, std::string_view text) { return matches(parse_json_schema(Json::parse(json)), text); }

std::string complaint(const std::function<void()>& work) {
    try {
        work();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

TEST(Regex, MatchesTheWholeText) {
    EXPECT_TRUE(regex("a(b|cd)*e?", "abcdb"));
    EXPECT_FALSE(regex("a(b|cd)*e?", "abc"));
    EXPECT_TRUE(regex("^\\d{2,4}-[a-fx]+$", "123-fax"));
    EXPECT_FALSE(regex("\\d{2,4}", "1"));
    EXPECT_FALSE(regex("\\d{2,4}", "12345"));
    EXPECT_TRUE(regex("[^\\w ]{3}", "+-é"));
    EXPECT_TRUE(regex("a.b", "a𝄞b"));
    EXPECT_FALSE(regex("a.b", "a\nb"));
    EXPECT_TRUE(regex("(?:x{0,2}y)+", "yxyxxy"));
    EXPECT_TRUE(regex("[]a-]+", "a]-"));
}

TEST(Regex, ClassesHoldWholeCharacters) {
    EXPECT_TRUE(regex("[à-ü]", "é"));
    EXPECT_FALSE(regex("[à-ü]", "\xC3"));
    EXPECT_TRUE(regex("[一-龥]{2}", "中文"));
    EXPECT_FALSE(regex("[^一-龥]", "中"));
    for (const uint32_t c : {0x7Fu, 0x80u, 0x7FFu, 0x800u, 0xFFFFu, 0x10000u, 0x10FFFFu}) {
        EXPECT_TRUE(matches({GrammarExpr::any_of({{c, c}})}, encode_utf8(c))) << c;
        EXPECT_TRUE(matches({GrammarExpr::none_of({{c + 1, c + 1}})}, encode_utf8(c))) << c;
        EXPECT_FALSE(matches({GrammarExpr::none_of({{c, c}})}, encode_utf8(c))) << c;
    }
}

TEST(Regex, MistakesAreExplained) {
    for (const char* bad : {"(a", "a)", "[a", "*a", "a{3,1}", "a{99999}", "\\q", "(?=a)", "a$b", "[z-a]", "\\u12"}) {
        EXPECT_NE(complaint([&] { (void)parse_regex(bad); }), "") << bad;
    }
    EXPECT_NE(complaint([&] { (void)parse_regex(std::string(5000, '(')); }).find("deep"), std::string::npos);
}

TEST(Gbnf, ReadsRulesAlternativesAndRepetitions) {
    const Grammar grammar = parse_gbnf(
        "# sums\n"
        "root ::= term (\"+\" term)* \"\\n\"\n"
        "term ::= [0-9]+ |\n"
        "         \"(\" sum \")\"\n"
        "sum ::= term (\"+\" term)*\n");
    EXPECT_TRUE(matches(grammar, "1+(2+34)\n"));
    EXPECT_FALSE(matches(grammar, "1+(2\n"));
    EXPECT_TRUE(matches(parse_gbnf("root ::= [^a-c]{2,3} .?"), "xyzé"));
    EXPECT_NE(complaint([] { (void)parse_gbnf("root ::= nothing"); }).find("nothing"), std::string::npos);
    EXPECT_NE(complaint([] { (void)parse_gbnf("root ="); }), "");
    EXPECT_NE(complaint([] { GrammarAutomaton a(parse_gbnf("root ::= x \"a\"\nx ::= \"b\"? root")); }).find("left-recursive"),
              std::string::npos);
}

TEST(JsonSchema, AnyObjectIsAnyObject) {
    const Grammar any = any_json_object();
    EXPECT_TRUE(matches(any, R"({"a": [1, -2.5e3, "x\n\u00e9", null, {"b": {}}], "c": true})"));
    EXPECT_TRUE(matches(any, "{}"));
    for (const char* bad : {"[]", "{\"a\"}", "{\"a\": 01}", "{\"a\": 1,}", "{'a': 1}", "{\"a\": \"\n\"}"})
        EXPECT_FALSE(matches(any, bad)) << bad;
}

TEST(JsonSchema, PropertiesKeepTheirOrderAndTheRequiredOnesMustCome) {
    const char* person =
        R"({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
                             "required": ["age"], "additionalProperties": false})";
    EXPECT_TRUE(schema(person, R"({"name": "x", "age": 3, "tags": ["a", "b"]})"));
    EXPECT_TRUE(schema(person, R"({"age": 3})"));
    EXPECT_TRUE(schema(person, R"({"age": 3, "tags": []})"));
    EXPECT_FALSE(schema(person, R"({"name": "x"})"));
    EXPECT_FALSE(schema(person, R"({"age": 3, "name": "x"})"));
    EXPECT_FALSE(schema(person, R"({"age": 3, "tags": ["a", "b", "a"]})"));
    EXPECT_FALSE(schema(person, R"({"age": 3.5})"));
    EXPECT_FALSE(schema(person, R"({"age": 3, "more": 1})"));
    const char* open =
        R"({"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "boolean"}})";
    EXPECT_TRUE(schema(open, R"({"a": null, "b": true, "c": false})"));
    EXPECT_TRUE(schema(open, R"({"b": true})"));
    EXPECT_FALSE(schema(open, R"({"b": 1})"));
}

TEST(JsonSchema, ReferencesMayRecur) {
    const char* tree =
        R"({"$defs": {"node": {"type": "object", "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                           "required": ["value", "next"], "additionalProperties": false}}, "$ref": "#/$defs/node"})";
    EXPECT_TRUE(schema(tree, R"({"value": 1, "next": {"value": 2, "next": null}})"));
    EXPECT_FALSE(schema(tree, R"({"value": 1, "next": {"value": 2}})"));
}

TEST(JsonSchema, IntegersStayWithinTheirBounds) {
    for (const auto& [low, high] : {std::pair<int64_t, int64_t>{0, 9}, {-5, 5}, {17, 1234}, {-120, -7}, {99, 101}, {1, 1}}) {
        const std::string text =
            "{\"type\": \"integer\", \"minimum\": " + std::to_string(low) + ", \"maximum\": " + std::to_string(high) + "}";
        const Grammar grammar = parse_json_schema(Json::parse(text));
        GrammarAutomaton automaton(grammar);
        for (int64_t x = -1300; x <= 1300; ++x) {
            int32_t state = automaton.start();
            for (const char c : std::to_string(x)) state = automaton.step(state, static_cast<uint8_t>(c));
            EXPECT_EQ(state != GrammarAutomaton::kDead && automaton.accepting(state), low <= x && x <= high)
                << x << " in " << text;
        }
    }
}

// Both found by fuzzing: expressions that doubled with each digit, states that doubled with each byte.
TEST(JsonSchema, ABoundOnOneSideIsAsCheapAsTwo) {
    const Grammar grammar = parse_json_schema(Json::parse(R"({"type": "integer", "minimum": -4})"));
    GrammarAutomaton automaton(grammar);
    for (const auto& [text, fits] :
         {std::pair("-4", true), {"-5", false}, {"0", true}, {"999999999999999999", true}, {"-", false}}) {
        int32_t state = automaton.start();
        for (const char c : std::string(text)) state = automaton.step(state, static_cast<uint8_t>(c));
        EXPECT_EQ(state != GrammarAutomaton::kDead && automaton.accepting(state), fits) << text;
    }
}

TEST(Regex, AClassMayNameACharacterOften) {
    const Grammar grammar = {parse_regex("[" + std::string(100, 'B') + "]{40}")};
    GrammarAutomaton automaton(grammar);
    int32_t state = automaton.start();
    for (int i = 0; i < 40; ++i) state = automaton.step(state, 'B');
    EXPECT_TRUE(automaton.accepting(state));
}

TEST(JsonSchema, StringsObeyPatternsFormatsAndLengths) {
    EXPECT_TRUE(schema(R"({"type": "string", "pattern": "^[a-c\"]+$"})", R"("a\"c")"));
    EXPECT_FALSE(schema(R"({"type": "string", "pattern": "^[a-c\"]+$"})", R"("a"c")"));
    EXPECT_TRUE(schema(R"({"type": "string", "pattern": "needle"})", R"("hay needle hay")"));
    EXPECT_TRUE(schema(R"({"type": "string", "minLength": 2, "maxLength": 3})", R"("äö\n")"));
    EXPECT_FALSE(schema(R"({"type": "string", "minLength": 2, "maxLength": 3})", R"("ä")"));
    EXPECT_TRUE(schema(R"({"type": "string", "format": "date"})", R"("2026-11-22")"));
    EXPECT_FALSE(schema(R"({"type": "string", "format": "date"})", R"("2026-13-22")"));
    EXPECT_TRUE(schema(R"({"type": "string", "format": "ipv4"})", R"("127.0.0.255")"));
}

TEST(JsonSchema, WhatIsNotSupportedIsNamed) {
    const auto why = [](const char* json) { return complaint([&] { (void)parse_json_schema(Json::parse(json)); }); };
    EXPECT_NE(why(R"({"not": {}})").find("\"not\""), std::string::npos);
    EXPECT_NE(why(R"({"properties": {"a": {"type": "object", "patternProperties": {}}}})").find(".a"), std::string::npos);
    EXPECT_NE(why(R"({"$ref": "#/$defs/none"})").find("nothing"), std::string::npos);
    EXPECT_NE(why(R"({"$ref": "http://example.com"})"), "");
    EXPECT_NE(why(R"({"type": "decimal"})").find("decimal"), std::string::npos);
    EXPECT_NE(why("[]"), "");
    EXPECT_NE(why(R"({"type": "integer", "minimum": 5, "maximum": 4})"), "");
    EXPECT_EQ(why(R"({"title": "T", "description": "d", "default": 1, "type": "integer"})"), "");
}

}  // namespace
}  // namespace fathom
