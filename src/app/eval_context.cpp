// fathom eval needle, fathom eval reading: what a model finds in a long context.
#include "app/eval_context.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include "app/eval_model.h"
#include "base/error.h"
#include "base/file.h"
#include "base/rng.h"
#include "rl/text_overlap.h"

namespace fathom {

std::string with_needle(std::string_view hay, std::string_view needle, double depth) {
    const auto wanted = static_cast<double>(hay.size()) * depth;
    size_t best = 0;
    const auto consider = [&](size_t at) {
        if (std::abs(static_cast<double>(at) - wanted) < std::abs(static_cast<double>(best) - wanted)) best = at;
    };
    consider(hay.size());
    for (size_t at = hay.find('\n'); at != hay.npos; at = hay.find('\n', at + 1)) consider(at + 1);
    std::string text(hay.substr(0, best));
    if (!text.empty() && text.back() != '\n') text += '\n';
    text += needle;
    if (best < hay.size()) text += '\n';
    return text + std::string(hay.substr(best));
}

namespace {

using Json = EvalJson;

struct NeedleOptions {
    EvalOptions common;
    std::string haystack, needles;
    std::vector<int64_t> lengths;
    std::vector<double> depths{0, 0.25, 0.5, 0.75, 1};
    int64_t samples = 5, max_new_tokens = 32;
    uint64_t seed = 0;
};

class NeedleTask {
public:
    NeedleTask(const NeedleOptions& options, const Globals& globals)
        : options_(options),
          evaluation_(options.common, globals, "needle"),
          needles_(evaluation_.records(options.needles)),
          hay_(evaluation_.tokenizer().encode(read_text(options.haystack), false)),
          lengths_(options.lengths) {
        const int64_t longest = evaluation_.max_length() - options.max_new_tokens;
        if (lengths_.empty()) lengths_ = {longest / 4, longest / 2, longest};
        for (const int64_t length : lengths_) {
            if (length > 0 && length <= longest && length <= std::ssize(hay_)) continue;
            throw Error(ErrorKind::kUsage,
                        fmt::format("--lengths {}: the model reads {} tokens beside the answer, and the haystack "
                                    "has {}",
                                    length, longest, hay_.size()));
        }
    }

    void run() {
        const int64_t cells = std::ssize(lengths_) * std::ssize(options_.depths);
        int64_t items = cells * options_.samples;
        if (options_.common.limit > 0) items = std::min(items, options_.common.limit);
        evaluation_.run(items, [&](int64_t item) { begin(item); });
        Json table = Json::array();
        double right = 0;
        for (const auto& [cell, found] : cells_) {
            right += found.right;
            table.push_back({{"length", cell.first}, {"depth", cell.second}, {"found", share(found.right, found.items)}});
        }
        evaluation_.report({{"items", items}, {"found", share(right, items)}, {"cells", std::move(table)}});
    }

private:
    struct Cell {
        double right = 0;
        int64_t items = 0;
    };
    const NeedleOptions& options_;
    Evaluation evaluation_;
    std::vector<Json> needles_;
    std::vector<int32_t> hay_;
    std::vector<int64_t> lengths_;
    std::map<std::pair<int64_t, double>, Cell> cells_;

