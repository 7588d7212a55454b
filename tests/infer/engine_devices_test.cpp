// Steps that stay on the device, and tokens that fewer experts read.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>

#include "infer/engine.h"
#include "infer/engine_run.h"
#include "ops/step_recorder.h"

namespace fathom {
namespace {

// A device in all that the engine can see: samples itself and could record steps.
class Recording final : public CpuOps, public StepRecorder {
public:
    using CpuOps::CpuOps;
    int64_t recorded = 0;
    int64_t read = 0;  // numbers brought to the host
    int64_t rows = 0;  // of the last answer
    int64_t drawn = 0;

    std::map<std::vector<int64_t>, int64_t> keys;  // and how often each came
    std::vector<int64_t> patience;                 // how often a key must have come before

    void repeat(std::span<const int64_t> key, int64_t after, const std::function<void()>& ops) override {
        ++recorded;
        ++keys[{key.begin(), key.end()}];
        patience.push_back(after);
        const int64_t before = read;
        ops();
        EXPECT_EQ(read, before) << "a step that may be recorded must not read back";
    }
    void argmax(const Tensor& index, const Tensor& logits) override {
        rows = logits.dim(0);
        for (int64_t i = 0; i < logits.dim(0); ++i) {
            const float* const row = logits.slice(0, i, i + 1).as<float>();
            index.as<int32_t>()[i] = static_cast<int32_t>(std::max_element(row, row + logits.dim(1)) - row);
        }
    }
    void sample(const Tensor& index, const Tensor& logits, std::span<const TokenQuery> queries) override {
        rows = logits.dim(0);
        ++drawn;
        for (int64_t i = 0; i < rows; ++i) {
            const TokenQuery& query = queries[static_cast<size_t>(i)];
            const std::span row(logits.slice(0, i, i + 1).as<float>(), static_cast<size_t>(logits.dim(1)));
            TokenMask mask;
            if (!query.allowed.empty()) {
                mask = TokenMask(logits.dim(1), false);
                for (int32_t id = 0; id < logits.dim(1); ++id)
                    if ((query.allowed[static_cast<size_t>(id) / 64] >> (id % 64) & 1) != 0) mask.allow(id);
            }
            index.as<int32_t>()[i] =
                std::ranges::any_of(row, [](float z) { return std::isnan(z); })
                    ? -1
                    : fathom::sample(row, *query.params, query.history, query.stream, query.step, logits.dim(1), mask);
        }
    }
    void read_back(void* host, const Tensor& device) override {
        read += device.size();
        CpuOps::read_back(host, device);
    }
};

class EngineDevices : public ::testing::Test {
protected:
    EngineRun run{"v3", 1};
    const std::vector<int32_t> prompt = run.golden_ints("prompt"), expected = run.golden_ints("greedy");

