// Decoding whose steps are recorded and whose largest logits are found on the GPU, against the same without either.
#include <array>

#include "base/rng.h"
#include "cuda/plugin.h"
#include "infer/engine.h"
#include "model/fixture.h"
#include "ops/step_recorder.h"

namespace fathom {
namespace {

std::unique_ptr<Ops> open_gpu(bool bf16, bool deterministic) {
    std::array<char, 512> message{};
    return std::unique_ptr<Ops>(fathom_cuda_open(0, bf16 ? "bf16" : "f32", deterministic, message.data(), message.size()));
}

// Three answers of different lengths, with log-probabilities. `watched`: a reader of logits, for whom they come to the host.
std::vector<Sample> answers(const LoadedModel& loaded, Ops& ops, bool watched, bool deterministic, int64_t& seen,
                            const SamplingParams& sampling = {.temperature = 0}) {
    EngineOptions options;
    options.cache_tokens = 1024;
    options.cache_type = ops.compute_dtype();
    options.deterministic = deterministic;
    Engine engine(*loaded.model, ops, options);
    for (const int32_t start : {1, 5, 9}) {
        Request request;
        request.prompt = {start, 3, 7, start};
        request.sampling = sampling;
        request.top_logprobs = 0;
        request.max_new_tokens = 10 + start;
        if (watched) request.on_logits = [&](std::span<const float>) { ++seen; };
        (void)engine.add(std::move(request));
    }
    std::vector<Sample> said;
    while (!engine.idle()) {
        for (const TokenEvent& event : engine.step()) said.push_back({event.token, event.logprob});
    }
    return said;
}

TEST(RecordedSteps, SayWhatStepsOneByOneSay) {
    for (const bool bf16 : {false, true}) {
        for (const bool deterministic : {false, true}) {
            const std::unique_ptr<Ops> ops = open_gpu(bf16, deterministic);
            if (ops == nullptr) GTEST_SKIP() << "no GPU";
            for (const char* name : {"v3", "v3-true-head-dims", "v2-lite-greedy"}) {
                const std::string fixture = name;
                if (fixture_folder(fixture).empty()) continue;
                SCOPED_TRACE(fixture + (bf16 ? " bf16" : " f32"));
                const LoadedModel loaded = load_model(fixture_folder(fixture), *ops, {});
                for (const SamplingParams& sampling :
                     {SamplingParams{.temperature = 0}, {.temperature = 0.8, .top_p = 0.9, .repetition_penalty = 1.1}}) {
                    int64_t seen = 0;
                    const std::vector<Sample> recorded = answers(loaded, *ops, false, deterministic, seen, sampling),
                                              plain = answers(loaded, *ops, true, deterministic, seen, sampling);
                    EXPECT_EQ(seen, std::ssize(plain));
                    ASSERT_EQ(recorded.size(), plain.size());
                    for (size_t i = 0; i < plain.size(); ++i) {
                        EXPECT_EQ(recorded[i].token, plain[i].token);
                        EXPECT_NEAR(recorded[i].logprob, plain[i].logprob, 1e-4);
                    }
                }
            }
        }
    }
}

// Requests that begin alike and come one after the other while the ones before them answer.
std::vector<Sample> answers_to_newcomers(const LoadedModel& loaded, Ops& ops, bool watched) {
    EngineOptions options;
    options.cache_tokens = 4096;
    options.cache_type = ops.compute_dtype();
    Engine engine(*loaded.model, ops, options);
    std::vector<Sample> said;
    for (int32_t come = 0; come < 40 || !engine.idle(); ++come) {
        if (come < 40) {
            Request request;
            for (int32_t i = 0; i < 24; ++i) request.prompt.push_back((7 * come + i * i) % 50);
            request.sampling = {.temperature = 0};
            request.top_logprobs = 0;
            request.max_new_tokens = 3;
            if (watched) request.on_logits = [](std::span<const float>) {};
            (void)engine.add(std::move(request));
        }
        for (const TokenEvent& event : engine.step()) said.push_back({event.token, event.logprob});
    }
    return said;
}

TEST(RecordedSteps, SayTheSameBesidePromptsOfOneLength) {
    for (const bool bf16 : {false, true}) {
        const std::unique_ptr<Ops> ops = open_gpu(bf16, false);
        if (ops == nullptr) GTEST_SKIP() << "no GPU";
        for (const char* name : {"v3", "v3-true-head-dims", "v2-lite-greedy"}) {
            if (fixture_folder(name).empty()) continue;
            SCOPED_TRACE(std::string(name) + (bf16 ? " bf16" : " f32"));
            const LoadedModel loaded = load_model(fixture_folder(name), *ops, {});
            const std::vector<Sample> recorded = answers_to_newcomers(loaded, *ops, false),
                                      plain = answers_to_newcomers(loaded, *ops, true);
            ASSERT_EQ(recorded.size(), plain.size());
            ASSERT_EQ(plain.size(), 120U);
            for (size_t i = 0; i < plain.size(); ++i) {
                EXPECT_EQ(recorded[i].token, plain[i].token);
                EXPECT_NEAR(recorded[i].logprob, plain[i].logprob, 1e-4);
            }
        }
    }
}

// Rules of every kind, alone and together.
std::vector<SamplingParams> rules() {
    std::vector<SamplingParams> all{
        {.temperature = 1},
        {.temperature = 0.7},
        {.temperature = 1, .top_p = 0.9},
        {.temperature = 0.6, .top_p = 0.95},
        {.temperature = 1, .top_k = 5},
        {.temperature = 1, .top_p = 0.5, .top_k = 20},
        {.temperature = 1.3, .top_p = 0.8, .min_p = 0.02},
        {.temperature = 1, .min_p = 0.1},
        {.temperature = 0},
        {.temperature = 0, .repetition_penalty = 1.3, .frequency_penalty = 0.5, .presence_penalty = 0.2},
        {.temperature = 1, .top_p = 0.95, .top_k = 40, .min_p = 0.01, .repetition_penalty = 1.1, .presence_penalty = 0.3},
        {.temperature = 5, .top_p = 0.999},
        {.temperature = 1, .top_p = 1e-6},
        {.temperature = 2, .top_k = 1},
    };
    all[2].logit_bias = {{3, 5.0F}, {7, -100.0F}, {3, 1.0F}};
    for (size_t i = 0; i < all.size(); ++i) all[i].seed = 11 * i;
    return all;
}

TEST(RecordedSteps, TokensDrawnOnTheDeviceAreThoseTheHostDraws) {
    const std::unique_ptr<Ops> ops = open_gpu(false, false);
    if (ops == nullptr) GTEST_SKIP() << "no GPU";
    auto& recorder = dynamic_cast<StepRecorder&>(*ops);
    const std::vector<SamplingParams> params = rules();
    const auto n = std::ssize(params);
    Rng rng(5);
    for (const int64_t vocab : {37, 1024, 5003, 102400, 129280}) {
        Arena arena("numbers", [&](int64_t bytes) { return ops->allocate(bytes); });
        std::vector<float> numbers(static_cast<size_t>(n * vocab));
        for (float& z : numbers) z = static_cast<float>(3 * rng.normal());
        for (int64_t i = 4 * vocab; i < 6 * vocab; ++i) numbers[static_cast<size_t>(i)] = static_cast<float>(i % 7);  // ties
        std::vector<int32_t> history;
        for (int i = 0; i < 50; ++i) history.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
        TokenMask thirds(vocab, false);
        for (int32_t id = 0; id < vocab; id += 3) thirds.allow(id);
        std::vector<TokenQuery> queries;
        for (size_t i = 0; i < params.size(); ++i) {
            queries.push_back({&params[i], {history, 20}, i, 100 + i, {}});
            if (i % 4 == 3) queries.back().allowed = thirds.words();
        }
        const Tensor logits = arena.allocate(DType::kF32, {n, vocab}), index = arena.allocate(DType::kI32, {n});
        ops->write(logits, numbers.data());
        recorder.sample(index, logits, queries);
        std::vector<int32_t> drawn(params.size());
        ops->read_back(drawn.data(), index);
        for (size_t i = 0; i < params.size(); ++i) {
            const TokenQuery& query = queries[i];
            const auto row = std::span(numbers).subspan(i * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
            EXPECT_EQ(drawn[i], sample(row, params[i], query.history, query.stream, query.step, vocab,
                                       query.allowed.empty() ? TokenMask() : thirds))
                << "rule " << i << ", vocabulary " << vocab;
        }
        numbers[1] = std::numeric_limits<float>::quiet_NaN();
        std::fill_n(numbers.begin() + vocab, vocab, -std::numeric_limits<float>::infinity());
        ops->write(logits, numbers.data());
        recorder.sample(index, logits, queries);
        ops->read_back(drawn.data(), index);
        EXPECT_EQ(drawn[0], -1);
        EXPECT_EQ(drawn[1], -1);
    }
}

TEST(RecordedSteps, SeeWhatTheirMemoryHoldsNow) {
    const std::unique_ptr<Ops> ops = open_gpu(false, false);
    if (ops == nullptr) GTEST_SKIP() << "no GPU";
    auto& recorder = dynamic_cast<StepRecorder&>(*ops);
    Arena arena("numbers", [&](int64_t bytes) { return ops->allocate(bytes); });
    const Tensor x = arena.allocate(DType::kF32, {1, 4}), y = arena.allocate(DType::kF32, {1, 4}),
                 best = arena.allocate(DType::kI32, {1});
    int64_t told = 0;
    for (int step = 0; step < 5; ++step) {
        const std::array<float, 4> numbers{0, static_cast<float>(step), 2.5F, -1};
        ops->write(x, numbers.data());
        recorder.repeat(std::array<int64_t, 1>{42}, 1, [&] {
            ++told;
            ops->add(y, x, x);
            recorder.argmax(best, y);
        });
        std::array<float, 4> sums{};
        int32_t index = 0;
        ops->read_back(sums.data(), y);
        ops->read_back(&index, best);
        EXPECT_EQ(sums[1], 2.0F * static_cast<float>(step));
        EXPECT_EQ(index, step < 3 ? 2 : 1);
    }
    EXPECT_EQ(told, 2) << "run once, recorded once";
    { const Buffer other = ops->allocate(64); }
    recorder.repeat(std::array<int64_t, 1>{42}, 1, [&] { ++told; });
    EXPECT_EQ(told, 3) << "memory was freed: the recording is no longer trusted";
}

TEST(RecordedSteps, TheLargestLogitIsTheFirstOfEqualsAndNoneAmongNaN) {
    const std::unique_ptr<Ops> ops = open_gpu(false, false);
    if (ops == nullptr) GTEST_SKIP() << "no GPU";
    auto& recorder = dynamic_cast<StepRecorder&>(*ops);
    Arena arena("numbers", [&](int64_t bytes) { return ops->allocate(bytes); });
    constexpr int64_t kVocab = 5003;  // rows that do not begin at multiples of 16 bytes
    const float nan = std::numeric_limits<float>::quiet_NaN(), none = -std::numeric_limits<float>::infinity();
    std::vector<float> numbers(4 * kVocab, none);
    numbers[4999] = numbers[17] = numbers[4100] = 3;
    for (size_t i = 0; i < kVocab; ++i) numbers[kVocab + i] = -static_cast<float>(kVocab - i);
    numbers[2 * kVocab + 5] = 1, numbers[2 * kVocab + 3000] = nan;
    const Tensor logits = arena.allocate(DType::kF32, {4, kVocab}), index = arena.allocate(DType::kI32, {4});
    ops->write(logits, numbers.data());
    recorder.argmax(index, logits);
    std::array<int32_t, 4> best{};
    ops->read_back(best.data(), index);
    EXPECT_EQ(best, (std::array<int32_t, 4>{17, kVocab - 1, -1, -1}));
}

}  // namespace
}  // namespace fathom
