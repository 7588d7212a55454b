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

// The first call with a key runs its ops, so that every op's memory is there; the second records them, later ones replay.
// Whatever was recorded is forgotten when memory of the back end has been freed or moved since.
class Recorder {
public:
    explicit Recorder(const Stream& stream) : stream_(stream) {}
    ~Recorder();
    Recorder(const Recorder&) = delete;
    Recorder& operator=(const Recorder&) = delete;

    void repeat(std::span<const int64_t> key, int64_t workspace_generation, const std::function<void()>& ops);
    // Memory that is freed says so here; lives as long as any of it.
    [[nodiscard]] const std::shared_ptr<std::atomic<int64_t>>& frees() const { return frees_; }

    [[nodiscard]] bool recording() const { return current_ != nullptr; }
    // While ops are recorded: bytes from the host are kept for the replays, at the returned address. Else null.
    [[nodiscard]] const void* keep(const void* host, int64_t bytes);

private:
    struct Recording {
        int64_t memory = 0;  // what memory_state() was
        cudaGraphExec_t graph = nullptr;
        std::vector<Buffer> host;
    };
    static constexpr size_t kMost = 64;

    const Stream& stream_;
    std::shared_ptr<std::atomic<int64_t>> frees_ = std::make_shared<std::atomic<int64_t>>(0);
    std::map<std::vector<int64_t>, Recording> recordings_;
    Recording* current_ = nullptr;

    bool record(Recording& recording, const std::function<void()>& ops);
    void forget();
};

}  // namespace fathom::cuda
