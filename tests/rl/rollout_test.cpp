// Sampling and training are one arithmetic: the log-probabilities and the experts of a sampled token are the trainer's, bit for
// bit, however many were sampled at a time and however they are packed.
#include "rl/rollout.h"

#include <gtest/gtest.h>
#include <bit>
#include <cmath>

#include "train/tiny_run.h"

namespace fathom {
namespace {

struct Policy {
    TrainConfig config;
    ThreadPool pool{2};
    CpuOps ops{pool};
    DeepSeek model;
    Learner learner;
    std::vector<std::vector<int32_t>> prompts;
    std::vector<RolloutRequest> requests;
    RolloutOptions options;

    explicit Policy(const std::string& dtype, bool deterministic = true)
        : config(tiny_config({"model.num_nextn_predict_layers=0", "training.dtype=" + dtype})),
          model(config.model.config),
          learner(config, model, ops, deterministic) {
        learner.optimizer().initialize(11, 0.1);
        for (int32_t p = 0; p < 9; ++p) {
            prompts.emplace_back();
            for (int32_t i = 0; i <= 3 * p; ++i) prompts.back().push_back(2 + (17 * p * i + i) % 250);
        }
        for (size_t i = 0; i < 3 * prompts.size(); ++i)
            requests.push_back({static_cast<int64_t>(i / 3), prompts[i / 3], 100 + i});
        options.sampling.seed = 5;
        options.sampling.temperature = 0.8;
        options.max_new_tokens = 24;
        options.stop_ids = {0, 7, 40};
        options.record_routes = true;
        options.cache_type = config.training.dtype;
        options.deterministic = deterministic;
    }

