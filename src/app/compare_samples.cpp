// fathom compare-samples: two files of rejection-sample on the same questions.
#include <fmt/format.h>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "app/verb.h"
#include "base/error.h"
#include "base/file.h"
#include "rl/statistics.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
    std::string before, after;
    double min_reward = 1;
};

// Whether the first answer to each prompt passed.
std::map<std::string, bool> first_verdicts(const Options& options, const std::string& file) {
    std::map<std::string, bool> verdicts;
    std::istringstream lines(read_text(file));
    int64_t number = 1;
    for (std::string line; std::getline(lines, line); ++number) {
        const Json object = Json::parse(line, nullptr, false);
        if (!object.is_object() || !object.contains("prompt") || !object.contains("reward"))
            throw Error(ErrorKind::kInput, fmt::format("{}:{}: needs \"prompt\" and \"reward\"", file, number));
        const bool passed = object["reward"].is_number() && object["reward"].get<double>() >= options.min_reward;
        verdicts.try_emplace(object["prompt"].dump(), passed);
    }
    return verdicts;
}

void compare(const Options& options, const Globals& globals) {
    const auto before = first_verdicts(options, options.before), after = first_verdicts(options, options.after);
    int64_t both = 0, gained = 0, lost = 0, right_before = 0, right_after = 0;
    for (const auto& [prompt, passed] : before) {
        const auto found = after.find(prompt);
        if (found == after.end()) continue;
        ++both;
        right_before += passed ? 1 : 0;
        right_after += found->second ? 1 : 0;
        gained += !passed && found->second ? 1 : 0;
        lost += passed && !found->second ? 1 : 0;
    }
    if (both == 0) throw Error(ErrorKind::kInput, "the files share no prompt");
    const double n = static_cast<double>(both), p = mcnemar(gained, lost);
    const double first = static_cast<double>(right_before) / n, second = static_cast<double>(right_after) / n;
    if (globals.json) {
        fmt::print(
            "{}\n",
            Json{{"items", both}, {"before", first}, {"after", second}, {"gained", gained}, {"lost", lost}, {"p", p}}.dump());
        return;
    }
    fmt::print("{} questions: pass@1 {:.3f} -> {:.3f}; gained {}, lost {}, McNemar p = {:.2g}\n", both, first, second, gained,
               lost, p);
}

}  // namespace

void add_compare_samples(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<Options>();
    CLI::App* verb =
        app.add_subcommand("compare-samples", "Compare two models' answers to the same questions (McNemar's test)");
    verb->footer(
        "Examples:\n"
        "  fathom rejection-sample BEFORE valid.jsonl --reward countdown --out before.jsonl\n"
        "  fathom rejection-sample AFTER valid.jsonl --reward countdown --out after.jsonl\n"
        "  fathom compare-samples before.jsonl after.jsonl --json");
    verb->add_option("before", options->before, "JSON Lines with \"prompt\" and \"reward\"")->required()->type_name("FILE");
    verb->add_option("after", options->after, "the same of the other model")->required()->type_name("FILE");
    verb->add_option("--min-reward", options->min_reward, "from here on an answer has passed")->type_name("R");
    verb->callback([options, &globals] { compare(*options, globals); });
}

}  // namespace fathom
