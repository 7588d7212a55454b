#include "base/threads.h"

#include <gtest/gtest.h>
#include <atomic>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "base/error.h"

namespace fathom {
namespace {

TEST(ThreadPool, VisitsEveryIndexExactlyOnce) {
    for (const int threads : {1, 2, 3, 8}) {
        ThreadPool pool(threads);
        EXPECT_EQ(pool.size(), threads);
        for (const int64_t count : {0, 1, 7, 64, 1001}) {
            for (const int64_t grain : {0, 1, 3, 64, 5000}) {
                std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
                pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int thread) {
                    EXPECT_TRUE(0 <= thread && thread < threads);
                    for (int64_t i = begin; i < end; ++i) visits[static_cast<size_t>(i)].fetch_add(1);
                });
                for (const auto& visit : visits) ASSERT_EQ(visit.load(), 1) << threads << " threads, count " << count;
            }
        }
    }
}

TEST(ThreadPool, ChunksBeginAtMultiplesOfTheGrain) {
    ThreadPool pool(3);
    pool.parallel_for(100, 8, [](int64_t begin, int64_t end, int) {
        EXPECT_EQ(begin % 8, 0);
        EXPECT_TRUE(end - begin == 8 || end == 100);
    });
}

TEST(ThreadPool, TwoChunksOfOneThreadNeverOverlap) {
    ThreadPool pool(4);
    std::vector<std::atomic<int>> inside(4);
    for (int round = 0; round < 50; ++round) {
        pool.parallel_for(64, 1, [&](int64_t, int64_t, int thread) {
            EXPECT_EQ(inside[static_cast<size_t>(thread)].fetch_add(1), 0) << "per-thread scratch would be shared";
            inside[static_cast<size_t>(thread)].fetch_sub(1);
        });
    }
}

// Plain memory, no atomics: ThreadSanitizer sees whether the hand-over orders the writes of one call before the next.
TEST(ThreadPool, WhatOneCallWritesTheNextOneReads) {
    ThreadPool pool(4);
    std::vector<int64_t> values(512, 0);
    constexpr int kRounds = 2000;
    for (int round = 0; round < kRounds; ++round) {
        pool.parallel_for(512, 16, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i)
                values[static_cast<size_t>(i)] += values[static_cast<size_t>(i ^ 1)] >= 0 ? 0 : 1;
        });
        pool.parallel_for(512, 7, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) ++values[static_cast<size_t>(i)];
        });
    }
    EXPECT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), int64_t{512} * kRounds);
}

TEST(ThreadPool, AnExceptionReachesTheCallerAfterTheOtherChunksRan) {
    ThreadPool pool(4);
    for (int round = 0; round < 20; ++round) {
        std::atomic<int64_t> done{0};
        const auto body = [&](int64_t begin, int64_t end, int) {
            if (begin == 40) throw std::runtime_error("chunk 40");
            done.fetch_add(end - begin);
        };
        try {
            pool.parallel_for(100, 10, body);
            FAIL() << "the exception was lost";
        } catch (const std::runtime_error& error) {
            EXPECT_STREQ(error.what(), "chunk 40");
        }
        EXPECT_EQ(done.load(), 90);
    }
    std::atomic<int> after{0};
    pool.parallel_for(8, 1, [&](int64_t, int64_t, int) { after.fetch_add(1); });
    EXPECT_EQ(after.load(), 8) << "the pool must stay usable";
}

TEST(ThreadPool, WakesUpAfterHavingSlept) {
    ThreadPool pool(3);
    for (int round = 0; round < 5; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(3));  // longer than the workers spin
        std::atomic<int> done{0};
        pool.parallel_for(6, 1, [&](int64_t, int64_t, int) { done.fetch_add(1); });
        EXPECT_EQ(done.load(), 6);
    }
}

TEST(ThreadPool, ComesAndGoesWithoutWork) {
    for (int i = 0; i < 200; ++i) ThreadPool pool(3);
    EXPECT_GE(ThreadPool().size(), 1);
    EXPECT_THROW(ThreadPool(-1), LogicError);
}

}  // namespace
}  // namespace fathom
