// fathom generate: one prompt, one continuation.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/generate_answer.h"
#include "app/generate_model.h"
#include "app/paged_experts.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/interrupt.h"

namespace fathom {
namespace {

struct Options {
    ModelOptions model;
    SamplingOptions sampling;
    std::optional<std::string> prompt, prompt_ids;
    int64_t max_new_tokens = 256;
    int64_t prefill_chunk = 0;  // the back end's
    std::vector<std::string> stop;
    bool no_cache = false, ignore_eos = false, echo = false;
};

std::string read_standard_input() {
    if (::isatty(STDIN_FILENO) != 0) {
        throw Error(ErrorKind::kUsage, "no prompt: give --prompt TEXT, --prompt-ids 1,2,3, or text on standard input");
    }
    std::string text(std::istreambuf_iterator<char>(std::cin), {});
    if (text.ends_with('\n')) text.pop_back();  // what echo adds
    return text;
}

Answer answer_prompt(OpenModel& model, const Options& options, const std::vector<int32_t>& prompt, bool stream,
                     SpeedMeter& meter) {
    const auto wanted = static_cast<int64_t>(prompt.size()) + options.max_new_tokens;
    EngineOptions how = model.engine_options(std::min(wanted, model.config().max_position_embeddings));
    how.use_cache = !options.no_cache;
    if (options.prefill_chunk > 0) how.prefill_chunk = how.max_batch_rows = options.prefill_chunk;
    Engine engine(model.model(), model.ops(), how);

    Request request;
    request.prompt = prompt;
    request.sampling = options.sampling.resolve(options.model.model);
    request.max_new_tokens = options.max_new_tokens;
    if (!options.ignore_eos) request.stop_ids = model.stop_ids();
    const auto show = [&](const std::string& text) {
        fmt::print("{}", text);
        std::fflush(stdout);
    };
    meter = SpeedMeter();
    return answer_request(engine, std::move(request),
                          {.tokenizer = model.tokenizer(),
                           .stops = options.stop,
                           .show = stream ? show : std::function<void(const std::string&)>(),
                           .interrupted = interrupted},
                          meter);
}

void print_json(const Options& options, const Answer& answer, const SpeedMeter& meter, int64_t prompt_tokens,
                const PagedExperts* paged) {
    if (options.prompt_ids) {
        fmt::print("[{}]\n", fmt::join(answer.ids, ", "));
        return;
    }
    nlohmann::ordered_json object;
    object["text"] = answer.text;
    object["ids"] = answer.ids;
    object["prompt_tokens"] = prompt_tokens;
    object["prompt_tokens_per_second"] = meter.prompt_rate(prompt_tokens);
    object["tokens_per_second"] = meter.answer_rate();
    object["finish_reason"] = answer.finish_reason;
    if (options.model.speculation.wanted()) {
        object["draft_n"] = answer.drafted;
        object["draft_n_accepted"] = answer.accepted;
    }
    if (paged != nullptr) object["experts"] = paged->figures().json();
    fmt::print("{}\n", object.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

void generate(const Options& options, const Globals& globals) {
    if (options.prompt && options.prompt_ids) {
        throw Error(ErrorKind::kUsage, "--prompt and --prompt-ids exclude each other");
    }
    if (options.prompt_ids && !options.stop.empty()) {
        throw Error(ErrorKind::kUsage, "--stop needs text: give --prompt instead of --prompt-ids");
    }
    const bool ids = options.prompt_ids.has_value();
    const std::string text = ids ? "" : options.prompt ? *options.prompt : read_standard_input();
    const std::vector<int32_t> given = ids ? parse_ids(*options.prompt_ids) : std::vector<int32_t>();
    OpenModel model(options.model, globals, ids ? OpenModel::Text::kNo : OpenModel::Text::kNeeded);
    const std::vector<int32_t> prompt = ids ? given : model.encode_prompt(text);
    const auto prompt_tokens = static_cast<int64_t>(prompt.size());

    const bool stream = !globals.json && !ids;
    if (stream && options.echo) fmt::print("{}", text);
    SpeedMeter meter;
    const Answer answer = answer_prompt(model, options, prompt, stream, meter);
    if (globals.json) return print_json(options, answer, meter, prompt_tokens, model.paged());
    fmt::print("{}\n", ids ? fmt::format("{}", fmt::join(answer.ids, ",")) : "");
    std::fflush(stdout);
    if (globals.quiet) return;
    fmt::print(stderr, "{}{} ({})\n", meter.summary(prompt_tokens), answer.draft_summary(), answer.finish_reason);
    if (model.paged() != nullptr) fmt::print(stderr, "{}\n", model.paged()->figures().summary());
}

}  // namespace

void add_generate(CLI::App& app, Globals& globals) {
    CLI::App* verb = app.add_subcommand("generate", "continue a text, or a list of token ids");
    verb->footer(
        "Examples:\n"
        "  fathom generate models/stories --prompt \"Once upon a time\"\n"
        "  fathom generate MODEL --prompt \"Two and two\" --temperature 0 --json\n"
        "  echo \"The old man\" | fathom generate MODEL --max-new-tokens 500\n"
        "  fathom generate MODEL --prompt-ids 1,2,3 --temperature 0 --json");
    auto options = std::make_shared<Options>();
    options->model.declare(*verb);
    verb->add_option("--prompt", options->prompt, "the text to continue (default: standard input)")->type_name("TEXT");
    verb->add_option("--prompt-ids", options->prompt_ids, "the same as token ids; prints the new ids, as an array with --json")
        ->type_name("1,2,3");
    verb->add_option("-n,--max-new-tokens", options->max_new_tokens, "stop after this many tokens")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
    verb->add_option("--stop", options->stop, "stop where the answer holds this text, which is not shown; may be repeated")
        ->type_name("TEXT")
        ->allow_extra_args(false);
    verb->add_flag("--ignore-eos", options->ignore_eos, "go on behind the end of the text");
    verb->add_flag("--echo", options->echo, "print the prompt before its continuation");
    options->sampling.declare(*verb);
    options->model.speculation.declare(*verb);
    options->model.declare_memory(*verb);
    verb->add_option("--prefill-chunk", options->prefill_chunk,
                     "tokens of the prompt that are read at a time; default: 1024, on a GPU 8192")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
        ->group("Computing");
    verb->add_flag("--no-cache", options->no_cache, "compute everything again for every token (slow; to check the cache)")
        ->group("Computing");
    verb->callback([options, &globals] { generate(*options, globals); });
}

}  // namespace fathom
