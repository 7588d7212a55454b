// fathom eval choice: which of several continuations a model finds most probable.
#include "app/eval_choice.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <utility>

#include "app/eval_model.h"
#include "base/error.h"

namespace fathom {
namespace {

using Json = EvalJson;

struct Options {
    EvalOptions common;
    FewShotOptions items;
    std::string delimiter = " ";
};

[[noreturn]] void refuse(const Json& record, const std::string& what) {
    throw Error(ErrorKind::kInput, fmt::format("an item of multiple choice {}: {:.200}", what, record.dump()));
}

std::vector<std::string> texts(const Json& record, const Json& list) {
    std::vector<std::string> result;
    for (const Json& text : list.is_array() ? list : Json::array()) {
        if (!text.is_string()) refuse(record, "has a choice that is no text");
        result.push_back(text.get<std::string>());
    }
    if (result.size() < 2) refuse(record, "needs two choices or more");
    return result;
}

int64_t gold_of(const Json& record, const Json& value, int64_t options) {
    int64_t gold = -1;
    if (value.is_number_integer()) gold = value.get<int64_t>();
    if (value.is_string() && value.get<std::string>().size() == 1) gold = value.get<std::string>()[0] - 'A';
    if (gold < 0 || gold >= options) refuse(record, "does not say which choice is right (gold, or answer)");
    return gold;
}

// MMLU's: the options are part of the question, the answer is a letter.
ChoiceItem lettered(const Json& record) {
    std::vector<std::string> options;
    if (const auto list = record.find("options"); list != record.end()) {
        options = texts(record, *list);
    } else {
        for (char letter = 'A'; record.contains(std::string(1, letter)); ++letter) {
            const Json& text = record[std::string(1, letter)];
            options.push_back(text.is_string() ? text.get<std::string>() : text.dump());
        }
        if (options.size() < 2) refuse(record, "has a question, but neither options nor A, B, ...");
    }
    ChoiceItem item;
    std::string context = text_field(record, std::array{"question"}) + "\n";
    for (size_t i = 0; i < options.size(); ++i) {
        const auto letter = static_cast<char>('A' + i);
        context += fmt::format("{}. {}\n", letter, options[i]);
        item.continuations.push_back(fmt::format(" {}", letter));
    }
    item.contexts.push_back(context + "Answer:");
    item.gold = gold_of(record, record.value("answer", Json()), item.options());
    for (const char* key : {"subject", "topic"}) {
        if (record.contains(key) && record[key].is_string()) item.subject = record[key].get<std::string>();
    }
    return item;
}

}  // namespace

ChoiceItem read_choice(const Json& record, const std::string& delimiter) {
    if (record.contains("question")) return lettered(record);
    ChoiceItem item;
    if (record.contains("context_options")) {
        item.contexts = texts(record, record["context_options"]);
        item.continuations.push_back(delimiter + text_field(record, std::array{"continuation"}));
    } else if (record.contains("choices")) {
        item.contexts.push_back(text_field(record, std::array{"query", "context"}));
        for (const std::string& choice : texts(record, record["choices"])) item.continuations.push_back(delimiter + choice);
    } else {
        item.contexts.push_back(text_field(record, std::array{"context", "query"}));
        item.continuations.push_back(delimiter + text_field(record, std::array{"continuation"}));
        return item;
    }
    item.gold = gold_of(record, record.value("gold", Json()), item.options());
    return item;
}

std::string choice_header(const std::string& subject) {
    if (subject.empty()) return "";
    std::string words = subject;
    std::ranges::replace(words, '_', ' ');
    return fmt::format("The following are multiple choice questions (with answers) about {}.\n\n", words);
}

namespace {

struct Score {
    double logprob = 0;
    bool greedy = true;  // every token was the most probable one
};

class ChoiceTask {
public:
    ChoiceTask(const Options& options, const Globals& globals)
        : options_(options),
          evaluation_(options.common, globals, "choice") {
        // Examples may stand behind the last item that is wanted.
        evaluation_.read(options.items.file, 0, [&](const Json& record) {
            const bool example = record.value("split", Json()) == "dev",
                       wanted = options.common.limit == 0 || std::ssize(items_) < options.common.limit;
            if (example || wanted) (example ? shots_ : items_).push_back(read_choice(record, options.delimiter));
            return true;
        });
        if (!options.items.fewshot.empty()) {
            shots_.clear();
            evaluation_.read(options.items.fewshot, 0, [&](const Json& record) {
                shots_.push_back(read_choice(record, options.delimiter));
                return true;
            });
        }
        if (options.items.shots > 0 && shots_.empty()) {
            throw Error(ErrorKind::kUsage,
                        "--num-fewshot: give the examples with --fewshot, or as items with \"split\": \"dev\"");
        }
        scores_.resize(items_.size());
    }

    void run() {
        evaluation_.run(std::ssize(items_), [&](int64_t item) {
            const ChoiceItem& choice = items_[static_cast<size_t>(item)];
            scores_[static_cast<size_t>(item)].resize(static_cast<size_t>(choice.options()));
            const std::string before = examples(choice);
            for (int64_t option = 0; option < choice.options(); ++option) {
                score(before + choice.context(option), choice.continuation(option),
                      scores_[static_cast<size_t>(item)][static_cast<size_t>(option)]);
            }
        });
        report();
    }

private:
    const Options& options_;
    Evaluation evaluation_;
    std::vector<ChoiceItem> items_, shots_;
    std::vector<std::vector<Score>> scores_;
    int64_t cut_ = 0;  // contexts that were too long

