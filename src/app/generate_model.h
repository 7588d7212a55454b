// What generate, chat, eval and dump share: how a model is opened, and how its answers are sampled.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "app/device.h"
#include "app/speculation.h"
#include "app/verb.h"
#include "checkpoint/checkpoint.h"
#include "infer/engine.h"
#include "io/chat_format.h"
#include "io/tokenizer.h"
#include "nn/cache_type.h"

namespace fathom {

// --cache-type NAME, one of kCacheTypeNames.
CLI::Option* add_cache_type(CLI::App& verb, std::string& cache_type);

class PagedExperts;

struct ModelOptions {
    std::string model;
    std::string random_config;  // instead of `model`: a configuration whose weights are drawn
    std::string tokenizer;      // a folder that has one; empty: the model's own
    std::string dtype = "auto";
    std::string cache_type = "f32";
    bool pack = true;                // LoadOptions::pack
    bool forward_only = true;        // LoadOptions::pack_plain, if packed at all
    int64_t ram = 0;                 // bytes; 0: the whole model
    std::string repack_cache;        // LoadOptions::repack_cache
    bool with_mtp = false;           // LoadOptions::with_mtp; speculation wants it too
    SpeculationOptions speculation;  // declared by the verbs that want it

    // MODEL, --dtype and --cache-type.
    void declare(CLI::App& verb);
    void declare_memory(CLI::App& verb);
    // --random-config and --tokenizer, for verbs that can do without a checkpoint. After declare().
    void declare_random(CLI::App& verb);
    // Where tokenizer, chat template and generation_config.json lie.
    [[nodiscard]] const std::string& text_folder() const { return tokenizer.empty() ? model : tokenizer; }
    [[nodiscard]] std::optional<DType> weights_dtype() const;  // nothing: as stored
    [[nodiscard]] CacheType held_as() const;                   // --cache-type
};

// Sampling values; what is not given comes from the model's generation_config.json, and else is SamplingParams' default.
struct SamplingOptions {
    std::optional<double> temperature, top_p, min_p, repetition_penalty;
    std::optional<int64_t> top_k;
    double frequency_penalty = 0, presence_penalty = 0;
    uint64_t seed = 0;

    void declare(CLI::App& verb);
    // Throws Error{kUsage} for values out of range.
    [[nodiscard]] SamplingParams resolve(const std::string& model_folder) const;
};

// A model with its hardware and, where there is one, its tokenizer. Stays where it was built.
class OpenModel {
public:
    enum class Text { kNeeded, kWanted, kNo };  // kWanted: a missing tokenizer is fine

    // Throws Error{kInput}: a broken checkpoint, a tokenizer that does not fit it, none although text is kNeeded.
    // Error{kUsage}: neither a model nor a configuration, or both.
    OpenModel(const ModelOptions& options, const Globals& globals, Text text);
    ~OpenModel();
    OpenModel(const OpenModel&) = delete;
    OpenModel& operator=(const OpenModel&) = delete;

    [[nodiscard]] const ModelConfig& config() const { return loaded_.config; }
    [[nodiscard]] DeepSeek& model() { return *loaded_.model; }
    [[nodiscard]] Ops& ops() { return device_.ops(); }
    [[nodiscard]] Device& device() { return device_; }
    [[nodiscard]] bool has_mtp_modules() const { return fathom::has_mtp_modules(loaded_); }
    [[nodiscard]] const GgufView* gguf() const { return loaded_.gguf ? &loaded_.gguf->view() : nullptr; }  // nullptr: a folder
    [[nodiscard]] const Tokenizer* tokenizer() const { return tokenizer_ ? &*tokenizer_ : nullptr; }

    // Text to ids. BOS is put in front when the text does not begin with it and tokenizer_config.json says add_bos_token; a
    // tokenizer without that key gets BOS when config.json names one.
    [[nodiscard]] std::vector<int32_t> encode_prompt(std::string_view text) const;
    // The BOS that encode_prompt would add.
    [[nodiscard]] std::optional<int32_t> bos_to_add() const { return bos_; }
    // Ids that end an answer: config.json's eos_token_id, the tokenizer's, and generation_config.json's.
    [[nodiscard]] std::vector<int32_t> stop_ids() const;
    // An engine's options for this model, which samples only ids that the tokenizer has.
    [[nodiscard]] EngineOptions engine_options(int64_t cache_tokens);
    // With --ram: experts are paged from now on, beside a cache of so many tokens. Else nothing.
    ExpertSource* page_experts(int64_t cache_tokens);
    [[nodiscard]] const PagedExperts* paged() const { return paged_.get(); }

private:
    const ModelOptions& options_;
    bool deterministic_;
    Device device_;
    LoadedModel loaded_;
    std::optional<Tokenizer> tokenizer_;
    std::optional<int32_t> bos_;
    std::unique_ptr<PagedExperts> paged_;  // goes before the model

    void check_vocabulary() const;
    [[nodiscard]] std::optional<int32_t> find_bos() const;
};

// How a model's conversations are written. `name`: auto, none, v2, v3, r1 or v3.1. Nothing for a base model, which knows no
// turns: one without a chat template, or whose generation_config.json says "chat": false.
[[nodiscard]] std::optional<ChatFormat> choose_chat_format(const OpenModel& model, const std::string& folder,
                                                           std::string_view name);

// "1,2,3" or "1 2 3". Throws Error{kUsage} naming what is not an id.
[[nodiscard]] std::vector<int32_t> parse_ids(std::string_view text);

}  // namespace fathom
