#include "app/eval_model.h"

#include <fmt/format.h>
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/progress.h"

namespace fathom {
namespace {

EngineOptions engine_options(OpenModel& model, const EvalOptions& options) {
    const int64_t longest = model.config().max_position_embeddings,
                  length = std::min(options.context > 0 ? options.context : 16384, longest);
    EngineOptions result = model.engine_options(std::min(options.batch * length, std::max<int64_t>(2 * length, 65536)));
    result.max_sequences = options.batch;
    result.max_length = length;
    return result;
}

}  // namespace

void EvalOptions::declare(CLI::App& action) {
    model.declare(action);
    model.speculation.declare(action);
    model.declare_memory(action);
    action.add_option("--output", output, "JSON Lines: what the model said to every item, and what it is worth")
        ->type_name("FILE");
    const auto number = [&](const char* name, int64_t& value, const char* text, int64_t least) {
        action.add_option(name, value, text)->type_name("N")->check(CLI::Range(least, int64_t{1} << 40));
    };
    action.add_flag("--skip-bad-items", skip_bad, "leave out lines of the files that cannot be used, and count them");
    number("--limit", limit, "only the first N items; 0: all", 0);
    number("--batch-size", batch, "items at a time", 1);
    number("--context", context, "longest prompt and answer; 0: what the model reads, at most 16384", 0);
}

void FewShotOptions::declare(CLI::App& action, const std::string& what_the_file_is) {
    action.add_option("file", file, what_the_file_is)->required()->type_name("FILE");
    action.add_option("--fewshot", fewshot, "solved examples, in the same form")->type_name("FILE");
    action.add_option("--num-fewshot", shots, "of them in front of every item")->type_name("N")->check(CLI::Range(0, 1000));
}

Evaluation::Evaluation(const EvalOptions& options, const Globals& globals, std::string task)
    : options_(options),
      globals_(globals),
      task_(std::move(task)),
      model_(options.model, globals, OpenModel::Text::kNeeded),
      engine_(std::make_unique<Engine>(model_.model(), model_.ops(), engine_options(model_, options))) {}

std::vector<EvalJson> Evaluation::records(const std::string& path, int64_t limit) {
    std::vector<EvalJson> result;
    read(path, limit, [&](const EvalJson& record) {
        result.push_back(record);
        return true;
    });
    return result;
}

void Evaluation::read(const std::string& path, int64_t limit, const std::function<bool(const EvalJson& record)>& take) {
    const int64_t skipped = read_items({path, limit, options_.skip_bad}, take);
    skipped_ += skipped;
    if (skipped > 0) fmt::print(stderr, "{}: {} lines that cannot be used were left out\n", path, skipped);
}

Request Evaluation::greedy(std::vector<int32_t> prompt, int64_t max_new_tokens) const {
    Request request;
    request.prompt = std::move(prompt);
    request.sampling.temperature = 0;
    request.max_new_tokens = max_new_tokens;
    request.stop_ids = model_.stop_ids();
    return request;
}

void Evaluation::ask(Request request, std::vector<std::string> stops, Then then) {
    const int64_t id = engine_->add(std::move(request));
    active_.emplace(id, Active{StreamDecoder(tokenizer(), true), StopStrings(std::move(stops)), std::move(then), {}});
}

void Evaluation::run(int64_t items, const std::function<void(int64_t item)>& begin) {
    Progress progress(task_, items, "items", globals_.progress());
    int64_t next = 0;
    while (next < items || !engine_->idle()) {
        while (next < items && std::ssize(active_) < options_.batch) begin(next++);
        throw_if_interrupted();
        for (TokenEvent& event : engine_->step()) take(event);
        progress.update(std::max<int64_t>(next - std::ssize(active_), 0));
    }
    progress.finish();
}

void Evaluation::take(TokenEvent& event) {
    const auto found = active_.find(event.request);
    if (found == active_.end()) return;  // it has said its stop string before
    if (event.finish == FinishReason::kError) throw Error(ErrorKind::kInput, event.error);
    Active& active = found->second;
    if (!event.prompt.empty()) active.reply.prompt = std::move(event.prompt);
    if (event.token >= 0 && event.finish != FinishReason::kStop) {
        active.reply.text += active.stops.push(active.decoder.push(event.token));
    }
    if (!event.finish && !active.stops.found()) return;
    if (!active.stops.found()) active.reply.text += active.stops.push(active.decoder.finish()) + active.stops.finish();
    if (!event.finish) engine_->cancel(event.request);
    Active done = std::move(active);
    active_.erase(found);
    done.reply.complete = done.stops.found() || event.finish == FinishReason::kStop;
    done.then(std::move(done.reply));
}

void Evaluation::report(EvalJson summary) const {
    if (skipped_ > 0) summary["items_skipped"] = skipped_;
    if (!options_.output.empty()) {
        std::string text;
        for (const auto& [item, line] : lines_) text += line.dump(-1, ' ', false, EvalJson::error_handler_t::replace) + "\n";
        write_text_atomically(options_.output, text);
    }
    if (globals_.json) {
        fmt::print("{}\n", summary.dump(2));
        return;
    }
    for (const auto& [key, value] : summary.items()) {
        fmt::print("{:<24} {}\n", key, value.is_number_float() ? fmt::format("{:.4f}", value.get<double>()) : value.dump());
    }
}

}  // namespace fathom
