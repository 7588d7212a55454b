// Files of JSON Lines, with errors that say where.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>

namespace fathom {

// Calls visit(value) for every line that is not blank. Throws Error{kInput} naming file and line for what is no JSON, and adds
// them to what `visit` throws.
void for_each_json_line(std::span<const std::filesystem::path> files, const std::function<void(const nlohmann::json&)>& visit);

}  // namespace fathom
