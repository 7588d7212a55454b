// `fathom data countdown`: a task whose answers can be verified, generated: questions, and demonstrations of a chosen quality.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "app/verb.h"
#include "base/error.h"
#include "base/file.h"
#include "rl/countdown.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
    std::string out, task = "countdown";
    CountdownRules rules;
    int64_t train = 4000, valid = 500, steps = 3, seed = 0;
    double correct = 0.4;
};

struct Question {
    Json record;               // prompt, and what the rewards need
    std::string problem;       // what is asked, whatever the order of the numbers
    std::string right, wrong;  // demonstrations
    std::string near_miss;     // of a sum in words: the right one with another result
    CountdownTask task;        // of a countdown
};

// `text` with every number a in the place of b and the other way round.
std::string with_exchanged(const std::string& text, int64_t a, int64_t b) {
    const std::string from = std::to_string(a), to = std::to_string(b);
    std::string result;
    for (size_t i = 0; i < text.size();) {
        const size_t end = std::min(text.find_first_not_of("0123456789", i), text.size());
        const std::string number = text.substr(i, end - i);
        result += number.empty() ? text.substr(i, 1) : number == from ? to : number == to ? from : number;
        i = std::max(end, i + 1);
    }
    return result;
}

// A legal expression over the same numbers with another value: what a model writes that knows the form, not the art.
std::string wrong_expression(const CountdownTask& task, const CountdownRules& rules, Rng& rng) {
    for (int attempt = 0; attempt < 1000; ++attempt) {
        std::string text = std::to_string(task.nums[0]);
        for (size_t i = 1; i < task.nums.size(); ++i)
            text += fmt::format(" {} {}", std::string_view("+-*").substr(rng.below(3), 1), task.nums[i]);
        if (judge_countdown(text, task.nums, task.target) == CountdownVerdict::kLegal) return text;
    }
    return std::to_string(rules.largest + 1);
}

// The solution with one operator changed, or two numbers exchanged, whose value is another: what a judge must compute to tell
// from the right one. Empty where every such change is illegal or right, too.
std::string near_miss(const CountdownTask& task, Rng& rng) {
    std::vector<std::string> found;
    const auto keep = [&](const std::string& text) {
        if (judge_countdown(text, task.nums, task.target) == CountdownVerdict::kLegal) found.push_back(text);
    };
    const std::string& solution = task.solution;
    constexpr std::string_view kOperators = "+-*/";
    for (size_t i = 0; i < solution.size(); ++i) {
        if (kOperators.find(solution[i]) == kOperators.npos) continue;
        for (const char other : kOperators) {
            std::string text = solution;
            text[i] = other;
            if (other != solution[i]) keep(text);
        }
    }
    for (size_t i = 0; i < task.nums.size(); ++i)
        for (size_t j = i + 1; j < task.nums.size(); ++j) keep(with_exchanged(solution, task.nums[i], task.nums[j]));
    return found.empty() ? std::string() : found[rng.below(found.size())];
}

// `misses` draws near misses alone, so that questions do not depend on them.
Question make_question(const Options& options, Rng& rng, Rng& misses) {
    if (options.task == "words") {
        const WordTask task = make_word_arithmetic(options.steps, options.rules.largest, rng);
        const auto write = [&](int64_t answer) {
            return fmt::format("<think>{}</think> \\boxed{{{}}}", fmt::join(task.steps, "; "), answer);
        };
        const auto off = static_cast<int64_t>(1 + rng.below(9));
        return {{{"prompt", task.question + "\n"}, {"answer", std::to_string(task.answer)}},
                fmt::format("{}", fmt::join(task.steps, "; ")),  // whoever has them, and of what
                write(task.answer),
                write(task.answer + off),
                write(task.answer + (misses.below(2) == 0 ? off : -off)),
                {}};
    }
    CountdownTask task = make_countdown(options.rules, rng);
    const std::string prompt = fmt::format("{} -> {}: ", fmt::join(task.nums, " "), task.target);
    std::string wrong = wrong_expression(task, options.rules, rng);
    std::vector<int64_t> sorted = task.nums;
    std::ranges::sort(sorted);
    return {{{"prompt", prompt}, {"nums", task.nums}, {"target", task.target}},
            fmt::format("{} -> {}", fmt::join(sorted, " "), task.target),
            task.solution,
            std::move(wrong),
            "",
            task};
}

// The files of one side, training or held out.
struct Split {
    std::string questions, demonstrations, pairs;

