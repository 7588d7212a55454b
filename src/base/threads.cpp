#include "base/threads.h"

#include <immintrin.h>
#include <sched.h>
#include <algorithm>
#include <exception>
#include <limits>
#include <mutex>

#include "base/error.h"

namespace fathom {
namespace {

// Added to running_ when a task is over: a worker that the system wakes too late finds the door shut, and the caller, which has
// done the work itself, waits only for those inside. On a busy machine waiting for all cost 10 ms an op.
constexpr int kClosed = std::numeric_limits<int>::min();

// Spins this often before it sleeps: about 50 us, longer than the gap between two ops of one token, shorter than a human wait.
constexpr int kSpins = 2000;

int available_threads() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
    return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

struct ThreadPool::Task {
    int64_t count, grain;
    const Body& body;
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::exception_ptr error;

    void run(int thread) {
        for (int64_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < count;) {
            try {
                body(begin, std::min(begin + grain, count), thread);
            } catch (...) {
                const std::lock_guard lock(mutex);
                if (!error) error = std::current_exception();
            }
        }
    }
};

ThreadPool::ThreadPool(int threads) : running_(kClosed) {
    check(threads >= 0, "ThreadPool: a negative number of threads");
    if (threads == 0) threads = available_threads();
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
    stop_.store(true);
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void ThreadPool::work(int thread) {
    uint64_t seen = 0;
    while (true) {
        for (int spin = 0; spin < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spin) _mm_pause();
        epoch_.wait(seen, std::memory_order_acquire);
        seen = epoch_.load(std::memory_order_acquire);
        if (stop_.load()) return;
        int inside = running_.load(std::memory_order_relaxed);
        while (inside >= 0 && !running_.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire)) continue;
        if (inside < 0) continue;
        task_->run(thread);
        if (running_.fetch_sub(1, std::memory_order_release) == kClosed + 1) running_.notify_one();
    }
}

void ThreadPool::parallel_for(int64_t count, int64_t grain, const Body& body) {
    if (count <= 0) return;
    grain = std::max<int64_t>(grain, 1);
    if (workers_.empty() || count <= grain) {
        body(0, count, 0);
        return;
    }
    Task task{count, grain, body, {}, {}, {}};
    task_ = &task;
    running_.store(0, std::memory_order_release);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    task.run(0);
    int left = running_.fetch_add(kClosed, std::memory_order_acq_rel) + kClosed;
    for (int spin = 0; spin < kSpins && left != kClosed; ++spin) {
        _mm_pause();
        left = running_.load(std::memory_order_acquire);
    }
    for (; left != kClosed; left = running_.load(std::memory_order_acquire)) running_.wait(left, std::memory_order_acquire);
    if (task.error) std::rethrow_exception(task.error);
}

}  // namespace fathom
