#include <fmt/format.h>
#include <fmt/ranges.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/error.h"
#include "rl/answer.h"
#include "rl/countdown.h"
#include "rl/reward.h"
#include "rl/reward_model.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

constexpr double kNotJudged = std::numeric_limits<double>::quiet_NaN();

// A rule that looks at one answer at a time; nothing: the record lacks what the rule needs.
class RuleReward : public Reward {
public:
    using Rule = std::function<std::optional<double>(const RewardInput&)>;
    RuleReward(std::string name, std::string needs, Rule rule)
        : name_(std::move(name)),
          needs_(std::move(needs)),
          rule_(std::move(rule)) {}

    [[nodiscard]] std::string name() const override { return name_; }
    [[nodiscard]] std::vector<double> score(std::span<const RewardInput> answers, std::vector<std::string>& problems) override {
        std::vector<double> values;
        for (const RewardInput& answer : answers) {
            values.push_back(rule_(answer).value_or(kNotJudged));
            if (std::isnan(values.back())) problems.push_back(fmt::format("{}: the prompt's record needs {}", name_, needs_));
        }
        return values;
    }

private:
    std::string name_, needs_;
    Rule rule_;
};

std::optional<double> math_reward(const RewardInput& input) {
    const auto found = input.record->find("answer");
    if (found == input.record->end() || !(found->is_string() || found->is_number())) return std::nullopt;
    const std::string reference = found->is_string() ? reference_answer(found->get<std::string>()) : found->dump();
    const std::optional<std::string> given = extract_answer(input.completion);
    return given && equivalent_answers(*given, reference) ? 1 : 0;
}

std::optional<double> countdown_reward(const RewardInput& input) {
    const auto nums = input.record->find("nums"), target = input.record->find("target");
    if (nums == input.record->end() || target == input.record->end() || !nums->is_array() || !target->is_number_integer())
        return std::nullopt;
    std::vector<int64_t> given;
    for (const Json& number : *nums) {
        if (!number.is_number_integer()) return std::nullopt;
        given.push_back(number.get<int64_t>());
    }
    switch (judge_countdown(countdown_answer(input.completion), given, target->get<int64_t>())) {
        case CountdownVerdict::kRight:
            return 1;
        case CountdownVerdict::kLegal:
            return 0.1;
        default:
            return 0;
    }
}

double format_reward(const RewardInput& input) {
    constexpr std::string_view kOpen = "<think>", kClose = "</think>", kSpaces = " \t\r\n";
    std::string_view text = input.completion;
    text.remove_prefix(std::min(text.find_first_not_of(kSpaces), text.size()));
    if (text.starts_with(kOpen)) text.remove_prefix(kOpen.size());  // or the prompt has opened it
    const size_t close = text.find(kClose);
    if (close == text.npos || text.find(kOpen) != text.npos) return 0;
    const std::string_view answer = text.substr(close + kClose.size());
    const bool once = answer.find(kClose) == answer.npos, said = answer.find_first_not_of(kSpaces) != answer.npos;
    return once && said ? 1 : 0;
}

// Letters of UTF-8 text: Latin ones by bytes, CJK ideographs U+4E00 .. U+9FFF by their three bytes.
double language_reward(const RewardInput& input, bool chinese) {
    int64_t latin = 0, ideographs = 0, other = 0;
    const std::string& text = input.completion;
    for (size_t i = 0; i < text.size(); ++i) {
        const auto c = static_cast<unsigned char>(text[i]);
        if (c < 0x80) {
            latin += (c | 0x20) >= 'a' && (c | 0x20) <= 'z' ? 1 : 0;
        } else if (c >= 0xC0) {
            const auto next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0;
            const bool cjk = (c == 0xE4 && next >= 0xB8) || (c > 0xE4 && c < 0xE9) || (c == 0xE9 && next <= 0xBF);
            const bool sign = c == 0xE2 || (c == 0xC2 && next < 0xC0) || (c == 0xE3 && next == 0x80) || c == 0xEF;
            ideographs += cjk ? 1 : 0;
            other += !cjk && !sign ? 1 : 0;
        }
    }
    const int64_t all = latin + ideographs + other;
    return all == 0 ? 1 : static_cast<double>(chinese ? ideographs : latin) / static_cast<double>(all);
}

