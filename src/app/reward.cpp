// fathom reward: a model that says what an answer is worth, trained from pairs of answers, and its scores.
#include <fmt/format.h>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/device.h"
#include "app/training_verb.h"
#include "app/verb.h"
#include "base/file.h"
#include "base/progress.h"
#include "io/chat_examples.h"
#include "rl/json_lines.h"
#include "rl/preferences.h"
#include "rl/reward_model.h"
#include "rl/reward_run.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

void train_reward(const TrainingOptions& options, const Globals& globals) {
    const RewardConfig config = RewardConfig::load(options.config, options.overrides);
    if (options.only_shows(config.train, globals)) return;
    Device device(globals, true);
    report_training(run_reward_training(config, device.ops(), {options.resume, globals.deterministic, globals.progress()}),
                    globals);
}

struct ScoreOptions {
    std::string model, file, out, chat_format = "auto";
};

// A line of the file: one answer, or two to be compared. Too long ones have no scores.
struct ScoredLine {
    Json record;
    std::vector<std::vector<int32_t>> sequences;  // one, or chosen and rejected
    std::vector<float> scores;
};

std::vector<ScoredLine> read_lines(const ScoreOptions& options, const RewardModel& model, int64_t& overlong) {
    std::vector<ScoredLine> lines;
    const std::vector<std::filesystem::path> files{options.file};
    for_each_json_line(files, [&](const Json& record) {
        ScoredLine line{record, {}, {}};
        if (!record.is_object() || !record.contains("prompt") ||
            !(record.contains("completion") || (record.contains("chosen") && record.contains("rejected"))))
            throw Error(ErrorKind::kInput, R"(needs "prompt", and "completion" or "chosen" and "rejected")");
        const bool one = record.contains("completion");
        for (const char* key : one ? std::vector{"completion"} : std::vector{"chosen", "rejected"})
            line.sequences.push_back(conversation_tokens(record["prompt"], record[key], model.format(), model.tokenizer()));
        const bool fits = std::ranges::all_of(line.sequences,
                                              [&](const auto& sequence) { return std::ssize(sequence) <= model.max_length(); });
        overlong += fits ? 0 : 1;
        if (!fits) line.sequences.clear();
        lines.push_back(std::move(line));
    });
    if (lines.empty()) throw Error(ErrorKind::kInput, options.file + ": holds no line");
    return lines;
}

void score_all(std::vector<ScoredLine>& lines, RewardModel& model, const Globals& globals) {
    constexpr size_t kAtATime = 256;
    Progress progress("score", std::ssize(lines), "lines", globals.progress());
    for (size_t begin = 0; begin < lines.size(); begin += kAtATime) {
        const size_t end = std::min(begin + kAtATime, lines.size());
        std::vector<std::vector<int32_t>> sequences;
        for (size_t i = begin; i < end; ++i)
            sequences.insert(sequences.end(), lines[i].sequences.begin(), lines[i].sequences.end());
        const std::vector<float> scores = model.score(sequences);
        auto next = scores.begin();
        for (size_t i = begin; i < end; ++i) {
            const auto count = std::ssize(lines[i].sequences);
            lines[i].scores.assign(next, next + count);
            next += count;
        }
        progress.update(static_cast<int64_t>(end));
    }
    progress.finish();
}

std::string scored_lines(std::vector<ScoredLine>& lines) {
    std::string text;
    for (ScoredLine& line : lines) {
        if (line.scores.size() == 1) line.record["reward"] = line.scores[0];
        if (line.scores.size() == 2) {
            line.record["chosen_reward"] = line.scores[0];
            line.record["rejected_reward"] = line.scores[1];
        }
        text += line.record.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    }
    return text;
}

