// JSON Schema as grammar rules.
#include <fmt/format.h>
#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "base/error.h"
#include "serve/grammar_text.h"

namespace fathom {
namespace {

using E = GrammarExpr;

constexpr int64_t kMostItems = 4096;
constexpr int kDeepest = 64;

// Room for layout, but not for a model that lost its way: nothing, one space, or a line break and an indent.
E space() {
    return E::optional(
        E::choice({E::literal(" "), E::sequence({E::literal("\n"), E::repeat(E::any_of({{' ', ' '}, {'\t', '\t'}}), 0, 20)})}));
}

E string_character() {
    const E escape = E::sequence(
        {E::literal("\\"),
         E::choice(
             {E::any_of({{'"', '"'}, {'\\', '\\'}, {'/', '/'}, {'b', 'b'}, {'f', 'f'}, {'n', 'n'}, {'r', 'r'}, {'t', 't'}}),
              E::sequence({E::literal("u"), E::repeat(E::any_of({{'0', '9'}, {'A', 'F'}, {'a', 'f'}}), 4, 4)})})});
    return E::choice({E::any_of({{0x20, 0x21}, {0x23, 0x5B}, {0x5D, 0x10FFFF}}), escape});
}

E quoted(E inside) { return E::sequence({E::literal("\""), std::move(inside), E::literal("\"")}); }

E digits(int64_t least, int64_t most) { return E::repeat(E::any_of({{'0', '9'}}), least, most); }

E unsigned_integer() { return E::choice({E::literal("0"), E::sequence({E::any_of({{'1', '9'}}), digits(0, 18)})}); }

E integer() { return E::sequence({E::optional(E::literal("-")), unsigned_integer()}); }

E number() {
    return E::sequence({integer(), E::optional(E::sequence({E::literal("."), digits(1, 18)})),
                        E::optional(E::sequence({E::any_of({{'E', 'E'}, {'e', 'e'}}),
                                                 E::optional(E::any_of({{'+', '+'}, {'-', '-'}})), digits(1, 3)}))});
}

E digit_range(char first, char last) { return E::any_of({{static_cast<uint32_t>(first), static_cast<uint32_t>(last)}}); }

// Decimal numbers from `low` to `high`, texts of the same length. Of the two ways to go on below an end, one is all digits:
// without that case the expression would double with each digit.
E same_length(const std::string& low, const std::string& high) {
    const auto length = static_cast<int64_t>(low.size()), rest = length - 1;
    if (low.find_first_not_of('0') == std::string::npos && high.find_first_not_of('9') == std::string::npos)
        return digits(length, length);
    if (low[0] == high[0]) return E::sequence({digit_range(low[0], low[0]), same_length(low.substr(1), high.substr(1))});
    std::vector<E> parts;
    const std::string nines(static_cast<size_t>(rest), '9'), zeros(static_cast<size_t>(rest), '0');
    parts.push_back(E::sequence({digit_range(low[0], low[0]), same_length(low.substr(1), nines)}));
    if (low[0] + 1 <= high[0] - 1) {
        parts.push_back(
            E::sequence({digit_range(static_cast<char>(low[0] + 1), static_cast<char>(high[0] - 1)), digits(rest, rest)}));
    }
    parts.push_back(E::sequence({digit_range(high[0], high[0]), same_length(zeros, high.substr(1))}));
    return E::choice(std::move(parts));
}

// Whole numbers from low to high, 0 <= low.
E whole_numbers(uint64_t low, uint64_t high) {
    std::vector<E> parts;
    while (true) {
        const std::string from = std::to_string(low), last(from.size(), '9');
        const uint64_t end = from.size() >= 19 ? high : std::min<uint64_t>(high, std::stoull(last));
        parts.push_back(same_length(from, std::to_string(end)));
        if (end == high) break;
        low = end + 1;
    }
    return E::choice(std::move(parts));
}

E integers(int64_t low, int64_t high) {
    std::vector<E> parts;
    const auto size = [](int64_t x) { return x < 0 ? uint64_t{0} - static_cast<uint64_t>(x) : static_cast<uint64_t>(x); };
    if (low < 0) parts.push_back(E::sequence({E::literal("-"), whole_numbers(high < 0 ? size(high) : 1, size(low))}));
    if (high >= 0) parts.push_back(whole_numbers(size(std::max<int64_t>(low, 0)), size(high)));
    return E::choice(std::move(parts));
}

class SchemaCompiler {
public:
    explicit SchemaCompiler(const Json& root) : root_(root) {
        rules_.resize(kFixed);
        rules_[kValue] = E::choice({E::rule(kObject), E::rule(kArray), E::rule(kString), number(), E::literal("true"),
                                    E::literal("false"), E::literal("null")});
        rules_[kString] = quoted(E::repeat(string_character(), 0));
        rules_[kObject] = braces("{", "}", E::sequence({E::rule(kString), colon(), E::rule(kValue)}), 0, -1);
        rules_[kArray] = braces("[", "]", E::rule(kValue), 0, -1);
    }
    Grammar schema() {
        E whole = value(root_, "the schema");
        rules_[kWhole] = std::move(whole);
        return std::move(rules_);
    }
    Grammar object() {
        rules_[kWhole] = E::rule(kObject);
        return std::move(rules_);
    }

private:
    static constexpr int32_t kWhole = 0, kValue = 1, kString = 2, kObject = 3, kArray = 4, kFixed = 5;
    const Json& root_;
    Grammar rules_;
    std::map<std::string, int32_t> references_;
    int depth_ = 0;

