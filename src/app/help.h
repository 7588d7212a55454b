// What a user reads when he asks for help or mistypes: the layout of --help, and the nearest known word.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

// Lays out --help in 80 columns: what the verb does, its examples (the CLI11 footer of the verb), then arguments and options by
// group with their defaults, and last the options that every verb understands.
class HelpFormatter : public CLI::Formatter {
public:
    std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override;
};

// "fathom data prepare": the verb and its parents, separated by blanks.
[[nodiscard]] std::string full_name(const CLI::App& app);

// Number of single-character insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`.
[[nodiscard]] int edit_distance(std::string_view a, std::string_view b);

// The candidate nearest to `word`, if it is near enough to be what the user meant: at most a third of the letters differ, or
// `word` is the beginning of exactly one candidate.
[[nodiscard]] std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates);

// One sentence on the arguments that no option or verb of `app` took, with the nearest match where there is one.
[[nodiscard]] std::string describe_unknown(const CLI::App& app);

}  // namespace fathom
