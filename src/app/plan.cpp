// fathom plan: what a model will need, before anything is allocated.
#include <fmt/format.h>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "app/config_file.h"
#include "app/table.h"
#include "app/verb.h"
#include "base/progress.h"
#include "model/flop_count.h"
#include "model/memory_plan.h"
#include "model/parameter_count.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
    std::string config;
    std::string dtype = "auto", moments = "auto";
    int64_t batch = 0, sequence_length = 0, context = 0;
};

// Everything that is printed.
struct Plan {
    ModelConfig model;
    int64_t batch = 1, sequence_length = 0, context = 0;
    DType dtype = DType::kBF16, moments = DType::kF32;  // of the parameters in training, and of AdamW's moments
    ParameterCount parameters;
    WeightBytes weights;
    TrainingState state;
    DryRun kept, recomputed;
    FlopCount flops;    // of a token in the sequence
    FlopCount decoded;  // of one new token behind `context` others
};

Plan make_plan(const Options& options) {
    const ConfigFile file = read_config_file(options.config);
    const TrainConfig training = file.training.value_or(TrainConfig());
    Plan plan;
    plan.model = file.model;
    plan.batch = options.batch > 0 ? options.batch : file.training ? training.training.rows_per_batch : 1;
    plan.sequence_length = options.sequence_length > 0 ? options.sequence_length : training.data.sequence_length;
    plan.context = options.context > 0 ? options.context : plan.model.max_position_embeddings;
    const auto type_of = [](const std::string& wanted, DType otherwise) {
        return wanted == "auto" ? otherwise : wanted == "f32" ? DType::kF32 : DType::kBF16;
    };
    plan.dtype = type_of(options.dtype, training.training.dtype);
    plan.moments = type_of(options.moments, training.optimizer.moments);
    plan.parameters = count_parameters(plan.model);
    plan.weights = plan_weights(plan.model);
    plan.state = plan_training_state(plan.model, plan.dtype, plan.moments);
    plan.kept = dry_run_training(plan.model, plan.batch, plan.sequence_length, plan.dtype, false, plan.moments);
    plan.recomputed = dry_run_training(plan.model, plan.batch, plan.sequence_length, plan.dtype, true, plan.moments);
    plan.flops = count_flops(plan.model, mean_keys(plan.sequence_length));
    plan.decoded = count_flops(plan.model, mean_keys(1, plan.context - 1), AttentionForm::kAbsorbed);
    return plan;
}

Json to_json(const Plan& p) {
    const ParameterCount& n = p.parameters;
    const auto pass = [&](const DryRun& run) {
        return Json{{"bytes", run.activation_bytes()},
                    {"saved_bytes", run.saved_bytes},
                    {"scratch_bytes", run.scratch_bytes},
                    {"saved_bytes_per_token", run.saved_bytes / run.tokens},
                    {"executed_flops_per_token", run.cost.flops / static_cast<double>(run.tokens)},
                    {"training_bytes", p.state.total() + run.activation_bytes()}};
    };
    Json per_token, whole;
    for (const char* type : kCacheTypeNames) {
        const int64_t bytes = cache_bytes_per_token(p.model, *cache_type_from_name(type));
        per_token[type] = bytes;
        whole[type] = bytes * p.context;
    }
    return Json{{"model_type", p.model.model_type},
                {"parameters",
                 {{"total", n.total()},
                  {"active", n.active()},
                  {"embedding", n.embedding},
                  {"head", n.head},
                  {"attention", n.attention},
                  {"dense_mlp", n.dense_mlp},
                  {"router", n.router},
                  {"routed_experts", n.routed_experts},
                  {"shared_experts", n.shared_experts},
                  {"norms", n.norms},
                  {"mtp", n.mtp}}},
                {"weights_bytes", {{"f32", p.weights.f32}, {"bf16", p.weights.bf16}, {"fp8", p.weights.fp8}}},
                {"cache", {{"context", p.context}, {"bytes_per_token", per_token}, {"bytes", whole}}},
                {"training",
                 {{"batch", p.batch},
                  {"sequence_length", p.sequence_length},
                  {"dtype", name_of(p.dtype)},
                  {"moments_dtype", name_of(p.moments)},
                  {"weights_bytes", p.state.weights},
                  {"masters_bytes", p.state.masters},
                  {"gradients_bytes", p.state.gradients},
                  {"moments_bytes", p.state.moments},
                  {"activations", pass(p.kept)},
                  {"activations_recomputed", pass(p.recomputed)}}},
                {"flops_per_token",
                 {{"forward", p.flops.forward()},
                  {"layers", p.flops.layers},
                  {"attention", p.flops.attention},
                  {"head", p.flops.head},
                  {"mtp", p.flops.mtp},
                  {"training", p.flops.training()},
                  {"decode_at_context", p.decoded.forward()}}}};
}

std::string size(int64_t bytes) { return human_bytes(static_cast<double>(bytes)); }
std::string flops(double count) { return human_count(count) + "FLOP"; }