    [[noreturn]] static void fail(const std::string& where, const std::string& what) {
        throw Error(ErrorKind::kInput, fmt::format("{}: {}", where, what));
    }
    static E colon() { return E::sequence({E::literal(":"), space()}); }
    static E comma() { return E::sequence({E::literal(","), space()}); }
    // A list of `item` between brackets.
    static E braces(const char* open, const char* close, const E& item, int64_t least, int64_t most) {
        const E more = E::repeat(E::sequence({comma(), item}), std::max<int64_t>(least - 1, 0),
                                 most < 0 ? -1 : std::max<int64_t>(most - 1, 0));
        const E some = E::sequence({item, more});
        E inside = most == 0 ? E::sequence({}) : least == 0 ? E::optional(some) : some;
        return E::sequence({E::literal(open), space(), std::move(inside), space(), E::literal(close)});
    }
    int32_t add_rule(E expr) {
        rules_.push_back(std::move(expr));
        return static_cast<int32_t>(rules_.size()) - 1;
    }
    static int64_t count(const Json& schema, const char* key, int64_t otherwise, const std::string& where) {
        const auto found = schema.find(key);
        if (found == schema.end()) return otherwise;
        if (!found->is_number_integer() || found->get<int64_t>() < 0 || found->get<int64_t>() > kMostItems) {
            fail(where, fmt::format("{} must be a whole number from 0 to {}", key, kMostItems));
        }
        return found->get<int64_t>();
    }
    static void check_keywords(const Json& schema, const std::string& where) {
        static const std::set<std::string, std::less<>> kRefused{"not",
                                                                 "if",
                                                                 "then",
                                                                 "else",
                                                                 "patternProperties",
                                                                 "propertyNames",
                                                                 "dependentRequired",
                                                                 "dependentSchemas",
                                                                 "dependencies",
                                                                 "uniqueItems",
                                                                 "contains",
                                                                 "minContains",
                                                                 "maxContains",
                                                                 "multipleOf",
                                                                 "unevaluatedProperties",
                                                                 "unevaluatedItems",
                                                                 "minProperties",
                                                                 "maxProperties",
                                                                 "$dynamicRef",
                                                                 "$recursiveRef"};
        for (const auto& [key, unused] : schema.items()) {
            const bool harmless = (key == "uniqueItems" || key == "unevaluatedProperties") && unused == false;
            if (kRefused.contains(key) && !harmless) fail(where, fmt::format("the keyword \"{}\" is not supported", key));
        }
    }

