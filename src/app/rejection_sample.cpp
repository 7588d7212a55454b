// fathom rejection-sample: many answers per question, judged; the best become training data, all of them a measurement.
#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/generate_model.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/file.h"
#include "base/progress.h"
#include "rl/prompts.h"
#include "rl/reward.h"
#include "rl/rollout.h"
#include "train/sft.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
    ModelOptions model;
    std::string prompts, out, reward_model, chat_format = "auto";
    std::vector<std::string> rewards{"math"}, program;
    int64_t n = 1, limit = 0, max_prompt = 512, max_new_tokens = 256, best = 0, seed = 0, batch = 64;
    double temperature = 1, top_p = 1, min_reward = 1, timeout = 10;
    bool thinking = false;
};

struct Counts {
    int64_t prompts = 0, answers = 0, full = 0, failed = 0, kept = 0;
    double at_one = 0, at_n = 0, reward = 0, tokens = 0;
};

// The answers to one prompt, judged.
struct Judged {
    std::vector<Rollout> rollouts;
    std::vector<std::string> texts;
    std::vector<double> rewards;  // sum over functions
};

class RejectionSampler {
public:
    RejectionSampler(const Options& options, const Globals& globals)
        : options_(options),
          model_(options.model, globals, OpenModel::Text::kNeeded) {
        RewardOptions how;
        how.max_completion_length = options.max_new_tokens;
        how.program = options.program;
        how.model = options.reward_model;
        how.program_dir = std::filesystem::temp_directory_path();
        how.timeout = std::chrono::milliseconds(static_cast<int64_t>(options.timeout * 1000));
        for (const std::string& name : options.rewards) rewards_.push_back(make_reward(name, how, &model_.ops()));
        TrainConfig names;
        names.model.config = model_.config();
        names.model.init_from = options.model.model;
        const ChatFormat format = chat_format_named(options.chat_format, *model_.tokenizer(), names);
        const std::vector<std::filesystem::path> files{options.prompts};
        PromptSet set = read_prompts(files, *model_.tokenizer(), format, options.thinking, options.max_prompt);
        prompts_ = std::move(set.prompts);
        if (set.overlong > 0)
            fmt::print(stderr, "{} prompts of more than {} tokens are left out\n", set.overlong, options.max_prompt);
        if (options.limit > 0 && std::ssize(prompts_) > options.limit) prompts_.resize(static_cast<size_t>(options.limit));
        if (prompts_.empty()) throw Error(ErrorKind::kInput, options.prompts + ": holds no prompt that can be used");
        how_.sampling.temperature = options.temperature == 0 ? 1 : options.temperature;
        how_.sampling.top_k = options.temperature == 0 ? 1 : 0;
        how_.sampling.top_p = options.top_p;
        how_.sampling.seed = static_cast<uint64_t>(options.seed);
        how_.max_new_tokens = options.max_new_tokens;
        how_.stop_ids = model_.stop_ids();
        how_.max_sequences = options.batch;
        how_.cache_type = options.model.held_as();
        how_.deterministic = globals.deterministic;
        how_.vocab_limit = model_.tokenizer()->vocab_size();
    }

    Counts run(const Globals& globals) {
        Progress progress("sample", std::ssize(prompts_), "prompts", globals.progress());
        std::string kept;
        const int64_t at_a_time = std::max<int64_t>(1, 4 * options_.batch / options_.n);
        for (int64_t begin = 0; begin < std::ssize(prompts_); begin += at_a_time) {
            const int64_t end = std::min(begin + at_a_time, std::ssize(prompts_));
            for (const Judged& judged : answer(begin, end)) kept += count(judged);
            progress.update(end);
        }
        progress.finish();
        if (!options_.out.empty()) write_text_atomically(options_.out, kept);
        return counts_;
    }

private:
    const Options& options_;
    OpenModel model_;
    std::vector<std::unique_ptr<Reward>> rewards_;
    std::vector<Prompt> prompts_;
    RolloutOptions how_;
    Counts counts_;

