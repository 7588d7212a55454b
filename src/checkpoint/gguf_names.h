// GGUF's names and keys for the parameters and the configuration of a model (architecture "deepseek2").
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/gguf.h"
#include "model/config.h"

namespace fathom {

// Where a parameter lies: a tensor of the file, and for one of several experts its place in it.
struct GgufPlace {
    std::string name;
    int64_t expert = -1;  // -1: the whole tensor

    bool operator==(const GgufPlace&) const = default;
};

// "model.layers.3.mlp.experts.7.up_proj.weight" -> {"blk.3.ffn_up_exps.weight", 7}. Nothing for a name that GGUF has no place
// for.
[[nodiscard]] std::optional<GgufPlace> gguf_place(std::string_view name);

// The configuration that a file's metadata describe. Throws Error{kInput} naming the key for what is missing, of another
// architecture, or contradictory.
[[nodiscard]] ModelConfig config_of_gguf(const GgufView& file);

// The metadata of a model, as llama.cpp's converter writes them; the tokenizer's keys are not among them.
[[nodiscard]] std::vector<std::pair<std::string, GgufValue>> gguf_metadata(const ModelConfig& config, const std::string& name);

}  // namespace fathom