    [[nodiscard]] std::vector<Rollout> sample(int64_t at_a_time, int64_t rows = 512) {
        options.max_sequences = at_a_time;
        options.max_batch_rows = rows;
        return sample_rollouts(model, ops, requests, options);
    }
    // Log-probabilities of all completions, as training computes them in one packed batch.
    [[nodiscard]] std::vector<float> score(std::span<const Rollout* const> rollouts, ExpertChoices& used) {
        const TokenBatch batch = pack_rollouts(rollouts);
        std::vector<int32_t> allowed;
        for (const Rollout* r : rollouts) allowed.insert(allowed.end(), r->allowed.begin(), r->allowed.end());
        std::vector<float> logprobs;
        learner.forward(batch,
                        [&](Context& cx, const Tensor& hidden) {
                            const Tensor logprob = cx.empty({hidden.dim(0)});
                            Tensor words;
                            if (!allowed.empty()) {  // masks stand with the rows that have targets
                                const int64_t width = (model.config().vocab_size + 31) / 32;
                                std::vector<int32_t> all(static_cast<size_t>(hidden.dim(0) * width), -1);
                                size_t at = 0;
                                for (size_t i = 0; i < batch.targets.size(); ++i) {
                                    if (batch.targets[i] == kNoTarget) continue;
                                    for (int64_t w = 0; w < width; ++w)
                                        all[i * static_cast<size_t>(width) + static_cast<size_t>(w)] = allowed[at++];
                                }
                                words = cx.ints(all).view({hidden.dim(0), width});
                            }
                            model.head().logprob(cx, logprob, {}, hidden, cx.ints(batch.targets), words,
                                                 options.sampling.temperature);
                            const std::vector<float> all = learner.to_host(logprob);
                            for (size_t i = 0; i < all.size(); ++i) {
                                if (batch.targets[i] != kNoTarget) logprobs.push_back(all[i]);
                            }
                        },
                        {nullptr, &used});
        return logprobs;
    }
    // Largest |log p_sampler - log p_trainer| and routing differences over batches of `size` rollouts.
    [[nodiscard]] std::pair<double, int64_t> mismatch(const std::vector<Rollout>& rollouts, size_t size) {
        double largest = 0;
        int64_t routes = 0;
        for (size_t begin = 0; begin < rollouts.size(); begin += size) {
            std::vector<const Rollout*> batch;
            std::vector<float> sampled;
            for (size_t i = begin; i < std::min(begin + size, rollouts.size()); ++i) {
                batch.push_back(&rollouts[i]);
                sampled.insert(sampled.end(), rollouts[i].logprobs.begin(), rollouts[i].logprobs.end());
            }
            ExpertChoices used;
            const std::vector<float> scored = score(batch, used);
            EXPECT_EQ(scored.size(), sampled.size());
            for (size_t i = 0; i < scored.size(); ++i)
                largest = std::max(largest, std::abs(static_cast<double>(scored[i]) - static_cast<double>(sampled[i])));
            routes += count_route_differences(batch, used);
        }
        return {largest, routes};
    }
};

class Rollouts : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Types, Rollouts, testing::Values("f32", "bf16"), [](const auto& i) { return std::string(i.param); });

TEST_P(Rollouts, DoNotDependOnHowManyAreSampledAtATime) {
    Policy policy(GetParam());
    const std::vector<Rollout> together = policy.sample(64);
    EXPECT_EQ(policy.sample(1), together);
    EXPECT_EQ(policy.sample(7, 13), together);
    int64_t tokens = 0;
    for (const Rollout& rollout : together) {
        tokens += rollout.completion_length();
        ASSERT_EQ(std::ssize(rollout.logprobs), rollout.completion_length());
        EXPECT_EQ(rollout.truncated, rollout.completion_length() == 24 && rollout.tokens.back() != 0 &&
                                         rollout.tokens.back() != 7 && rollout.tokens.back() != 40);
        for (const auto& experts : rollout.routes)
            EXPECT_EQ(std::ranges::count(experts, -1), 0) << "every token's experts are known";
    }
    EXPECT_GT(tokens, 200);
    EXPECT_NE(together[0].tokens, together[1].tokens) << "answers to one prompt differ";
}

TEST_P(Rollouts, HaveTheTrainersLogProbabilitiesAndExpertsToTheBit) {
    Policy policy(GetParam());
    for (const int64_t at_a_time : {1, 7, 64}) {
        const std::vector<Rollout> rollouts = policy.sample(at_a_time);
        for (const size_t packed : {1, 5, 27}) {
            const auto [largest, routes] = policy.mismatch(rollouts, packed);
            EXPECT_EQ(largest, 0) << at_a_time << " sampled at a time, " << packed << " packed";
            EXPECT_EQ(routes, 0);
        }
    }
}

TEST(Rollouts, UnderTopKKeepTheMaskTheyWereSampledFrom) {
    Policy policy("f32");
    policy.options.sampling.top_k = 20;
    policy.options.sampling.top_p = 0.9;
    policy.options.keep_mask = true;
    const std::vector<Rollout> rollouts = policy.sample(7);
    EXPECT_EQ(policy.mismatch(rollouts, 5), (std::pair<double, int64_t>(0, 0)));
    for (const Rollout& rollout : rollouts) {
        int64_t bits = 0;
        for (const int32_t word : rollout.allowed) bits += std::popcount(static_cast<uint32_t>(word));
        EXPECT_LE(bits, 20 * rollout.completion_length());
        EXPECT_GE(bits, rollout.completion_length());
    }
    policy.options.keep_mask = false;
    EXPECT_LT(policy.sample(7)[0].logprobs[0], rollouts[0].logprobs[0])
        << "without the mask, excluded ids share the probability";
}

TEST(Rollouts, InFastModeTheGapIsSeen) {
    Policy policy("f32", false);
    EXPECT_GT(policy.mismatch(policy.sample(64), 27).first, 0) << "the comparison can fail";
}

TEST(Rollouts, RecordedExpertsCanBeForcedOnTheTrainer) {
    Policy policy("f32");
    std::vector<Rollout> rollouts = policy.sample(64);
    std::vector<const Rollout*> all;
    for (Rollout& rollout : rollouts) {
        for (auto& experts : rollout.routes) {  // another choice than the router's: 0, 1
            for (size_t i = 0; i < experts.size(); ++i) experts[i] = static_cast<int32_t>(i % 2);
        }
        all.push_back(&rollout);
    }
    const ExpertChoices forced = pack_routes(all);
    ExpertChoices used;
    policy.learner.forward(pack_rollouts(all), [](Context&, const Tensor&) {}, {&forced, &used});
    EXPECT_EQ(used, forced);
    EXPECT_EQ(count_route_differences(all, used), 0);
    rollouts[0].routes.back()[0] = -1;
    EXPECT_THROW((void)pack_routes(all), Error);
}

TEST(SamplingMask, KeepsTheSmallestSetThatTheRulesAllow) {
    const std::vector<float> logits{1, 3, 3, 0, -5};
    const auto mask = [&](SamplingParams params) { return sampling_mask(logits, params)[0]; };
    EXPECT_EQ(mask({}), 0b11111);
    EXPECT_EQ(mask({.top_k = 1}), 0b00010) << "the lower id among equals";
    EXPECT_EQ(mask({.top_k = 3}), 0b00111);
    EXPECT_EQ(mask({.top_p = 0.5}), 0b00110);
    EXPECT_EQ(mask({.min_p = 0.1}), 0b00111);
    EXPECT_EQ(mask({.temperature = 10, .min_p = 0.6}), 0b01111);
}

}  // namespace
}  // namespace fathom
