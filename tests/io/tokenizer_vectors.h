// Published tokenizers and vectors of ../shared, for the tests that compare with them.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "base/file.h"
#include "io/tokenizer.h"

namespace fathom::test {

inline std::filesystem::path shared_tokenizers() { return std::filesystem::path(FATHOM_SHARED) / "data/tokenizers"; }

// The text of a file of ../shared that is stored as FILE or FILE.xz.
inline std::string shared_text(const std::filesystem::path& file) {
    const std::filesystem::path path = shared_tokenizers() / file;
    if (std::filesystem::exists(path)) return read_text(path);
    std::string name = file.string();
    for (char& c : name)
        if (c == '/') c = '_';
    const std::filesystem::path unpacked = std::filesystem::path(testing::TempDir()) / ("fathom_" + name);
    if (!std::filesystem::exists(unpacked)) {
        const std::string command = "xz -dc '" + path.string() + ".xz' > '" + unpacked.string() + ".part' && mv '" +
                                    unpacked.string() + ".part' '" + unpacked.string() + "'";
        if (std::system(command.c_str()) != 0) return {};
    }
    return read_text(unpacked);
}

inline std::string shared_config(const std::string& name) {
    const std::filesystem::path path = shared_tokenizers() / name / "tokenizer_config.json";
    return std::filesystem::exists(path) ? read_text(path) : std::string();
}

// Loaded once for all tests: under a sanitizer each takes seconds.
inline const Tokenizer& shared_tokenizer(const std::string& name) {
    static std::map<std::string, Tokenizer> loaded;
    auto it = loaded.find(name);
    if (it == loaded.end())
        it = loaded.emplace(name, Tokenizer::from_json(shared_text(name + "/tokenizer.json"), shared_config(name))).first;
    return it->second;
}

inline std::vector<nlohmann::json> json_lines(const std::string& text) {
    std::vector<nlohmann::json> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);)
        if (!line.empty()) lines.push_back(nlohmann::json::parse(line));
    return lines;
}

}  // namespace fathom::test
