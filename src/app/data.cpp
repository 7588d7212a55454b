// `fathom data`: from text files to token shards, and a look at them.
#include <fmt/format.h>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/table.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/threads.h"
#include "io/token_shards.h"
#include "io/token_shards_prepare.h"
#include "io/tokenizer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

// What `prepare` and `select` read: text files and the licences to leave out.
struct InputOptions {
    std::vector<std::string> files;
    std::vector<std::string> indexes;  // one per file; "-": none
    std::string field = "text";
    std::string exclude_licence;
};

struct PrepareArguments {
    InputOptions inputs;
    std::string tokenizer, out, bos, eos;
    bool no_bos = false;
    int64_t shard_tokens = 1 << 25;
    double valid_fraction = 0;
    uint64_t seed = 0;
};

struct SelectArguments {
    InputOptions inputs;
    std::string out;
};

std::vector<TextInput> inputs_of(const InputOptions& options) {
    if (options.exclude_licence.empty() != options.indexes.empty())
        throw Error{ErrorKind::kUsage,
                    "--index and --exclude-licence belong together: the table, and the licences in it to leave out"};
    if (!options.indexes.empty() && options.indexes.size() != options.files.size())
        throw Error{
            ErrorKind::kUsage,
            fmt::format("{} inputs and {} times --index; give one for each input in the same order, - for an input without",
                        options.files.size(), options.indexes.size())};
    std::vector<TextInput> inputs;
    for (size_t i = 0; i < options.files.size(); ++i) {
        inputs.push_back({options.files[i], std::nullopt});
        if (!options.indexes.empty() && options.indexes[i] != "-") inputs.back().index = options.indexes[i];
    }
    return inputs;
}

// Changes when the ids of a text may change: all files that Tokenizer::load may read.
uint64_t hash_of_tokenizer(const fs::path& file_or_dir) {
    const bool folder = fs::is_directory(file_or_dir);
    const fs::path parent = folder ? file_or_dir : file_or_dir.parent_path();
    std::vector<fs::path> files{parent / "tokenizer_config.json"};
    if (folder)
        files.insert(files.end(), {parent / "tokenizer.json", parent / "tiktoken.model"});
    else
        files.push_back(file_or_dir);
    std::string hashes;
    for (const fs::path& file : files) hashes += fs::exists(file) ? hash_text(hash_bytes(MappedFile(file).bytes())) : "-";
    return hash_bytes(std::as_bytes(std::span(hashes)));
}

// The token a flag names, or the one the tokenizer names when the flag was not given.
std::optional<int32_t> special_id(const Tokenizer& tokenizer, const std::string& name, std::optional<int32_t> otherwise) {
    if (name.empty()) return otherwise;
    const auto id = tokenizer.id_of(name);
    if (!id) throw Error{ErrorKind::kUsage, fmt::format("the tokenizer has no token \"{}\"", name)};
    return id;
}

PrepareOptions options_of(const PrepareArguments& arguments, const Tokenizer& tokenizer) {
    const auto eos = special_id(tokenizer, arguments.eos, tokenizer.eos_id());
    if (!eos)
        throw Error{ErrorKind::kUsage,
                    fmt::format("{}: names no EOS token; say which one ends a document with --eos", arguments.tokenizer)};
    PrepareOptions options;
    options.inputs = inputs_of(arguments.inputs);
    options.field = arguments.inputs.field;
    options.exclude_licence = arguments.inputs.exclude_licence;
    options.tokenizer_hash = hash_of_tokenizer(arguments.tokenizer);
    options.vocab_size = tokenizer.vocab_size();
    if (!arguments.no_bos) options.bos_id = special_id(tokenizer, arguments.bos, tokenizer.bos_id());
    options.eos_id = *eos;
    options.shard_tokens = arguments.shard_tokens;
    options.valid_fraction = arguments.valid_fraction;
    options.seed = arguments.seed;
    options.out = arguments.out;
    return options;
}

double bytes_per_token(int64_t text_bytes, int64_t tokens) {
    return static_cast<double>(text_bytes) / static_cast<double>(tokens);
}

