// docs/decisions/001, seen from the trainer: under --deterministic the log-probabilities of a packed training batch are, bit
// for bit, those of a sampler that reads the same documents one by one through its cache.
#include <gtest/gtest.h>

#include <bit>

#include "infer/engine.h"
#include "train/tiny_run.h"

namespace fathom {
namespace {

// -log p(target) after `prompt`, as the engine's logits have it.
float cached_loss(Engine& engine, CpuOps& ops, std::span<const int32_t> prompt, int32_t target) {
    Arena arena("test");
    const Tensor loss = arena.allocate(DType::kF32, {1});
    Request request;
    request.prompt.assign(prompt.begin(), prompt.end());
    request.sampling.temperature = 0;
    request.max_new_tokens = 1;
    request.on_logits = [&](std::span<const float> row) {
        const Tensor logits = arena.allocate(DType::kF32, {1, std::ssize(row)}), wanted = arena.allocate(DType::kI32, {1});
        ops.write(logits, row.data());
        ops.write(wanted, &target);
        ops.cross_entropy(loss, logits, wanted);
    };
    (void)engine.add(std::move(request));
    while (!engine.idle()) (void)engine.step();
    return *loss.as<float>();
}

class TrainerAndSampler : public ::testing::TestWithParam<const char*> {};

TEST_P(TrainerAndSampler, AgreeToTheBitOnEveryTokenOfAPackedBatch) {
    const std::string dtype = GetParam();
    TinyRun run({"training.dtype=" + dtype, "training.rows_per_batch=4"}, true);
    run.steps(5);
    PackedLoader loader = run.loader(true);
    const TokenBatch batch = *loader.next();
    ASSERT_GT(batch.cu_seqlens.size(), 6U) << "several documents in the batch";
    const std::vector<float> losses = run.trainer.token_losses(batch);
    Engine engine(run.model, run.ops,
                  {.cache_tokens = 1024,
                   .block_size = 16,
                   .cache_type = dtype == "bf16" ? DType::kBF16 : DType::kF32,
                   .deterministic = true});
    for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
        const auto begin = static_cast<size_t>(batch.cu_seqlens[s]), end = static_cast<size_t>(batch.cu_seqlens[s + 1]);
        for (size_t i = begin; i < end; ++i) {
            if (batch.targets[i] == kNoTarget) continue;
            const float cached =
                cached_loss(engine, run.ops, std::span(batch.tokens).subspan(begin, i + 1 - begin), batch.targets[i]);
            ASSERT_EQ(std::bit_cast<uint32_t>(cached), std::bit_cast<uint32_t>(losses[i]))
                << "segment " << s << ", token " << i - begin << ": " << cached << " and " << losses[i];
        }
    }
    EXPECT_GT(engine.counters().reused_tokens, 1000) << "prompts continue in the cache, as decoding does";
}

INSTANTIATE_TEST_SUITE_P(CacheTypes, TrainerAndSampler, ::testing::Values("f32", "bf16"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace fathom
