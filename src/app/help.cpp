#include "app/help.h"

#include <fmt/format.h>
#include <algorithm>
#include <cctype>
#include <limits>
#include <sstream>

namespace fathom {
namespace {

constexpr size_t kWidth = 80, kColumn = 30;  // characters per line; where descriptions begin

// `text` broken at blanks so that lines end before kWidth; lines after the first are indented by `indent`.
std::string wrap(const std::string& text, size_t indent, size_t column) {
    std::string result;
    std::istringstream words(text);
    for (std::string word; words >> word;) {
        if (column > indent && column + 1 + word.size() > kWidth) {
            result += "\n" + std::string(indent, ' ');
            column = indent;
        } else if (!result.empty()) {
            result += ' ';
            ++column;
        }
        result += word;
        column += word.size();
    }
    return result;
}

// Already in the verb's own list, or of no use there.
bool only_at_root(const CLI::Option& option) { return option.check_lname("help") || option.check_lname("version"); }

// "  term        description", the description wrapped beside the term or under it when the term is long.
std::string entry(const std::string& term, const std::string& description) {
    std::string line = "  " + term;
    if (description.empty()) return line + "\n";
    if (line.size() + 2 > kColumn)
        line += "\n" + std::string(kColumn, ' ');
    else
        line.resize(kColumn, ' ');
    return line + wrap(description, kColumn, kColumn) + "\n";
}

bool is_flag(const CLI::Option& option) { return option.get_items_expected_max() == 0; }

// CLI11 joins type and validators, "N:INT in [0 - 9]": choices are worth showing, ranges are left to the description.
std::string value_of(const CLI::Option& option) {
    const std::string type = option.get_type_name();
    const size_t colon = type.find(':');
    if (colon != type.npos && type.compare(colon, 2, ":{") == 0) return type.substr(colon + 1);
    return type.substr(0, colon);
}

std::string term_of(const CLI::Option& option) {
    std::string term = option.get_name(option.get_positional(), true);
    std::ranges::replace(term, ',', ' ');
    if (option.get_positional()) std::ranges::transform(term, term.begin(), [](unsigned char c) { return std::toupper(c); });
    if (option.nonpositional() && !is_flag(option)) term += " " + value_of(option);
    if (option.get_expected_max() > 1) term += " ...";
    return term;
}

std::string description_of(const CLI::Option& option) {
    std::string text = option.get_description();
    const std::string value = option.get_default_str();
    if (!is_flag(option) && !value.empty() && value != "\"\"" && value != "[]" && value != "{}") {
        text += fmt::format(" (default: {})", value);
    }
    if (option.get_required() && option.nonpositional()) text += " (required)";
    return text;
}

std::string usage_of(const CLI::App& app) {
    std::string line = "Usage: " + full_name(app);
    for (const CLI::Option* option : app.get_options()) {
        if (!option->get_positional()) continue;
        const std::string word = term_of(*option);
        line += option->get_required() ? " " + word : " [" + word + "]";
    }
    if (!app.get_subcommands({}).empty()) line += app.get_parent() == nullptr ? " VERB" : " ACTION";
    return wrap(line + " [options]", 7, 0) + "\n";
}

std::string options_of(const CLI::App& app, const std::string& title_of_default, bool inherited) {
    std::string result;
    const auto positionals = app.get_options([](const CLI::Option* option) { return option->get_positional(); });
    if (!positionals.empty()) result += "\nArguments:\n";
    for (const CLI::Option* option : positionals) result += entry(term_of(*option), description_of(*option));
    for (const std::string& group : app.get_groups()) {
        const auto options = app.get_options([&](const CLI::Option* option) {
            return option->nonpositional() && option->get_group() == group && !(inherited && only_at_root(*option));
        });
        if (group.empty() || options.empty()) continue;
        result += fmt::format("\n{}:\n", group == "Options" ? title_of_default : group);
        for (const CLI::Option* option : options) result += entry(term_of(*option), description_of(*option));
    }
    return result;
}

std::string verbs_of(const CLI::App& app) {
    std::string result;
    std::vector<std::string> groups;
    for (const CLI::App* verb : app.get_subcommands({})) {
        if (std::ranges::find(groups, verb->get_group()) == groups.end()) groups.push_back(verb->get_group());
    }
    for (const std::string& group : groups) {
        if (group.empty()) continue;
        result += fmt::format("\n{}:\n", group == "Subcommands" ? "Actions" : group);
        for (const CLI::App* verb : app.get_subcommands({})) {
            if (verb->get_group() == group) result += entry(verb->get_name(), verb->get_description());
        }
    }
    return result;
}

}  // namespace

std::string full_name(const CLI::App& app) {
    return app.get_parent() == nullptr ? app.get_name() : full_name(*app.get_parent()) + " " + app.get_name();
}

std::string HelpFormatter::make_help(const CLI::App* app, std::string /*name*/, CLI::AppFormatMode /*mode*/) const {
    const CLI::App* root = app;
    while (root->get_parent() != nullptr) root = root->get_parent();
    std::string text = wrap(app->get_description(), 0, 0) + "\n\n";
    if (!app->get_footer().empty()) text += app->get_footer() + "\n\n";
    text += usage_of(*app) + verbs_of(*app) + options_of(*app, "Options", false);
    if (app != root) text += options_of(*root, "Options of every verb", true);
    if (app == root)
        text +=
            "\n`fathom VERB --help` explains a verb. Exit codes: 0 done, 1 bad input or file,\n2 bad usage or device, 130 "
            "interrupted.\n";
    return text;
}

int edit_distance(std::string_view a, std::string_view b) {
    const size_t columns = b.size() + 1;
    std::vector<int> cost((a.size() + 1) * columns);
    const auto at = [&](size_t i, size_t j) -> int& { return cost[i * columns + j]; };
    for (size_t i = 0; i <= a.size(); ++i) {
        for (size_t j = 0; j <= b.size(); ++j) {
            if (i == 0 || j == 0) {
                at(i, j) = static_cast<int>(i + j);
                continue;
            }
            at(i, j) = std::min({at(i - 1, j) + 1, at(i, j - 1) + 1, at(i - 1, j - 1) + (a[i - 1] == b[j - 1] ? 0 : 1)});
            const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped) at(i, j) = std::min(at(i, j), at(i - 2, j - 2) + 1);
        }
    }
    return cost.back();
}