    [[nodiscard]] std::vector<TokenEvent> finish(Engine& engine) {
        std::vector<TokenEvent> events;
        while (!engine.idle()) {
            for (TokenEvent& event : engine.step()) events.push_back(std::move(event));
        }
        return events;
    }
    // The answer to `prompt` while another request waits behind it, which then leaves.
    [[nodiscard]] std::vector<TokenEvent> crowded_answer(Engine& engine, int64_t alone, int64_t tokens) {
        std::vector<TokenEvent> events;
        (void)engine.add(EngineRun::greedy_request(prompt, tokens));
        for (int64_t i = 0; i < alone; ++i) events.push_back(engine.step().at(0));
        const int64_t other = engine.add(EngineRun::greedy_request(prompt, 1));
        while (events.empty() || !events.back().finish) events.push_back(engine.step().at(0));
        engine.cancel(other);
        return events;
    }
};

TEST_F(EngineDevices, GreedyStepsAreRecordedAlsoWhereSomebodyWatchesTheExpertsNowAndThen) {
    Recording device(run.pool);
    EngineOptions options{.deterministic = true};
    std::vector<int64_t> steps_seen;
    Engine* seen_by = nullptr;
    options.on_routing = [&](std::span<const Routing> routing, std::span<const RequestRows> rows) {
        steps_seen.push_back(seen_by->counters().steps);
        EXPECT_EQ(rows.size(), 1U);
        EXPECT_TRUE(std::ranges::any_of(routing, [](const Routing& layer) { return layer.indices.size() > 0; }));
    };
    options.routing_every = 8;
    Engine engine(run.model(), device, options);
    seen_by = &engine;
    (void)engine.add(EngineRun::greedy_request(prompt, 20));
    const std::vector<TokenEvent> events = finish(engine);
    EXPECT_EQ(EngineRun::tokens(events), run.greedy(prompt, 20, {.deterministic = true}));
    EXPECT_EQ(steps_seen, (std::vector<int64_t>{0, 8, 16}));
    EXPECT_EQ(device.recorded, 17) << "twenty steps, one of which reads the prompt, and two more that are watched";
    EXPECT_EQ(device.read, 20) << "nothing but the tokens";
}

TEST_F(EngineDevices, TheHostHasTimeForOtherThingsWhileTheDeviceWorks) {
    Recording device(run.pool);
    Engine engine(run.model(), device, {});
    (void)engine.add(EngineRun::greedy_request(prompt, 4));
    int64_t calls = 0;
    for (int64_t step = 0; !engine.idle(); ++step) {
        const int64_t recorded = device.recorded, read = device.read;
        (void)engine.step([&] {
            ++calls;
            EXPECT_EQ(device.recorded, recorded + (step > 0 ? 1 : 0)) << "steps that only decode have been told by then";
            EXPECT_EQ(device.read, read) << "and nobody has waited for them";
        });
        EXPECT_EQ(calls, step + 1);
    }
    (void)engine.step([&] { calls = -1; });
    EXPECT_EQ(calls, -1) << "also where there is nothing to do";
}

TEST_F(EngineDevices, ADeviceThatNeedsTheHostDoesNotKeepOthersWaiting) {
    Engine engine(run.model(), run.ops, {});
    (void)engine.add(EngineRun::greedy_request(prompt, 4));
    for (int64_t step = 0; !engine.idle(); ++step) {
        int64_t before = -1;
        (void)engine.step([&] { before = engine.load().running; });
        EXPECT_EQ(before, step > 0 ? 1 : 0) << "called before the step began";
    }
}

TEST_F(EngineDevices, RecordedStepsAreFilledUpToARoundNumberOfRows) {
    Recording device(run.pool);
    Engine engine(run.model(), device, {.deterministic = true});
    std::map<int64_t, std::vector<int32_t>> said;
    std::vector<std::vector<int32_t>> prompts;
    for (int32_t i = 0; i < 11; ++i) {
        prompts.push_back(prompt);
        prompts.back().push_back(i);
        (void)engine.add(EngineRun::greedy_request(prompts.back(), 6));
    }
    while (!engine.idle()) {
        const int64_t before = device.recorded;
        for (const TokenEvent& event : engine.step()) said[event.request].push_back(event.token);
        EXPECT_EQ(device.rows, device.recorded > before ? 16 : 11);
    }
    EXPECT_EQ(device.recorded, 5);
    EXPECT_EQ(engine.counters().rows, 11 * (std::ssize(prompt) + 1 + 5));
    for (const auto& [request, tokens] : said) {
        EXPECT_EQ(tokens, run.greedy(prompts[static_cast<size_t>(request)], 6, {.deterministic = true})) << request;
    }
}

TEST_F(EngineDevices, StepsThatReadAsMuchBesideAsManyAnswersCountAsOne) {
    Recording device(run.pool);
    Engine engine(run.model(), device, {});
    (void)engine.add(EngineRun::greedy_request(prompt, 20));
    (void)engine.step();
    EXPECT_EQ(device.recorded, 0) << "a prompt alone";
    for (const int32_t length : {40, 40, 41, 40, 40, 41, 40}) {
        Request newcomer = EngineRun::greedy_request({}, 1);
        for (int32_t i = 0; i < length; ++i) newcomer.prompt.push_back((11 * static_cast<int32_t>(device.recorded) + i) % 60);
        const std::vector<int32_t> alone = run.greedy(newcomer.prompt, 1, {});
        const int64_t id = engine.add(std::move(newcomer));
        for (const TokenEvent& event : engine.step()) {
            if (event.request == id) {
                EXPECT_EQ(event.token, alone.at(0));
            }
        }
    }
    std::vector<int64_t> times;
    for (const auto& [key, count] : device.keys) times.push_back(count);
    std::ranges::sort(times);
    EXPECT_EQ(times, (std::vector<int64_t>{2, 5}));
    EXPECT_GT(std::ranges::min(device.patience), 1) << "prompts are of many lengths";
    (void)finish(engine);
    EXPECT_EQ(device.keys.size(), 3U) << "and the steps that only decode";
    EXPECT_EQ(device.patience.back(), 1);
}

TEST_F(EngineDevices, SampledAnswersStayOnTheDeviceToo) {
    Recording device(run.pool);
    Engine engine(run.model(), device, {.deterministic = true});
    Request request = EngineRun::greedy_request(prompt, 12);
    request.sampling = {.temperature = 0.9, .top_p = 0.9, .repetition_penalty = 1.2, .seed = 5};
    request.min_new_tokens = 12;
    request.stop_ids = {0, 1, 2, 3};
    request.bad_words = {{7}, {9, 11}};
    (void)engine.add(request);
    const std::vector<TokenEvent> events = finish(engine);
    EXPECT_EQ(EngineRun::tokens(events), EngineRun::tokens(run.events(request, {.deterministic = true})));
    EXPECT_EQ(device.drawn, 12);
    EXPECT_EQ(device.recorded, 11) << "all but the prompt's";
    EXPECT_EQ(device.read, 12) << "nothing but the tokens";
}

TEST_F(EngineDevices, ATokensOwnProbabilityComesFromTheDeviceAndThoseOfOthersFromTheHost) {
    for (const int64_t alternatives : {0, 3}) {
        Recording device(run.pool);
        Engine engine(run.model(), device, {.deterministic = true});
        Request request = EngineRun::greedy_request(prompt, 5);
        request.sampling.temperature = 1;
        request.top_logprobs = alternatives;
        (void)engine.add(request);
        const std::vector<TokenEvent> events = finish(engine), expected_events = run.events(request, {.deterministic = true});
        EXPECT_EQ(EngineRun::tokens(events), EngineRun::tokens(expected_events));
        for (size_t i = 0; i < events.size(); ++i) {
            EXPECT_NEAR(events[i].logprob, expected_events[i].logprob, 1e-5);
            EXPECT_EQ(std::ssize(events[i].top), alternatives);
        }
        EXPECT_EQ(device.read, alternatives == 0 ? 2 * 5 : 5 * run.model().config().vocab_size);
    }
}

TEST_F(EngineDevices, SeveralThreadsSampleWhatOneSamples) {
    const auto answers = [&](ThreadPool* threads) {
        EngineOptions options{.deterministic = true};
        options.threads = threads;
        Engine engine(run.model(), run.ops, options);
        std::vector<std::vector<float>> seen(3);
        for (size_t i = 0; i < 12; ++i) {
            Request request = EngineRun::greedy_request(prompt, 10);
            request.sampling = {.temperature = 0.9, .top_p = 0.8, .repetition_penalty = 1.2, .seed = 7};
            request.stream = i;
            if (i < seen.size()) request.on_logits = [&seen, i](std::span<const float> row) { seen[i].push_back(row[0]); };
            (void)engine.add(std::move(request));
        }
        std::map<int64_t, std::vector<int32_t>> said;
        for (const TokenEvent& event : finish(engine)) said[event.request].push_back(event.token);
        for (const auto& logits : seen) EXPECT_EQ(logits.size(), 10U);
        return said;
    };
    ThreadPool pool(3);
    const auto alone = answers(nullptr);
    EXPECT_EQ(alone.size(), 12U);
    EXPECT_EQ(answers(&pool), alone);
}

TEST_F(EngineDevices, FewerExpertsAreCountedAndWhatTheySayIsNotShared) {
    Engine engine(run.model(), run.ops, {.block_size = 8, .max_sequences = 1, .overload_experts = 1});
    const std::vector<TokenEvent> events = crowded_answer(engine, 0, 12);
    const auto length = static_cast<int64_t>(prompt.size());
    EXPECT_EQ(events.front().reduced, length);
    EXPECT_EQ(events.back().reduced, length + 11) << "the last token is not read";
    EXPECT_EQ(engine.counters().reduced_steps, 12);
    EXPECT_EQ(engine.counters().reduced_rows, length + 11);
    EXPECT_EQ(engine.load().known_blocks, 0);
    (void)engine.add(EngineRun::greedy_request(prompt, 12));
    const std::vector<TokenEvent> whole = finish(engine);
    EXPECT_EQ(EngineRun::tokens(whole), std::vector<int32_t>(expected.begin(), expected.begin() + 12));
    EXPECT_NE(EngineRun::tokens(events), EngineRun::tokens(whole));
    EXPECT_EQ(whole.back().reduced, 0);
    EXPECT_EQ(engine.counters().reduced_steps, 12);
    EXPECT_GT(engine.load().known_blocks, 0);
}

TEST_F(EngineDevices, AnAnswerBegunWithAllExpertsSharesThePagesThatAllOfThemRead) {
    Engine engine(run.model(), run.ops, {.block_size = 8, .max_sequences = 1, .overload_experts = 1});
    const std::vector<TokenEvent> events = crowded_answer(engine, 1, 20);
    EXPECT_EQ(events.front().reduced, 0);
    EXPECT_EQ(events.back().reduced, 19);
    EXPECT_EQ(engine.load().known_blocks, static_cast<int64_t>(prompt.size()) / 8);
}

TEST_F(EngineDevices, AsManyExpertsAsTheModelHasAreNoFewer) {
    const int64_t all = run.model().config().num_experts_per_tok;
    EXPECT_THROW(Engine(run.model(), run.ops, {.overload_experts = all}), Error);
}

}  // namespace
}  // namespace fathom
