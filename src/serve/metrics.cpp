#include "serve/metrics.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <tuple>

#include "infer/expert_cache.h"

namespace fathom {
namespace {

constexpr std::array kFirstTokenBounds{.001, .005, .01, .02, .04, .06, .08, .1,  .25,  .5,   .75,
                                       1.,   2.5,  5.,  7.5, 10., 20., 40., 80., 160., 640., 2560.};
constexpr std::array kBetweenTokensBounds{.001, .0025, .005, .01, .025, .05, .075, .1,  .15, .2,  .3,
                                          .4,   .5,    .75,  1.,  2.5,  5.,  7.5,  10., 20., 40., 80.};
constexpr std::array kWholeBounds{.3,  .5,  .8,  1.,  1.5,  2.,   2.5,  5.,   10.,   15.,  20.,
                                  30., 40., 50., 60., 120., 240., 480., 960., 1920., 7680.};
constexpr std::array kTokenBounds{1.,    2.,    5.,    10.,    20.,    50.,    100.,    200.,   500.,
                                  1000., 2000., 5000., 10000., 20000., 50000., 100000., 200000.};
constexpr std::array kAnswerBounds{1., 2., 5., 10., 20.};

double unix_seconds() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

std::string escaped(std::string_view text) {
    std::string result;
    for (const char c : text) {
        if (c == '\\' || c == '"') result += '\\';
        result += c == '\n' ? ' ' : c;
    }
    return result;
}

// Writes every metric twice: as fathom_NAME, and as vllm:NAME where vLLM has it.
class Exposition {
public:
    explicit Exposition(const std::string& model)
        : labels_(fmt::format("model_name=\"{}\"", escaped(model))),
          vllm_labels_(labels_ + ",engine=\"0\"") {}

    void value(std::string_view name, std::string_view type, std::string_view help, double number, bool vllm = true) {
        for (const auto& [full, labels] : names(name, vllm)) {
            begin(full, type, help);
            text += fmt::format("{}{{{}}} {}\n", full, labels, number);
        }
    }
    void labelled(std::string_view name, std::string_view help, std::string_view label,
                  const std::map<std::string, uint64_t>& values) {
        for (const auto& [full, labels] : names(name, true)) {
            begin(full, "counter", help);
            for (const auto& [key, number] : values)
                text += fmt::format("{}{{{},{}=\"{}\"}} {}\n", full, labels, label, key, number);
        }
    }
    void histogram(std::string_view name, std::string_view help, const Histogram& histogram) {
        for (const auto& [full, labels] : names(name, true)) {
            begin(full, "histogram", help);
            uint64_t sum = 0;
            for (size_t i = 0; i < histogram.bounds().size(); ++i) {
                sum += histogram.counts()[i];
                text += fmt::format("{}_bucket{{{},le=\"{}\"}} {}\n", full, labels, histogram.bounds()[i], sum);
            }
            text += fmt::format("{}_bucket{{{},le=\"+Inf\"}} {}\n", full, labels, histogram.count());
            text += fmt::format("{}_sum{{{}}} {}\n{}_count{{{}}} {}\n", full, labels, histogram.sum(), full, labels,
                                histogram.count());
        }
    }
    void begin(std::string_view full, std::string_view type, std::string_view help) {
        text += fmt::format("# HELP {} {}\n# TYPE {} {}\n", full, help, full, type);
    }

    std::string text;

private:
    std::string labels_, vllm_labels_;

    [[nodiscard]] std::vector<std::pair<std::string, std::string>> names(std::string_view name, bool vllm) const {
        std::vector<std::pair<std::string, std::string>> result{{fmt::format("fathom_{}", name), labels_}};
        if (vllm) result.emplace_back(fmt::format("vllm:{}", name), vllm_labels_);
        return result;
    }
};

// Of a model whose experts are read when they are wanted: hit rate = hits / required, over any span of time.
void add_paging(Exposition& out, const ExpertCache& experts) {
    const auto value = [&](std::string_view name, std::string_view type, std::string_view help, auto number) {
        out.value(name, type, help, static_cast<double>(number), false);
    };
    const ExpertCache::Counters n = experts.counters();
    value("paged_experts", "gauge", "Experts of the model.", experts.experts());
    value("paged_expert_slots", "gauge", "Experts that memory has room for (--ram).", experts.slots());
    value("paged_experts_required_total", "counter", "Experts wanted, per batch and layer.", n.required);
    value("paged_experts_hits_total", "counter", "Of them, in memory when they were wanted.", n.hits);
    value("paged_experts_foreseen_total", "counter", "Of the hits, fetched ahead by the router's guess.", n.foreseen);
    value("paged_experts_fetched_total", "counter", "Experts brought into memory.", n.fetched);
    value("paged_experts_read_bytes_total", "counter", "Of the file, for experts.", n.bytes_read);
    value("paged_experts_stalled_seconds_total", "counter", "Time that layers waited for experts.", n.stalled_seconds);
}

void add_process(std::string& text, double start) {
    const auto value = [&](std::string_view name, std::string_view type, std::string_view help, double number) {
        text += fmt::format("# HELP {0} {2}\n# TYPE {0} {1}\n{0} {3}\n", name, type, help, number);
    };
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6; };
    value("process_cpu_seconds_total", "counter", "CPU time of the server.", seconds(usage.ru_utime) + seconds(usage.ru_stime));
    value("process_start_time_seconds", "gauge", "When the server started, Unix time.", start);
    double pages = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> pages >> resident;
    value("process_resident_memory_bytes", "gauge", "Memory in use.", resident * static_cast<double>(::sysconf(_SC_PAGESIZE)));
}

}  // namespace

void Histogram::add(double value) {
    ++counts_[static_cast<size_t>(std::ranges::lower_bound(bounds_, value) - bounds_.begin())];
    sum_ += value;
    ++count_;
}

