// fathom tokenizer: makes a vocabulary of one's own.
#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/verb.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "io/text_documents.h"
#include "io/tokenizer_writer.h"

namespace fathom {
namespace {

struct TrainOptions {
    std::vector<std::string> files;
    int64_t vocab_size = 8192;
    std::string out;
    std::string field = "text";
    std::vector<std::string> special;
};

void count_pieces(const TrainOptions& options, const Globals& globals, BpeTrainer& trainer) {
    std::vector<TextDocuments> corpora;
    int64_t bytes = 0, done = 0;
    for (const std::string& file : options.files) bytes += corpora.emplace_back(file, options.field).bytes();
    Progress progress("reading", bytes, "B", globals.progress());
    for (TextDocuments& corpus : corpora) {
        while (const auto document = corpus.next()) {
            throw_if_interrupted();
            trainer.add(corpus.text(*document));
            progress.update(done + document->end);
        }
        done += corpus.bytes();
    }
    progress.finish(fmt::format("{} distinct pieces", trainer.distinct_pieces()));
    if (trainer.distinct_pieces() == 0) throw Error(ErrorKind::kInput, "there is no text in these files");
}

std::vector<std::string> control_tokens(const std::vector<std::string>& more) {
    std::vector<std::string> control = deepseek_v3_control_tokens();
    for (const std::string& token : more) {
        if (token.empty() || std::find(control.begin(), control.end(), token) != control.end())
            throw Error(ErrorKind::kUsage, fmt::format("--special \"{}\": empty or already a token", token));
        control.push_back(token);
    }
    return control;
}

void train(const TrainOptions& options, const Globals& globals) {
    const std::vector<std::string> control = control_tokens(options.special);
    const int64_t learnt_size = options.vocab_size - static_cast<int64_t>(control.size());
    if (learnt_size < 256)
        throw Error(ErrorKind::kUsage,
                    fmt::format("--vocab-size {}: at least {} are needed for the 256 bytes and the {} control tokens",
                                options.vocab_size, 256 + control.size(), control.size()));
    const auto start = std::chrono::steady_clock::now();
    const PreTokenizer pretokenizer(deepseek_v3_splits());
    BpeTrainer trainer(pretokenizer);
    count_pieces(options, globals, trainer);
    Progress progress("merging", learnt_size, "tokens", globals.progress());
    const LearntMerges learnt = trainer.train(learnt_size, [&](int64_t tokens) {
        throw_if_interrupted();
        progress.update(tokens);
    });
    progress.finish();
    if (static_cast<int64_t>(learnt.tokens.size()) < learnt_size)
        throw Error(ErrorKind::kInput, fmt::format("the text is too small for --vocab-size {}: no pair is left after {} tokens",
                                                   options.vocab_size, learnt.tokens.size() + control.size()));
    write_tokenizer(options.out, learnt, control);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (globals.json) {
        const nlohmann::ordered_json result = {{"vocab_size", options.vocab_size},
                                               {"merges", learnt.merges.size()},
                                               {"distinct_pieces", trainer.distinct_pieces()},
                                               {"seconds", seconds},
                                               {"folder", options.out}};
        fmt::print("{}\n", result.dump());
    } else {
        fmt::print("{}: {} tokens ({} bytes, {} merges, {} control tokens), learnt in {:.1f} s\n", options.out,
                   options.vocab_size, 256, learnt.merges.size(), control.size(), seconds);
    }
}

}  // namespace

void add_tokenizer(CLI::App& app, Globals& globals) {
    CLI::App* verb = app.add_subcommand("tokenizer", "train a tokenizer");
    verb->require_subcommand(1);
    CLI::App* trainer = verb->add_subcommand("train", "learn a byte-level BPE vocabulary from text");
    const char* examples =
        "Examples:\n"
        "  fathom tokenizer train stories.txt --vocab-size 8192 --out my-tokenizer\n"
        "  fathom tokenizer train a.jsonl b.txt --field body --special '<|note|>' --out my-tokenizer\n"
        "  fathom tokenize my-tokenizer \"Once upon a time\"";
    verb->footer(examples);
    trainer->footer(examples);
    auto options = std::make_shared<TrainOptions>();
    trainer->add_option("file", options->files, "text (documents separated by a line <|endoftext|>) or .jsonl")
        ->required()
        ->type_name("FILE");
    trainer->add_option("--vocab-size", options->vocab_size, "ids in all: bytes, merges and control tokens")->type_name("N");
    trainer->add_option("--out", options->out, "folder for tokenizer.json and tokenizer_config.json")
        ->required()
        ->type_name("DIR");
    trainer->add_option("--field", options->field, "which field of a .jsonl line holds the text")->type_name("NAME");
    trainer->add_option("--special", options->special, "one more control token; may be repeated")
        ->type_name("TEXT")
        ->expected(1)
        ->take_all();
    trainer->callback([options, &globals] { train(*options, globals); });
}

}  // namespace fathom