    void add(const Question& question, const std::string& demonstration) {
        const Json& prompt = question.record["prompt"];
        questions += question.record.dump() + "\n";
        demonstrations += Json{{"prompt", prompt}, {"completion", demonstration}}.dump() + "\n";
        if (question.near_miss.empty()) return;
        pairs += Json{{"prompt", prompt}, {"chosen", question.right}, {"rejected", question.near_miss}}.dump() + "\n";
    }
};

void countdown(const Options& options) {
    if (options.task != "countdown" && options.task != "words")
        throw Error(ErrorKind::kUsage, fmt::format("--task {}: it must be countdown or words", options.task));
    Rng rng(static_cast<uint64_t>(options.seed), 0xC0), misses(static_cast<uint64_t>(options.seed), 0xC1);
    Rng held_out(static_cast<uint64_t>(options.seed), 0xC2);
    std::set<std::string> prompts, held_out_problems;
    Split train, valid;
    std::string text;
    for (int64_t made = 0, attempts = 0; made < options.valid + options.train; ++attempts) {
        if (attempts > 100 * (options.valid + options.train) + 10'000) {
            throw Error(ErrorKind::kUsage,
                        fmt::format("only {} different questions were found: ask for fewer, or raise --largest", made));
        }
        Question question = make_question(options, rng, misses);
        const std::string prompt = question.record["prompt"];
        const bool trains = made >= options.valid;
        const bool known =
            trains ? held_out_problems.contains(question.problem) : !held_out_problems.insert(question.problem).second;
        if (known || !prompts.insert(prompt).second) continue;
        ++made;
        if (!question.task.nums.empty()) question.near_miss = near_miss(question.task, misses);
        const bool right = (trains ? rng : held_out).uniform() < options.correct;
        const std::string& said = right ? question.right : question.wrong;
        (trains ? train : valid).add(question, said);
        if (trains) text += prompt + said + "\n";
    }
    fs::create_directories(options.out);
    const fs::path out(options.out);
    write_text_atomically(out / "sft.jsonl", train.demonstrations);
    write_text_atomically(out / "sft-valid.jsonl", valid.demonstrations);
    write_text_atomically(out / "train.jsonl", train.questions);
    write_text_atomically(out / "valid.jsonl", valid.questions);
    write_text_atomically(out / "pairs.jsonl", train.pairs);
    write_text_atomically(out / "pairs-valid.jsonl", valid.pairs);
    write_text_atomically(out / "text.txt", text);
    fmt::print("{}: {} questions to train on, {} held out\n", options.out, options.train, options.valid);
}

}  // namespace

void add_data_countdown(CLI::App& data) {
    auto options = std::make_shared<Options>();
    CLI::App* verb = data.add_subcommand("countdown", "generate a task with verifiable answers: questions and demonstrations");
    verb->footer(
        "Examples:\n"
        "  fathom data countdown --out runs/countdown/data --count 3 --largest 30\n"
        "  fathom data countdown --task words --steps 4 --out runs/words/data\n"
        "Writes train.jsonl and valid.jsonl (questions; no problem is in both, not even with its\n"
        "numbers in another order), sft.jsonl and sft-valid.jsonl (their demonstrations), text.txt (sft.jsonl as plain text,\n"
        "for `fathom tokenizer train`), and pairs.jsonl and pairs-valid.jsonl (right answers against near misses of the same\n"
        "length, for `fathom reward`).");
    verb->add_option("--out", options->out, "folder to write to")->required()->type_name("DIR");
    verb->add_option("--task", options->task, "countdown, or words: sums told in words")->type_name("TASK");
    verb->add_option("--count", options->rules.count, "numbers of a countdown")->check(CLI::Range(2, 6))->type_name("N");
    verb->add_option("--largest", options->rules.largest, "numbers are 1 to N")->check(CLI::Range(2, 10000))->type_name("N");
    verb->add_option("--max-target", options->rules.max_target, "targets are 1 to N")
        ->check(CLI::Range(2, 1000000))
        ->type_name("N");
    verb->add_option("--steps", options->steps, "steps of a sum in words")->check(CLI::Range(1, 20))->type_name("N");
    verb->add_option("--train", options->train, "questions to train on")->check(CLI::Range(1, 10000000))->type_name("N");
    verb->add_option("--valid", options->valid, "questions held out")->check(CLI::Range(0, 1000000))->type_name("N");
    verb->add_option("--correct", options->correct, "share of demonstrations that are right")
        ->check(CLI::Range(0.0, 1.0))
        ->type_name("P");
    verb->add_option("--seed", options->seed, "of the random numbers")->check(CLI::Range(0, 1 << 30))->type_name("N");
    verb->callback([options] { countdown(*options); });
}

}  // namespace fathom
