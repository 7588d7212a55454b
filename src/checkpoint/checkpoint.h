// A Hugging Face checkpoint folder <-> a model.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/repack_cache.h"
#include "io/gguf.h"
#include "io/safetensors.h"
#include "model/deepseek.h"

namespace fathom {

inline constexpr int64_t kFullNanCheckBytes = int64_t{1} << 30;

enum class HeadKind : uint8_t {
    kVocabulary,  // a language model
    kLabels,      // a classifier, such as a reward model
    kAny,
};

struct LoadOptions {
    std::optional<DType> dtype;             // kF32 or kBF16: convert every matrix and norm; absent: as stored, without a copy
    HeadKind head = HeadKind::kVocabulary;  // what the folder must hold
    bool with_mtp = false;                  // also load the multi-token prediction modules, when the files have them
    bool check_nan = true;                  // of files above kFullNanCheckBytes only the beginning of each tensor
    // Quantized matrices as the device likes them. Without, they stay as in the file (for converting), and kv_b_proj is whole.
    bool pack = true;
    // Routed experts stay as they lie in the file, in its map: infer/expert_cache.h brings them into memory.
    bool page_experts = false;
    // Matrices of BF16 and F16, too, as the device multiplies few rows by them fastest, copied out of the file's map. Only for
    // forward passes.
    bool pack_plain = false;
    // A folder that keeps packed weights of GGUF files for the next start (repack_cache.h); empty: none.
    std::filesystem::path repack_cache;
};

// A matrix that absorbed attention multiplies by along both of its sides: on a GPU its codes become numbers at load.
inline constexpr std::string_view kBothWays = "kv_b_proj.weight";

// Owns everything that the model's parameters point to.
struct LoadedModel {
    ModelConfig config;
    std::unique_ptr<SafetensorsFolder> files;  // of a folder
    std::unique_ptr<GgufFile> gguf;            // or of a GGUF file
    std::unique_ptr<RepackCache> repacked;     // what an earlier start had packed
    std::unique_ptr<Arena> weights;            // what had to be converted, or brought to the device
    // On a device, of quantized matrices: apart, so that where codes follow each other these do, and gate and up are one
    // matrix.
    std::unique_ptr<Arena> scales, zeros;
    std::unique_ptr<DeepSeek> model;
    bool has_copies = false;  // see SaveOptions::with_copies
};

// Whether the files have MTP modules, loaded or not.
[[nodiscard]] bool has_mtp_modules(const LoadedModel& loaded);

// Reads config.json and the weights of `directory` (bf16, f16, f32, or FP8 e4m3 with weight_scale_inv); or a GGUF file of the
// architecture deepseek2, whose quantized matrices are computed with as they are (gguf_model.h). Throws Error{kInput}
// with one list of all missing, unexpected and misshapen tensors, or naming a tensor that holds NaN.
[[nodiscard]] LoadedModel load_model(const std::filesystem::path& directory, Ops& ops, const LoadOptions& options);

// What LoadOptions::pack_plain does, for a model whose weights came from elsewhere.
void pack_plain(LoadedModel& loaded, Ops& ops);

struct SaveOptions {
    std::filesystem::path
        tokenizer;             // a folder whose tokenizer files (and generation_config.json) are copied along; empty: none
    bool with_copies = false;  // repeat the embedding and the head inside each MTP module, as DeepSeek's releases do
    int64_t max_shard_bytes = kMaxShardBytes;
};

// Writes config.json and the weights with the types they have in memory; complete or not at all.
void save_model(const std::filesystem::path& directory, DeepSeek& model, Ops& ops, const SaveOptions& options);
// The tokenizer files and generation_config.json of a folder, those that it has. An empty `from` has none.
void copy_tokenizer(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace fathom
