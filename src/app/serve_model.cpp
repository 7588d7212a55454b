#include "app/serve_model.h"

#include <algorithm>
#include <filesystem>

#include "app/paged_experts.h"
#include "base/error.h"
#include "serve/protocols.h"

namespace fathom {
namespace {

constexpr int64_t kRoutingEvery =
    64;  // batches: whose experts the dashboard draws; to look at one costs up to a batch on a GPU

EngineOptions engine_options(OpenModel& model, const ServeOptions& options, ExpertLoad& experts) {
    const int64_t longest = model.config().max_position_embeddings;
    const int64_t length = std::min(options.max_model_len > 0 ? options.max_model_len : 16384, longest);
    EngineOptions result =
        model.engine_options(options.cache_tokens > 0 ? options.cache_tokens : std::max<int64_t>(4 * length, 65536));
    result.max_sequences = options.max_sequences;
    result.max_batch_rows = result.prefill_chunk = options.batch_rows > 0 ? options.batch_rows : usual_batch_rows(model.ops());
    result.max_length = length;
    if (options.overload_top_k > 0 && result.deterministic) {
        throw Error(ErrorKind::kUsage, "--overload-top-k makes answers depend on the load, which --deterministic excludes");
    }
    result.overload_experts = options.overload_top_k;
    result.routing_every = kRoutingEvery;
    result.on_routing = [&experts](std::span<const Routing> routing, std::span<const RequestRows>) { experts(routing); };
    return result;
}

ServiceOptions service_options(const ServeOptions& options, const PagedExperts* paged) {
    ServiceOptions result = options.service;
    if (paged != nullptr) result.paged_experts = &paged->cache();
    result.ttft_slo = options.ttft_slo_ms / 1e3;
    return result;
}

ServedModel describe(const OpenModel& model, const ServeOptions& options, int64_t max_length) {
    ServedModel served;
    served.names = options.names;
    if (served.names.empty())
        served.names.push_back(options.model.random_config.empty()
                                   ? std::filesystem::weakly_canonical(options.model.model).filename().string()
                                   : std::filesystem::path(options.model.random_config).stem().string());
    served.tokenizer = model.tokenizer();
    served.format = choose_chat_format(model, options.model.text_folder(), options.chat_format);
    served.defaults = options.sampling.resolve(options.model.text_folder());
    served.stop_ids = model.stop_ids();
    served.bos = model.bos_to_add();
    served.max_length = max_length;
    served.created = unix_time();
    return served;
}

}  // namespace

void ServeOptions::declare(CLI::App& verb) {
    model.declare(verb);
    model.declare_random(verb);
    sampling.declare(verb);
    model.speculation.declare(verb);
    model.declare_memory(verb);
    verb.add_option("--served-model-name", names, "what clients call the model; default: its folder's name")->type_name("NAME");
    verb.add_option("--chat-format", chat_format, "how conversations become prompts; none: texts that the model continues")
        ->type_name("FORMAT")
        ->check(CLI::IsMember({"auto", "none", "v2", "v3", "r1", "v3.1"}));
    verb.add_flag("--strict-api", service.strict, "unknown fields in requests are errors");
    const auto number = [&](const char* name, int64_t& value, const char* text, int64_t least) {
        verb.add_option(name, value, text)->type_name("N")->check(CLI::Range(least, int64_t{1} << 40))->group("Engine");
    };
    number("-c,--max-model-len", max_model_len, "longest prompt and answer together; 0: what the model reads, at most 16384",
           0);
    number("--cache-tokens", cache_tokens, "tokens the cache holds over all requests; 0: four longest requests, at least 65536",
           0);
    number("--max-num-seqs", max_sequences, "answers computed at a time", 1);
    number("--max-num-batched-tokens", batch_rows, "rows of one batch: prompts are read in chunks; 0: 512, on a GPU 8192", 0);
    number("--overload-top-k", overload_top_k,
           "while requests wait for room, fewer experts read each token: so many; replies say how many tokens; 0: never", 0);
    const auto milliseconds = [&](const char* name, double& value, const char* text) {
        verb.add_option(name, value, text)->type_name("MS")->check(CLI::Range(0.0, 1e9))->group("Engine");
    };
    milliseconds("--tpot-slo-ms", tpot_slo_ms,
                 "time per output token: batches stay so small that they take no longer; 0: as large as they may be");
    milliseconds("--ttft-slo-ms", ttft_slo_ms, "time to the first token: requests that would wait longer get 429; 0: all wait");
    number("--max-waiting", service.max_waiting, "answers that may wait; beyond, clients get 429", 1);
}

OpenService::OpenService(const ServeOptions& options, const Globals& globals)
    : model_(options.model, globals, OpenModel::Text::kNeeded),
      experts_(model_.ops(), model_.config().n_routed_experts),
      engine_(std::make_unique<EngineThread>(model_.model(), model_.ops(), engine_options(model_, options, experts_),
                                             SloOptions{options.tpot_slo_ms / 1e3, options.ttft_slo_ms / 1e3})),
      service_(std::make_unique<Service>(describe(model_, options, engine_->max_length()), *engine_, &experts_,
                                         service_options(options, model_.paged()))) {}

}  // namespace fathom