void prepare(const PrepareArguments& arguments, const Globals& globals) {
    const Tokenizer tokenizer = Tokenizer::load(arguments.tokenizer);
    const PrepareOptions options = options_of(arguments, tokenizer);
    ThreadPool threads(globals.threads);
    const auto encode = [&](std::string_view text) { return tokenizer.encode(text, /*parse_special=*/false); };
    Table table({{"data set", "folder"},
                 {"documents", "documents", true},
                 {"left out", "excluded", true},
                 {"tokens", "tokens", true},
                 {"text", "text_bytes", true},
                 {"bytes/token", "bytes_per_token", true},
                 {"shards", "shards", true},
                 {"found done", "resumed_shards", true}});
    for (const auto& summary : prepare_tokens(options, encode, threads, globals.progress())) {
        const double ratio = bytes_per_token(summary.text_bytes, summary.tokens);
        table.add({summary.folder.string(), summary.documents, summary.excluded, summary.tokens,
                   Cell(summary.text_bytes, human_bytes(static_cast<double>(summary.text_bytes))),
                   Cell(ratio, fmt::format("{:.3f}", ratio)), summary.shards, summary.resumed_shards});
    }
    table.print(globals.json);
}

// One document in the format of the output's name.
void write_document(AtomicFile& file, const TextDocuments& documents, const DocumentRange& range, bool json_lines) {
    const std::string text = documents.text(range);
    if (json_lines) {
        file.write(nlohmann::json{{"text", text}}.dump() + "\n");
        return;
    }
    const std::string lines = "\n" + text + "\n";
    if (lines.find("\n" + std::string(TextDocuments::kSeparator) + "\n") != std::string::npos)
        throw Error{
            ErrorKind::kInput,
            fmt::format("{}:{}: this document contains the separator line {}, which a text file cannot hold; give --out a "
                        "name that ends in .jsonl",
                        documents.path().string(), range.line, TextDocuments::kSeparator)};
    file.write(text);
    file.write(fmt::format("\n\n{}\n\n", TextDocuments::kSeparator));
}

void select(const SelectArguments& arguments, const Globals& globals) {
    const fs::path out = arguments.out;
    const bool json_lines = out.extension() == ".jsonl";
    AtomicFile file(out);
    Table table({{"file", "file"}, {"documents", "documents", true}, {"left out", "excluded", true}});
    for (const TextInput& input : inputs_of(arguments.inputs)) {
        SelectedDocuments selected(input, arguments.inputs.field, arguments.inputs.exclude_licence);
        int64_t documents = 0;
        Progress progress("select " + input.file.filename().string(), selected.documents().bytes(), "B", globals.progress());
        while (const auto range = selected.next()) {
            throw_if_interrupted();
            progress.update(range->end);
            if (selected.excluded(range->index)) continue;
            write_document(file, selected.documents(), *range, json_lines);
            ++documents;
        }
        progress.update(selected.documents().bytes());
        progress.finish();
        table.add({input.file.string(), documents, selected.excluded_count()});
    }
    file.commit();
    table.print(globals.json);
}

nlohmann::json description_of(const TokenDataset& dataset) {
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < dataset.documents(); ++i) lengths.push_back(dataset.length(i));
    std::sort(lengths.begin(), lengths.end());
    nlohmann::json shards = nlohmann::json::array();
    for (const auto& shard : dataset.shards())
        shards.push_back({{"documents", shard.header().documents},
                          {"tokens", shard.header().tokens},
                          {"text_bytes", shard.header().text_bytes},
                          {"checksum", hash_text(shard.checksum())}});
    return {{"folder", dataset.folder().string()},
            {"documents", dataset.documents()},
            {"tokens", dataset.tokens()},
            {"text_bytes", dataset.text_bytes()},
            {"bytes_per_token", bytes_per_token(dataset.text_bytes(), dataset.tokens())},
            {"vocab_size", dataset.vocab_size()},
            {"bytes_stored_per_token", dataset.shards().front().bytes_per_token()},
            {"bos_id", dataset.bos_id() ? nlohmann::json(*dataset.bos_id()) : nlohmann::json()},
            {"eos_id", dataset.eos_id()},
            {"document_tokens", {{"min", lengths.front()}, {"median", lengths[lengths.size() / 2]}, {"max", lengths.back()}}},
            {"shards", shards}};
}

void inspect(const std::string& folder, const Globals& globals) {
    const auto description = description_of(TokenDataset(folder));
    if (globals.json) {
        fmt::print("{}\n", description.dump(2));
        return;
    }
    Table table({{"token shards", "key"}, {"", "value", true}});
    for (const char* key : {"documents", "tokens", "vocab_size", "bytes_stored_per_token", "eos_id"})
        table.add({key, description.at(key).get<int64_t>()});
    table.add({"bos_id", description.at("bos_id").is_null() ? Cell("none") : Cell(description.at("bos_id").get<int64_t>())});
    table.add({"text", human_bytes(description.at("text_bytes"))});
    table.add({"bytes of text per token", fmt::format("{:.3f}", description.at("bytes_per_token").get<double>())});
    const auto& lengths = description.at("document_tokens");
    table.add({"tokens of a document: least, median, most",
               fmt::format("{}, {}, {}", lengths.at("min").get<int64_t>(), lengths.at("median").get<int64_t>(),
                           lengths.at("max").get<int64_t>())});
    table.add({"shards, all whole and unharmed", static_cast<int64_t>(description.at("shards").size())});
    table.print(false);
}

