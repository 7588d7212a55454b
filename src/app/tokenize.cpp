// fathom tokenize: text to ids and back.
#include <fmt/format.h>
#include <chrono>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/verb.h"
#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/threads.h"
#include "io/text_documents.h"
#include "io/tokenizer.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
    std::string tokenizer;
    std::vector<std::string> texts;
    bool json_lines = false, decode = false, no_special = false, bos = false, eos = false;
    std::string bench;
};

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::vector<int32_t> encode(const Tokenizer& tokenizer, std::string_view text, const Options& options) {
    std::vector<int32_t> ids = tokenizer.encode(text, !options.no_special);
    const auto need = [](std::optional<int32_t> id, const char* option) {
        if (!id) throw Error(ErrorKind::kInput, fmt::format("{}: this tokenizer names no such token", option));
        return *id;
    };
    if (options.bos) ids.insert(ids.begin(), need(tokenizer.bos_id(), "--bos"));
    if (options.eos) ids.push_back(need(tokenizer.eos_id(), "--eos"));
    return ids;
}

[[noreturn]] void fail_line(int64_t line, const std::string& what) {
    throw Error(ErrorKind::kInput, fmt::format("standard input, line {}: {}", line, what));
}

// One line {"text": ...} -> {"ids": [...]}, or with --decode the other way round.
std::string convert_line(const Tokenizer& tokenizer, const std::string& line, int64_t number, const Options& options) {
    const char* key = options.decode ? "ids" : "text";
    const Json object = Json::parse(line, nullptr, false);
    if (object.is_discarded()) fail_line(number, "not valid JSON");
    if (!object.is_object() || !object.contains(key)) fail_line(number, fmt::format("expected an object with \"{}\"", key));
    const Json& value = object[key];
    if (options.decode) {
        if (!value.is_array()) fail_line(number, "\"ids\" is not an array of whole numbers");
        std::vector<int32_t> ids;
        for (const Json& id : value) {
            if (!id.is_number_integer() || id < 0 || id >= tokenizer.vocab_size())
                fail_line(number, fmt::format("{} is not an id below {}", id.dump(), tokenizer.vocab_size()));
            ids.push_back(id.get<int32_t>());
        }
        return dump({{"text", tokenizer.decode(ids, options.no_special)}});
    }
    if (!value.is_string()) fail_line(number, "\"text\" is not a string");
    std::string ids;
    for (const int32_t id : encode(tokenizer, value.get_ref<const std::string&>(), options))
        fmt::format_to(std::back_inserter(ids), "{}{}", ids.empty() ? "" : ",", id);
    return "{\"ids\":[" + ids + "]}";
}

// Batches of lines go to all threads; the order is kept.
void convert_lines(const Tokenizer& tokenizer, const Options& options, const Globals& globals) {
    constexpr size_t kBatchBytes = 8 << 20;
    ThreadPool pool(globals.threads);
    int64_t number = 0;
    bool more = true;
    while (more) {
        std::vector<std::string> lines;
        size_t bytes = 0;
        for (std::string line; bytes < kBatchBytes && (more = static_cast<bool>(std::getline(std::cin, line)));) {
            bytes += line.size() + 1;
            lines.push_back(std::move(line));
        }
        throw_if_interrupted();
        pool.parallel_for(static_cast<int64_t>(lines.size()), 1, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i)
                if (lines[i].find_first_not_of(" \t\r") != std::string::npos)
                    lines[i] = convert_line(tokenizer, lines[i], number + i + 1, options) + "\n";
                else
                    lines[i].clear();
        });
        for (const std::string& line : lines) fmt::print("{}", line);
        number += static_cast<int64_t>(lines.size());
    }
}

void print_encoding(const Tokenizer& tokenizer, const std::string& text, const Options& options, const Globals& globals) {
    const std::vector<int32_t> ids = encode(tokenizer, text, options);
    if (!globals.json) {
        fmt::print("{}\n", fmt::join(ids, " "));
        return;
    }
    Json tokens = Json::array();
    for (const int32_t id : ids) tokens.push_back(std::string(tokenizer.token_bytes(id)));
    fmt::print("{}\n", dump({{"ids", ids}, {"tokens", tokens}, {"bytes", text.size()}}));
}

