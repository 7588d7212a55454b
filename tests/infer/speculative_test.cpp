#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>

#include "infer/engine_run.h"

namespace fathom {
namespace {

using Tokens = std::vector<int32_t>;

// A model with its MTP module: the bundled one guesses well, the fixture's weights are random and guess badly.
struct DraftingModel {
    ThreadPool pool{1};
    CpuOps ops{pool};
    LoadedModel loaded;

    explicit DraftingModel(const std::filesystem::path& folder) : loaded(load_model(folder, ops, {.with_mtp = true})) {}
    [[nodiscard]] const DeepSeek& model() const { return *loaded.model; }

    static std::filesystem::path stories() { return std::filesystem::path(FATHOM_SOURCE) / "models/stories"; }
};

Request request_for(Tokens prompt, int64_t count, double temperature, uint64_t seed = 0) {
    Request request;
    request.prompt = std::move(prompt);
    request.sampling.temperature = temperature;
    request.top_logprobs = 0;  // of the tokens themselves, to be compared
    request.sampling.seed = seed;
    request.max_new_tokens = count;
    return request;
}

// Some words of the bundled model's vocabulary, others for every `which`.
Tokens some_prompt(int32_t which, int64_t length = 12) {
    Tokens prompt{0};
    for (int32_t i = 1; i < length; ++i) prompt.push_back(300 + (which * 131 + i * i * 37) % 3000);
    return prompt;
}

struct Said {
    std::map<int64_t, Tokens> tokens;
    std::map<int64_t, std::vector<float>> logprobs;
    Engine::Counters counters;
};

// Runs all requests in one engine; a new one joins every `spacing` steps.
Said run(DraftingModel& model, const std::vector<Request>& requests, const EngineOptions& options, int64_t spacing = 0) {
    Engine engine(model.model(), model.ops, options);
    Said said;
    size_t next = 0;
    for (int64_t step = 0; next < requests.size() || !engine.idle(); ++step) {
        for (; next < requests.size() && static_cast<int64_t>(next) * spacing <= step; ++next) (void)engine.add(requests[next]);
        for (const TokenEvent& event : engine.step()) {
            EXPECT_EQ(event.error, "");
            said.tokens[event.request].push_back(event.token);
            said.logprobs[event.request].push_back(event.logprob);
        }
    }
    said.counters = engine.counters();
    return said;
}

std::vector<Request> mixed_requests(double temperature) {
    std::vector<Request> requests;
    for (int32_t i = 0; i < 6; ++i) {
        requests.push_back(request_for(some_prompt(i, 3 + 9 * i), 20 + 3 * i, temperature, static_cast<uint64_t>(i)));
    }
    requests[1].sampling.repetition_penalty = 1.3;
    requests[2].sampling.top_p = 0.8;
    requests[3].min_new_tokens = 25;
    requests[4].sampling.presence_penalty = 1;
    return requests;
}

class Drafts : public ::testing::TestWithParam<double> {};

// The same tokens with drafts and without, bit by bit the same probabilities under one arithmetic, whoever else is in the
// batch.
TEST_P(Drafts, ChangeNoToken) {
    DraftingModel model(DraftingModel::stories());
    const std::vector<Request> requests = mixed_requests(GetParam());
    {
        const EngineOptions options{.max_batch_rows = 40, .deterministic = true};
        const Said plain = run(model, requests, options, 2);
        const Said drafted =
            run(model, requests, {.max_batch_rows = 40, .prefill_chunk = 16, .deterministic = true, .draft_tokens = 1}, 3);
        EXPECT_GT(drafted.counters.accepted, 0);
        EXPECT_EQ(drafted.tokens, plain.tokens);
        EXPECT_EQ(drafted.logprobs, plain.logprobs);
    }
    const Said plain = run(model, requests, {}), drafted = run(model, requests, {.draft_tokens = 1});
    EXPECT_EQ(drafted.tokens, plain.tokens);
    EXPECT_LT(drafted.counters.steps, plain.counters.steps);
    EXPECT_EQ(drafted.counters.drafted, drafted.counters.draft_steps);  // one module, one draft
}

INSTANTIATE_TEST_SUITE_P(Temperatures, Drafts, ::testing::Values(0.0, 1.0));

TEST(Speculation, DraftsSurviveACacheThatIsTooSmallForAll) {
    DraftingModel model(DraftingModel::stories());
    std::vector<Request> requests;
    for (int32_t i = 0; i < 5; ++i) requests.push_back(request_for(some_prompt(i, 20), 30, 0));
    const EngineOptions small{
        .cache_tokens = 96, .block_size = 8, .prefill_chunk = 16, .deterministic = true, .draft_tokens = 1};
    const Said drafted = run(model, requests, small), plain = run(model, requests, {.deterministic = true});
    EXPECT_GT(drafted.counters.preemptions, 0);
    EXPECT_GT(drafted.counters.accepted, 0);
    EXPECT_EQ(drafted.tokens, plain.tokens);
}

TEST(Speculation, APageThatAPlainPromptSharesIsDraftedFromTheSameWay) {
    DraftingModel model(DraftingModel::stories());
    Engine engine(model.model(), model.ops, {.block_size = 8, .deterministic = true, .draft_tokens = 1});
    const Request request = request_for(some_prompt(3, 40), 24, 0);
    std::array<Tokens, 2> answers;
    std::array<int64_t, 2> steps{};
    for (size_t i = 0; i < 2; ++i) {
        const int64_t before = engine.counters().steps;
        (void)engine.add(request);
        while (!engine.idle()) {
            for (const TokenEvent& event : engine.step()) answers[i].push_back(event.token);
        }
        steps[i] = engine.counters().steps - before;
    }
    EXPECT_GT(engine.counters().reused_tokens, 30);
    EXPECT_EQ(answers[0], answers[1]);
    EXPECT_LE(steps[1], steps[0]);
}

TEST(Speculation, AnswersEndWhereTheyEndWithoutDrafts) {
    DraftingModel model(DraftingModel::stories());
    const Tokens prompt = some_prompt(1);
    const Tokens whole = run(model, {request_for(prompt, 40, 0)}, {}).tokens[0];
    for (const int64_t length : {1, 2, 3, 17}) {
        EXPECT_EQ(run(model, {request_for(prompt, length, 0)}, {.draft_tokens = 1}).tokens[0],
                  Tokens(whole.begin(), whole.begin() + length));
    }
    for (const size_t stop : {3, 4, 5, 6, 7, 8}) {
        Request request = request_for(prompt, 40, 0);
        request.stop_ids = {whole[stop]};
        const auto end = std::ranges::find(whole, whole[stop]) + 1;
        EXPECT_EQ(run(model, {request}, {.draft_tokens = 1}).tokens[0], Tokens(whole.begin(), end));
    }
    // The cache's end: 24 tokens are read, the last one gives another.
    const Said full = run(model, {request_for(prompt, 40, 0)}, {.cache_tokens = 24, .block_size = 8, .draft_tokens = 1});
    EXPECT_EQ(full.tokens.at(0), Tokens(whole.begin(), whole.begin() + 13));
}

TEST(Speculation, MoreDraftsThanModulesAndDraftsWithoutACacheAreRefused) {
    DraftingModel model(DraftingModel::stories());
    EXPECT_THROW(Engine(model.model(), model.ops, {.draft_tokens = 2}), Error);
    EXPECT_THROW(Engine(model.model(), model.ops, {.use_cache = false, .draft_tokens = 1}), Error);
}

// Of two tokens drawn from eight, 64 pairs: the frequencies among many answers are those that the model's own probabilities
// say. Chi-square with 63 degrees of freedom exceeds 103.4 once in 1000 times; the seeds are fixed.
TEST(Speculation, TheDistributionIsTheModels) {
    DraftingModel model(fixture_folder("mtp"));
    constexpr int64_t kIds = 8, kAnswers = 6000, kFirst = 10;
    Request request = request_for({5, 17, 99, 3}, 3, 1.3);
    request.allowed = TokenMask(model.model().config().vocab_size, false);
    for (int32_t id = 0; id < kIds; ++id) request.allowed.allow(kFirst + id);
    // p(b | prompt, a) for all a and b at a temperature of 1.3, from the engine without drafts. The first token is not drafted,
    // the second and the third are.
    const auto distribution = [&](const Tokens& prompt) {
        std::array<double, kIds> p{};
        Request one = request;
        one.prompt = prompt, one.max_new_tokens = 1;
        one.on_logits = [&](std::span<const float> logits) {
            double sum = 0;
            for (size_t i = 0; i < p.size(); ++i) sum += p[i] = std::exp(static_cast<double>(logits[kFirst + i]) / 1.3);
            for (double& value : p) value /= sum;
        };
        (void)run(model, {one}, {});
        return p;
    };
    std::array<std::array<double, kIds>, kIds> expected{};
    const auto first = distribution(request.prompt);
    for (int32_t a = 0; a < kIds; ++a) {
        Tokens prompt = request.prompt;
        prompt.push_back(kFirst + a);
        const auto second = distribution(prompt);
        for (size_t b = 0; b < kIds; ++b)
            expected[static_cast<size_t>(a)][b] = kAnswers * first[static_cast<size_t>(a)] * second[b];
    }
    std::vector<Request> requests(kAnswers, request);
    for (size_t i = 0; i < requests.size(); ++i) requests[i].sampling.seed = i;
    const Said said = run(model, requests, {.cache_tokens = 4096, .block_size = 16, .draft_tokens = 1});
    EXPECT_GT(said.counters.accepted, kAnswers / 10);
    EXPECT_LT(said.counters.accepted, said.counters.drafted);
    std::array<std::array<double, kIds>, kIds> found{};
    for (const auto& [number, tokens] : said.tokens) {
        ASSERT_EQ(tokens.size(), 3u);
        found[static_cast<size_t>(tokens[0] - kFirst)][static_cast<size_t>(tokens[1] - kFirst)] += 1;
    }
    double chi_square = 0;
    for (size_t a = 0; a < kIds; ++a) {
        for (size_t b = 0; b < kIds; ++b)
            chi_square += (found[a][b] - expected[a][b]) * (found[a][b] - expected[a][b]) / expected[a][b];
    }
    EXPECT_LT(chi_square, 103.4);
    EXPECT_GT(chi_square, 29.0);  // as rarely too good to be true (99.99 %)
}

}  // namespace
}  // namespace fathom