double overlong_reward(const RewardInput& input, const RewardOptions& options) {
    const auto over = static_cast<double>(input.tokens - (options.max_completion_length - options.soft_overlong_cache));
    if (over <= 0) return 0;
    return options.soft_overlong_cache == 0 ? -1 : -std::min(1.0, over / static_cast<double>(options.soft_overlong_cache));
}

// Asks a program; what it leaves unanswered is asked again, then given up.
class ProgramReward : public Reward {
public:
    explicit ProgramReward(const RewardOptions& options) : options_(options) {}

    [[nodiscard]] std::string name() const override { return "program"; }
    [[nodiscard]] std::vector<double> score(std::span<const RewardInput> answers, std::vector<std::string>& problems) override {
        std::vector<double> values(answers.size(), kNotJudged);
        for (int64_t attempt = 0; attempt <= options_.retries; ++attempt) {
            std::vector<size_t> open;
            std::vector<std::string> lines;
            for (size_t i = 0; i < answers.size(); ++i) {
                if (!std::isnan(values[i])) continue;
                open.push_back(i);
                const Json line{{"completion", answers[i].completion}, {"record", *answers[i].record}};
                lines.push_back(line.dump(-1, ' ', false, Json::error_handler_t::replace));
            }
            if (open.empty()) break;
            const ProgramResult said = run_line_program(options_.program, lines, options_.program_dir, options_.timeout);
            if (!said.problem.empty()) problems.push_back(fmt::format("program: {}", said.problem));
            for (size_t k = 0; k < said.lines.size() && k < open.size(); ++k) {
                values[open[k]] = parse(said.lines[k]);
                if (std::isnan(values[open[k]]))
                    problems.push_back(fmt::format("program: \"{}\" is no reward", said.lines[k].substr(0, 80)));
            }
        }
        return values;
    }

private:
    RewardOptions options_;

    static double parse(const std::string& line) {
        const Json value = Json::parse(line, nullptr, false);
        const Json& number = value.is_object() && value.contains("reward") ? value["reward"] : value;
        if (!number.is_number()) return kNotJudged;
        const double reward = number.get<double>();
        return std::isfinite(reward) ? reward : kNotJudged;
    }
};

}  // namespace

void check_reward(const std::string& name, const RewardOptions& options) {
    constexpr std::array<std::string_view, 8> kNames{"math",     "countdown", "format", "length",
                                                     "overlong", "language",  "model",  "program"};
    if (std::ranges::find(kNames, name) == kNames.end())
        throw Error(ErrorKind::kInput, fmt::format("reward \"{}\" is not one of {}", name, fmt::join(kNames, ", ")));
    if (name == "language" && options.language != "en" && options.language != "zh")
        throw Error(ErrorKind::kInput, fmt::format("grpo.language: \"{}\" is not one of en, zh", options.language));
    if (name == "program" && options.program.empty())
        throw Error(ErrorKind::kUsage, "reward \"program\" needs grpo.reward_program = [\"command\", \"argument\", ...]");
    if (name == "model" && options.model.empty())
        throw Error(ErrorKind::kUsage,
                    "reward \"model\" needs grpo.reward_model (--reward-model), a checkpoint of fathom reward train");
}

std::unique_ptr<Reward> make_reward(const std::string& name, const RewardOptions& options, Ops* ops) {
    check_reward(name, options);
    const auto rule = [&](const std::string& needs, RuleReward::Rule judge) {
        return std::make_unique<RuleReward>(name, needs, std::move(judge));
    };
    if (name == "math") return rule("an \"answer\"", math_reward);
    if (name == "countdown") return rule("\"nums\" (a list of integers) and \"target\"", countdown_reward);
    if (name == "format") return rule("", format_reward);
    if (name == "length") {
        return rule("", [limit = options.max_completion_length](const RewardInput& input) {
            return 1 - static_cast<double>(input.tokens) / static_cast<double>(std::max<int64_t>(limit, 1));
        });
    }
    if (name == "overlong") return rule("", [options](const RewardInput& input) { return overlong_reward(input, options); });
    if (name == "program") return std::make_unique<ProgramReward>(options);
    if (name == "model") {
        check(ops != nullptr, "make_reward: a model computes on something");
        return make_model_reward(options, *ops);
    }
    return rule("", [chinese = options.language == "zh"](const RewardInput& input) { return language_reward(input, chinese); });
}

}  // namespace fathom
