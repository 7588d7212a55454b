// One table of a configuration file: typed, checked, and written back as it was understood.
#pragma once

#include <array>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace toml {
inline namespace v3 {
class node;   // NOLINT(readability-identifier-naming): toml++'s names
class table;  // NOLINT(readability-identifier-naming)
}  // namespace v3
}  // namespace toml

namespace fathom {

// Throws Error{kInput} "key: what".
[[noreturn]] void fail_setting(const std::string& key, const std::string& what);

// Every key that is read is ticked off, and written back: defaults where it is missing, absolute paths. So the table becomes
// the effective one. finish() complains about keys that nobody read. All readers throw Error{kInput} naming the key for a value
// of a wrong type or out of range, and leave `value` alone where the key is missing.
class TomlSection {
public:
    TomlSection(std::string name, toml::table& table) : name_(std::move(name)), table_(&table) {}
    // The table of that name, made where it is missing.
    [[nodiscard]] static TomlSection of(toml::table& root, const std::string& name);

    void number(std::string_view key, double& value, double low, double high);
    void integer(std::string_view key, int64_t& value, int64_t low, int64_t high = int64_t{1} << 40);
    void boolean(std::string_view key, bool& value);
    void numbers(std::string_view key, std::vector<double>& values, double low, double high);
    void texts(std::string_view key, std::vector<std::string>& values);  // one or a list
    void text(std::string_view key, std::string& value);
    // Empty when the key is missing, and only then.
    [[nodiscard]] std::string text(std::string_view key);
    // Relative to `base`; empty when the key is missing.
    [[nodiscard]] std::filesystem::path path(std::string_view key, const std::filesystem::path& base);
    [[nodiscard]] std::vector<std::filesystem::path> paths(std::string_view key, const std::filesystem::path& base);
    template <class E, size_t N>
    void choice(std::string_view key, E& value, const std::array<std::pair<std::string_view, E>, N>& spellings) {
        const std::string found = text(key);
        std::string known;
        for (const auto& [spelling, meaning] : spellings) {
            if (spelling == found) value = meaning;
            if (found.empty() && meaning == value) set(key, std::string(spelling));
            if (spelling == found) return;
            known += (known.empty() ? "" : ", ") + std::string(spelling);
        }
        if (!found.empty()) fail_setting(full(key), "\"" + found + "\" is not one of " + known);
    }

    void set(std::string_view key, const std::string& value);  // what the key is understood to say
    [[nodiscard]] toml::node* take(std::string_view key);
    [[nodiscard]] std::string full(std::string_view key) const { return name_ + "." + std::string(key); }
    [[nodiscard]] std::vector<std::string> rest() const;  // keys nobody asked for
    void finish() const;

private:
    std::string name_;
    toml::table* table_;
    std::set<std::string> seen_;

    [[nodiscard]] std::vector<std::string> list(std::string_view key, const toml::node& node);
    [[nodiscard]] std::string text_of(std::string_view key, const toml::node& node) const;
};

// Readers of sections beyond those of TrainConfig, by name; relative paths are below `base`.
using SectionReaders = std::map<std::string, std::function<void(TomlSection& section, const std::filesystem::path& base)>>;

// A table per section; those of a list in one line each.
[[nodiscard]] std::string to_toml_text(const toml::table& root);

// "a.b.c=value": the value as TOML writes it, or a bare text. Throws Error{kUsage} for anything else.
void apply_override(toml::table& root, const std::string& setting);

}  // namespace fathom
