#include "infer/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"
#include "base/rng.h"

namespace fathom {
namespace {

constexpr int kDraws = 20000;

// How often each token comes out of kDraws steps.
std::vector<double> frequencies(const std::vector<float>& logits, const SamplingParams& params,
                                const SampleHistory& history = {}) {
    std::vector<double> share(logits.size());  // counts first, so that a sure token has exactly 1
    for (uint64_t step = 0; step < kDraws; ++step) {
        const int32_t token = sample(logits, params, history, 0, step, static_cast<int64_t>(logits.size()));
        share[static_cast<size_t>(token)] += 1;
    }
    for (double& x : share) x /= kDraws;
    return share;
}

std::vector<double> softmax(const std::vector<double>& logits) {
    std::vector<double> p;
    double sum = 0;
    for (const double x : logits) p.push_back(std::exp(x)), sum += p.back();
    for (double& x : p) x /= sum;
    return p;
}

// Within five standard deviations of a binomial share; exactly 0 where 0 is expected.
void expect_shares(const std::vector<double>& found, const std::vector<double>& expected) {
    for (size_t i = 0; i < found.size(); ++i) {
        EXPECT_NEAR(found[i], expected[i], 5 * std::sqrt(expected[i] * (1 - expected[i]) / kDraws)) << "token " << i;
    }
}

TEST(Sampler, TemperatureZeroTakesTheLargestAndTheLowestIdAmongEquals) {
    const std::vector<float> logits{1, 3, 2, 3};
    for (uint64_t step = 0; step < 10; ++step) {
        EXPECT_EQ(sample(logits, {.temperature = 0, .seed = step}, {}, 0, step, 4), 1);
    }
}

// Greedy answers go by whole vectors; this goes one by one.
int32_t plain_greedy(std::vector<float> logits, const SamplingParams& params, const SampleHistory& history,
                     const TokenMask& mask) {
    for (const auto& [id, bias] : params.logit_bias) logits[static_cast<size_t>(id)] += bias;
    int32_t best = -1;
    for (int32_t id = 0; id < std::ssize(logits); ++id) {
        float& logit = logits[static_cast<size_t>(id)];
        const auto answer = history.tokens.subspan(static_cast<size_t>(history.prompt_length));
        const auto count = static_cast<double>(std::ranges::count(answer, id));
        double x = static_cast<double>(logit);
        if (std::ranges::count(history.tokens, id) > 0)
            x = x > 0 ? x / params.repetition_penalty : x * params.repetition_penalty;
        x -= params.frequency_penalty * count + (count > 0 ? params.presence_penalty : 0);
        logit = static_cast<float>(x);
        const bool allowed = mask.empty() || mask.allows(id);
        if (allowed && (best < 0 || logit > logits[static_cast<size_t>(best)])) best = id;
    }
    return best;
}

TEST(Sampler, GreedyAnswersWithPenaltiesAreThoseOfAPlainLoop) {
    Rng rng(5);
    for (int round = 0; round < 2000; ++round) {
        const auto below = [&](int64_t end) { return static_cast<int64_t>(rng.below(static_cast<uint64_t>(end))); };
        const int64_t vocab = 1 + below(37);
        const auto id = [&] { return static_cast<int32_t>(below(vocab)); };
        std::vector<float> logits(static_cast<size_t>(vocab));
        for (float& logit : logits) logit = static_cast<float>(below(9)) - 4;  // many are equal
        std::vector<int32_t> said(static_cast<size_t>(below(12)));
        for (int32_t& token : said) token = id();
        const SampleHistory history{said, below(std::ssize(said) + 1)};
        SamplingParams params{.temperature = 0};
        if (rng.below(2) == 0) params.repetition_penalty = 1.5;
        if (rng.below(2) == 0) params.frequency_penalty = 0.5, params.presence_penalty = -1;
        if (rng.below(2) == 0) params.logit_bias = {{id(), 2.0F}, {id(), -3.0F}};
        TokenMask mask;
        if (rng.below(2) == 0) {
            mask = TokenMask(vocab, false);
            for (int64_t i = 0; i <= vocab / 2; ++i) mask.allow(id());
        }
        EXPECT_EQ(sample(logits, params, history, 0, 0, vocab, mask), plain_greedy(logits, params, history, mask)) << round;
    }
}

TEST(Sampler, DefaultsFollowTheModelsDistribution) { expect_shares(frequencies({0, 1, 2, -1}, {}), softmax({0, 1, 2, -1})); }

TEST(Sampler, TemperatureDividesTheLogits) {
    expect_shares(frequencies({0, 1, 2, -1}, {.temperature = 0.5}), softmax({0, 2, 4, -2}));
    expect_shares(frequencies({0, 1, 2, -1}, {.temperature = 4}), softmax({0, 0.25, 0.5, -0.25}));
}

TEST(Sampler, AVanishingTemperatureIsGreedy) {
    for (uint64_t step = 0; step < 100; ++step) {
        EXPECT_EQ(sample(std::vector<float>{0, 1e-3F, -1}, {.temperature = 1e-40}, {}, 0, step, 3), 1);
    }
}

TEST(Sampler, TopKKeepsExactlyKEvenAmongEquals) {
    const double e = std::exp(1.0);
    expect_shares(frequencies({0, 1, 2, -1}, {.top_k = 2}), {0, 1 / (1 + e), e / (1 + e), 0});
    expect_shares(frequencies({1, 1, 1, 1}, {.top_k = 2}), {0.5, 0.5, 0, 0});
    expect_shares(frequencies({0, 1, 2, -1}, {.top_k = 100}), softmax({0, 1, 2, -1}));
}

TEST(Sampler, TopPKeepsTheSmallestSetThatReachesTheShare) {
    const std::vector<float> logits{std::log(0.5F), std::log(0.3F), std::log(0.15F), std::log(0.05F)};
    expect_shares(frequencies(logits, {.top_p = 0.4}), {1, 0, 0, 0});
    expect_shares(frequencies(logits, {.top_p = 0.6}), {0.625, 0.375, 0, 0});
    expect_shares(frequencies(logits, {.top_p = 0.9}), {0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0});
    expect_shares(frequencies(logits, {.top_p = 1e-9}), {1, 0, 0, 0});
}

TEST(Sampler, TopPActsOnWhatTopKLeft) {
    const std::vector<float> logits{std::log(0.5F), std::log(0.3F), std::log(0.15F), std::log(0.05F)};
    expect_shares(frequencies(logits, {.top_p = 0.62, .top_k = 2}), {1, 0, 0, 0});  // 0.5 / 0.8 = 0.625
}

TEST(Sampler, TopPFindsASetThatIsLongerThanItsFirstLook) {
    const std::vector<float> flat(1000, 0.5F);
    int32_t highest = 0;
    for (uint64_t step = 0; step < 500; ++step) {
        highest = std::max(highest, sample(flat, {.top_p = 0.7}, {}, 0, step, 1000));
    }
    EXPECT_GT(highest, 680);  // below: (680/700)^500 = 5e-7
    EXPECT_LE(highest, 700);
}

TEST(Sampler, MinPDropsWhatIsImprobableBesideTheBest) {
    const std::vector<float> logits{std::log(0.5F), std::log(0.3F), std::log(0.15F), std::log(0.05F)};
    expect_shares(frequencies(logits, {.min_p = 0.2}), {0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0});
    expect_shares(frequencies(logits, {.min_p = 1}), {1, 0, 0, 0});
}

TEST(Sampler, RepetitionPenaltyActsOnPromptAndAnswerByTheLogitsSign) {
    const std::vector<int32_t> said{0, 1};  // one in the prompt, one in the answer
    expect_shares(frequencies({2, -2, 1}, {.repetition_penalty = 2}, {said, 1}), softmax({1, -4, 1}));
}

TEST(Sampler, FrequencyAndPresencePenaltiesCountTheAnswerOnly) {
    const std::vector<int32_t> said{0, 0, 1, 1, 2};  // the prompt is 0 0
    expect_shares(frequencies({1, 1, 1, 1}, {.frequency_penalty = 0.5, .presence_penalty = 0.25}, {said, 2}),
                  softmax({1, 1 - 1.25, 1 - 0.75, 1}));
}

TEST(Sampler, LogitBiasIsAdded) {
    expect_shares(frequencies({0, 0, 0}, {.logit_bias = {{1, 2.0F}, {2, -100.0F}}}), softmax({0, 2, -100}));
    EXPECT_EQ(sample(std::vector<float>{3, 0}, {.temperature = 0, .logit_bias = {{1, 100.0F}}}, {}, 0, 0, 2), 1);
}

TEST(Sampler, PaddingRowsAreNeverSampled) {
    EXPECT_EQ(sample(std::vector<float>{0, 1, 9}, {.temperature = 0}, {}, 0, 0, 2), 1);
    for (uint64_t step = 0; step < 200; ++step) {
        EXPECT_LT(sample(std::vector<float>{0, 0, 9}, {}, {}, 0, step, 2), 2);
    }
}

TEST(Sampler, LogprobIsTheModelsOwn) {
    const std::vector<float> logits{0, 1, 2, -1};
    const auto p = softmax({0, 1, 2, -1});
    const TokenLogprobs told = token_logprobs(logits, 0, 2);
    EXPECT_NEAR(told.logprob, std::log(p[0]), 1e-6);
    ASSERT_EQ(told.top.size(), 2U);
    EXPECT_EQ(told.top[1].token, 1);
    EXPECT_NEAR(told.top[1].logprob, std::log(p[1]), 1e-6);
}

TEST(Sampler, EqualArgumentsGiveEqualTokensAndStreamsDiffer) {
    const std::vector<float> flat(64, 0.0F);
    int differ = 0;
    for (uint64_t step = 0; step < 100; ++step) {
        const auto draw = [&](uint64_t seed, uint64_t stream) { return sample(flat, {.seed = seed}, {}, stream, step, 64); };
        EXPECT_EQ(draw(1, 2), draw(1, 2));
        differ += draw(1, 2) != draw(1, 3) ? 1 : 0;
        differ += draw(1, 2) != draw(2, 2) ? 1 : 0;
    }
    EXPECT_GT(differ, 180);  // 2 x 100 x 63/64 expected
}

// What speculation lives on. Of two draws from p and q that use the same numbers, at least (1 - TV) / (1 + TV) agree, where TV
// is half of the sum of |p - q|; independent ones agree in the sum of p q only.
TEST(Sampler, DrawsFromDistributionsThatResembleEachOtherMostlyAgree) {
    constexpr int kIds = 300;
    const Philox noise{7, 0};
    std::vector<double> a, b;
    for (uint64_t i = 0; i < kIds; ++i) {
        a.push_back(2 * noise.normal(i));
        b.push_back(a.back() + 0.5 * noise.normal(kIds + i));
    }
    const std::vector<float> first(a.begin(), a.end()), second(b.begin(), b.end());
    for (const double top_p : {1.0, 0.9}) {
        int agree = 0;
        for (uint64_t step = 0; step < kDraws; ++step) {
            const SamplingParams params{.top_p = top_p, .seed = 3};
            agree += sample(first, params, {}, 0, step, kIds) == sample(second, params, {}, 0, step, kIds) ? 1 : 0;
        }
        const auto p = softmax(a), q = softmax(b);
        double distance = 0, independent = 0;
        for (size_t i = 0; i < p.size(); ++i) distance += std::abs(p[i] - q[i]) / 2, independent += p[i] * q[i];
        EXPECT_GT(agree, 0.95 * kDraws * (1 - distance) / (1 + distance));  // top-p moves both a little
        EXPECT_GT(agree, 3 * kDraws * independent);
    }
}

TEST(Sampler, TopPNeverLeavesTheSmallestSetOfALongTail) {
    const Philox noise{11, 0};
    std::vector<float> logits(5000);
    for (uint64_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(3 * noise.normal(i));
    const auto p = softmax({logits.begin(), logits.end()});
    std::vector<double> sorted = p;
    std::ranges::sort(sorted, std::greater());
    double sum = 0, least = 0;
    for (size_t i = 0; sum < 0.9; ++i) sum += least = sorted[i];
    double lowest = 1;
    for (uint64_t step = 0; step < 4000; ++step) {
        lowest = std::min(lowest, p[static_cast<size_t>(sample(logits, {.top_p = 0.9}, {}, 0, step, 5000))]);
    }
    EXPECT_GE(lowest, least * (1 - 1e-6));
    EXPECT_LT(lowest, least * 1.5);  // comes near its end: there are hundreds of tokens of about this probability
}

TEST(Sampler, NanAndInfiniteLogitsAreReported) {
    const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    EXPECT_THROW((void)sample(std::vector<float>{0, nan}, {}, {}, 0, 0, 2), Error);
    EXPECT_THROW((void)sample(std::vector<float>{-inf, -inf}, {}, {}, 0, 0, 2), Error);
    EXPECT_THROW((void)sample(std::vector<float>{0, inf}, {}, {}, 0, 0, 2), Error);
    EXPECT_EQ(sample(std::vector<float>{0, -inf}, {}, {}, 0, 0, 2), 0);
}

TEST(Sampler, ValuesOutOfRangeAreNamed) {
    const auto message = [](const SamplingParams& params) -> std::string {
        try {
            params.validate();
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    };
    EXPECT_EQ(message({}), "");
    EXPECT_NE(message({.temperature = -1}).find("temperature"), std::string::npos);
    EXPECT_NE(message({.top_p = 0}).find("top_p"), std::string::npos);
    EXPECT_NE(message({.top_p = 1.5}).find("top_p"), std::string::npos);
    EXPECT_NE(message({.top_k = -1}).find("top_k"), std::string::npos);
    EXPECT_NE(message({.min_p = 2}).find("min_p"), std::string::npos);
    EXPECT_NE(message({.repetition_penalty = 0}).find("repetition_penalty"), std::string::npos);
    EXPECT_NE(message({.temperature = std::numeric_limits<double>::quiet_NaN()}).find("temperature"), std::string::npos);
}

}  // namespace
}  // namespace fathom
