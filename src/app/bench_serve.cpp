#include "app/bench_serve.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <ctime>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "app/table.h"
#include "base/error.h"
#include "base/file.h"
#include "base/progress.h"
#include "serve/api_error.h"
#include "serve/http_client.h"

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
    std::string host = "127.0.0.1", endpoint = "/v1/completions", dataset = "random", dataset_path, model, api_key, goodput,
                result;
    int port = 8000;
    int64_t prompts = 1000, input_length = 1024, output_length = 128, prefix_length = 0, prefixes = 10, concurrency = 0,
            seed = 0;
    double rate = std::numeric_limits<double>::infinity(), burstiness = 1, range_ratio = 0,
           temperature = -1;  // negative: the server's default
    bool ignore_eos = false, save = false;
};

struct Prompt {
    Json body;
    double arrival = 0;  // seconds from the start
};

// Seconds.
struct Outcome {
    double first = 0, whole = 0;
    std::vector<double> between;
    int64_t input = 0, output = 0;
    std::string error;

    [[nodiscard]] double per_token() const { return output > 1 ? (whole - first) / static_cast<double>(output - 1) : 0; }
};

std::string headers_of(const Options& options) {
    return options.api_key.empty() ? "" : fmt::format("Authorization: Bearer {}\r\n", options.api_key);
}

Json get(const Options& options, const std::string& path) {
    HttpClient client(options.host, options.port, 30);
    const auto reply = client.request("GET", path, headers_of(options), "");
    if (reply.status != 200) throw Error(ErrorKind::kIo, fmt::format("{}: status {}: {}", path, reply.status, reply.body));
    return Json::parse(reply.body);
}

// Token ids, so that lengths are exact whatever the tokenizer.
std::vector<Prompt> random_prompts(const Options& options) {
    const auto vocab = get(options, "/tokenizer_info").value("vocab_size", int64_t{1000});
    std::mt19937_64 random(static_cast<uint64_t>(options.seed));
    std::uniform_int_distribution<int32_t> token(std::min<int32_t>(100, static_cast<int32_t>(vocab / 2)),
                                                 static_cast<int32_t>(vocab) - 100);
    const auto tokens = [&](int64_t count) {
        std::vector<int32_t> ids(static_cast<size_t>(count));
        for (int32_t& id : ids) id = token(random);
        return ids;
    };
    const auto length = [&](int64_t middle) {
        const auto spread = static_cast<int64_t>(static_cast<double>(middle) * options.range_ratio);
        return std::max<int64_t>(1, std::uniform_int_distribution<int64_t>(middle - spread, middle + spread)(random));
    };
    const bool repeated = options.dataset == "prefix_repetition";
    std::vector<std::vector<int32_t>> prefixes;
    for (int64_t i = 0; i < (repeated ? options.prefixes : 1); ++i) prefixes.push_back(tokens(options.prefix_length));
    std::vector<Prompt> prompts(static_cast<size_t>(options.prompts));
    for (size_t i = 0; i < prompts.size(); ++i) {
        std::vector<int32_t> ids = prefixes[i % prefixes.size()];
        const std::vector<int32_t> own = tokens(length(options.input_length));
        ids.insert(ids.end(), own.begin(), own.end());
        prompts[i].body = {{"prompt", ids}, {"max_tokens", length(options.output_length)}};
    }
    return prompts;
}

// custom: {"prompt": "..."} a line. sharegpt: an array of {"conversations": [{"value": "..."}, ...]}.
std::vector<Prompt> prompts_from_file(const Options& options) {
    const std::string text = read_text(options.dataset_path);
    std::vector<Prompt> prompts;
    const auto add = [&](Json prompt) {
        if (std::ssize(prompts) < options.prompts)
            prompts.push_back({{{"prompt", std::move(prompt)}, {"max_tokens", options.output_length}}});
    };
    if (options.dataset == "sharegpt") {
        for (const Json& entry : Json::parse(text)) {
            if (entry.contains("conversations") && entry["conversations"].size() >= 2) add(entry["conversations"][0]["value"]);
        }
    } else {
        for (size_t at = 0; at < text.size();) {
            const size_t end = std::min(text.find('\n', at), text.size());
            if (end > at) add(Json::parse(text.substr(at, end - at))["prompt"]);
            at = end + 1;
        }
    }
    if (prompts.empty()) throw Error(ErrorKind::kInput, fmt::format("{}: no prompts there", options.dataset_path));
    return prompts;
}

