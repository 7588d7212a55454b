// Steps recorded as CUDA graphs.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "cuda/runtime.h"

namespace fathom::cuda {

// The first `after` calls with a key run its ops, so that every op's memory is there; the next records them, later ones replay.
// Whatever was recorded is forgotten when memory of the back end has been freed or moved since, and what was not asked for
// longest when there is too much.
class Recorder {
public:
    explicit Recorder(const Stream& stream) : stream_(stream) {}
    ~Recorder();
    Recorder(const Recorder&) = delete;
    Recorder& operator=(const Recorder&) = delete;

    // after >= 1.
    void repeat(std::span<const int64_t> key, int64_t after, int64_t workspace_generation, const std::function<void()>& ops);
    // Memory that is freed says so here; lives as long as any of it.
    [[nodiscard]] const std::shared_ptr<std::atomic<int64_t>>& frees() const { return frees_; }

    [[nodiscard]] bool recording() const { return current_ != nullptr; }
    // While ops are recorded: bytes from the host are kept for the replays, at the returned address. Else null.
    [[nodiscard]] const void* keep(const void* host, int64_t bytes);

private:
    struct Recording {
        int64_t memory = 0;  // what memory_state() was
        int64_t calls = 0;   // that ran the ops
        int64_t used = 0;    // when it was asked for last
        cudaGraphExec_t graph = nullptr;
        std::vector<Buffer> host;
    };
    static constexpr int64_t kMostRecorded = 64, kMostCounted = 256;

    const Stream& stream_;
    std::shared_ptr<std::atomic<int64_t>> frees_ = std::make_shared<std::atomic<int64_t>>(0);
    std::map<std::vector<int64_t>, Recording> recordings_;
    Recording* current_ = nullptr;
    int64_t clock_ = 0;

    bool record(Recording& recording, const std::function<void()>& ops);
    void make_room(bool recorded, int64_t most);
    void forget();
};

}  // namespace fathom::cuda
