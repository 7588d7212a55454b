// fathom eval: how good a model is.
#include <fmt/format.h>
#include <algorithm>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string>
#include <vector>

#include "app/eval_model.h"
#include "app/generate_model.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "infer/perplexity.h"
#include "io/text_documents.h"
#include "io/token_shards.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

struct Options {
    ModelOptions model;
    std::string file, field = "text";
    int64_t context = 0, stride = 0, limit = 0;
};

// The tokens to predict, in one stream, and how many documents they are.
struct TokenStream {
    std::vector<int32_t> tokens;
    int64_t documents = 0;
};

int32_t end_of_document(const OpenModel& model) {
    if (const auto eos = model.tokenizer()->eos_id()) return *eos;
    if (!model.config().eos_token_id.empty()) return static_cast<int32_t>(model.config().eos_token_id.front());
    throw Error(ErrorKind::kInput,
                "neither the tokenizer nor config.json names an end-of-sequence token to put between documents");
}

// (BOS) text EOS for every document, as fathom data prepare writes them.
TokenStream read_documents(const OpenModel& model, const Options& options, int64_t limit) {
    TextDocuments documents(options.file, options.field);
    const int32_t eos = end_of_document(model);
    TokenStream stream;
    while (const auto document = documents.next()) {
        throw_if_interrupted();
        if (static_cast<int64_t>(stream.tokens.size()) >= limit) break;
        if (const auto bos = model.bos_to_add()) stream.tokens.push_back(*bos);
        const std::vector<int32_t> ids = model.tokenizer()->encode(documents.text(*document), false);
        stream.tokens.insert(stream.tokens.end(), ids.begin(), ids.end());
        stream.tokens.push_back(eos);
        ++stream.documents;
    }
    return stream;
}

TokenStream read_shards(const std::vector<fs::path>& paths, int64_t limit) {
    TokenStream stream;
    for (const fs::path& path : paths) {
        const TokenShard shard(path);
        for (int64_t i = 0; i < shard.header().documents && static_cast<int64_t>(stream.tokens.size()) < limit; ++i) {
            const size_t begin = stream.tokens.size();
            stream.tokens.resize(begin + static_cast<size_t>(shard.length(i)));
            shard.read(std::span(stream.tokens).subspan(begin), i, 0);
            ++stream.documents;
        }
    }
    return stream;
}

TokenStream read_stream(const OpenModel& model, const Options& options, int64_t limit) {
    std::vector<fs::path> shards;
    if (fs::is_directory(options.file)) {
        for (const auto& entry : fs::directory_iterator(options.file)) {
            if (entry.path().extension() == ".ftok") shards.push_back(entry.path());
        }
        std::ranges::sort(shards);
        if (shards.empty()) throw Error(ErrorKind::kInput, fmt::format("{}: no token shards (*.ftok) there", options.file));
    } else if (options.file.ends_with(".ftok")) {
        shards.emplace_back(options.file);
    }
    TokenStream stream = shards.empty() ? read_documents(model, options, limit) : read_shards(shards, limit);
    stream.tokens.resize(std::min(stream.tokens.size(), static_cast<size_t>(limit)));
    const int64_t vocab = model.config().vocab_size;
    for (const int32_t id : stream.tokens) {
        if (id < vocab) continue;
        throw Error(ErrorKind::kInput,
                    fmt::format("{}: holds token {}, the model's vocabulary has ids 0 to {}: it was prepared "
                                "with another tokenizer",
                                options.file, id, vocab - 1));
    }
    if (stream.tokens.size() < 2) throw Error(ErrorKind::kInput, fmt::format("{}: too little text to predict", options.file));
    return stream;
}

// Bytes of text behind the predicted tokens: control tokens (EOS between documents) have none.
int64_t text_bytes(const Tokenizer& tokenizer, std::span<const int32_t> tokens) {
    int64_t bytes = 0;
    for (const int32_t id : tokens) {
        if (!tokenizer.is_special(id)) bytes += static_cast<int64_t>(tokenizer.token_bytes(id).size());
    }
    return bytes;
}