void report(const std::vector<ScoredLine>& lines, int64_t overlong, const Globals& globals) {
    PairwiseSums sums;
    std::vector<Preference> pairs;
    double total = 0;
    int64_t answers = 0;
    for (const ScoredLine& line : lines) {
        for (const float score : line.scores) total += static_cast<double>(score);
        answers += std::ssize(line.scores);
        if (line.scores.size() != 2) continue;
        sums.add(pairwise_loss({}, line.scores, 0, 1));
        pairs.push_back({line.sequences[0], line.sequences[1]});
    }
    const double mean = total / static_cast<double>(std::max<int64_t>(answers, 1));
    nlohmann::ordered_json result{{"answers", answers}, {"mean_reward", mean}, {"overlong", overlong}};
    std::string text = fmt::format("{} answers scored, mean {:.4f}, {} lines too long", answers, mean, overlong);
    if (sums.pairs > 0) {
        const auto count = static_cast<double>(sums.pairs);
        const double by_length = length_only_accuracy(pairs);
        result["pairs"] = sums.pairs;
        result["accuracy"] = sums.accuracy();
        result["length_only_accuracy"] = by_length;
        result["margin"] = sums.margin / count;
        result["loss"] = sums.loss / count;
        text += fmt::format("\n{} pairs: accuracy {:.3f} (by length alone {:.3f}), margin {:.3f}, loss {:.4f}", sums.pairs,
                            sums.accuracy(), by_length, sums.margin / count, sums.loss / count);
    }
    fmt::print("{}\n", globals.json ? result.dump() : text);
}

void score(const ScoreOptions& options, const Globals& globals) {
    Device device(globals, true);  // scores are those that training saw
    RewardModel model(options.model, device.ops(), options.chat_format);
    int64_t overlong = 0;
    std::vector<ScoredLine> lines = read_lines(options, model, overlong);
    score_all(lines, model, globals);
    if (!options.out.empty()) write_text_atomically(options.out, scored_lines(lines));
    report(lines, overlong, globals);
}

void add_train_reward(CLI::App& reward, Globals& globals) {
    auto options = std::make_shared<TrainingOptions>();
    CLI::App* verb = reward.add_subcommand("train", "learn from pairs of answers which of the two is better (Bradley-Terry)");
    verb->footer(
        "Examples:\n"
        "  fathom reward train reward.toml\n"
        "  fathom reward train reward.toml model.init_from=runs/sft/checkpoints/step-00002000 job.dir=runs/reward\n"
        "  fathom reward train reward.toml --resume auto        go on after a stop or a crash, to the bit\n");
    options->declare(*verb, "reward.md");
    verb->callback([options, &globals] { train_reward(*options, globals); });
}

void add_score(CLI::App& reward, Globals& globals) {
    auto options = std::make_shared<ScoreOptions>();
    CLI::App* verb =
        reward.add_subcommand("score", "what a reward model says of answers, and how often it prefers the better one");
    verb->footer(
        "Examples:\n"
        "  fathom reward score runs/reward/checkpoints/step-00000400 answers.jsonl --out scored.jsonl\n"
        "  fathom reward score runs/reward/checkpoints/step-00000400 pairs-valid.jsonl --json     pairwise accuracy");
    verb->add_option("model", options->model, "checkpoint of fathom reward train")->required()->type_name("MODEL");
    verb->add_option("file", options->file,
                     "JSON Lines: \"prompt\" and \"completion\", or \"prompt\", \"chosen\" and \"rejected\"")
        ->required()
        ->type_name("FILE");
    verb->add_option("--out", options->out, "the same lines with \"reward\", or \"chosen_reward\" and \"rejected_reward\"")
        ->type_name("FILE");
    verb->add_option("--chat-format", options->chat_format, "auto, v2, v3, r1, v31")->type_name("NAME");
    verb->callback([options, &globals] { score(*options, globals); });
}

}  // namespace

void add_reward(CLI::App& app, Globals& globals) {
    CLI::App* verb = app.add_subcommand("reward", "Train a reward model from preferences, and score answers by it");
    verb->require_subcommand(1);
    add_train_reward(*verb, globals);
    add_score(*verb, globals);
}

}  // namespace fathom
