// Training of a tiny model of V3's shape on the bytes of a few lines, inside the process.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "cpu/cpu_ops.h"
#include "io/token_shards_prepare.h"
#include "train/trainer.h"

namespace fathom {

constexpr int64_t kByteVocabulary = 258;  // 0 = EOS, 1 unused, then the bytes

// Documents of several lengths, one longer than a row.
inline std::string tiny_text() {
    std::string text;
    for (int i = 0; i < 12; ++i) {
        text += "The " + std::string(i % 3 == 0 ? "cat" : "dog") + " counts to " + std::to_string(i * 7) + ", ";
        for (int j = 0; j < i; ++j) text += "and " + std::to_string(j) + " more ";
        text += "and sleeps.\n<|endoftext|>\n";
    }
    return text;
}

// A model with MLA, q LoRA, grouped routing with a correction bias and one MTP module; `settings` on top.
inline TrainConfig tiny_config(const std::vector<std::string>& settings = {}) {
    constexpr const char* kText = R"(
job.dir = "unused"
data = { train = "unused", sequence_length = 48 }
training = { steps = 40, rows_per_batch = 2, dtype = "f32" }
optimizer = { lr = 3e-3 }
lr_scheduler = { type = "constant" }
[model]
init_std = 0.05
model_type = "deepseek_v3"
vocab_size = 258
hidden_size = 32
num_hidden_layers = 2
first_k_dense_replace = 1
intermediate_size = 48
num_attention_heads = 2
q_lora_rank = 16
kv_lora_rank = 12
qk_nope_head_dim = 8
qk_rope_head_dim = 4
v_head_dim = 8
n_routed_experts = 8
num_experts_per_tok = 2
n_shared_experts = 1
moe_intermediate_size = 16
n_group = 2
topk_group = 1
routed_scaling_factor = 1.5
num_nextn_predict_layers = 1
max_position_embeddings = 128
)";
    return TrainConfig::parse(kText, settings, "/");
}

inline std::filesystem::path fresh_folder(const std::string& name) {
    const auto folder = std::filesystem::path(testing::TempDir()) / ("fathom_train_" + name);
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
    return folder;
}

struct TinyRun {
    TrainConfig config;
    ThreadPool pool;
    CpuOps ops{pool};
    DeepSeek model;
    Trainer trainer;

    explicit TinyRun(const std::vector<std::string>& settings = {}, bool deterministic = false, int threads = 1)
        : config(tiny_config(settings)),
          pool(threads),
          model(config.model.config),
          trainer(config, model, ops, std::make_unique<PackedLoader>(loader(true)), deterministic) {
        trainer.optimizer().initialize(7, config.model.init_std);
    }

    [[nodiscard]] PackedLoader loader(bool shuffle) {
        return {dataset(pool), {config.data.sequence_length, config.training.rows_per_batch, 5, shuffle}};
    }
    [[nodiscard]] static TokenDataset dataset(ThreadPool& pool) {
        const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "fathom_train_data";
        std::filesystem::create_directories(folder);
        write_text_atomically(folder / "tiny.txt", tiny_text());
        PrepareOptions options;
        options.inputs.push_back({folder / "tiny.txt", {}});
        options.vocab_size = kByteVocabulary;
        options.out = folder / "shards";
        const Encode encode = [](std::string_view text) {
            std::vector<int32_t> ids;
            for (const char c : text) ids.push_back(static_cast<unsigned char>(c) + 2);
            return ids;
        };
        (void)prepare_tokens(options, encode, pool, ProgressMode::kQuiet);
        return TokenDataset(options.out);
    }
    // The bytes of every parameter, one after the other.
    [[nodiscard]] std::string weights() {
        std::string bytes;
        model.visit([&](const std::string&, Param& param) {
            const Tensor& codes = param.weight.codes;
            bytes.append(static_cast<const char*>(codes.data), static_cast<size_t>(codes.bytes()));
        });
        return bytes;
    }
    StepMetrics steps(int count) {
        StepMetrics last;
        for (int i = 0; i < count; ++i) last = trainer.step();
        return last;
    }
    [[nodiscard]] std::vector<float> values_of(const std::string& wanted) {
        std::vector<float> values;
        model.visit([&](const std::string& name, Param& param) {
            if (name != wanted) return;
            check(param.weight.codes.dtype == DType::kF32, "an f32 parameter");
            const auto* data = param.weight.codes.as<float>();
            values.assign(data, data + param.size());
        });
        check(!values.empty(), "no parameter of this name");
        return values;
    }
};

}  // namespace fathom