    void begin(int64_t item) {
        const int64_t depths = std::ssize(options_.depths), cell = item / options_.samples;
        const int64_t length = lengths_[static_cast<size_t>(cell / depths)];
        const double depth = options_.depths[static_cast<size_t>(cell % depths)];
        Rng random(options_.seed, static_cast<uint64_t>(item));
        const Json& needle = needles_[random.below(needles_.size())];
        const std::string question = fmt::format("\n\nQuestion: {}\nAnswer:", text_field(needle, std::array{"question"})),
                          words = text_field(needle, std::array{"needle"}), answer = text_field(needle, std::array{"answer"});
        // Text is cut and joined anew, so the count is not exact: what is too much is taken off the hay.
        int64_t hay = length;
        std::vector<int32_t> prompt;
        const auto start = static_cast<int64_t>(random.below(static_cast<uint64_t>(std::ssize(hay_) - length + 1)));
        do {
            const auto slice = std::span(hay_).subspan(static_cast<size_t>(start), static_cast<size_t>(hay));
            const std::string text = replace_invalid_utf8(evaluation_.tokenizer().decode(slice));
            prompt = evaluation_.model().encode_prompt(with_needle(text, words, depth) + question);
            hay -= std::max<int64_t>(std::ssize(prompt) - length, 1);
        } while (std::ssize(prompt) > length && hay > 0);
        if (std::ssize(prompt) > length) {
            throw Error(ErrorKind::kUsage, fmt::format("--lengths {}: the needle and its question alone are longer", length));
        }
        const int64_t tokens = std::ssize(prompt);
        evaluation_.ask(evaluation_.greedy(std::move(prompt), options_.max_new_tokens), {"\n"},
                        [this, item, length, depth, answer, tokens](Evaluation::Reply&& reply) {
                            const bool found = reply.text.find(answer) != std::string::npos;
                            Cell& counts = cells_[{length, depth}];
                            counts.right += found ? 1 : 0, ++counts.items;
                            evaluation_.record(item, {{"item", item},
                                                      {"length", length},
                                                      {"prompt_tokens", tokens},
                                                      {"depth", depth},
                                                      {"answer", answer},
                                                      {"reply", reply.text},
                                                      {"correct", found}});
                        });
    }
};

struct ReadingOptions {
    EvalOptions common;
    std::string file, documents;
    int64_t max_new_tokens = 64;
};

// Questions about a document: the record's own "context", or a longer one that its "story" names in --documents.
class ReadingTask {
public:
    ReadingTask(const ReadingOptions& options, const Globals& globals)
        : options_(options),
          evaluation_(options.common, globals, "reading"),
          records_(evaluation_.records(options.file, options.common.limit)) {
        if (options.documents.empty()) return;
        for (const Json& document : evaluation_.records(options.documents)) {
            documents_[text_field(document, std::array{"story", "id", "title"})] =
                text_field(document, std::array{"text", "context"});
        }
    }

    void run() {
        evaluation_.run(std::ssize(records_), [&](int64_t item) { begin(item); });
        const int64_t items = std::ssize(records_);
        evaluation_.report({{"items", items},
                            {"f1", share(f1_, items)},
                            {"exact_match", share(exact_, items)},
                            {"documents_cut", cut_},
                            {"mean_prompt_tokens", share(static_cast<double>(tokens_), items)}});
    }

private:
    const ReadingOptions& options_;
    Evaluation evaluation_;
    std::vector<Json> records_;
    std::map<std::string, std::string> documents_;
    double f1_ = 0, exact_ = 0;
    int64_t cut_ = 0, tokens_ = 0;

    [[nodiscard]] std::string document_of(const Json& record) const {
        if (documents_.empty()) return text_field(record, std::array{"context", "text"});
        const std::string name = text_field(record, std::array{"story", "id", "title"});
        const auto found = documents_.find(name);
        if (found == documents_.end())
            throw Error(ErrorKind::kInput, fmt::format("{}: has no document \"{}\"", options_.documents, name));
        return found->second;
    }

    // A document that is too long loses its middle: beginning and end carry the most (as in LongBench, Bai et al. 2023).
    [[nodiscard]] std::vector<int32_t> prompt_for(const std::string& document, const std::string& question) {
        const auto ask = [&](const std::string& text) {
            return evaluation_.model().encode_prompt(fmt::format("{}\n\nQuestion: {}\nAnswer:", text, question));
        };
        const int64_t most = evaluation_.max_length() - options_.max_new_tokens;
        std::vector<int32_t> prompt = ask(document);
        if (std::ssize(prompt) <= most) return prompt;
        ++cut_;
        const std::vector<int32_t> ids = evaluation_.tokenizer().encode(document, false);
        for (int64_t kept = std::ssize(ids); std::ssize(prompt) > most; prompt = ask(without_middle(ids, kept))) {
            kept -= std::max<int64_t>(std::ssize(prompt) - most, 1);
            if (kept < 0)
                throw Error(ErrorKind::kInput, fmt::format("a question is longer than the model reads: {:.100}", question));
        }
        return prompt;
    }
    [[nodiscard]] std::string without_middle(std::span<const int32_t> ids, int64_t kept) const {
        const auto front = static_cast<size_t>((kept + 1) / 2), back = static_cast<size_t>(kept / 2);
        const Tokenizer& tokenizer = evaluation_.tokenizer();
        return replace_invalid_utf8(tokenizer.decode(ids.first(front)) + tokenizer.decode(ids.last(back)));
    }

