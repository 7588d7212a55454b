// A model -> a GGUF file, in any of its types: what fathom convert and fathom quantize write.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/threads.h"
#include "io/gguf.h"
#include "model/deepseek.h"

namespace fathom {

// A tensor's type: blocks, or with BlockType::kNone the dtype (kF32, kF16, kBF16).
struct GgufType {
    DType dtype = DType::kF32;
    BlockType block = BlockType::kNone;

    [[nodiscard]] std::string name() const;  // "BF16", "Q4_K"
    bool operator==(const GgufType&) const = default;
};

// Mean squares of the columns' activations, by parameter name (Hugging Face's); cols numbers each.
using Importance = std::map<std::string, std::vector<float>>;

struct GgufSaveOptions {
    std::optional<GgufType> type;           // of matrices; absent: as they are (FP8 becomes BF16)
    std::map<std::string, GgufType> types;  // of single tensors by their name in the file (both halves of kv_b under attn_kv_b)
    std::filesystem::path tokenizer;        // a folder whose tokenizer goes into the file; empty: none
    const GgufView* tokenizer_of = nullptr;  // or a GGUF file whose tokenizer is taken over
    std::string name = "fathom";             // general.name
    bool merged_kv_b = false;                // attn_kv_b instead of attn_k_b and attn_v_b: for llama.cpp from before May 2025
    const Importance* importance = nullptr;
    std::string job;  // GgufWriter's: all that the bytes depend on; empty: an interrupted save leaves nothing behind
    int64_t keep_bytes = kGgufKeepBytes;
    std::function<void(const std::string& tensor, const GgufType& type, int64_t done, int64_t total)> progress;  // in bytes
};

// The type that a matrix of `columns` columns gets when `wanted` is asked for: routers stay F32; a head asked for less than 6
// bits of a K type gets Q6_K, as in llama.cpp; columns that are no whole blocks get the next type that fits (Q4_K: Q5_0; none:
// F16).
[[nodiscard]] GgufType gguf_type_for(const std::string& gguf_name, int64_t columns, const GgufType& wanted);

// Streams the file, one expert or head in memory at a time; complete or not at all, a later save of the same job goes on.
// Weights must lie in host memory and not be packed (LoadOptions::pack). MTP modules that the model has are written as
// llama.cpp of late 2026 reads them; older ones take them for layers of the model. Throws Error{kInput} for what GGUF cannot
// hold: V1's attention, attention_bias.
void save_gguf(const std::filesystem::path& file, DeepSeek& model, const GgufSaveOptions& options, ThreadPool& pool);

}  // namespace fathom