    E value(const Json& schema, const std::string& where) {
        if (++depth_ > kDeepest) fail(where, "nested too deep");
        E result = value_of(schema, where);
        --depth_;
        return result;
    }
    E value_of(const Json& schema, const std::string& where) {
        if (schema.is_boolean()) {
            if (!schema.get<bool>()) fail(where, "the schema \"false\" allows nothing");
            return E::rule(kValue);
        }
        if (!schema.is_object()) fail(where, "a schema must be an object");
        check_keywords(schema, where);
        if (const auto found = schema.find("$ref"); found != schema.end()) return reference(*found, where);
        if (const auto found = schema.find("const"); found != schema.end()) return E::literal(dump(*found));
        if (const auto found = schema.find("enum"); found != schema.end()) return enumeration(*found, where);
        for (const char* key : {"anyOf", "oneOf"}) {
            if (const auto found = schema.find(key); found != schema.end()) return any_of(*found, where + "." + key);
        }
        if (const auto found = schema.find("allOf"); found != schema.end()) {
            if (!found->is_array() || found->size() != 1) fail(where, "allOf is supported with one schema only");
            return value((*found)[0], where + ".allOf[0]");
        }
        const auto type = schema.find("type");
        if (type == schema.end()) return untyped(schema, where);
        if (type->is_string()) return typed(schema, type->get<std::string>(), where);
        if (!type->is_array() || type->empty()) fail(where, "type must be a string or an array of strings");
        std::vector<E> parts;
        for (const Json& one : *type) {
            if (!one.is_string()) fail(where, "type must be a string or an array of strings");
            parts.push_back(typed(schema, one.get<std::string>(), where));
        }
        return E::choice(std::move(parts));
    }
    E untyped(const Json& schema, const std::string& where) {
        if (schema.contains("properties") || schema.contains("required")) return object_of(schema, where);
        if (schema.contains("items") || schema.contains("prefixItems")) return array_of(schema, where);
        if (schema.contains("pattern") || schema.contains("format")) return string_of(schema, where);
        return E::rule(kValue);
    }
    E typed(const Json& schema, const std::string& type, const std::string& where) {
        if (type == "object") return object_of(schema, where);
        if (type == "array") return array_of(schema, where);
        if (type == "string") return string_of(schema, where);
        if (type == "integer") return integer_of(schema, where);
        if (type == "boolean") return E::choice({E::literal("true"), E::literal("false")});
        if (type == "null") return E::literal("null");
        if (type != "number") fail(where, fmt::format("\"{}\" is no type of JSON", type));
        for (const char* key : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}) {
            if (schema.contains(key)) fail(where, fmt::format("{} is supported for integers only", key));
        }
        return number();
    }
    E reference(const Json& json, const std::string& where) {
        const std::string text = json.is_string() ? json.get<std::string>() : "";
        if (!text.starts_with('#')) fail(where, "$ref must point into the schema itself: \"#/$defs/NAME\"");
        const auto [found, fresh] = references_.emplace(text, 0);
        if (!fresh) return E::rule(found->second);
        const int32_t rule = found->second = add_rule({});
        try {
            const Json& target = root_.at(Json::json_pointer(text.substr(1)));
            E expr = value(target, text);
            rules_[static_cast<size_t>(rule)] = std::move(expr);
        } catch (const Json::exception&) {
            fail(where, fmt::format("$ref \"{}\" points to nothing", text));
        }
        return E::rule(rule);
    }
    static E enumeration(const Json& values, const std::string& where) {
        if (!values.is_array() || values.empty()) fail(where, "enum must be an array, not empty");
        std::vector<E> parts;
        for (const Json& one : values) parts.push_back(E::literal(dump(one)));
        return E::choice(std::move(parts));
    }
    E any_of(const Json& schemas, const std::string& where) {
        if (!schemas.is_array() || schemas.empty()) fail(where, "must be an array of schemas, not empty");
        std::vector<E> parts;
        for (size_t i = 0; i < schemas.size(); ++i) parts.push_back(value(schemas[i], fmt::format("{}[{}]", where, i)));
        return E::choice(std::move(parts));
    }