void report(const PerplexityResult& result, const TokenStream& stream, int64_t bytes, int64_t context, bool json) {
    const double bits = result.nll / std::numbers::ln2, per_byte = bytes > 0 ? bits / static_cast<double>(bytes) : 0;
    if (json) {
        const nlohmann::ordered_json object{{"perplexity", result.perplexity()},
                                            {"nll", result.mean_nll()},
                                            {"bits_per_byte", per_byte},
                                            {"tokens", result.tokens},
                                            {"bytes", bytes},
                                            {"documents", stream.documents},
                                            {"context", context}};
        fmt::print("{}\n", object.dump(2));
        return;
    }
    fmt::print("perplexity     {:.4f}\nnll            {:.5f} nats per token\nbits per byte  {:.4f}\n", result.perplexity(),
               result.mean_nll(), per_byte);
    fmt::print("predicted      {} tokens, {} bytes, {} document{}, context {}\n", result.tokens, bytes, stream.documents,
               stream.documents == 1 ? "" : "s", context);
}

void eval_perplexity(const Options& options, const Globals& globals) {
    OpenModel model(options.model, globals, OpenModel::Text::kNeeded);
    const int64_t longest = model.config().max_position_embeddings;
    if (options.context > longest) {
        throw Error(ErrorKind::kUsage, fmt::format("--context {}: the model reads at most {} tokens (max_position_embeddings)",
                                                   options.context, longest));
    }
    PerplexityOptions how;
    how.context = options.context > 0 ? options.context : std::min<int64_t>(longest, 1024);
    how.stride = options.stride;
    how.cache_type = options.model.held_as();
    how.experts = model.page_experts(0);
    how.deterministic = globals.deterministic;
    if (how.stride > how.context) {
        throw Error(ErrorKind::kUsage,
                    fmt::format("--stride {}: at most the context ({}), or tokens are left out", how.stride, how.context));
    }
    const int64_t limit = options.limit > 0 ? options.limit : std::numeric_limits<int64_t>::max();
    const TokenStream stream = read_stream(model, options, limit);

    Progress progress("perplexity", static_cast<int64_t>(stream.tokens.size()) - 1, "tokens", globals.progress());
    const PerplexityResult result =
        perplexity(model.model(), model.ops(), stream.tokens, how, [&](const PerplexityResult& so_far) {
            throw_if_interrupted();
            progress.update(so_far.tokens, fmt::format("perplexity {:.3f}", so_far.perplexity()));
        });
    progress.finish();
    const auto predicted = std::span(stream.tokens).subspan(1);
    report(result, stream, text_bytes(*model.tokenizer(), predicted), how.context, globals.json);
}

}  // namespace

void add_eval(CLI::App& app, Globals& globals) {
    CLI::App* verb = app.add_subcommand("eval", "measure how good a model is");
    verb->require_subcommand(1);
    CLI::App* action = verb->add_subcommand("perplexity", "how well the model predicts a text: perplexity and bits per byte");
    const char* examples =
        "Examples:\n"
        "  fathom eval perplexity MODEL stories.txt --json\n"
        "  fathom eval perplexity MODEL valid.jsonl --context 2048 --stride 1024";
    verb->footer(std::string(examples) +
                 "\n  fathom eval choice MODEL copa.jsonl --output items.jsonl\n"
                 "  fathom eval gsm8k MODEL test.jsonl --fewshot train.jsonl");
    action->footer(examples);
    auto options = std::make_shared<Options>();
    options->model.declare(*action);
    options->model.declare_memory(*action);
    action
        ->add_option("file", options->file,
                     "text (documents separated by a line <|endoftext|>), .jsonl, a token shard (.ftok) or a folder of them")
        ->required()
        ->type_name("FILE");
    action->add_option("--field", options->field, "the field of .jsonl that holds the text")->type_name("NAME");
    const auto tokens = [&](const char* name, int64_t& value, const char* text) {
        action->add_option(name, value, text)->type_name("N")->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
    };
    tokens("--context", options->context, "tokens the model looks back on at most; 0: 1024, or what it can read");
    tokens("--stride", options->stride,
           "tokens between windows: smaller is slower and gives each token more context; 0: the context");
    tokens("--limit", options->limit, "take only the first N tokens of the file; 0: all");
    action->callback([options, &globals] { eval_perplexity(*options, globals); });
    add_eval_choice(*verb, globals);
    add_eval_math(*verb, globals);
    add_eval_code(*verb, globals);
    add_eval_needle(*verb, globals);
    add_eval_reading(*verb, globals);
    add_eval_translation(*verb, globals);
}

}  // namespace fathom