    // Solved items of the same subject, where there are subjects.
    [[nodiscard]] std::string examples(const ChoiceItem& item) const {
        std::string text = choice_header(item.subject);
        int64_t count = 0;
        for (const ChoiceItem& shot : shots_) {
            if (count == options_.items.shots) break;
            if (shot.subject != item.subject || shot.context(0) == item.context(0)) continue;
            text += shot.solved() + "\n\n";
            ++count;
        }
        return text;
    }

    // Log-probability of the continuation behind the context. Spaces at the context's end belong to the continuation, and the
    // two are encoded as one text: the tokens are then those that a reader of the whole text would see (lm-eval does the same).
    void score(std::string context, std::string continuation, Score& result) {
        while (!context.empty() && context.back() == ' ') {
            continuation.insert(0, 1, ' ');
            context.pop_back();
        }
        std::vector<int32_t> whole = evaluation_.model().encode_prompt(context + continuation);
        if (whole.size() < 2) {
            throw Error(ErrorKind::kInput, fmt::format("\"{}\" has no token in front of it that the model could go on from",
                                                       context + continuation));
        }
        size_t begin = std::max<size_t>(evaluation_.model().encode_prompt(context).size(), 1);
        if (begin >= whole.size()) begin = whole.size() - 1;
        if (std::ssize(whole) > evaluation_.max_length()) {  // the end of the context matters most
            const auto excess = whole.size() - static_cast<size_t>(evaluation_.max_length());
            if (excess >= begin) throw Error(ErrorKind::kInput, "a choice is longer than the model reads");
            whole.erase(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(excess));
            begin = std::max<size_t>(begin - excess, 1);
            ++cut_;
        }
        Request request = evaluation_.greedy(whole, 0);
        request.prompt_logprobs = true;
        request.top_logprobs = 1;
        evaluation_.ask(std::move(request), {}, [&result, whole, begin](Evaluation::Reply&& reply) {
            for (size_t i = begin; i < whole.size(); ++i) {
                const TokenLogprobs& token = reply.prompt[i - 1];
                result.logprob += static_cast<double>(token.logprob);
                result.greedy = result.greedy && token.logprob == token.top.front().logprob;
            }
        });
    }

    void report() {
        int64_t right = 0, right_normed = 0, exact = 0, clozes = 0;
        for (size_t i = 0; i < items_.size(); ++i) {
            const ChoiceItem& item = items_[i];
            const bool cloze = item.gold < 0;
            int64_t best = 0, best_normed = 0;
            Json logprobs = Json::array();
            const auto normed = [&](int64_t option) {
                return scores_[i][static_cast<size_t>(option)].logprob / static_cast<double>(length(item, option));
            };
            for (int64_t option = 0; option < item.options(); ++option) {
                logprobs.push_back(scores_[i][static_cast<size_t>(option)].logprob);
                if (scores_[i][static_cast<size_t>(option)].logprob > scores_[i][static_cast<size_t>(best)].logprob)
                    best = option;
                if (normed(option) > normed(best_normed)) best_normed = option;
            }
            clozes += cloze ? 1 : 0;
            exact += cloze && scores_[i][0].greedy ? 1 : 0;
            right += !cloze && best == item.gold ? 1 : 0;
            right_normed += !cloze && best_normed == item.gold ? 1 : 0;
            Json line{{"item", i}, {"logprobs", std::move(logprobs)}};
            if (cloze) {
                line["greedy"] = scores_[i][0].greedy;
            } else {
                line.update(
                    Json{{"gold", item.gold}, {"chosen", best}, {"chosen_norm", best_normed}, {"correct", best == item.gold}});
            }
            if (!item.subject.empty()) line["subject"] = item.subject;
            evaluation_.record(static_cast<int64_t>(i), std::move(line));
        }
        Json summary{{"items", items_.size()}, {"num_fewshot", options_.items.shots}};
        const int64_t choices = std::ssize(items_) - clozes;
        if (choices > 0) {
            const double accuracy = share(static_cast<double>(right), choices);
            summary["acc"] = accuracy;
            summary["acc_stderr"] =
                std::sqrt(accuracy * (1 - accuracy) / static_cast<double>(std::max<int64_t>(choices - 1, 1)));
            summary["acc_norm"] = share(static_cast<double>(right_normed), choices);
        }
        if (clozes > 0) summary["exact"] = share(static_cast<double>(exact), clozes);
        if (cut_ > 0) summary["contexts_cut"] = cut_;
        evaluation_.report(summary);
    }

    // Characters of a choice, the delimiter left out.
    [[nodiscard]] int64_t length(const ChoiceItem& item, int64_t option) const {
        std::string_view text = item.continuation(option);
        if (text.starts_with(options_.delimiter)) text.remove_prefix(options_.delimiter.size());
        const auto count = std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
        return std::max<int64_t>(count, 1);
    }
};

}  // namespace

void add_eval_choice(CLI::App& eval, Globals& globals) {
    auto options = std::make_shared<Options>();
    CLI::App* action = eval.add_subcommand("choice", "multiple choice: the continuation that the model finds most probable");
    action->footer(
        "Examples:\n"
        "  fathom eval choice MODEL copa.jsonl\n"
        "  fathom eval choice MODEL mmlu_test.jsonl --fewshot mmlu_dev.jsonl --num-fewshot 5 --output items.jsonl\n"
        "  fathom eval choice MODEL arc_easy.jsonl --delimiter $'\\nAnswer: '");
    options->common.declare(*action);
    options->items.declare(*action, "JSON Lines: query and choices, question and options, or a cloze");
    action->add_option("--delimiter", options->delimiter, "between query and choice")->type_name("TEXT");
    action->callback([options, &globals] { ChoiceTask(*options, globals).run(); });
}

}  // namespace fathom