void add_parameters(Table& table, const ParameterCount& n) {
    const auto add = [&](const char* name, int64_t count, const std::string& note) {
        if (count > 0) table.add({name, Cell(count, human_count(static_cast<double>(count))), note});
    };
    const auto share = [&](int64_t count) {
        return fmt::format("{:.1f} %", 100 * static_cast<double>(count) / static_cast<double>(n.total()));
    };
    add("parameters", n.total(), fmt::format("{}", n.total()));
    add("  active per token", n.active(), share(n.active()));
    add("  embedding", n.embedding, share(n.embedding));
    add("  head", n.head, share(n.head));
    add("  attention", n.attention, share(n.attention));
    add("  dense MLP", n.dense_mlp, share(n.dense_mlp));
    add("  router", n.router, share(n.router));
    add("  routed experts", n.routed_experts, share(n.routed_experts));
    add("  shared experts", n.shared_experts, share(n.shared_experts));
    add("  norms", n.norms, share(n.norms));
    add("  MTP modules", n.mtp, "besides");
}

void add_inference(Table& table, const Plan& p) {
    const int64_t cached = cache_bytes_per_token(p.model, DType::kBF16);
    table.add({"weights in bf16", size(p.weights.bf16), ""});
    table.add({"  in f32", size(p.weights.f32), ""});
    table.add({"  in FP8", size(p.weights.fp8), "projections e4m3 with block scales, the rest bf16"});
    table.add({"cache per token, bf16", size(cached), fmt::format("{} numbers a layer", p.model.cache_dim())});
    table.add({"  of a whole context", size(cached * p.context), fmt::format("{} tokens", p.context)});
    for (const char* type : {"f32", "int8", "int4"}) {
        const int64_t bytes = cache_bytes_per_token(p.model, *cache_type_from_name(type));
        table.add({fmt::format("  in {}", type), size(bytes * p.context),
                   fmt::format("{:.0f} % of bf16", 100 * static_cast<double>(bytes) / static_cast<double>(cached))});
    }
    table.add({"decoding a token", flops(p.decoded.forward()), fmt::format("{} tokens in the cache", p.context)});
}

void add_training(Table& table, const Plan& p) {
    const std::string what = fmt::format("{} x {} tokens", p.batch, p.sequence_length);
    const auto activations = [&](const char* name, const DryRun& run) {
        table.add({name, size(run.activation_bytes()),
                   fmt::format("{}; {} kept a token, {} of temporaries", what, size(run.saved_bytes / run.tokens),
                               size(run.scratch_bytes))});
    };
    table.add({"training state", size(p.state.total()), ""});
    table.add({"  weights", size(p.state.weights), std::string(name_of(p.dtype))});
    if (p.state.masters > 0) table.add({"  master weights", size(p.state.masters), "F32"});
    table.add({"  gradients", size(p.state.gradients), "F32"});
    table.add({"  AdamW's moments", size(p.state.moments), std::string(name_of(p.moments))});
    activations("activations", p.kept);
    activations("  with recomputation", p.recomputed);
    table.add({"training in all", size(p.state.total() + p.kept.activation_bytes()), ""});
    table.add({"  with recomputation", size(p.state.total() + p.recomputed.activation_bytes()), ""});
    table.add({"forward of a token", flops(p.flops.forward()),
               fmt::format("attention {:.1f} %", 100 * p.flops.attention / p.flops.forward())});
    table.add({"training on a token", flops(p.flops.training()), p.flops.mtp > 0 ? "MTP included" : ""});
}

void plan(const Options& options, const Globals& globals) {
    const Plan result = make_plan(options);
    if (globals.json) {
        fmt::print("{}\n", to_json(result).dump(2));
        return;
    }
    Table table({{"what", "what"}, {"how much", "amount", true}, {"", "note"}});
    add_parameters(table, result.parameters);
    add_inference(table, result);
    add_training(table, result);
    table.print(false);
}

}  // namespace

void add_plan(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<Options>();
    CLI::App* verb = app.add_subcommand("plan", "show parameters, memory and FLOPs of a model before anything is allocated");
    verb->footer(
        "Examples:\n"
        "  fathom plan config.json\n"
        "  fathom plan run.toml --batch 16\n"
        "  fathom plan models/stories --context 4096 --json\n");
    verb->add_option("config", options->config, "config.json, a model folder, or a training configuration")
        ->required()
        ->type_name("CONFIG");
    const auto number = [&](const char* name, int64_t& value, const char* text) {
        verb->add_option(name, value, text)->type_name("N")->check(CLI::Range(int64_t{0}, int64_t{1} << 20));
    };
    number("--batch", options->batch, "sequences of one training batch; 0: 1, or what the training configuration says");
    number("--sequence-length", options->sequence_length, "of these; 0: 1024, or what the training configuration says");
    number("--context", options->context, "tokens in the cache; 0: max_position_embeddings");
    verb->add_option("--dtype", options->dtype, "of the parameters in training; auto: bf16, or what the configuration says")
        ->type_name("TYPE")
        ->check(CLI::IsMember({"auto", "f32", "bf16"}));
    verb->add_option("--moments", options->moments, "of AdamW's moments; auto: f32, or what the configuration says")
        ->type_name("TYPE")
        ->check(CLI::IsMember({"auto", "f32", "bf16"}));
    verb->callback([options, &globals] { plan(*options, globals); });
}

}  // namespace fathom