std::vector<Prompt> make_prompts(const Options& options) {
    std::vector<Prompt> prompts;
    try {
        prompts = options.dataset_path.empty() ? random_prompts(options) : prompts_from_file(options);
    } catch (const Json::exception& error) {
        throw Error(ErrorKind::kInput, fmt::format("{}: {}", options.dataset_path, error.what()));
    }
    // Gaps are gamma-distributed with mean 1 / rate; burstiness 1 makes a Poisson process.
    std::mt19937_64 random(static_cast<uint64_t>(options.seed) + 1);
    std::gamma_distribution<double> gap(options.burstiness, 1 / (options.rate * options.burstiness));
    double time = 0;
    const bool chat = options.endpoint.ends_with("chat/completions");
    for (Prompt& prompt : prompts) {
        prompt.arrival = time;
        if (std::isfinite(options.rate)) time += gap(random);
        if (chat && prompt.body["prompt"].is_string()) {
            prompt.body["messages"] = Json::array({{{"role", "user"}, {"content", prompt.body["prompt"]}}});
            prompt.body.erase("prompt");
        }
        prompt.body["model"] = options.model;
        prompt.body["stream"] = true;
        prompt.body["stream_options"] = {{"include_usage", true}};
        if (options.ignore_eos) prompt.body["ignore_eos"] = true;
        if (options.temperature >= 0) prompt.body["temperature"] = options.temperature;
    }
    return prompts;
}

Outcome ask(HttpClient& client, const Options& options, const Json& body) {
    Outcome outcome;
    const auto start = Clock::now();
    const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
    std::string text;
    double last = 0;
    const auto read = [&](std::string_view piece) {
        text += piece;
        for (size_t end = text.find("\n\n"); end != std::string::npos; end = text.find("\n\n")) {
            const std::string line = text.substr(0, end);
            text.erase(0, end + 2);
            if (!line.starts_with("data: {")) continue;
            // Most events are one token's, and only their time counts: a client that parses them all takes time from the
            // server.
            const bool plain = line.find("\"usage\":{") == std::string::npos && line.find("\"error\":") == std::string::npos;
            const Json event = plain ? Json() : Json::parse(line.substr(6));
            if (event.contains("error")) outcome.error = event["error"].value("message", "error");
            if (event.contains("usage") && event["usage"].is_object()) {
                outcome.input = event["usage"].value("prompt_tokens", int64_t{0});
                outcome.output = event["usage"].value("completion_tokens", int64_t{0});
            }
            if (!plain && (!event.contains("choices") || event["choices"].empty())) continue;
            const double now = seconds();
            if (outcome.first == 0) {
                outcome.first = now;
            } else {
                outcome.between.push_back(now - last);
            }
            last = now;
        }
    };
    try {
        const auto reply = client.request("POST", options.endpoint, headers_of(options), dump(body), read);
        outcome.whole = last;
        if (reply.status != 200) outcome.error = fmt::format("status {}: {}", reply.status, reply.body.substr(0, 200));
    } catch (const std::exception& error) {
        outcome.error = error.what();
    }
    return outcome;
}

// As many threads as requests may be under way; each takes the next request and waits for its time.
std::vector<Outcome> run(const Options& options, const std::vector<Prompt>& prompts, Progress& progress) {
    std::vector<Outcome> outcomes(prompts.size());
    std::atomic<size_t> next{0};
    std::mutex mutex;
    int64_t done = 0;
    const auto start = Clock::now();
    const auto work = [&] {
        HttpClient client(options.host, options.port);
        for (size_t i = next++; i < prompts.size(); i = next++) {
            std::this_thread::sleep_until(
                start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(prompts[i].arrival)));
            outcomes[i] = ask(client, options, prompts[i].body);
            const std::lock_guard lock(mutex);
            progress.update(++done);
        }
    };
    const auto limit = options.concurrency > 0 ? options.concurrency : std::ssize(prompts);
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < std::min<int64_t>(limit, std::ssize(prompts)); ++i) threads.emplace_back(work);
    for (std::thread& thread : threads) thread.join();
    return outcomes;
}

