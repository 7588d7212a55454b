// Files of items: JSON Lines, as tasks are published.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

namespace fathom {

using EvalJson = nlohmann::ordered_json;

struct ItemFile {
    std::string path;
    int64_t limit = 0;      // stop behind so many items; 0: none
    bool skip_bad = false;  // leave out lines that cannot be read, or not be used
};

// Gives every record to `take`, which returns whether it was one of the items that `limit` counts (few-shot examples are not)
// and throws Error{kInput} for what it cannot use. Returns how many lines were left out. Throws Error{kInput} naming the file,
// the line and, where the line is no JSON, the field in which it stops being so; Error{kIo} for a file that cannot be read.
int64_t read_items(const ItemFile& file, const std::function<bool(const EvalJson& record)>& take);

// A string or a number of a record as text. Throws Error{kInput} naming the field when the record has none of the `names`.
[[nodiscard]] std::string text_field(const EvalJson& record, std::span<const char* const> names);

}  // namespace fathom
