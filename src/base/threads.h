// A fixed team of threads and one way to use it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace fathom {

// parallel_for splits [0, count) into chunks of `grain` and hands them out to the team and the caller; it returns when all
// are done. Which thread runs a chunk is not fixed, so a chunk must compute the same bytes wherever it runs. One caller at a
// time; calls do not nest. An exception in a chunk is rethrown in the caller after the others have finished.
class ThreadPool {
public:
    explicit ThreadPool(int threads = 0);  // 0: as many as the machine (and the cgroup) grants
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    [[nodiscard]] int size() const { return static_cast<int>(workers_.size()) + 1; }

    // body(begin, end, thread): thread in [0, size()) indexes per-thread scratch.
    using Body = std::function<void(int64_t begin, int64_t end, int thread)>;
    void parallel_for(int64_t count, int64_t grain, const Body& body);

private:
    struct Task;
    std::vector<std::thread> workers_;
    std::atomic<uint64_t> epoch_{0};  // bumped once per task, waited on by idle workers
    std::atomic<int> running_;        // workers inside the current task; kClosed + workers once none may enter
    std::atomic<bool> stop_{false};
    Task* task_ = nullptr;
    void work(int thread);
};

}  // namespace fathom