    std::vector<Judged> answer(int64_t begin, int64_t end) {
        std::vector<RolloutRequest> requests;
        for (int64_t p = begin; p < end; ++p) {
            for (int64_t i = 0; i < options_.n; ++i)
                requests.push_back({p, prompts_[static_cast<size_t>(p)].tokens, static_cast<uint64_t>(p * options_.n + i)});
        }
        std::vector<Rollout> rollouts = sample_rollouts(model_.model(), model_.ops(), requests, how_);
        std::vector<RewardInput> inputs;
        for (const Rollout& rollout : rollouts) {
            inputs.push_back({&prompts_[static_cast<size_t>(rollout.prompt)].record, text_of(rollout),
                              rollout.completion_length(), rollout.truncated});
        }
        std::vector<double> sums(rollouts.size(), 0);
        std::vector<std::string> problems;
        for (const auto& reward : rewards_) {
            const std::vector<double> values = reward->score(inputs, problems);
            for (size_t i = 0; i < sums.size(); ++i) sums[i] += values[i];
        }
        for (size_t i = 0; i < std::min<size_t>(problems.size(), 3); ++i) fmt::print(stderr, "reward: {}\n", problems[i]);
        std::vector<Judged> result(static_cast<size_t>(end - begin));
        for (size_t i = 0; i < rollouts.size(); ++i) {
            Judged& judged = result[static_cast<size_t>(rollouts[i].prompt - begin)];
            judged.rollouts.push_back(std::move(rollouts[i]));
            judged.texts.push_back(inputs[i].completion);
            judged.rewards.push_back(sums[i]);
        }
        return result;
    }

    [[nodiscard]] std::string text_of(const Rollout& rollout) const {
        auto completion = std::span(rollout.tokens).subspan(static_cast<size_t>(rollout.prompt_length));
        const auto& stops = how_.stop_ids;
        if (!completion.empty() && std::ranges::find(stops, completion.back()) != stops.end())
            completion = completion.first(completion.size() - 1);
        return replace_invalid_utf8(model_.tokenizer()->decode(completion));
    }

    // Adds a prompt's answers to the figures; returns the lines that are kept of it.
    std::string count(const Judged& judged) {
        std::vector<size_t> order(judged.rewards.size());
        for (size_t i = 0; i < order.size(); ++i) order[i] = i;
        const auto worth = [&](size_t i) { return std::isnan(judged.rewards[i]) ? -INFINITY : judged.rewards[i]; };
        if (options_.best > 0) std::ranges::stable_sort(order, std::ranges::greater{}, worth);  // else as they were sampled
        int64_t full = 0;
        for (size_t i = 0; i < order.size(); ++i) {
            full += worth(i) >= options_.min_reward ? 1 : 0;
            counts_.failed += std::isnan(judged.rewards[i]) ? 1 : 0;
            counts_.reward += std::isnan(judged.rewards[i]) ? 0 : judged.rewards[i];
            counts_.tokens += static_cast<double>(judged.rollouts[i].completion_length());
        }
        ++counts_.prompts;
        counts_.answers += std::ssize(order);
        counts_.full += full;
        counts_.at_one += static_cast<double>(full) / static_cast<double>(order.size());
        counts_.at_n += full > 0 ? 1 : 0;
        std::string lines;
        for (size_t rank = 0; rank < order.size(); ++rank) {
            const size_t i = order[rank];
            const bool chosen =
                options_.best == 0 || (static_cast<int64_t>(rank) < options_.best && worth(i) >= options_.min_reward);
            if (!chosen) continue;
            Json line(prompts_[static_cast<size_t>(judged.rollouts[i].prompt)].record);
            line["completion"] = line.contains("prompt") && line["prompt"].is_string()
                                     ? Json(judged.texts[i])
                                     : Json::array({{{"role", "assistant"}, {"content", judged.texts[i]}}});
            if (line.contains("messages")) {  // an SFT line: the question with the new answer
                line["prompt"] = line["messages"];
                line.erase("messages");
            }
            line["reward"] = judged.rewards[i];
            lines += line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
            ++counts_.kept;
        }
        return lines;
    }
};

