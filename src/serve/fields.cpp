#include "serve/fields.h"

#include <fmt/format.h>
#include <cmath>

namespace fathom {
namespace {

constexpr int kDeepest = 128;  // nesting of a request; JSON parsers recurse over what they read

std::string_view type_name(const Json& value) {
    if (value.is_number_integer()) return "an integer";
    if (value.is_number()) return "a number";
    if (value.is_string()) return "a string";
    if (value.is_boolean()) return "a boolean";
    if (value.is_array()) return "an array";
    return value.is_object() ? "an object" : "null";
}

}  // namespace

Fields::Fields(const Json& object, std::string where) : object_(&object), where_(std::move(where)) {
    if (!object.is_object()) {
        throw ApiError(400,
                       fmt::format("{} must be an object, not {}", where_.empty() ? "the request" : where_, type_name(object)),
                       where_);
    }
}

std::string Fields::name_of(std::string_view key) const {
    return where_.empty() ? std::string(key) : fmt::format("{}.{}", where_, key);
}

void Fields::fail(std::string_view key, const std::string& what) const {
    const std::string name = name_of(key);
    throw ApiError(400, fmt::format("{}: {}", name, what), name);
}

const Json* Fields::find(std::string_view key) {
    known_.emplace(key);
    const auto found = object_->find(key);
    return found == object_->end() || found->is_null() ? nullptr : &*found;
}

const Json& Fields::require(std::string_view key) {
    const Json* value = find(key);
    if (value == nullptr) fail(key, "this field is required");
    return *value;
}

std::optional<double> Fields::number(std::string_view key, double least, double most) {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number()) fail(key, fmt::format("must be a number, not {}", type_name(*value)));
    const auto number = value->get<double>();
    if (!(number >= least && number <= most))
        fail(key, fmt::format("must be from {:g} to {:g}, not {:g}", least, most, number));
    return number;
}

std::optional<int64_t> Fields::integer(std::string_view key, int64_t least, int64_t most) {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    const bool whole = value->is_number_float() && std::floor(value->get<double>()) == value->get<double>() &&
                       std::abs(value->get<double>()) < 0x1p53;
    if (!value->is_number_integer() && !whole) fail(key, fmt::format("must be an integer, not {}", type_name(*value)));
    const bool huge = value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(most);
    const auto number = whole ? static_cast<int64_t>(value->get<double>()) : value->get<int64_t>();
    if (huge || number < least || number > most) {
        if (most == std::numeric_limits<int64_t>::max()) fail(key, fmt::format("must be {} or more", least));
        fail(key, fmt::format("must be from {} to {}", least, most));
    }
    return number;
}

std::optional<bool> Fields::boolean(std::string_view key) {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_boolean()) fail(key, fmt::format("must be true or false, not {}", type_name(*value)));
    return value->get<bool>();
}

std::optional<std::string> Fields::string(std::string_view key) {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) fail(key, fmt::format("must be a string, not {}", type_name(*value)));
    return value->get<std::string>();
}

std::string Fields::required_string(std::string_view key) {
    (void)require(key);
    return *string(key);
}

std::optional<Fields> Fields::object(std::string_view key) {
    const Json* value = find(key);
    return value == nullptr ? std::nullopt : std::optional<Fields>(std::in_place, *value, name_of(key));
}

std::vector<std::string> Fields::strings(std::string_view key) {
    const Json* value = find(key);
    if (value == nullptr) return {};
    if (!value->is_array()) fail(key, fmt::format("must be an array of strings, not {}", type_name(*value)));
    std::vector<std::string> result;
    for (const Json& item : *value) {
        if (!item.is_string()) fail(key, fmt::format("must be an array of strings, and holds {}", type_name(item)));
        result.push_back(item.get<std::string>());
    }
    return result;
}

std::vector<std::string> Fields::string_or_strings(std::string_view key) {
    const Json* value = find(key);
    if (value != nullptr && value->is_string()) return {value->get<std::string>()};
    return strings(key);
}

std::vector<int32_t> Fields::token_ids(std::string_view key) {
    const Json* value = find(key);
    if (value == nullptr) return {};
    if (!value->is_array()) fail(key, fmt::format("must be an array of token ids, not {}", type_name(*value)));
    std::vector<int32_t> ids;
    ids.reserve(value->size());
    for (const Json& item : *value) {
        const bool fits =
            item.is_number_integer() && item.get<int64_t>() >= 0 && item.get<int64_t>() <= std::numeric_limits<int32_t>::max();
        if (!fits) fail(key, fmt::format("must be an array of token ids, and holds {}", dump(item).substr(0, 40)));
        ids.push_back(item.get<int32_t>());
    }
    return ids;
}

std::vector<std::string> Fields::unknown() const {
    std::vector<std::string> keys;
    for (const auto& [key, value] : object_->items()) {
        if (!known_.contains(key)) keys.push_back(name_of(key));
    }
    return keys;
}

Json parse_body(std::string_view body) {
    int depth = 0;
    const auto within_depth = [&](int, Json::parse_event_t event, Json&) {
        const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
        const bool closes = event == Json::parse_event_t::object_end || event == Json::parse_event_t::array_end;
        depth += opens ? 1 : closes ? -1 : 0;
        if (depth > kDeepest) throw ApiError(400, fmt::format("the request's JSON is nested more than {} deep", kDeepest));
        return true;
    };
    try {
        Json json = Json::parse(body, within_depth);
        if (!json.is_object()) throw ApiError(400, "the request's body must be a JSON object");
        return json;
    } catch (const Json::exception& error) {    // also numbers beyond what a double holds
        const std::string what = error.what();  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
        throw ApiError(400, "the request's body is not JSON: " + what.substr(std::min(what.find("] ") + 2, what.size())));
    }
}

}  // namespace fathom
