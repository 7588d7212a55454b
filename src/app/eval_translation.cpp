// fathom eval translation: BLEU and chrF against a reference, as sacrebleu computes them.
#include <fmt/format.h>
#include <algorithm>
#include <fstream>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "app/eval_model.h"
#include "base/error.h"
#include "rl/text_overlap.h"

namespace fathom {
namespace {

using Json = EvalJson;

struct Options {
    EvalOptions common;
    std::string source, reference, shot_source, shot_reference, from = "English", to = "German", chat_format = "auto";
    int64_t shots = 4, max_new_tokens = 128;
};

std::vector<std::string> read_lines(const std::string& path, int64_t limit) {
    std::ifstream file(path);
    if (!file) throw Error(ErrorKind::kIo, fmt::format("{}: cannot be read", path));
    std::vector<std::string> lines;
    for (std::string line; (limit == 0 || std::ssize(lines) < limit) && std::getline(file, line);) {
        if (line.ends_with('\r')) line.pop_back();
        lines.push_back(std::move(line));
    }
    return lines;
}

// Lines that belong together.
std::pair<std::vector<std::string>, std::vector<std::string>> read_pairs(const std::string& source,
                                                                         const std::string& reference, int64_t limit) {
    auto a = read_lines(source, limit), b = read_lines(reference, limit);
    if (a.size() != b.size() || a.empty()) {
        throw Error(ErrorKind::kInput, fmt::format("{} has {} lines and {} has {}: every line needs its translation", source,
                                                   a.size(), reference, b.size()));
    }
    return {std::move(a), std::move(b)};
}

class TranslationTask {
public:
    TranslationTask(const Options& options, const Globals& globals)
        : options_(options),
          evaluation_(options.common, globals, "translation"),
          format_(choose_chat_format(evaluation_.model(), options.common.model.model, options.chat_format)) {
        std::tie(sources_, references_) = read_pairs(options.source, options.reference, options.common.limit);
        if (!options.shot_source.empty()) {
            std::tie(shot_sources_, shot_references_) = read_pairs(options.shot_source, options.shot_reference, options.shots);
        }
        replies_.resize(sources_.size());
    }

    void run() {
        evaluation_.run(std::ssize(sources_), [&](int64_t item) {
            std::vector<int32_t> prompt = prompt_for(sources_[static_cast<size_t>(item)]);
            const int64_t room = std::max<int64_t>(evaluation_.max_length() - std::ssize(prompt), 1);
            Request request = evaluation_.greedy(std::move(prompt), std::min(options_.max_new_tokens, room));
            evaluation_.ask(std::move(request), {"\n"}, [this, item](Evaluation::Reply&& reply) { keep(item, reply.text); });
        });
        const Bleu bleu = corpus_bleu(replies_, references_);
        evaluation_.report({{"items", replies_.size()},
                            {"num_fewshot", shot_sources_.size()},
                            {"bleu", bleu.score},
                            {"chrf", corpus_chrf(replies_, references_)},
                            {"brevity_penalty", bleu.brevity_penalty},
                            {"length_ratio", share(static_cast<double>(bleu.length), bleu.reference_length)},
                            {"signature", "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp; chrF2 nc:6|nw:0|space:no"}});
    }

private:
    const Options& options_;
    Evaluation evaluation_;
    std::optional<ChatFormat> format_;
    std::vector<std::string> sources_, references_, shot_sources_, shot_references_, replies_;

    [[nodiscard]] std::vector<int32_t> prompt_for(const std::string& source) const {
        std::string text;
        std::vector<ChatMessage> messages;
        const auto question = [&](const std::string& line) {
            return fmt::format("Translate the following text from {} into {}. Answer with the translation alone.\n\n{}",
                               options_.from, options_.to, line);
        };
        for (size_t i = 0; i < shot_sources_.size(); ++i) {
            text += fmt::format("{}: {}\n{}: {}\n\n", options_.from, shot_sources_[i], options_.to, shot_references_[i]);
            messages.push_back({Role::kUser, question(shot_sources_[i])});
            messages.push_back({Role::kAssistant, shot_references_[i]});
        }
        if (!format_) {
            return evaluation_.model().encode_prompt(fmt::format("{}{}: {}\n{}:", text, options_.from, source, options_.to));
        }
        messages.push_back({Role::kUser, question(source)});
        return evaluation_.tokenizer().encode(format_->prompt(messages));
    }

    void keep(int64_t item, std::string text) {
        const auto i = static_cast<size_t>(item);
        text.erase(0, std::min(text.find_first_not_of(' '), text.size()));
        replies_[i] = std::move(text);
        evaluation_.record(item, {{"item", item},
                                  {"source", sources_[i]},
                                  {"reference", references_[i]},
                                  {"reply", replies_[i]},
                                  {"chrf", corpus_chrf(std::span(&replies_[i], 1), std::span(&references_[i], 1))}});
    }
};

}  // namespace

void add_eval_translation(CLI::App& eval, Globals& globals) {
    auto options = std::make_shared<Options>();
    CLI::App* action = eval.add_subcommand("translation", "BLEU and chrF against a reference, as sacrebleu computes them");
    action->footer(
        "Examples:\n"
        "  fathom eval translation MODEL test.en test.de --fewshot-source val.en --fewshot-reference val.de\n"
        "  fathom eval translation MODEL test.de test.en --from German --to English --output items.jsonl");
    options->common.declare(*action);
    action->add_option("source", options->source, "lines to translate")->required()->type_name("FILE");
    action->add_option("reference", options->reference, "their translations")->required()->type_name("FILE");
    auto* shot_source = action->add_option("--fewshot-source", options->shot_source, "lines of examples")->type_name("FILE");
    auto* shot_reference =
        action->add_option("--fewshot-reference", options->shot_reference, "their translations")->type_name("FILE");
    shot_source->needs(shot_reference);
    shot_reference->needs(shot_source);
    action->add_option("--num-fewshot", options->shots, "examples in front of every line")
        ->type_name("N")
        ->check(CLI::Range(1, 1000));
    action->add_option("--from", options->from, "the source's language, in the prompt")->type_name("NAME");
    action->add_option("--to", options->to, "the translation's language, in the prompt")->type_name("NAME");
    action->add_option("--max-new-tokens", options->max_new_tokens, "of a translation")
        ->type_name("N")
        ->check(CLI::Range(1, 1 << 20));
    action->add_option("--chat-format", options->chat_format, "how lines are put; none: as text to continue")
        ->type_name("FORMAT")
        ->check(CLI::IsMember({"auto", "none", "v2", "v3", "r1", "v3.1"}));
    action->callback([options, &globals] { TranslationTask(*options, globals).run(); });
}

}  // namespace fathom
