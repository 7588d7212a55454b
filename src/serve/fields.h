// The fields of a JSON object that a client sent: typed, within bounds, and named when they are wrong.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "serve/api_error.h"

namespace fathom {

// A field that is null counts as absent. All readers throw ApiError{400} naming the field.
class Fields {
public:
    // `where`: what the object is called, e.g. "messages[0]"; empty for the request itself. The JSON must outlive it.
    explicit Fields(const Json& object, std::string where = {});

    [[nodiscard]] const Json* find(std::string_view key);
    [[nodiscard]] const Json& require(std::string_view key);
    [[nodiscard]] std::optional<double> number(std::string_view key, double least, double most);
    [[nodiscard]] std::optional<int64_t> integer(std::string_view key, int64_t least,
                                                 int64_t most = std::numeric_limits<int64_t>::max());
    [[nodiscard]] std::optional<bool> boolean(std::string_view key);
    [[nodiscard]] bool flag(std::string_view key) { return boolean(key).value_or(false); }
    [[nodiscard]] std::optional<std::string> string(std::string_view key);
    [[nodiscard]] std::string required_string(std::string_view key);
    [[nodiscard]] std::optional<Fields> object(std::string_view key);
    // Empty when absent.
    [[nodiscard]] std::vector<std::string> strings(std::string_view key);  // an array of strings
    [[nodiscard]] std::vector<std::string> string_or_strings(std::string_view key);
    [[nodiscard]] std::vector<int32_t> token_ids(std::string_view key);

    // "messages[0].role"
    [[nodiscard]] std::string name_of(std::string_view key) const;
    [[noreturn]] void fail(std::string_view key, const std::string& what) const;  // "KEY: what"
    // Keys that nobody asked for.
    [[nodiscard]] std::vector<std::string> unknown() const;
    [[nodiscard]] const Json& json() const { return *object_; }

private:
    const Json* object_;
    std::string where_;
    std::set<std::string, std::less<>> known_;
};

// The body of a request. Throws ApiError{400} saying where it stops being a JSON object.
[[nodiscard]] Json parse_body(std::string_view body);

}  // namespace fathom
