#include "app/bench_speculation.h"

#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <ctime>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "app/bench_model.h"
#include "app/bench_roofs.h"
#include "app/device.h"
#include "app/speculation.h"
#include "app/table.h"
#include "base/error.h"
#include "nn/cache_type.h"

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kOpening = 24;  // tokens at temperature 1 that every answer begins with, so that no two are alike

struct Options {
    BenchOptions model{.batch = 1, .max_new_tokens = 200};
    SpeculationOptions speculation{"mtp"};
    std::vector<double> temperatures{0, 1};
};

// One way of answering: an engine, and what it took.
class Side {
public:
    Side(const BenchModel& model, Ops& ops, const Options& options, bool drafts)
        : engine_(model.model(), ops, [&] {
              EngineOptions result;
              result.cache_tokens = 2 * options.model.batch * (kOpening + options.model.max_new_tokens + 2 * result.block_size);
              result.cache_type = *cache_type_from_name(options.model.cache_type);
              result.max_sequences = options.model.batch;
              if (drafts) options.speculation.apply(model.config(), result);
              return result;
          }()) {}

    void add(const Request& request) { (void)engine_.add(request); }
    [[nodiscard]] bool idle() const { return engine_.idle(); }
    // One batch. Returns whether it counts: all prompts were read before.
    bool step() {
        const auto start = Clock::now();
        const std::vector<TokenEvent> events = engine_.step();
        const double took = std::chrono::duration<double>(Clock::now() - start).count();
        bool decodes = !events.empty();
        for (const TokenEvent& event : events) {
            if (event.finish == FinishReason::kError) throw Error(ErrorKind::kInput, event.error);
            answers_[event.request].push_back(event.token);
            decodes &= answers_[event.request].size() > 1;
        }
        if (decodes) seconds += took, tokens += std::ssize(events);
        return decodes;
    }
    // Processor seconds of all threads that so many batches took; nothing when fewer were left, or some do not count.
    std::optional<double> turn(int steps) {
        const std::clock_t start = std::clock();
        bool counts = true;
        for (int i = 0; i < steps; ++i) counts = !idle() && step() && counts;
        return counts ? std::optional(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC) : std::nullopt;
    }
    // The answers since the last call, in the order of their requests.
    [[nodiscard]] std::vector<std::vector<int32_t>> take() {
        std::vector<std::vector<int32_t>> result;
        for (auto& [request, answer] : answers_) result.push_back(std::move(answer));
        answers_.clear();
        return result;
    }
    [[nodiscard]] const Engine::Counters& counters() const { return engine_.counters(); }

    double seconds = 0;
    int64_t tokens = 0;

private:
    Engine engine_;
    std::map<int64_t, std::vector<int32_t>> answers_;
};

struct Result {
    std::vector<double> plain, drafted, gain;  // seconds a token of every repetition, and tokens a second over those without
    std::vector<double> cost;                  // of every turn: processor time with guesses over that without
    int64_t drafts = 0, accepted = 0, same = 0, answers = 0;

    void add(const Side& p, const Side& d) {
        const auto a_token = [](const Side& side) { return side.seconds / static_cast<double>(side.tokens); };
        plain.push_back(a_token(p)), drafted.push_back(a_token(d)), gain.push_back(a_token(p) / a_token(d));
        drafts += d.counters().drafted, accepted += d.counters().accepted;
    }
    [[nodiscard]] double acceptance() const {
        return static_cast<double>(accepted) / static_cast<double>(std::max<int64_t>(drafts, 1));
    }
};

// Tokens drawn by the model itself, the first of all being the one that begins a text.
std::vector<std::vector<int32_t>> openings(const BenchModel& model, Ops& ops, const Options& options, uint64_t seed) {
    Side side(model, ops, options, false);
    const auto first = static_cast<int32_t>(model.config().bos_token_id.value_or(0));
    for (int64_t i = 0; i < options.model.batch; ++i) {
        Request request;
        request.prompt = {first};
        request.sampling.seed = seed;
        request.stream = static_cast<uint64_t>(i);
        request.max_new_tokens = kOpening;
        side.add(request);
    }
    while (!side.idle()) (void)side.step();
    auto result = side.take();
    for (auto& opening : result) opening.insert(opening.begin(), first);
    return result;
}