    // Properties come in the schema's order. `rest` = what may follow once something stands there, so that commas are right.
    E object_of(const Json& schema, const std::string& where) {
        static const Json kNone = Json::object();
        const auto found = schema.find("properties");
        const Json& properties = found == schema.end() ? kNone : *found;
        if (!properties.is_object()) fail(where, "properties must be an object");
        std::set<std::string> required;
        if (const auto list = schema.find("required"); list != schema.end()) {
            if (!list->is_array()) fail(where, "required must be an array");
            for (const Json& name : *list) {
                if (!name.is_string()) fail(where, "required must be an array of strings");
                required.insert(name.get<std::string>());
            }
        }
        const auto more = schema.find("additionalProperties");
        const bool open = more == schema.end() ? properties.empty() : *more != false;
        std::vector<std::pair<E, bool>> members;  // and whether each is required
        for (const auto& [name, property] : properties.items()) {
            const int32_t rule = add_rule(value(property, where + "." + name));
            members.emplace_back(E::sequence({E::literal(dump(Json(name))), colon(), E::rule(rule)}), required.erase(name) > 0);
        }
        for (const std::string& name : required) {
            members.emplace_back(E::sequence({E::literal(dump(Json(name))), colon(), E::rule(kValue)}), true);
        }
        E extra = E::sequence(
            {E::rule(kString), colon(),
             more == schema.end() || more->is_boolean() ? E::rule(kValue) : value(*more, where + ".additionalProperties")});
        return members_of(members, open ? std::optional<E>(std::move(extra)) : std::nullopt);
    }
    E members_of(const std::vector<std::pair<E, bool>>& members, const std::optional<E>& extra) {
        const auto then = [](const E& member) { return E::sequence({comma(), member}); };
        E rest = extra ? E::repeat(then(*extra), 0) : E::sequence({});
        E nothing_yet = extra ? E::optional(E::sequence({*extra, E::repeat(then(*extra), 0)})) : E::sequence({});
        for (size_t i = members.size(); i-- > 0;) {
            const auto& [member, needed] = members[i];
            const E rest_rule = E::rule(add_rule(std::move(rest)));
            E with = E::sequence({member, rest_rule});
            nothing_yet = needed ? std::move(with) : E::choice({std::move(with), std::move(nothing_yet)});
            rest = E::sequence({needed ? then(member) : E::optional(then(member)), rest_rule});
        }
        return E::sequence({E::literal("{"), space(), std::move(nothing_yet), space(), E::literal("}")});
    }
    E array_of(const Json& schema, const std::string& where) {
        const int64_t least = count(schema, "minItems", 0, where), most = count(schema, "maxItems", -1, where);
        if (most >= 0 && most < least) fail(where, "maxItems is less than minItems");
        std::vector<E> first;
        if (const auto prefix = schema.find("prefixItems"); prefix != schema.end()) {
            if (!prefix->is_array()) fail(where, "prefixItems must be an array");
            for (size_t i = 0; i < prefix->size(); ++i)
                first.push_back(value((*prefix)[i], fmt::format("{}.prefixItems[{}]", where, i)));
        }
        const auto items = schema.find("items");
        const bool closed = items != schema.end() && *items == false;
        const E item =
            items == schema.end() || items->is_boolean() ? E::rule(kValue) : E::rule(add_rule(value(*items, where + ".items")));
        if (first.empty()) return braces("[", "]", item, least, closed ? 0 : most);
        std::vector<E> parts{E::literal("["), space()};
        for (size_t i = 0; i < first.size(); ++i) parts.push_back(i == 0 ? first[i] : E::sequence({comma(), first[i]}));
        const auto given = std::ssize(first);
        if (!closed)
            parts.push_back(E::repeat(E::sequence({comma(), item}), std::max<int64_t>(least - given, 0),
                                      most < 0 ? -1 : std::max<int64_t>(most - given, 0)));
        parts.push_back(space());
        parts.push_back(E::literal("]"));
        return E::sequence(std::move(parts));
    }
    E string_of(const Json& schema, const std::string& where) {
        if (const auto pattern = schema.find("pattern"); pattern != schema.end()) {
            if (!pattern->is_string()) fail(where, "pattern must be a string");
            return quoted(parse_regex(pattern->get<std::string>(), RegexUse::kJsonString));
        }
        if (const auto format = schema.find("format"); format != schema.end() && format->is_string()) {
            static const std::map<std::string, const char*, std::less<>> kFormats{
                {"date", R"(^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$)"},
                {"time", R"(^([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$)"},
                {"date-time",
                 R"(^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$)"},
                {"uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
                {"email", R"(^[A-Za-z0-9_.+-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){1,4}$)"},
                {"hostname",
                 R"(^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?){0,5}$)"},
                {"ipv4", R"(^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$)"},
                {"ipv6", "^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$"}};
            const auto known = kFormats.find(format->get<std::string>());
            if (known != kFormats.end()) return quoted(parse_regex(known->second, RegexUse::kJsonString));
        }
        const int64_t least = count(schema, "minLength", 0, where), most = count(schema, "maxLength", -1, where);
        if (most >= 0 && most < least) fail(where, "maxLength is less than minLength");
        return least == 0 && most < 0 ? E::rule(kString) : quoted(E::repeat(string_character(), least, most));
    }
    static E integer_of(const Json& schema, const std::string& where) {
        constexpr int64_t kFar = 999'999'999'999'999'999;
        int64_t low = -kFar, high = kFar;
        bool bounded = false;
        const auto bound = [&](const char* key, int64_t shift, bool lower) {
            const auto found = schema.find(key);
            if (found == schema.end()) return;
            if (!found->is_number() || std::abs(found->get<double>()) > 9e17)
                fail(where, fmt::format("{} must be a number below 9e17", key));
            const auto limit = found->is_number_integer() ? found->get<int64_t>() : static_cast<int64_t>(found->get<double>());
            if (lower) low = std::max(low, limit + shift);
            if (!lower) high = std::min(high, limit + shift);
            bounded = true;
        };
        bound("minimum", 0, true);
        bound("exclusiveMinimum", 1, true);
        bound("maximum", 0, false);
        bound("exclusiveMaximum", -1, false);
        if (low > high) fail(where, "no integer lies between minimum and maximum");
        return bounded ? integers(low, high) : integer();
    }
};

}  // namespace

Grammar parse_json_schema(const Json& schema) { return SchemaCompiler(schema).schema(); }

Grammar any_json_object() {
    static const Json kAny = Json::object();
    return SchemaCompiler(kAny).object();
}

}  // namespace fathom