std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates) {
    const std::string* best = nullptr;
    int least = std::numeric_limits<int>::max();
    for (const std::string& candidate : candidates) {
        const int distance = edit_distance(word, candidate);
        if (distance < least) best = &candidate, least = distance;
    }
    const auto letters = static_cast<int>(word.size() - std::min(word.find_first_not_of('-'), word.size()));
    if (best != nullptr && least <= std::max(1, (letters + 1) / 3)) return *best;
    const auto begins = [&](const std::string& candidate) { return candidate.starts_with(word); };
    if (letters >= 2 && std::ranges::count_if(candidates, begins) == 1) return *std::ranges::find_if(candidates, begins);
    return std::nullopt;
}

std::string describe_unknown(const CLI::App& app) {
    const CLI::App* verb = &app;
    while (!verb->get_subcommands().empty()) verb = verb->get_subcommands().front();
    const auto unknown = app.remaining(true);
    const auto is_option = [](const std::string& argument) { return argument.starts_with('-'); };
    const auto first = std::ranges::find_if(unknown, is_option);  // a positional argument may be left over only because of it
    const std::string given = unknown.empty() ? "" : first != unknown.end() ? *first : unknown.front();
    const std::string word = given.substr(0, given.find('='));
    const bool option = word.starts_with('-');
    std::vector<std::string> candidates;
    for (const CLI::App* a = verb; option && a != nullptr; a = a->get_parent()) {
        for (const CLI::Option* known : a->get_options()) {
            for (const std::string& name : known->get_lnames()) candidates.push_back("--" + name);
        }
    }
    if (!option) {
        for (const CLI::App* known : verb->get_subcommands({})) candidates.push_back(known->get_name());
    }
    const char* kind = option ? "option" : candidates.empty() ? "argument" : verb == &app ? "verb" : "action";
    std::string text = fmt::format("{} has no {} \"{}\"", full_name(*verb), kind, word);
    if (!option && candidates.empty()) text = fmt::format("{} does not expect the argument \"{}\"", full_name(*verb), word);
    if (const auto meant = nearest(word, candidates)) text += fmt::format("; did you mean {}?", *meant);
    return text + fmt::format(" (see {} --help)", full_name(*verb));
}

}  // namespace fathom
