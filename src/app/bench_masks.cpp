#include "app/bench_masks.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/table.h"
#include "base/error.h"
#include "base/rng.h"
#include "infer/token_grammar.h"
#include "io/tokenizer.h"
#include "serve/grammar_text.h"
#include "serve/structured_output.h"

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
    std::string tokenizer;
    int64_t documents = 200;
};

double microseconds_since(Clock::time_point start) {
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// A record as programs ask for: nested objects, lists, enums, bounded numbers, free text.
constexpr const char* kSchema = R"({
  "type": "object", "additionalProperties": false, "required": ["name", "age", "mood", "tags", "address", "scores"],
  "properties": {
    "name": {"type": "string", "maxLength": 40}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
    "mood": {"enum": ["glad", "sad", "angry", "calm"]}, "tags": {"type": "array", "maxItems": 5, "items": {"type": "string"}},
    "address": {"type": "object", "additionalProperties": false, "required": ["street", "zip"],
                "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}},
    "scores": {"type": "array", "maxItems": 8, "items": {"type": "number"}}}})";

std::string words(Rng& random, int64_t count) {
    static constexpr std::array kWords{"river", "Anna", "größer", "little",     "and",  "the",  "mountain", "re-entry",
                                       "Ωmega", "数学", "said",   "\\\"hm\\\"", "42nd", "blue", "of",       "window"};
    std::string text;
    for (int64_t i = 0; i < count; ++i) text += (i > 0 ? " " : "") + std::string(kWords[random.below(kWords.size())]);
    return text;
}

// A document that obeys kSchema, as models write them.
std::string record(Rng& random) {
    std::string tags, scores;
    for (uint64_t i = random.below(5); i > 0; --i) tags += fmt::format("\"{}\"{}", words(random, 2), i > 1 ? ", " : "");
    for (uint64_t i = random.below(8); i > 0; --i) scores += fmt::format("{}{}", random.uniform() * 100, i > 1 ? ", " : "");
    return fmt::format(
        R"({{"name": "{}", "age": {}, "mood": "{}", "tags": [{}], "address": {{"street": "{}", "zip": "{:05}"}}, "scores": [{}]}})",
        words(random, 2), random.below(120), random.uniform() < 0.5 ? "calm" : "sad", tags, words(random, 3),
        random.below(100000), scores);
}

// JSON without a schema: deeper, and with what a schema would not have.
std::string any_object(Rng& random, int depth = 0) {
    std::string text;
    for (uint64_t i = 1 + random.below(3); i > 0; --i) {
        text += fmt::format("\"{}\": ", words(random, 1));
        text += depth < 3 && random.uniform() < 0.5
                    ? any_object(random, depth + 1)
                    : fmt::format("[null, true, -{:e}, \"{}\"]", random.uniform(), words(random, 6));
        if (i > 1) text += ",\n  ";
    }
    return "{" + text + "}";
}

std::string date_and_address(Rng& random) {
    return fmt::format("2{:03}-0{}-1{}: {}@{}.org", random.below(1000), 1 + random.below(9), random.below(10), "some.body",
                       "example");
}

struct Grammars {
    const char* name;
    std::function<Grammar()> make;
    std::function<std::string(Rng&)> write;
};

const std::vector<Grammars>& grammars() {
    static const std::vector<Grammars> kGrammars{
        {"JSON Schema", [] { return parse_json_schema(Json::parse(kSchema)); }, record},
        {"any JSON object", [] { return any_json_object(); }, [](Rng& random) { return any_object(random); }},
        {"regular expression", [] { return Grammar{parse_regex(R"([0-9]{4}-[0-9]{2}-[0-9]{2}: [a-z.]+@[a-z]+\.(org|com))")}; },
         date_and_address}};
    return kGrammars;
}

struct Times {
    double compile = 0;                // microseconds until the first mask could be asked for
    std::vector<double> first, later;  // per token: of the first document, and of the others

    static double at(std::vector<double> values, double share) {
        if (values.empty()) return 0;
        std::ranges::sort(values);
        return values[std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())))];
    }
    static double mean(const std::vector<double>& values) {
        double sum = 0;
        for (const double value : values) sum += value;
        return values.empty() ? 0 : sum / static_cast<double>(values.size());
    }
};

// Walks the tokens of documents through the grammar, as an engine does: a mask before every token, then the token.
Times measure(const Grammars& grammar, GrammarCache& cache, const Tokenizer& tokenizer, int64_t documents) {
    Times times;
    Rng random(1);
    const auto start = Clock::now();
    const auto compiled = cache.get("grammar", grammar.name, grammar.make);
    times.compile = microseconds_since(start);
    for (int64_t i = 0; i < documents; ++i) {
        GrammarConstraint constraint(compiled, {});
        const std::string text = grammar.write(random);
        for (const int32_t token : tokenizer.encode(text)) {
            const auto began = Clock::now();
            const TokenMask mask = constraint.allowed(tokenizer.vocab_size());
            const bool allowed = mask.allows(token);
            constraint.accept(token);
            (i == 0 ? times.first : times.later).push_back(microseconds_since(began));
            check(allowed, "fathom bench masks: a document does not obey its grammar");
        }
    }
    return times;
}

void bench_masks(const Options& options, const Globals& globals) {
    const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
    GrammarCache cache(tokenizer);
    auto start = Clock::now();
    (void)cache.get("grammar", "nothing", [] { return Grammar{GrammarExpr::literal("x")}; });
    const double trie = microseconds_since(start);
    Table table({{"grammar", "grammar"},
                 {"compile ms", "compile_ms", true},
                 {"first text: mean us", "first_mean_us", true},
                 {"max", "first_max_us", true},
                 {"later texts: mean us", "mean_us", true},
                 {"p50", "p50_us", true},
                 {"p99", "p99_us", true},
                 {"max", "max_us", true},
                 {"tokens", "tokens", true}});
    const auto number = [](double value) { return Cell(value, fmt::format("{:.1f}", value)); };
    for (const Grammars& grammar : grammars()) {
        const Times t = measure(grammar, cache, tokenizer, options.documents);
        table.add({grammar.name, number(t.compile / 1e3), number(Times::mean(t.first)), number(Times::at(t.first, 1)),
                   number(Times::mean(t.later)), number(Times::at(t.later, 0.5)), number(Times::at(t.later, 0.99)),
                   number(Times::at(t.later, 1)), static_cast<int64_t>(t.later.size())});
    }
    if (!globals.json) {
        fmt::print("{} tokens in the vocabulary; their prefix tree took {:.0f} ms, once per server\n", tokenizer.vocab_size(),
                   trie / 1e3);
    }
    table.print(globals.json);
}

}  // namespace

void add_bench_masks(CLI::App& bench, Globals& globals) {
    auto options = std::make_shared<Options>();
    CLI::App* verb = bench.add_subcommand("masks", "what structured output costs per token, for a tokenizer's vocabulary");
    verb->footer(
        "Examples:\n"
        "  fathom bench masks MODEL\n"
        "  fathom bench masks deepseek-v3/tokenizer.json --json");
    verb->add_option("tokenizer", options->tokenizer, "a tokenizer.json, a tiktoken.model, or a model folder")
        ->required()
        ->type_name("TOKENIZER");
    verb->add_option("--documents", options->documents, "texts per grammar; the first one fills the caches")
        ->type_name("N")
        ->check(CLI::Range(2, 1 << 20));
    verb->callback([options, &globals] { bench_masks(*options, globals); });
}

}  // namespace fathom
