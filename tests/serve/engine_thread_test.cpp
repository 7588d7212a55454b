// What the engine's thread hands out, and when.
#include "serve/engine_thread.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <vector>

#include "infer/engine_run.h"

namespace fathom {
namespace {

constexpr std::chrono::seconds kLong{60};

class EngineThreads : public ::testing::Test {
protected:
    EngineRun run{"v3", 1};
    const std::vector<int32_t> prompt = run.golden_ints("prompt");
};

TEST_F(EngineThreads, TellEveryTokenInItsOrder) {
    EngineThread thread(run.model(), run.ops, {});
    std::promise<void> ended;
    std::vector<int32_t> tokens;
    (void)thread.submit(EngineRun::greedy_request(prompt, 12), [&](TokenEvent&& event) {
        tokens.push_back(event.token);
        if (event.finish) ended.set_value();
    });
    ASSERT_EQ(ended.get_future().wait_for(kLong), std::future_status::ready);
    EXPECT_EQ(tokens, run.greedy(prompt, 12, {}));
}

// What a step said is told while the next one runs; here there is none, because whoever else was served has left.
TEST_F(EngineThreads, AnAnswersEndIsToldThoughNoStepFollows) {
    EngineThread thread(run.model(), run.ops, {});
    std::promise<void> ended;
    std::promise<uint64_t> other;
    std::shared_future<uint64_t> ticket = other.get_future().share();
    int64_t told = 0;
    (void)thread.submit(EngineRun::greedy_request(prompt, 6), [&, ticket](TokenEvent&& event) {
        if (++told == 5) thread.cancel(ticket.get());  // the last token is computed in this step or the next
        if (event.finish) ended.set_value();
    });
    other.set_value(thread.submit(EngineRun::greedy_request(prompt, 30), [](TokenEvent&&) {}));
    ASSERT_EQ(ended.get_future().wait_for(kLong), std::future_status::ready);
    EXPECT_EQ(told, 6);
}

TEST_F(EngineThreads, StoppingEndsEveryAnswerWithAReason) {
    EngineThread thread(run.model(), run.ops, {});
    std::promise<void> begun;
    std::vector<TokenEvent> events;
    (void)thread.submit(EngineRun::greedy_request(prompt, 40), [&](TokenEvent&& event) {
        events.push_back(std::move(event));
        if (events.size() == 2) begun.set_value();
    });
    ASSERT_EQ(begun.get_future().wait_for(kLong), std::future_status::ready);
    thread.stop();
    ASSERT_FALSE(events.empty());
    EXPECT_TRUE(events.back().finish.has_value());
    for (size_t i = 0; i + 1 < events.size(); ++i) EXPECT_FALSE(events[i].finish.has_value());
}

}  // namespace
}  // namespace fathom
