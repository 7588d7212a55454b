#include "base/threads.h"

#include <immintrin.h>
#include <sched.h>
#include <algorithm>
#include <exception>
#include <mutex>

#include "base/error.h"

namespace fathom {
namespace {

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

ThreadPool::ThreadPool(int threads) {
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
        task_->run(thread);
        if (running_.fetch_sub(1, std::memory_order_release) == 1) running_.notify_one();
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
    running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    task.run(0);
    for (int spin = 0; spin < kSpins && running_.load(std::memory_order_acquire) != 0; ++spin) _mm_pause();
    for (int left; (left = running_.load(std::memory_order_acquire)) != 0;) running_.wait(left, std::memory_order_acquire);
    if (task.error) std::rethrow_exception(task.error);
}

}  // namespace fathom
