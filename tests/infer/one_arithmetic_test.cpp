// docs/decisions/001, seen from the sampler: with `deterministic` a token's logits are the same bytes whatever else is
// computed, and the same that a trainer's forward gives.
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "infer/engine_run.h"
#include "nn/cache_type.h"

namespace fathom {
namespace {

using Rows = std::vector<std::vector<float>>;

struct Answer {
    std::vector<int32_t> tokens;
    Rows logits;  // of every new token
};

constexpr int64_t kNewTokens = 10;

Request recording(const std::vector<int32_t>& prompt, Answer& answer) {
    Request request = EngineRun::greedy_request(prompt, kNewTokens);
    request.on_logits = [&answer](std::span<const float> row) { answer.logits.emplace_back(row.begin(), row.end()); };
    return request;
}

// Runs all prompts in one engine; a new one joins every `spacing` steps.
std::vector<Answer> answers(EngineRun& run, const std::vector<std::vector<int32_t>>& prompts, const EngineOptions& options,
                            size_t spacing) {
    std::vector<Answer> result(prompts.size());
    Engine engine(run.model(), run.ops, options);
    std::map<int64_t, size_t> index;
    for (size_t step = 0, next = 0; next < prompts.size() || !engine.idle(); ++step) {
        for (; next < prompts.size() && next * spacing <= step; ++next) {
            index[engine.add(recording(prompts[next], result[next]))] = next;
        }
        for (const TokenEvent& event : engine.step()) result[index[event.request]].tokens.push_back(event.token);
    }
    return result;
}

void expect_same_bytes(const Rows& found, const Rows& expected, const std::string& what) {
    ASSERT_EQ(found.size(), expected.size()) << what;
    for (size_t i = 0; i < found.size(); ++i) {
        ASSERT_EQ(found[i].size(), expected[i].size()) << what;
        ASSERT_EQ(std::memcmp(found[i].data(), expected[i].data(), found[i].size() * sizeof(float)), 0)
            << what << ", new token " << i;
    }
}

// What a trainer computes: whole sequences, no cache, activations kept.
Rows trainers_logits(EngineRun& run, const std::vector<int32_t>& prompt, const Answer& answer, CacheType cache_type) {
    std::vector<int32_t> tokens = prompt;
    tokens.insert(tokens.end(), answer.tokens.begin(), answer.tokens.end() - 1);
    Arena scratch("scratch"), saved("saved");
    Context cx{run.ops, scratch, saved, cache_type, true};
    const bool mla = run.model().config().mla();
    const SequenceChunk whole{tokens, 0, mla ? AttentionForm::kAbsorbed : AttentionForm::kExpanded, {}};
    DeepSeek::Saved activations;
    const Tensor hidden = run.model().forward(cx, make_batch(cx, std::span(&whole, 1), 0, true), nullptr, &activations);
    const Tensor logits = run.model().logits(cx, hidden);
    Rows rows;
    for (int64_t i = static_cast<int64_t>(prompt.size()) - 1; i < logits.dim(0); ++i) {
        const auto* row = logits.as<float>() + i * logits.dim(1);
        rows.emplace_back(row, row + logits.dim(1));
    }
    return rows;
}

struct Case {
    const char* fixture;
    const char* type;  // of the cache
    [[nodiscard]] CacheType cache_type() const { return *cache_type_from_name(type); }
};

class OneArithmetic : public ::testing::TestWithParam<Case> {
protected:
    EngineRun run{GetParam().fixture, 1};
    std::vector<std::vector<int32_t>> prompts;

    void SetUp() override {
        const std::vector<int32_t> ids = run.golden_ints("input_ids");
        for (const long length : {20, 1, 47, 96, 5, 64})
            prompts.emplace_back(ids.begin() + length / 2, ids.begin() + length / 2 + length);
    }
    [[nodiscard]] EngineOptions options(int64_t rows, int64_t chunk) const {
        return {.cache_tokens = 2048,
                .cache_type = GetParam().cache_type(),
                .max_batch_rows = rows,
                .prefill_chunk = chunk,
                .deterministic = true};
    }
};

TEST_P(OneArithmetic, LogitsAreTheSameBytesForEveryBatchChunkAndThreadCount) {
    EngineRun two_threads(GetParam().fixture, 2);
    const std::vector<Answer> together = answers(two_threads, prompts, options(512, 512), 0);
    for (size_t i = 0; i < prompts.size(); ++i) {
        const std::string name = "request " + std::to_string(i);
        expect_same_bytes(answers(run, {prompts[i]}, options(512, 512), 0)[0].logits, together[i].logits,
                          name + " alone, on one thread");
        for (const int64_t chunk : {1, 2, 3, 7, 16}) {
            expect_same_bytes(answers(run, {prompts[i]}, options(64, chunk), 0)[0].logits, together[i].logits,
                              name + " in chunks of " + std::to_string(chunk));
        }
    }
    const std::vector<Answer> staggered = answers(run, prompts, options(37, 13), 3);
    for (size_t i = 0; i < prompts.size(); ++i) {
        expect_same_bytes(staggered[i].logits, together[i].logits, "staggered request " + std::to_string(i));
    }
}

TEST_P(OneArithmetic, LogitsAreTheTrainersBytes) {
    const std::vector<Answer> sampled = answers(run, prompts, options(64, 16), 1);
    for (size_t i = 0; i < prompts.size(); ++i) {
        expect_same_bytes(trainers_logits(run, prompts[i], sampled[i], GetParam().cache_type()), sampled[i].logits,
                          "request " + std::to_string(i));
    }
}

TEST_P(OneArithmetic, RecomputingWithoutACacheGivesTheSameBytes) {
    EngineOptions recompute = options(512, 512);
    recompute.use_cache = false;
    const std::vector<Answer> cached = answers(run, prompts, options(512, 64), 0), again = answers(run, prompts, recompute, 0);
    for (size_t i = 0; i < prompts.size(); ++i) {
        expect_same_bytes(again[i].logits, cached[i].logits, "request " + std::to_string(i));
    }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, OneArithmetic,
                         ::testing::Values(Case{"v3", "f32"}, Case{"v3", "bf16"}, Case{"v3", "int8"}, Case{"v3", "int4"},
                                           Case{"v2-lite-greedy", "f32"}, Case{"v3-nope-lora-none", "bf16"},
                                           Case{"v3-nope-lora-none", "f16"}, Case{"v1-tiny", "f32"}, Case{"v1-tiny", "bf16"},
                                           Case{"v1-tiny", "fp8"}, Case{"v1-tiny", "int8"}),
                         [](const auto& test) { return test_name(test.param.fixture) + "_" + test.param.type; });

}  // namespace
}  // namespace fathom