    void begin(int64_t item) {
        const Json& record = records_[static_cast<size_t>(item)];
        std::vector<std::string> references;
        if (const auto list = record.find("answers"); list != record.end() && list->is_array()) {
            for (const Json& one : *list) references.push_back(one.is_string() ? one.get<std::string>() : one.dump());
        }
        if (references.empty()) references.push_back(text_field(record, std::array{"answer"}));
        std::vector<int32_t> prompt = prompt_for(document_of(record), text_field(record, std::array{"question"}));
        tokens_ += std::ssize(prompt);
        evaluation_.ask(
            evaluation_.greedy(std::move(prompt), options_.max_new_tokens), {"\n"},
            [this, item, references](Evaluation::Reply&& reply) {
                double f1 = 0;
                bool exact = false;
                for (const std::string& reference : references) {
                    f1 = std::max(f1, word_f1(reply.text, reference));
                    exact = exact || plain_answer(reply.text) == plain_answer(reference);
                }
                f1_ += f1, exact_ += exact ? 1 : 0;
                evaluation_.record(
                    item, {{"item", item}, {"references", references}, {"reply", reply.text}, {"f1", f1}, {"correct", exact}});
            });
    }
};

}  // namespace

void add_eval_needle(CLI::App& eval, Globals& globals) {
    auto options = std::make_shared<NeedleOptions>();
    CLI::App* action = eval.add_subcommand("needle", "a sentence hidden in a long text, and a question about it");
    action->footer(
        "Examples:\n"
        "  fathom eval needle MODEL novels.txt needles.jsonl --lengths 1024,4096 --depths 0,0.5,1 --samples 10");
    options->common.declare(*action);
    action->add_option("haystack", options->haystack, "text to hide the needles in")->required()->type_name("FILE");
    action->add_option("needles", options->needles, "JSON Lines with needle, question and answer")
        ->required()
        ->type_name("FILE");
    action->add_option("--lengths", options->lengths, "tokens of the prompts; default: a quarter, a half, all the model reads")
        ->type_name("N,N,...")
        ->delimiter(',');
    action->add_option("--depths", options->depths, "where the needle is: 0 in front, 1 at the end")
        ->type_name("X,X,...")
        ->delimiter(',')
        ->check(CLI::Range(0.0, 1.0));
    action->add_option("--samples", options->samples, "needles for every length and depth")
        ->type_name("N")
        ->check(CLI::Range(1, 1 << 20));
    action->add_option("--max-new-tokens", options->max_new_tokens, "of an answer")->type_name("N")->check(CLI::Range(1, 4096));
    action->add_option("--seed", options->seed, "which needle lies in which hay")->type_name("N");
    action->callback([options, &globals] { NeedleTask(*options, globals).run(); });
}

void add_eval_reading(CLI::App& eval, Globals& globals) {
    auto options = std::make_shared<ReadingOptions>();
    CLI::App* action = eval.add_subcommand("qa", "questions about a (long) document: F1 and exact match");
    action->footer(
        "Examples:\n"
        "  fathom eval qa MODEL fairytaleqa.val.jsonl                                          with the passage that has the "
        "answer\n"
        "  fathom eval qa MODEL fairytaleqa.val.jsonl --documents fairytale_stories.jsonl      with the whole tale");
    options->common.declare(*action);
    action->add_option("file", options->file, "JSON Lines with question, answers (or answer), and context or story")
        ->required()
        ->type_name("FILE");
    action->add_option("--documents", options->documents, "JSON Lines with story and text: the contexts, by the story's name")
        ->type_name("FILE");
    action->add_option("--max-new-tokens", options->max_new_tokens, "of an answer")->type_name("N")->check(CLI::Range(1, 4096));
    action->callback([options, &globals] { ReadingTask(*options, globals).run(); });
}

}  // namespace fathom