double percentile(std::vector<double> values, double p) {
    if (values.empty()) return 0;
    std::ranges::sort(values);
    const double at = p / 100 * static_cast<double>(values.size() - 1);
    const auto low = static_cast<size_t>(at);
    const double above = values[std::min(low + 1, values.size() - 1)];
    return values[low] + (above - values[low]) * (at - static_cast<double>(low));
}

void add_statistics(Json& result, const std::string& name, const std::vector<double>& seconds) {
    const auto count = static_cast<double>(std::max<size_t>(seconds.size(), 1));
    const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / count;
    double squares = 0;
    for (const double x : seconds) squares += (x - mean) * (x - mean);
    result["mean_" + name + "_ms"] = 1e3 * mean;
    result["median_" + name + "_ms"] = 1e3 * percentile(seconds, 50);
    result["std_" + name + "_ms"] = 1e3 * std::sqrt(squares / count);
    for (const double p : {90.0, 95.0, 99.0}) result[fmt::format("p{:g}_{}_ms", p, name)] = 1e3 * percentile(seconds, p);
}

// "ttft:200 tpot:50": milliseconds that a good request keeps.
bool is_good(const Outcome& outcome, const std::string& goodput) {
    for (size_t at = 0; at < goodput.size();) {
        const size_t end = std::min(goodput.find_first_of(" ,", at), goodput.size());
        const std::string item = goodput.substr(at, end - at);
        const size_t colon = item.find(':');
        if (colon == std::string::npos) throw Error(ErrorKind::kUsage, "--goodput: expected NAME:MILLISECONDS, e.g. ttft:200");
        const std::string name = item.substr(0, colon);
        const double value = name == "ttft" ? outcome.first : name == "tpot" ? outcome.per_token() : outcome.whole;
        if (1e3 * value > std::atof(item.c_str() + colon + 1)) return false;
        at = end + 1;
    }
    return true;
}

Json summarize(const Options& options, const std::vector<Outcome>& outcomes, double duration) {
    std::vector<double> first, per_token, between, whole;
    int64_t completed = 0, input = 0, output = 0, good = 0;
    for (const Outcome& o : outcomes) {
        if (!o.error.empty()) continue;
        ++completed;
        input += o.input;
        output += o.output;
        good += is_good(o, options.goodput) ? 1 : 0;
        first.push_back(o.first);
        whole.push_back(o.whole);
        if (o.output > 1) per_token.push_back(o.per_token());
        between.insert(between.end(), o.between.begin(), o.between.end());
    }
    const auto rate = [&](int64_t n) { return static_cast<double>(n) / duration; };
    Json result{{"date", fmt::format("{:%Y%m%d-%H%M%S}", fmt::gmtime(std::time(nullptr)))},
                {"backend", "openai"},
                {"model_id", options.model},
                {"dataset_name", options.dataset},
                {"num_prompts", outcomes.size()},
                {"request_rate", std::isfinite(options.rate) ? Json(options.rate) : Json("inf")},
                {"burstiness", options.burstiness},
                {"max_concurrency", options.concurrency > 0 ? Json(options.concurrency) : Json()},
                {"duration", duration},
                {"completed", completed},
                {"failed", std::ssize(outcomes) - completed},
                {"total_input_tokens", input},
                {"total_output_tokens", output},
                {"request_throughput", rate(completed)},
                {"request_goodput", options.goodput.empty() ? Json() : Json(rate(good))},
                {"output_throughput", rate(output)},
                {"total_token_throughput", rate(input + output)}};
    add_statistics(result, "ttft", first);
    add_statistics(result, "tpot", per_token);
    add_statistics(result, "itl", between);
    add_statistics(result, "e2el", whole);
    return result;
}

void print_result(const Json& result) {
    Table table({{"", "name"}, {"value", "value", true}});
    for (const auto& [key, value] : result.items()) {
        if (value.is_null()) continue;
        table.add({key, value.is_number_float() ? fmt::format("{:.2f}", value.get<double>())
                        : value.is_string()     ? value.get<std::string>()
                                                : value.dump()});
    }
    table.print(false);
}

