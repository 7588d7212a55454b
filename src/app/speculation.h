// --speculative-config: what generate, chat, serve and batch share.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "infer/engine.h"

namespace fathom {

// vLLM's flag: {"method": "mtp", "num_speculative_tokens": 1}; the number alone, or "mtp", are short for it.
struct SpeculationOptions {
    std::string config;

    void declare(CLI::App& verb);
    // Whether a model's MTP modules must be loaded.
    [[nodiscard]] bool wanted() const { return !config.empty() && config != "0"; }
    // Sets draft_tokens for this model. Throws Error{kUsage} for what cannot be.
    void apply(const ModelConfig& model, EngineOptions& engine) const;
};

}  // namespace fathom