// The same answers by both, a few steps of each in turn, so that whatever disturbs the machine disturbs both.
void repeat(Side& plain, Side& drafted, const std::vector<std::vector<int32_t>>& prompts, double temperature, uint64_t seed,
            const Options& options, Result& result) {
    constexpr int kTurn = 8;
    for (size_t i = 0; i < prompts.size(); ++i) {
        Request request;
        request.prompt = prompts[i];
        request.sampling.temperature = temperature;
        request.sampling.seed = seed;
        request.stream = i;
        request.max_new_tokens = options.model.max_new_tokens;
        plain.add(request), drafted.add(request);
    }
    while (!plain.idle() || !drafted.idle()) {
        const auto without = plain.turn(kTurn), with = drafted.turn(kTurn);
        if (without && with) result.cost.push_back(*with / *without);
    }
    const auto expected = plain.take(), found = drafted.take();
    for (size_t i = 0; i < expected.size(); ++i) result.same += expected[i] == found[i] ? 1 : 0;
    result.answers += std::ssize(expected);
}

Result measure(const BenchModel& model, Ops& ops, const Options& options, double temperature) {
    Result result;
    for (int64_t i = 0; i < options.model.repetitions; ++i) {
        const auto seed = static_cast<uint64_t>(i + 1);
        const auto prompts = openings(model, ops, options, seed);
        Side plain(model, ops, options, false), drafted(model, ops, options, true);
        repeat(plain, drafted, prompts, temperature, seed, options, result);
        result.add(plain, drafted);
    }
    return result;
}

void bench_speculation(const Options& options, const Globals& globals) {
    if (options.model.model.empty() == options.model.random_config.empty()) {
        throw Error(ErrorKind::kUsage, "give either a MODEL folder or --random-config FILE");
    }
    Device device(globals);
    const BenchModel model(options.model, device.ops());
    Table table({{"temperature", "temperature", true},
                 {"came true", "acceptance", true},
                 {"cost of a step", "cost", true},
                 {"(1 + a) / cost", "expected_gain", true},
                 {"gain", "gain", true},
                 {"tokens/s without", "plain_tokens_per_second", true},
                 {"with", "tokens_per_second", true},
                 {"same answers", "same_answers", true},
                 {"of", "answers", true}});
    const auto number = [](double value) { return Cell(value, fmt::format("{:.3g}", value)); };
    for (const double temperature : options.temperatures) {
        const Result r = measure(model, device.ops(), options, temperature);
        if (r.cost.empty()) {
            throw Error(ErrorKind::kUsage, "the answers are too short to be measured: give a larger --max-new-tokens");
        }
        const double a = r.acceptance(), cost = median(r.cost);
        table.add({number(temperature), number(a), number(cost), number((1 + a) / cost), number(median(r.gain)),
                   number(1 / median(r.plain)), number(1 / median(r.drafted)), r.same, r.answers});
    }
    table.print(globals.json);
}

}  // namespace

void add_bench_speculation(CLI::App& bench, Globals& globals) {
    auto options = std::make_shared<Options>();
    options->model.with_mtp = true;
    CLI::App* verb = bench.add_subcommand("speculation", "what guessing tokens ahead with the model's MTP modules is worth");
    verb->footer(
        "Examples:\n"
        "  fathom bench speculation models/stories\n"
        "  fathom bench speculation --random-config config.json --agreeing 1 --temperatures 0");
    verb->add_option("model", options->model.model, "a model folder whose files hold MTP modules")->type_name("MODEL");
    verb->add_option("--random-config", options->model.random_config, "instead of MODEL: weights are drawn at random")
        ->type_name("FILE");
    verb->add_option("--agreeing", options->model.agreeing,
                     "random weights with which this share of the guesses comes true; without, hardly any does")
        ->type_name("SHARE")
        ->check(CLI::Range(0.25, 1.0));
    verb->add_option("--dtype", options->model.dtype, "hold the weights as f32 or bf16; auto: as stored, else bf16")
        ->type_name("TYPE")
        ->check(CLI::IsMember({"auto", "f32", "bf16"}));
    verb->add_option("--temperatures", options->temperatures, "one row of the table each")
        ->type_name("T,T,...")
        ->delimiter(',');
    const auto count = [&](const char* name, int64_t& value, const char* text) {
        verb->add_option(name, value, text)->type_name("N")->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
    };
    count("--batch", options->model.batch, "sequences at a time");
    count("--max-new-tokens", options->model.max_new_tokens, "of an answer");
    count("--repetitions", options->model.repetitions, "answers of every sequence, each with another opening");
    options->speculation.declare(*verb);
    verb->callback([options, &globals] { bench_speculation(*options, globals); });
}

}  // namespace fathom
