// What the tasks of fathom eval share: a model that answers many prompts at a time, files of items, and a file of results.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "app/eval_items.h"
#include "app/generate_model.h"
#include "infer/engine.h"
#include "infer/stop_strings.h"

namespace fathom {

struct EvalOptions {
    ModelOptions model;
    std::string output;  // one line per item; empty: none
    bool skip_bad = false;
    int64_t limit = 0, batch = 16, context = 0;

    // MODEL and what the tasks have in common.
    void declare(CLI::App& action);
};

// The items of a task, and how many solved ones stand in front of each.
struct FewShotOptions {
    std::string file, fewshot;
    int64_t shots = 0;

    void declare(CLI::App& action, const std::string& what_the_file_is);
};

class Evaluation {
public:
    Evaluation(const EvalOptions& options, const Globals& globals, std::string task);

    struct Reply {
        std::string text;                   // before the stop string, and without special tokens
        std::vector<TokenLogprobs> prompt;  // when asked for
        bool complete = false;              // ended by itself or at a stop string, not at its longest
    };
    using Then = std::function<void(Reply&& reply)>;

    // The records of a file, at most `limit` of them (0: all); or of all that `take` returns true for (app/eval_items.h).
    // Throws Error{kInput} for what cannot be used, unless that is to be left out (--skip-bad-items) and counted.
    [[nodiscard]] std::vector<EvalJson> records(const std::string& path, int64_t limit = 0);
    void read(const std::string& path, int64_t limit, const std::function<bool(const EvalJson& record)>& take);

    [[nodiscard]] const OpenModel& model() const { return model_; }
    [[nodiscard]] const Tokenizer& tokenizer() const { return *model_.tokenizer(); }
    [[nodiscard]] int64_t max_length() const { return engine_->max_length(); }
    // A greedy answer of at most `max_new_tokens` to a prompt.
    [[nodiscard]] Request greedy(std::vector<int32_t> prompt, int64_t max_new_tokens) const;
    // Queues a request; `then` is told the reply during run() and may ask for more. Only from run()'s `begin` or a `then`.
    void ask(Request request, std::vector<std::string> stops, Then then);
    // Calls begin(i) for every item, and works until all is answered.
    void run(int64_t items, const std::function<void(int64_t item)>& begin);

    // Keeps a line of results; `item` numbers them.
    void record(int64_t item, EvalJson line) { lines_[item] = std::move(line); }
    // Writes what was recorded to --output, in the items' order, and prints `summary`: as JSON, or a line per key.
    void report(EvalJson summary) const;

private:
    struct Active {
        StreamDecoder decoder;
        StopStrings stops;
        Then then;
        Reply reply;
    };

    const EvalOptions& options_;
    const Globals& globals_;
    std::string task_;
    OpenModel model_;
    std::unique_ptr<Engine> engine_;
    std::unordered_map<int64_t, Active> active_;
    std::map<int64_t, EvalJson> lines_;
    int64_t skipped_ = 0;

    void take(TokenEvent& event);
};

// a / b, 0 for nothing of nothing.
[[nodiscard]] inline double share(double part, int64_t whole) { return whole > 0 ? part / static_cast<double>(whole) : 0; }

// The tasks, each a verb of fathom eval.
void add_eval_choice(CLI::App& eval, Globals& globals);
void add_eval_math(CLI::App& eval, Globals& globals);
void add_eval_code(CLI::App& eval, Globals& globals);
void add_eval_needle(CLI::App& eval, Globals& globals);
void add_eval_reading(CLI::App& eval, Globals& globals);
void add_eval_translation(CLI::App& eval, Globals& globals);

}  // namespace fathom
