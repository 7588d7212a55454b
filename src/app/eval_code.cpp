// fathom eval humaneval: programs that a model writes, run against their tests.
#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <memory>
#include <random>
#include <utility>

#include "app/eval_model.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "rl/reward.h"

namespace fathom {
namespace {

using Json = EvalJson;

// Reads one program as a line of JSON and runs it with its output thrown away. Writes the word it was given once the program
// has come to its end: whoever leaves early, by exit() for example, does not say it.
constexpr const char* kRunner = R"(
import json, os, sys
task = json.loads(sys.stdin.readline())
say = os.dup(1)
nothing = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2): os.dup2(nothing, stream)
exec(compile(task["program"], "<answer>", "exec"), {"__name__": "__main__"})
os.write(say, (task["word"] + "\n").encode())
)";

struct Options {
    EvalOptions common;
    std::string file, python = "python3";
    bool allowed = false;
    int64_t samples = 1, max_new_tokens = 512;
    double temperature = 0, top_p = 1, timeout = 10;
    uint64_t seed = 0;
};

// 1 - C(n - c, k) / C(n, k): the chance that one of k answers is right when c of n are (Chen et al. 2021).
double pass_at(int64_t n, int64_t c, int64_t k) {
    if (n - c < k) return 1;
    double fail = 1;
    for (int64_t i = n - c + 1; i <= n; ++i) fail *= 1 - static_cast<double>(k) / static_cast<double>(i);
    return 1 - fail;
}

class CodeTask {
public:
    CodeTask(const Options& options, const Globals& globals)
        : options_(options),
          evaluation_(options.common, globals, "humaneval"),
          folder_(std::filesystem::temp_directory_path() / "fathom-eval") {
        evaluation_.read(options.file, options.common.limit, [&](const Json& task) {
            for (const char* field : {"prompt", "test", "entry_point"}) (void)text_field(task, std::array{field});
            tasks_.push_back(task);
            return true;
        });
    }

    void run() {
        passed_.resize(tasks_.size());
        const int64_t items = std::ssize(tasks_) * options_.samples;
        evaluation_.run(items, [&](int64_t item) {
            const Json& task = tasks_[static_cast<size_t>(item / options_.samples)];
            std::vector<int32_t> prompt = evaluation_.model().encode_prompt(text_field(task, std::array{"prompt"}));
            const int64_t room = std::max<int64_t>(evaluation_.max_length() - std::ssize(prompt), 1);
            Request request = evaluation_.greedy(std::move(prompt), std::min(options_.max_new_tokens, room));
            request.sampling.temperature = options_.temperature;
            request.sampling.top_p = options_.top_p;
            request.sampling.seed = options_.seed;
            request.stream = static_cast<uint64_t>(item);
            evaluation_.ask(std::move(request), {"\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@"},
                            [this, item](Evaluation::Reply&& reply) { judge(item, reply.text); });
        });
        Json summary{{"items", tasks_.size()}, {"samples", options_.samples}};
        for (int64_t k = 1; k <= options_.samples; k *= 10) {
            double sum = 0;
            for (const int64_t passed : passed_) sum += pass_at(options_.samples, passed, k);
            summary[fmt::format("pass@{}", k)] = share(sum, std::ssize(tasks_));
        }
        evaluation_.report(summary);
    }

private:
    const Options& options_;
    Evaluation evaluation_;
    std::vector<Json> tasks_;
    std::filesystem::path folder_;
    std::vector<int64_t> passed_;
    std::random_device random_;

    void judge(int64_t item, const std::string& completion) {
        throw_if_interrupted();
        const Json& task = tasks_[static_cast<size_t>(item / options_.samples)];
        const auto field = [&](const char* name) { return text_field(task, std::array{name}); };
        const std::string program =
            fmt::format("{}{}\n{}\ncheck({})\n", field("prompt"), completion, field("test"), field("entry_point"));
        const std::string word = fmt::format("{:08x}{:08x}", random_(), random_());
        const std::string line =
            nlohmann::json{{"program", program}, {"word", word}}.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
        const std::array<std::string, 4> command{options_.python, "-I", "-c", kRunner};
        const auto limit = std::chrono::milliseconds(static_cast<int64_t>(options_.timeout * 1000));
        const ProgramResult result = run_line_program(command, std::span(&line, 1), folder_, limit, ProgramWrites::kOwnFolder);
        const bool passed = result.problem.empty() && result.lines.size() == 1 && result.lines[0] == word;
        if (result.problem == "could not be started") {
            throw Error(ErrorKind::kInput,
                        fmt::format("{}: {}: give the interpreter with --python", options_.python, result.problem));
        }
        passed_[static_cast<size_t>(item / options_.samples)] += passed ? 1 : 0;
        evaluation_.record(item, {{"item", item},
                                  {"task_id", task.value("task_id", Json())},
                                  {"completion", completion},
                                  {"passed", passed},
                                  {"problem", passed                   ? ""
                                              : result.problem.empty() ? "said something else"
                                                                       : result.problem}});
    }
};

}  // namespace

void add_eval_code(CLI::App& eval, Globals& globals) {
    auto options = std::make_shared<Options>();
    CLI::App* action = eval.add_subcommand("humaneval", "programs that the model writes, run against their tests");
    action->footer(
        "Examples:\n"
        "  fathom eval humaneval MODEL humaneval.jsonl --allow-code-execution --output items.jsonl\n"
        "  fathom eval humaneval MODEL humaneval.jsonl --allow-code-execution --samples 10 --temperature 0.8");
    options->common.declare(*action);
    action->add_option("file", options->file, "JSON Lines with task_id, prompt, test and entry_point")
        ->required()
        ->type_name("FILE");
    action->add_flag("--allow-code-execution", options->allowed,
                     "run what the model writes: without network, in a folder of its own, with limits on time and memory");
    action->add_option("--samples", options->samples, "answers to every task")->type_name("N")->check(CLI::Range(1, 10000));
    action->add_option("--max-new-tokens", options->max_new_tokens, "of an answer")
        ->type_name("N")
        ->check(CLI::Range(1, 1 << 20));
    action->add_option("--temperature", options->temperature, "0: the most probable tokens")
        ->type_name("T")
        ->check(CLI::Range(0.0, 100.0));
    action->add_option("--top-p", options->top_p, "sample from the most probable tokens that make up this share")
        ->type_name("P")
        ->check(CLI::Range(1e-6, 1.0));
    action->add_option("--seed", options->seed, "of the random numbers")->type_name("N");
    action->add_option("--timeout", options->timeout, "seconds a program may run")
        ->type_name("S")
        ->check(CLI::Range(0.1, 3600.0));
    action->add_option("--python", options->python, "the interpreter")->type_name("COMMAND");
    action->callback([options, &globals] {
        if (!options->allowed) {
            throw Error(ErrorKind::kUsage,
                        "this runs programs that a model wrote: read docs/verbs/eval.md and add --allow-code-execution");
        }
        CodeTask(*options, globals).run();
    });
}

}  // namespace fathom