void add_inputs(CLI::App& verb, InputOptions& options) {
    verb.add_option("INPUT", options.files, "text files: .jsonl, or plain text with <|endoftext|> lines between documents")
        ->required()
        ->check(CLI::ExistingFile);
    verb.add_option("--field", options.field, "field of .jsonl lines that holds the text")->type_name("NAME");
    verb.add_option("--index", options.indexes,
                    "table of licences (tab-separated; columns licence, bytes, title) for an INPUT: one for each, in order, - "
                    "for an INPUT without")
        ->type_name("FILE")
        ->allow_extra_args(false);
    verb.add_option("--exclude-licence", options.exclude_licence,
                    "leave out documents whose licence matches this regular expression")
        ->type_name("REGEX");
}

void add_prepare(CLI::App& data, Globals& globals) {
    CLI::App* verb = data.add_subcommand(
        "prepare", "tokenize text into token shards for training; started again, it goes on where it was stopped");
    verb->footer(
        "Examples:\n"
        "  fathom data prepare stories.txt --tokenizer models/stories --out data/stories\n"
        "  fathom data prepare a.txt b.jsonl --tokenizer t.json --out data/ab --valid-fraction 0.01\n"
        "  fathom data prepare s.txt --index s.tsv --exclude-licence NC --tokenizer t.json --out data/s");
    auto arguments = std::make_shared<PrepareArguments>();
    add_inputs(*verb, arguments->inputs);
    verb->add_option("--tokenizer", arguments->tokenizer, "tokenizer.json, tiktoken.model, or a folder holding one")
        ->required()
        ->type_name("PATH");
    verb->add_option("--out", arguments->out, "folder of the data set")->required()->type_name("DIR");
    verb->add_option("--shard-tokens", arguments->shard_tokens, "a shard ends with the document that reaches this many tokens")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 31));
    verb->add_option("--valid-fraction", arguments->valid_fraction,
                     "share of documents to set apart: writes DIR/train and DIR/valid")
        ->type_name("F")
        ->check(CLI::Range(0.0, 0.999));
    verb->add_option("--seed", arguments->seed, "of the choice of these documents")->type_name("N");
    verb->add_option("--eos", arguments->eos, "token behind each document; default: the tokenizer's EOS")->type_name("TOKEN");
    auto* bos = verb->add_option("--bos", arguments->bos,
                                 "token in front of each document; default: the tokenizer's BOS, if it has one")
                    ->type_name("TOKEN");
    verb->add_flag("--no-bos", arguments->no_bos, "no token in front of documents")->excludes(bos);
    verb->callback([arguments, &globals] { prepare(*arguments, globals); });
}

void add_select(CLI::App& data, Globals& globals) {
    CLI::App* verb = data.add_subcommand(
        "select", "write the documents whose licences allow it into one text file, e.g. to train a tokenizer on");
    verb->footer(
        "Examples:\n"
        "  fathom data select s.txt --index s.tsv --exclude-licence NC --out free.txt\n"
        "  fathom data select s.txt v.txt --index s.tsv --index - --exclude-licence NC --out free.jsonl");
    auto arguments = std::make_shared<SelectArguments>();
    add_inputs(*verb, arguments->inputs);
    verb->add_option("--out", arguments->out, "the file to write: .txt, or .jsonl with a field \"text\"")
        ->required()
        ->type_name("FILE");
    verb->callback([arguments, &globals] { select(*arguments, globals); });
}

void add_inspect_shards(CLI::App& data, Globals& globals) {
    CLI::App* verb = data.add_subcommand("inspect", "check a folder of token shards to the last byte and sum it up");
    verb->footer("Examples:\n  fathom data inspect data/stories\n  fathom data inspect data/stories --json");
    auto folder = std::make_shared<std::string>();
    verb->add_option("DIR", *folder, "folder that fathom data prepare wrote")->required();
    verb->callback([folder, &globals] { inspect(*folder, globals); });
}

}  // namespace

void add_data(CLI::App& app, Globals& globals) {
    CLI::App* verb = app.add_subcommand("data", "prepare training data: text files to token shards");
    verb->require_subcommand(1);
    add_prepare(*verb, globals);
    add_select(*verb, globals);
    add_inspect_shards(*verb, globals);
    add_data_countdown(*verb);
}

}  // namespace fathom
