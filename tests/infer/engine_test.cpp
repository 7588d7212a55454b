#include "infer/engine.h"

#include <gtest/gtest.h>

#include <map>

#include "base/file.h"
#include "infer/engine_run.h"

namespace fathom {
namespace {

class GreedyEngine : public ::testing::TestWithParam<const char*> {
protected:
    EngineRun run{GetParam(), 1};
    const std::vector<int32_t> prompt = run.golden_ints("prompt"), expected = run.golden_ints("greedy_nocache");
};

TEST_P(GreedyEngine, TokensAgreeWithTransformersForEveryPrefillChunk) {
    for (const int64_t chunk : {1, 2, 3, 7, 16, 64, 512}) {
        for (const bool deterministic : {false, true}) {
            EXPECT_EQ(run.greedy(prompt, expected.size(), {.prefill_chunk = chunk, .deterministic = deterministic}), expected)
                << "chunks of " << chunk << (deterministic ? ", deterministic" : "");
        }
    }
}

TEST_P(GreedyEngine, TokensAgreeWhenEverythingIsRecomputed) {
    EXPECT_EQ(run.greedy(prompt, expected.size(), {.use_cache = false}), expected);
}

TEST_P(GreedyEngine, TokensAgreeForEveryPageSize) {
    for (const int64_t block : {1, 5, 16, 128}) {
        EXPECT_EQ(run.greedy(prompt, expected.size(), {.block_size = block}), expected) << block;
    }
}

// Requests of unequal lengths that arrive while others run get what they would get alone.
TEST_P(GreedyEngine, TokensDoNotDependOnTheCompany) {
    const std::vector<int32_t> ids = run.golden_ints("input_ids");
    std::vector<std::vector<int32_t>> prompts{prompt};
    for (const size_t length : {1, 3, 33, 70, 96}) prompts.emplace_back(ids.begin(), ids.begin() + static_cast<long>(length));
    std::vector<std::vector<int32_t>> alone;
    for (const auto& p : prompts) alone.push_back(run.greedy(p, 12, {}));
    EXPECT_EQ(alone[0], std::vector<int32_t>(expected.begin(), expected.begin() + 12));

    for (const bool use_cache : {true, false}) {
        Engine engine(run.model(), run.ops,
                      {.cache_tokens = 1024, .max_batch_rows = 40, .prefill_chunk = 16, .use_cache = use_cache});
        std::map<int64_t, std::vector<int32_t>> answers;
        for (size_t next = 0; next < prompts.size() || !engine.idle();) {
            if (next < prompts.size()) (void)engine.add(EngineRun::greedy_request(prompts[next++], 12));
            for (const TokenEvent& event : engine.step()) answers[event.request].push_back(event.token);
        }
        for (size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(answers[static_cast<int64_t>(i)], alone[i]) << "request " << i;
    }
}

TEST_P(GreedyEngine, ACacheThatIsTooSmallForAllCostsTimeOnly) {
    const std::vector<int32_t> ids = run.golden_ints("input_ids");
    std::vector<std::vector<int32_t>> prompts;
    for (size_t i = 0; i < 5; ++i)
        prompts.emplace_back(ids.begin() + static_cast<long>(i), ids.begin() + 20 + 2 * static_cast<long>(i));
    Engine engine(run.model(), run.ops, {.cache_tokens = 96, .block_size = 8, .max_batch_rows = 64, .prefill_chunk = 16});
    std::map<int64_t, std::vector<int32_t>> answers;
    for (const auto& p : prompts) (void)engine.add(EngineRun::greedy_request(p, 30));
    while (!engine.idle()) {
        for (const TokenEvent& event : engine.step()) answers[event.request].push_back(event.token);
    }
    EXPECT_GT(engine.counters().preemptions, 0);
    for (size_t i = 0; i < prompts.size(); ++i)
        EXPECT_EQ(answers[static_cast<int64_t>(i)], run.greedy(prompts[i], 30, {})) << i;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, GreedyEngine,
                         ::testing::Values("v3", "v3-nope-lora-none", "v2-lite-greedy", "v2-group-limited", "v1-tiny"),
                         [](const auto& test) { return test_name(test.param); });

TEST(Engine, WhatWasComputedForOneRequestServesTheNext) {
    EngineRun run("v3", 1);
    const std::vector<int32_t> prompt = run.golden_ints("prompt"), expected = run.golden_ints("greedy");
    Engine engine(run.model(), run.ops, {.deterministic = true});
    (void)engine.add(EngineRun::greedy_request(prompt, 10));
    std::vector<int32_t> first;
    while (!engine.idle()) {
        for (const TokenEvent& event : engine.step()) first.push_back(event.token);
    }
    EXPECT_EQ(engine.counters().prompt_tokens, 20);
    std::vector<int32_t> longer = prompt;
    longer.insert(longer.end(), first.begin(), first.end());
    (void)engine.add(EngineRun::greedy_request(longer, 30));
    std::vector<int32_t> second;
    while (!engine.idle()) {
        for (const TokenEvent& event : engine.step()) second.push_back(event.token);
    }
    EXPECT_EQ(engine.counters().reused_tokens, 29);  // the tenth token was never read
    EXPECT_EQ(engine.counters().prompt_tokens, 21);
    EXPECT_EQ(second, std::vector<int32_t>(expected.begin() + 10, expected.end()));
}

TEST(Engine, ACancelledRequestIsForgottenAndTheOthersGoOn) {
    EngineRun run("v3", 1);
    const std::vector<int32_t> prompt = run.golden_ints("prompt"), expected = run.golden_ints("greedy");
    Engine engine(run.model(), run.ops, {.max_sequences = 2});
    const int64_t running = engine.add(EngineRun::greedy_request(prompt, 40)),
                  kept = engine.add(EngineRun::greedy_request(prompt, 40)),
                  waiting = engine.add(EngineRun::greedy_request(prompt, 40));
    (void)engine.step();
    engine.cancel(running);
    engine.cancel(waiting);
    std::vector<int32_t> rest;
    while (!engine.idle()) {
        for (const TokenEvent& event : engine.step()) {
            EXPECT_EQ(event.request, kept);
            rest.push_back(event.token);
        }
    }
    EXPECT_EQ(rest, std::vector<int32_t>(expected.begin() + 1, expected.end()));
}

// 40 rows a step: the first prompt's 36 leave room for 4, the answer's row and the second's 36 for 3.
TEST(Engine, AScrapOfAPromptWaitsForTheNextBatch) {
    EngineRun run("v3", 1);
    std::vector<int32_t> prompt;
    while (prompt.size() < 36) std::ranges::copy(run.golden_ints("prompt"), std::back_inserter(prompt));
    prompt.resize(36);
    const std::vector<int32_t> expected = run.greedy(prompt, 5, {});
    std::vector<int64_t> begins, lengths;
    EngineOptions options{.block_size = 8, .max_batch_rows = 40};
    options.on_routing = [&](std::span<const Routing>, std::span<const RequestRows> rows) {
        for (const RequestRows& piece : rows)
            if (piece.rows > 1) begins.push_back(piece.position), lengths.push_back(piece.rows);
    };
    Engine engine(run.model(), run.ops, options);
    for (uint64_t salt = 0; salt < 3; ++salt) {  // nothing is shared
        Request request = EngineRun::greedy_request(prompt, 5);
        request.cache_salt = salt;
        (void)engine.add(std::move(request));
    }
    std::map<int64_t, std::vector<int32_t>> answers;
    while (!engine.idle())
        for (const TokenEvent& event : engine.step()) answers[event.request].push_back(event.token);
    EXPECT_EQ(begins, (std::vector<int64_t>{0, 0, 0}));
    EXPECT_EQ(lengths, (std::vector<int64_t>{36, 36, 36}));
    for (const auto& [request, answer] : answers) EXPECT_EQ(answer, expected) << request;
}

// A piece as short as may be is read where it is all that a batch has room for, or nothing else is there to read.
TEST(Engine, ScrapsAreReadWhereNothingElseIs) {
    EngineRun run("v3", 1);
    const std::vector<int32_t> prompt = run.golden_ints("prompt"), expected = run.golden_ints("greedy");
    EXPECT_EQ(run.greedy(prompt, expected.size(), {.block_size = 64, .max_batch_rows = 2}), expected);
}

TEST(Engine, StopIdsAndLengthsEndAnAnswer) {
    EngineRun run("v3", 1);
    const std::vector<int32_t> prompt = run.golden_ints("prompt"), expected = run.golden_ints("greedy");
    Request request = EngineRun::greedy_request(prompt, 40);
    request.stop_ids = {expected[4]};
    const auto first = std::ranges::find(expected, expected[4]) - expected.begin();
    std::vector<TokenEvent> events = run.events(request, {});
    ASSERT_EQ(static_cast<long>(events.size()), first + 1);
    EXPECT_EQ(events.back().finish, FinishReason::kStop);
    EXPECT_FALSE(events.front().finish && first > 0);
    events = run.events(EngineRun::greedy_request(prompt, 3), {});
    ASSERT_EQ(events.size(), 3u);
    EXPECT_EQ(events.back().finish, FinishReason::kLength);
}

TEST(Engine, AnAnswerEndsWhereTheCacheEnds) {
    EngineRun run("v3", 1);
    const std::vector<int32_t> prompt = run.golden_ints("prompt"), expected = run.golden_ints("greedy");
    const auto events = run.events(EngineRun::greedy_request(prompt, 40), {.cache_tokens = 24, .block_size = 8});
    EXPECT_EQ(events.size(), 5u);  // 24 tokens were read, and the last one gave another
    EXPECT_EQ(events.back().finish, FinishReason::kLength);
    EXPECT_EQ(events.back().token, expected[4]);
}

TEST(Engine, BadRequestsAreRefusedWithAReason) {
    EngineRun run("v3", 1);
    Engine engine(run.model(), run.ops, {.cache_tokens = 64});
    const auto message = [&](std::vector<int32_t> prompt) -> std::string {
        try {
            (void)engine.add(EngineRun::greedy_request(std::move(prompt), 1));
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    };
    EXPECT_NE(message({}).find("empty"), std::string::npos);
    EXPECT_NE(message({-1}).find("-1"), std::string::npos);
    const int64_t vocab = run.model().config().vocab_size;
    EXPECT_NE(message({static_cast<int32_t>(vocab)}).find(std::to_string(vocab - 1)), std::string::npos);
    const auto positions = static_cast<size_t>(run.model().config().max_position_embeddings);
    EXPECT_NE(message(std::vector<int32_t>(positions + 1, 1)).find("max_position_embeddings"), std::string::npos);
    EXPECT_NE(message(std::vector<int32_t>(65, 1)).find("cache"), std::string::npos);
    EXPECT_TRUE(engine.idle());
}

TEST(Engine, ASeededAnswerDependsOnSeedAndStreamOnly) {
    EngineRun run("v3", 1);
    const std::vector<int32_t> prompt = run.golden_ints("prompt");
    Request request = EngineRun::greedy_request(prompt, 20);
    request.sampling = {.temperature = 1.5, .seed = 7};
    const std::vector<int32_t> alone = EngineRun::tokens(run.events(request, {.deterministic = true}));
    Engine engine(run.model(), run.ops, {.prefill_chunk = 6, .deterministic = true});
    (void)engine.add(EngineRun::greedy_request(prompt, 5));
    const int64_t id = engine.add(request);
    request.stream = 1;
    const int64_t other = engine.add(request);
    std::map<int64_t, std::vector<int32_t>> answers;
    while (!engine.idle()) {
        for (const TokenEvent& event : engine.step()) answers[event.request].push_back(event.token);
    }
    EXPECT_EQ(answers[id], alone);
    EXPECT_NE(answers[other], alone);
}

TEST(Engine, LongChunksAreExpandedAndSingleQueriesAbsorbed) {
    const ModelConfig v3 = ModelConfig::parse(read_text(std::filesystem::path(FATHOM_TEST_DATA) / "configs/deepseek-v3.json"));
    EXPECT_EQ(cheaper_form(v3, 1, 0), AttentionForm::kExpanded);  // one key, one query: the same projections, fewer products
    EXPECT_EQ(cheaper_form(v3, 1, 1000), AttentionForm::kAbsorbed);
    EXPECT_EQ(cheaper_form(v3, 4, 100000), AttentionForm::kAbsorbed);
    EXPECT_EQ(cheaper_form(v3, 4096, 0), AttentionForm::kExpanded);
    EXPECT_EQ(cheaper_form(v3, 4096, 4096), AttentionForm::kExpanded);
}

}  // namespace
}  // namespace fathom