// Ids as "1 2 3" or "1,2,3", over as many arguments as one likes.
std::vector<int32_t> read_ids(const std::vector<std::string>& texts, const Tokenizer& tokenizer) {
    std::vector<int32_t> ids;
    for (std::string text : texts) {
        for (char& c : text)
            if (c == ',' || c == '[' || c == ']') c = ' ';
        std::istringstream words(text);
        for (std::string word; words >> word;) {
            const bool digits = word.size() < 10 && word.find_first_not_of("0123456789") == std::string::npos;
            if (!digits || std::stoi(word) >= tokenizer.vocab_size())
                throw Error(ErrorKind::kUsage, fmt::format("\"{}\" is not an id below {}", word, tokenizer.vocab_size()));
            ids.push_back(std::stoi(word));
        }
    }
    return ids;
}

// Encodes every document of a file on one thread and says how fast that was; reading is not counted.
void bench(const Tokenizer& tokenizer, const Options& options, const Globals& globals) {
    TextDocuments corpus(options.bench);
    int64_t bytes = 0, tokens = 0;
    double seconds = 0;
    while (const auto document = corpus.next()) {
        throw_if_interrupted();
        const std::string text = corpus.text(*document);
        const auto start = std::chrono::steady_clock::now();
        tokens += static_cast<int64_t>(tokenizer.encode(text).size());
        seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        bytes += static_cast<int64_t>(text.size());
    }
    const double rate = static_cast<double>(bytes) / seconds / 1e6;
    if (globals.json)
        fmt::print("{}\n", dump({{"bytes", bytes}, {"tokens", tokens}, {"seconds", seconds}, {"megabytes_per_second", rate}}));
    else
        fmt::print("{} bytes, {} tokens ({:.2f} bytes/token), {:.2f} s on one thread: {:.1f} MB/s\n", bytes, tokens,
                   static_cast<double>(bytes) / static_cast<double>(tokens), seconds, rate);
}

void run(const Options& options, const Globals& globals) {
    const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
    if (!options.bench.empty()) return bench(tokenizer, options, globals);
    if (options.json_lines) return convert_lines(tokenizer, options, globals);
    std::vector<std::string> texts = options.texts;
    if (texts.empty()) texts.emplace_back(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
    if (options.decode) {
        const std::string text = tokenizer.decode(read_ids(texts, tokenizer), options.no_special);
        fmt::print("{}\n", globals.json ? dump({{"text", text}}) : text);
        return;
    }
    for (const std::string& text : texts) print_encoding(tokenizer, text, options, globals);
}

}  // namespace

void add_tokenize(CLI::App& app, Globals& globals) {
    CLI::App* verb = app.add_subcommand("tokenize", "turn text into token ids, or ids into text");
    verb->footer(
        "Examples:\n"
        "  fathom tokenize models/stories \"Once upon a time\"          ids, one line per text\n"
        "  fathom tokenize models/stories --decode 12 345 6           the text of these ids\n"
        "  fathom tokenize tokenizer.json --jsonl < in.jsonl          {\"text\": ...} lines to {\"ids\": [...]} lines\n"
        "  fathom tokenize tokenizer.json --bench corpus.txt          how fast");
    auto options = std::make_shared<Options>();
    verb->add_option("tokenizer", options->tokenizer, "tokenizer.json, tiktoken.model, or a folder with one of them")
        ->required()
        ->type_name("TOKENIZER");
    verb->add_option("text", options->texts, "texts to encode, or ids with --decode; none: all of standard input")
        ->type_name("TEXT");
    verb->add_flag("--jsonl", options->json_lines, "read JSON lines from standard input, write JSON lines in the same order");
    verb->add_flag("--decode", options->decode, "from ids to text");
    verb->add_flag("--no-special", options->no_special,
                   "encode: control tokens are plain text; --decode: leave special tokens out");
    verb->add_flag("--bos", options->bos, "put the begin-of-sentence token in front");
    verb->add_flag("--eos", options->eos, "put the end-of-sentence token behind");
    verb->add_option("--bench", options->bench, "encode this file on one thread and print the rate")->type_name("FILE");
    verb->callback([options, &globals] { run(*options, globals); });
}

}  // namespace fathom
