#include "rl/json_lines.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "base/error.h"
#include "base/file.h"

namespace fathom {

void for_each_json_line(std::span<const std::filesystem::path> files, const std::function<void(const nlohmann::json&)>& visit) {
    for (const auto& file : files) {
        std::istringstream lines(read_text(file));
        std::string line;
        for (int64_t number = 1; std::getline(lines, line); ++number) {
            if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
            const std::string where = fmt::format("{}:{}", file.string(), number);
            try {
                visit(nlohmann::json::parse(line));
            } catch (const nlohmann::json::exception& error) {
                throw Error(ErrorKind::kInput, fmt::format("{}: not a line of JSON ({})", where, error.what()));
            } catch (const Error& error) {
                throw error.within(where);
            }
        }
    }
}

}  // namespace fathom
