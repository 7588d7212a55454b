// Decoding whose steps are recorded and whose largest logits are found on the GPU, against the same without either.
#include <array>

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
std::vector<Sample> answers(const LoadedModel& loaded, Ops& ops, bool watched, bool deterministic, int64_t& seen) {
    EngineOptions options;
    options.cache_tokens = 1024;
    options.cache_type = ops.compute_dtype();
    options.deterministic = deterministic;
    Engine engine(*loaded.model, ops, options);
    for (const int32_t start : {1, 5, 9}) {
        Request request;
        request.prompt = {start, 3, 7, start};
        request.sampling.temperature = 0;
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
                int64_t seen = 0;
                const std::vector<Sample> recorded = answers(loaded, *ops, false, deterministic, seen),
                                          plain = answers(loaded, *ops, true, deterministic, seen);
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
        recorder.repeat(std::array<int64_t, 1>{42}, [&] {
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
    recorder.repeat(std::array<int64_t, 1>{42}, [&] { ++told; });
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
