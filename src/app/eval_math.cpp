// fathom eval gsm8k: word problems whose answer is a number.
#include <fmt/format.h>
#include <array>
#include <memory>
#include <optional>
#include <utility>

#include "app/eval_model.h"
#include "base/error.h"
#include "rl/answer.h"

namespace fathom {
namespace {

using Json = EvalJson;

struct Options {
    EvalOptions common;
    FewShotOptions items{.shots = 5};
    std::string chat_format = "auto";
    int64_t max_new_tokens = 400;
    bool thinking = false;
};

struct Problem {
    std::string question, solution, answer;
};

Problem read_problem(const Json& record) {
    constexpr std::array kQuestions{"question", "Question", "prompt", "problem"};
    constexpr std::array kAnswers{"answer", "Answer", "solution"};
    Problem problem;
    const auto messages = record.find("messages");
    if (messages != record.end() && messages->is_array() && !messages->empty() && messages->front().is_object()) {
        problem.question = text_field(messages->front(), std::array{"content"});
    } else {
        problem.question = text_field(record, kQuestions);
    }
    if (record.contains("Body")) problem.question = text_field(record, std::array{"Body"}) + " " + problem.question;  // SVAMP
    problem.solution = text_field(record, kAnswers);
    problem.answer = reference_answer(problem.solution);
    return problem;
}

// The last number of a text, as lm-eval's "flexible" filter takes it.
std::optional<std::string> last_number(std::string_view text) {
    constexpr std::string_view kDigits = "0123456789";
    const size_t last = text.find_last_of(kDigits);
    if (last == text.npos) return std::nullopt;
    size_t first = last;
    const auto part = [&](char c) { return kDigits.find(c) != kDigits.npos || c == '.' || c == ','; };
    while (first > 0 && part(text[first - 1])) --first;
    while (first < last && kDigits.find(text[first]) == kDigits.npos) ++first;
    if (first > 0 && text[first - 1] == '-') --first;
    return std::string(text.substr(first, last - first + 1));
}

class MathTask {
public:
    MathTask(const Options& options, const Globals& globals)
        : options_(options),
          evaluation_(options.common, globals, "gsm8k"),
          format_(choose_chat_format(evaluation_.model(), options.common.model.model, options.chat_format)) {
        const auto to = [](std::vector<Problem>& problems) {
            return [&problems](const Json& record) {
                problems.push_back(read_problem(record));
                return true;
            };
        };
        evaluation_.read(options.items.file, options.common.limit, to(problems_));
        if (options.items.fewshot.empty()) return;
        // One more than is shown: an item is never its own example.
        evaluation_.read(options.items.fewshot, options.items.shots + 1, to(shots_));
    }

    void run() {
        evaluation_.run(std::ssize(problems_), [&](int64_t item) {
            const Problem& problem = problems_[static_cast<size_t>(item)];
            std::vector<int32_t> prompt = prompt_for(problem);
            const int64_t room = evaluation_.max_length() - std::ssize(prompt);
            if (room < 1) {
                throw Error(ErrorKind::kInput,
                            fmt::format("item {} and its examples have {} tokens, the model reads {}: give a "
                                        "smaller --num-fewshot",
                                        item, prompt.size(), evaluation_.max_length()));
            }
            Request request = evaluation_.greedy(std::move(prompt), std::min(options_.max_new_tokens, room));
            std::vector<std::string> stops{"Question:", "\n\n\n"};
            if (format_) stops = {};
            evaluation_.ask(std::move(request), std::move(stops),
                            [this, item](Evaluation::Reply&& reply) { judge(item, reply); });
        });
        const int64_t items = std::ssize(problems_);
        evaluation_.report({{"items", items},
                            {"num_fewshot", std::min<int64_t>(options_.items.shots, std::ssize(shots_))},
                            {"exact_match", share(static_cast<double>(exact_), items)},
                            {"flexible_match", share(static_cast<double>(flexible_), items)},
                            {"no_answer", share(static_cast<double>(silent_), items)},
                            {"cut", share(static_cast<double>(cut_), items)}});
    }

private:
    const Options& options_;
    Evaluation evaluation_;
    std::optional<ChatFormat> format_;
    std::vector<Problem> problems_, shots_;
    int64_t exact_ = 0, flexible_ = 0, silent_ = 0, cut_ = 0;

    [[nodiscard]] std::vector<int32_t> prompt_for(const Problem& problem) const {
        std::string text;
        std::vector<ChatMessage> messages;
        int64_t count = 0;
        for (const Problem& shot : shots_) {
            if (count == options_.items.shots) break;
            if (shot.question == problem.question) continue;
            text += fmt::format("Question: {}\nAnswer: {}\n\n", shot.question, shot.solution);
            messages.push_back({Role::kUser, shot.question});
            messages.push_back({Role::kAssistant, shot.solution});
            ++count;
        }
        if (!format_) return evaluation_.model().encode_prompt(fmt::format("{}Question: {}\nAnswer:", text, problem.question));
        messages.push_back({Role::kUser, problem.question});
        return evaluation_.tokenizer().encode(format_->prompt(messages, options_.thinking));
    }

    // Right where the number behind ####, in \boxed{} or behind "the answer is" is the reference's; flexible: where the last
    // number of the text is.
    void judge(int64_t item, const Evaluation::Reply& reply) {
        const Problem& problem = problems_[static_cast<size_t>(item)];
        const std::string said = format_ ? format_->parse(reply.text, options_.thinking).content : reply.text;
        const auto given = extract_answer(said), last = last_number(said);
        const bool right = given && equivalent_answers(*given, problem.answer),
                   loosely = last && equivalent_answers(*last, problem.answer);
        exact_ += right ? 1 : 0, flexible_ += right || loosely ? 1 : 0;
        silent_ += given ? 0 : 1, cut_ += reply.complete ? 0 : 1;
        evaluation_.record(item, {{"item", item},
                                  {"question", problem.question},
                                  {"reference", problem.answer},
                                  {"reply", reply.text},
                                  {"answer", given ? Json(*given) : Json()},
                                  {"last_number", last ? Json(*last) : Json()},
                                  {"correct", right},
                                  {"complete", reply.complete}});
    }
};

}  // namespace

void add_eval_math(CLI::App& eval, Globals& globals) {
    auto options = std::make_shared<Options>();
    CLI::App* action = eval.add_subcommand("gsm8k", "word problems whose final answer is a number (GSM8K, MGSM, SVAMP, MATH)");
    action->footer(
        "Examples:\n"
        "  fathom eval gsm8k MODEL test.jsonl --fewshot train.jsonl --num-fewshot 5\n"
        "  fathom eval gsm8k CHAT_MODEL test.jsonl --thinking --max-new-tokens 4096 --output items.jsonl");
    options->common.declare(*action);
    options->items.declare(*action, "JSON Lines with question and answer (\"... #### 42\", \\boxed{42}, or plain)");
    action->add_option("--max-new-tokens", options->max_new_tokens, "of an answer")
        ->type_name("N")
        ->check(CLI::Range(1, 1 << 30));
    action->add_option("--chat-format", options->chat_format, "how questions are put; none: as text to continue")
        ->type_name("FORMAT")
        ->check(CLI::IsMember({"auto", "none", "v2", "v3", "r1", "v3.1"}));
    action->add_flag("--thinking", options->thinking, "ask for thinking, where the format knows it");
    action->callback([options, &globals] { MathTask(*options, globals).run(); });
}

}  // namespace fathom
