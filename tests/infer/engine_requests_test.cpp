// What a request may ask of the engine besides tokens.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "infer/engine.h"
#include "infer/engine_run.h"

namespace fathom {
namespace {

class EngineRequests : public ::testing::Test {
protected:
    EngineRun run{"v3", 1};
    const std::vector<int32_t> prompt = run.golden_ints("prompt"), expected = run.golden_ints("greedy");

    [[nodiscard]] std::map<int64_t, std::vector<TokenEvent>> all_events(Engine& engine) {
        std::map<int64_t, std::vector<TokenEvent>> events;
        while (!engine.idle()) {
            for (TokenEvent& event : engine.step()) events[event.request].push_back(std::move(event));
        }
        return events;
    }
};

TEST_F(EngineRequests, ShareThePagesOfACommonBeginningAndGetTheSameTokens) {
    Engine engine(run.model(), run.ops, {.block_size = 8, .deterministic = true});
    const std::vector<int32_t> alone = run.greedy(prompt, 20, {.deterministic = true});
    const int64_t first = engine.add(EngineRun::greedy_request(prompt, 20));
    (void)engine.step();
    const int64_t second = engine.add(EngineRun::greedy_request(prompt, 20));
    auto events = all_events(engine);
    EXPECT_EQ(EngineRun::tokens(events[second]), alone);
    EXPECT_EQ(events[second].front().reused, 16);  // two full pages of twenty tokens
    EXPECT_EQ(EngineRun::tokens(events[first]), std::vector<int32_t>(alone.begin() + 1, alone.end()));
    EXPECT_EQ(engine.load().used_blocks, 0);
    EXPECT_GT(engine.load().known_blocks, 0);
}

TEST_F(EngineRequests, ImportantOnesGoFirst) {
    Engine engine(run.model(), run.ops, {.max_sequences = 1});
    Request request = EngineRun::greedy_request(prompt, 2);
    request.priority = 5;
    const int64_t late = engine.add(request);
    request.priority = -1;
    const int64_t early = engine.add(request);
    std::vector<int64_t> order;
    while (!engine.idle()) {
        for (const TokenEvent& event : engine.step()) order.push_back(event.request);
    }
    EXPECT_EQ(order, (std::vector<int64_t>{early, early, late, late}));
}

TEST_F(EngineRequests, BrokenLogitsFailTheirRequestAlone) {
    int32_t poison = 0;  // a token that the sound request neither reads nor says
    while (std::ranges::count(prompt, poison) + std::ranges::count(expected, poison) > 0) ++poison;
    std::vector<float> table;
    run.loaded.model->visit([&](const std::string& name, Param& param) {
        if (name != "model.embed_tokens.weight") return;
        table.resize(static_cast<size_t>(param.size()));
        const Tensor copy(table.data(), DType::kF32, {param.rows, param.cols});
        run.ops.copy(copy, param.weight.codes);
        table[static_cast<size_t>(poison * param.cols)] = std::numeric_limits<float>::quiet_NaN();
        param.weight = copy;
    });
    ASSERT_FALSE(table.empty());
    Engine engine(run.model(), run.ops, {});
    const int64_t broken = engine.add(EngineRun::greedy_request({poison, 5, 6}, 10)),
                  sound = engine.add(EngineRun::greedy_request(prompt, 10));
    auto events = all_events(engine);
    ASSERT_EQ(events[broken].size(), 1u);
    EXPECT_EQ(events[broken][0].finish, FinishReason::kError);
    EXPECT_NE(events[broken][0].error.find("NaN"), std::string::npos);
    EXPECT_EQ(EngineRun::tokens(events[sound]), std::vector<int32_t>(expected.begin(), expected.begin() + 10));
    EXPECT_EQ(engine.load().used_blocks, 0);
}

// Every token's log-probability as part of a prompt is what it was when it was sampled.
TEST_F(EngineRequests, PromptLogprobsAreThoseOfTheAnswer) {
    Request request = EngineRun::greedy_request(prompt, 12);
    request.top_logprobs = 3;
    const std::vector<TokenEvent> said = run.events(request, {.deterministic = true});
    std::vector<int32_t> whole = prompt;
    for (const TokenEvent& event : said) {
        whole.push_back(event.token);
        ASSERT_EQ(event.top.size(), 3u);
        EXPECT_EQ(event.top[0].token, event.token);
        EXPECT_EQ(event.top[0].logprob, event.logprob);
        EXPECT_GE(event.top[0].logprob, event.top[1].logprob);
    }
    for (const int64_t chunk : {5, 512}) {
        Engine engine(run.model(), run.ops, {.block_size = 8, .prefill_chunk = chunk, .deterministic = true});
        (void)engine.add(EngineRun::greedy_request(whole, 1));  // what is in the cache must be scored all the same
        (void)all_events(engine);
        request = EngineRun::greedy_request(whole, 0);
        request.prompt_logprobs = true;
        request.top_logprobs = 2;
        const int64_t id = engine.add(request);
        const auto events = all_events(engine)[id];
        ASSERT_EQ(events.size(), 1u);
        EXPECT_EQ(events[0].token, -1);
        EXPECT_EQ(events[0].finish, FinishReason::kLength);
        ASSERT_EQ(events[0].prompt.size(), whole.size() - 1);
        for (size_t i = 0; i < said.size(); ++i) {
            const TokenLogprobs& scored = events[0].prompt[prompt.size() - 1 + i];
            EXPECT_EQ(scored.logprob, said[i].logprob) << "token " << i << ", chunks of " << chunk;
            EXPECT_EQ(scored.top[1].token, said[i].top[1].token);
        }
    }
}

TEST_F(EngineRequests, StopIdsWaitForTheShortestLength) {
    Request request = EngineRun::greedy_request(prompt, 10);
    request.stop_ids = {expected[0]};
    ASSERT_EQ(run.events(request, {}).size(), 1u);
    request.min_new_tokens = 4;
    const std::vector<TokenEvent> events = run.events(request, {});
    EXPECT_GT(events.size(), 4u);
    for (size_t i = 0; i < 4; ++i) EXPECT_NE(events[i].token, expected[0]);
}

TEST_F(EngineRequests, BadWordsAreNeverCompleted) {
    Request request = EngineRun::greedy_request(prompt, 10);
    request.bad_words = {{expected[2]}, {expected[0], expected[1]}};
    const std::vector<int32_t> said = EngineRun::tokens(run.events(request, {}));
    EXPECT_EQ(said[0], expected[0]);
    EXPECT_NE(said[1], expected[1]);
    EXPECT_EQ(std::ranges::count(said, expected[2]), 0);
}

// Counts up from 10, and ends with 7.
class Counting final : public TokenConstraint {
public:
    TokenMask allowed(int64_t vocab) override {
        TokenMask mask(vocab, false);
        mask.allow(count_ < 15 ? count_ : 7);
        return mask;
    }
    void accept(int32_t token) override {
        EXPECT_EQ(token, count_ < 15 ? count_ : 7);
        ++count_;
    }

private:
    int32_t count_ = 10;
};

TEST_F(EngineRequests, AConstraintDecidesWhatMayBeSaidAlsoAfterAPreemption) {
    Engine engine(run.model(), run.ops, {.cache_tokens = 48, .block_size = 8});
    Request request = EngineRun::greedy_request(prompt, 20);
    const int64_t free = engine.add(request);
    request.constraint = std::make_shared<Counting>();
    request.stop_ids = {7};
    const int64_t bound = engine.add(request);
    auto events = all_events(engine);
    EXPECT_EQ(EngineRun::tokens(events[bound]), (std::vector<int32_t>{10, 11, 12, 13, 14, 7}));
    EXPECT_EQ(events[bound].back().finish, FinishReason::kStop);
    EXPECT_EQ(EngineRun::tokens(events[free]), std::vector<int32_t>(expected.begin(), expected.begin() + 20));
}

TEST_F(EngineRequests, RulesThatExcludeEverythingAreReported) {
    Request request = EngineRun::greedy_request(prompt, 20);
    request.allowed = TokenMask(64, false);
    const std::vector<TokenEvent> events = run.events(request, {});
    ASSERT_EQ(events.size(), 1u);
    EXPECT_NE(events[0].error.find("no token is allowed"), std::string::npos);
}

}  // namespace
}  // namespace fathom