void bench_serve(Options options, const Globals& globals) {
    if (options.model.empty()) options.model = get(options, "/v1/models")["data"][0].value("id", "");
    const std::vector<Prompt> prompts = make_prompts(options);
    Progress progress("bench serve", std::ssize(prompts), "requests", globals.progress());
    const auto start = Clock::now();
    const std::vector<Outcome> outcomes = run(options, prompts, progress);
    const double duration = std::chrono::duration<double>(Clock::now() - start).count();
    progress.finish();
    const Json result = summarize(options, outcomes, duration);
    for (const Outcome& outcome : outcomes) {
        if (outcome.error.empty()) continue;
        fmt::print(stderr, "fathom: the first failure: {}\n", outcome.error);
        break;
    }
    if (options.save)
        write_text_atomically(options.result.empty() ? "bench-serve.json" : options.result, result.dump(2) + "\n");
    if (globals.json) {
        fmt::print("{}\n", result.dump(2));
    } else {
        print_result(result);
    }
    if (result["completed"] == 0) throw Error(ErrorKind::kIo, "no request was answered");
}

}  // namespace

void add_bench_serve(CLI::App& bench, Globals& globals) {
    auto options = std::make_shared<Options>();
    Options& o = *options;
    constexpr int64_t kMost = 1 << 30;
    const CLI::Validator positive(
        [](std::string& text) { return std::strtod(text.c_str(), nullptr) > 0 ? "" : text + " is not above 0"; }, "",
        "positive");
    CLI::App* verb =
        bench.add_subcommand("serve", "measure a running server: throughput, time to first token, time between tokens");
    verb->add_option("--host", o.host, "of the server")->type_name("HOST");
    verb->add_option("--port", o.port, "of the server")->type_name("N")->check(CLI::Range(1, 65535));
    verb->add_option("--endpoint", o.endpoint, "path that is asked")->type_name("PATH");
    verb->add_option("--model", o.model, "default: the server's first")->type_name("NAME");
    verb->add_option("--api-key", o.api_key, "sent as Bearer")->type_name("KEY");
    verb->add_option("--dataset-name", o.dataset, "what is asked")
        ->type_name("NAME")
        ->check(CLI::IsMember({"random", "prefix_repetition", "custom", "sharegpt"}));
    verb->add_option("--dataset-path", o.dataset_path, "of custom and sharegpt")->type_name("FILE");
    verb->add_option("--num-prompts", o.prompts, "requests in all")->type_name("N")->check(CLI::Range(int64_t{1}, kMost));
    verb->add_option("--random-input-len,--input-len", o.input_length, "tokens of a prompt behind its prefix")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, kMost));
    verb->add_option("--random-output-len,--output-len", o.output_length, "tokens of an answer")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, kMost));
    verb->add_option("--random-range-ratio", o.range_ratio, "lengths vary by this share")
        ->type_name("R")
        ->check(CLI::Range(0.0, 0.99));
    verb->add_option("--random-prefix-len,--prefix-repetition-prefix-len", o.prefix_length,
                     "tokens that prompts have in common")
        ->type_name("N")
        ->check(CLI::Range(int64_t{0}, kMost));
    verb->add_option("--prefix-repetition-num-prefixes", o.prefixes, "different prefixes")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, kMost));
    verb->add_option("--request-rate", o.rate, "requests a second; inf: all at once")->type_name("R")->check(positive);
    verb->add_option("--burstiness", o.burstiness, "1: Poisson arrivals; smaller ones come in bursts")
        ->type_name("B")
        ->check(positive);
    verb->add_option("--max-concurrency", o.concurrency, "requests at a time; 0: no limit")
        ->type_name("N")
        ->check(CLI::Range(int64_t{0}, kMost));
    verb->add_option("--temperature", o.temperature, "of sampling; default: the server's")
        ->type_name("T")
        ->check(CLI::Range(0.0, 100.0));
    verb->add_option("--goodput", o.goodput, "what a good request keeps, e.g. \"ttft:200 tpot:50\" (ms)")->type_name("SLO");
    verb->add_option("--seed", o.seed, "of prompts and arrivals")->type_name("N");
    verb->add_flag("--ignore-eos", o.ignore_eos, "answers have their full length");
    verb->add_flag("--save-result", o.save, "write the result as JSON");
    verb->add_option("--result-filename", o.result, "default: bench-serve.json")->type_name("FILE");
    verb->footer(
        "Examples:\n  fathom bench serve --num-prompts 200 --max-concurrency 32 --input-len 128 --output-len 64 --ignore-eos");
    verb->callback([options, &globals] { bench_serve(*options, globals); });
}

}  // namespace fathom