void rejection_sample(const Options& options, const Globals& globals) {
    RejectionSampler sampler(options, globals);
    const Counts c = sampler.run(globals);
    const auto prompts = static_cast<double>(c.prompts), answers = static_cast<double>(c.answers);
    if (globals.json) {
        const Json result{{"prompts", c.prompts},
                          {"answers", c.answers},
                          {"pass@1", c.at_one / prompts},
                          {fmt::format("pass@{}", options.n), c.at_n / prompts},
                          {"reward", c.reward / std::max(1.0, answers - static_cast<double>(c.failed))},
                          {"mean_length", c.tokens / answers},
                          {"failed", c.failed},
                          {"kept", c.kept}};
        fmt::print("{}\n", result.dump());
        return;
    }
    fmt::print(
        "{} prompts, {} answers: pass@1 {:.3f}, pass@{} {:.3f}, mean reward {:.3f}, {:.1f} tokens; {} not judged, {} kept\n",
        c.prompts, c.answers, c.at_one / prompts, options.n, c.at_n / prompts,
        c.reward / std::max(1.0, answers - static_cast<double>(c.failed)), c.tokens / answers, c.failed, c.kept);
}

}  // namespace

void add_rejection_sample(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<Options>();
    CLI::App* verb = app.add_subcommand("rejection-sample", "Sample answers to questions, judge them, keep the best");
    verb->footer(
        "Examples:\n"
        "  fathom rejection-sample MODEL train.jsonl -n 16 --best 1 --reward countdown --out sft.jsonl\n"
        "  fathom rejection-sample MODEL valid.jsonl --temperature 0 --reward countdown --json     pass@1, greedy\n"
        "  fathom rejection-sample MODEL valid.jsonl -n 16 --reward math --out all.jsonl           every answer with its "
        "reward");
    options->model.declare(*verb);
    verb->add_option("prompts", options->prompts, "JSON Lines with \"prompt\" and what the rewards need")
        ->required()
        ->type_name("FILE");
    verb->add_option("--out", options->out, "JSON Lines for `fathom sft`: prompt, completion, reward")->type_name("FILE");
    verb->add_option("-n", options->n, "answers per prompt")->check(CLI::Range(1, 1 << 16))->type_name("N");
    verb->add_option("--best", options->best, "keep so many of them, if worth --min-reward; 0: all")
        ->check(CLI::Range(0, 1 << 16))
        ->type_name("N");
    verb->add_option("--min-reward", options->min_reward, "from here on an answer has passed")->type_name("R");
    verb->add_option("--reward", options->rewards, "math, countdown, format, length, language, model, program; may be repeated")
        ->allow_extra_args(false)
        ->type_name("NAME");
    verb->add_option("--reward-program", options->program, "command and arguments, for --reward program")
        ->allow_extra_args(false)
        ->type_name("WORD");
    verb->add_option("--reward-model", options->reward_model, "checkpoint of fathom reward train, for --reward model")
        ->type_name("DIR");
    verb->add_option("--reward-timeout", options->timeout, "seconds")->check(CLI::Range(0.001, 1e6))->type_name("S");
    verb->add_option("--limit", options->limit, "only the first prompts; 0: all")
        ->check(CLI::Range(0, 1 << 30))
        ->type_name("N");
    verb->add_option("--temperature", options->temperature, "0: greedy")->check(CLI::Range(0.0, 100.0))->type_name("T");
    verb->add_option("--top-p", options->top_p)->check(CLI::Range(1e-6, 1.0))->type_name("P");
    verb->add_option("--max-new-tokens", options->max_new_tokens)->check(CLI::Range(1, 1 << 30))->type_name("N");
    verb->add_option("--max-prompt-length", options->max_prompt, "longer prompts are left out")
        ->check(CLI::Range(1, 1 << 30))
        ->type_name("N");
    verb->add_option("--batch", options->batch, "answers sampled at a time")->check(CLI::Range(1, 1 << 16))->type_name("N");
    verb->add_option("--seed", options->seed)->check(CLI::Range(0, 1 << 30))->type_name("N");
    verb->add_option("--chat-format", options->chat_format, "auto, v2, v3, r1, v31")->type_name("NAME");
    verb->add_flag("--thinking", options->thinking, "prompts ask for thinking");
    verb->callback([options, &globals] { rejection_sample(*options, globals); });
}

}  // namespace fathom