Metrics::Metrics()
    : first_token_(kFirstTokenBounds),
      between_tokens_(kBetweenTokensBounds),
      per_output_token_(kBetweenTokensBounds),
      whole_(kWholeBounds),
      prompt_length_(kTokenBounds),
      answer_length_(kTokenBounds),
      max_tokens_(kTokenBounds),
      answers_(kAnswerBounds),
      finished_{{"stop", 0}, {"length", 0}, {"abort", 0}, {"error", 0}},
      start_(unix_seconds()) {}

void Metrics::request(const RequestFigures& figures) {
    const std::lock_guard lock(mutex_);
    ++finished_[figures.finish == "tool_calls" ? "stop" : figures.finish];
    ++queries_;
    if (figures.to_first_token >= 0) first_token_.add(figures.to_first_token);
    for (const double seconds : figures.between_tokens) between_tokens_.add(seconds);
    if (figures.whole >= 0) whole_.add(figures.whole);
    if (figures.answer_tokens > 1 && figures.to_first_token >= 0) {
        const double rest = figures.whole - figures.to_first_token;
        per_output_token_.add(rest / static_cast<double>(std::max<int64_t>(figures.answer_tokens / figures.answers - 1, 1)));
    }
    prompt_length_.add(static_cast<double>(figures.prompt_tokens));
    answer_length_.add(static_cast<double>(figures.answer_tokens));
    max_tokens_.add(static_cast<double>(figures.max_tokens));
    answers_.add(static_cast<double>(figures.answers));
    prompt_tokens_ += static_cast<uint64_t>(figures.prompt_tokens);
    cached_tokens_ += static_cast<uint64_t>(figures.cached_tokens);
    answer_tokens_ += static_cast<uint64_t>(figures.answer_tokens);
}

void Metrics::http(const std::string& handler, const std::string& method, int status, double) {
    const std::lock_guard lock(mutex_);
    ++http_[{handler, method, status}];
}

Metrics::View Metrics::view() const {
    const std::lock_guard lock(mutex_);
    return {first_token_, between_tokens_, prompt_tokens_, cached_tokens_, answer_tokens_, queries_};
}

std::string Metrics::text(const std::string& model, const EngineThread::Snapshot& engine, const ExpertCache* experts) const {
    const std::lock_guard lock(mutex_);
    Exposition out(model);
    const auto number = [](auto value) { return static_cast<double>(value); };
    const Engine::Load& load = engine.load;
    out.value("num_requests_running", "gauge", "Answers being computed.", number(load.running));
    out.value("num_requests_waiting", "gauge", "Answers waiting for room in the batch.", number(load.waiting));
    out.value("kv_cache_usage_perc", "gauge", "Share of the cache's pages in use; 1 is all.",
              load.blocks > 0 ? number(load.used_blocks) / number(load.blocks) : 0);
    out.value("prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", number(prompt_tokens_));
    out.value("prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.", number(cached_tokens_));
    out.value("num_preemptions_total", "counter", "Sequences that gave up their pages and were computed again.",
              number(engine.counters.preemptions));
    out.value("prompt_tokens_total", "counter", "Prompt tokens.", number(prompt_tokens_));
    out.value("prompt_tokens_cached_total", "counter", "Prompt tokens found in the cache.", number(cached_tokens_));
    out.value("generation_tokens_total", "counter", "Tokens answered.", number(answer_tokens_));
    out.value("spec_decode_num_drafts_total", "counter", "How often guesses of a sequence were checked.",
              number(engine.counters.draft_steps));
    out.value("spec_decode_num_draft_tokens_total", "counter", "Tokens guessed ahead and checked.",
              number(engine.counters.drafted));
    out.value("spec_decode_num_accepted_tokens_total", "counter", "Guesses that came true.", number(engine.counters.accepted));
    out.value("engine_steps_total", "counter", "Batches.", number(engine.counters.steps), false);
    out.value("engine_rows_total", "counter", "Rows of all batches.", number(engine.counters.rows), false);
    out.value("reduced_top_k_steps_total", "counter", "Batches whose tokens fewer experts read (--overload-top-k).",
              number(engine.counters.reduced_steps), false);
    out.value("reduced_top_k_rows_total", "counter", "Rows of those batches.", number(engine.counters.reduced_rows), false);
    out.value("engine_busy_seconds_total", "counter", "Time in batches.", engine.busy_seconds, false);
    if (experts != nullptr) add_paging(out, *experts);
    out.labelled("request_success_total", "Requests that ended, by reason.", "finished_reason", finished_);
    out.histogram("time_to_first_token_seconds", "From a request's arrival to its first token.", first_token_);
    out.histogram("inter_token_latency_seconds", "Between two tokens of an answer.", between_tokens_);
    out.histogram("request_time_per_output_token_seconds", "Mean time between the tokens of an answer.", per_output_token_);
    out.histogram("e2e_request_latency_seconds", "From a request's arrival to its end.", whole_);
    out.histogram("request_prompt_tokens", "Tokens of a prompt.", prompt_length_);
    out.histogram("request_generation_tokens", "Tokens of an answer.", answer_length_);
    out.histogram("request_params_max_tokens", "max_tokens of a request.", max_tokens_);
    out.histogram("request_params_n", "n of a request.", answers_);
    out.begin("http_requests_total", "counter", "HTTP requests.");
    for (const auto& [key, count] : http_) {
        const auto& [handler, method, status] = key;
        out.text += fmt::format("http_requests_total{{handler=\"{}\",method=\"{}\",status=\"{}\"}} {}\n", escaped(handler),
                                escaped(method), status, count);
    }
    add_process(out.text, start_);
    return out.text;
}

}  // namespace fathom
