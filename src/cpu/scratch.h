// Memory that kernels work in.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "tensor/tensor.h"

namespace fathom {

// One block per thread and one that a whole op shares. Blocks grow to the largest request so far and are kept, so a loop of
// equal steps allocates nothing after its first. Contents are undefined; asking again invalidates the earlier pointer.
class Scratch {
public:
    explicit Scratch(int threads) : blocks_(static_cast<size_t>(threads) + 1) {}

    // `count` elements, 64-byte aligned, for `thread` alone (as parallel_for numbers them).
    template <class T>
    [[nodiscard]] T* of_thread(int thread, int64_t count) {
        return static_cast<T*>(grown(static_cast<size_t>(thread) + 1, count * static_cast<int64_t>(sizeof(T))));
    }
    // The op's own block; call outside of parallel_for.
    template <class T>
    [[nodiscard]] T* shared(int64_t count) {
        return static_cast<T*>(grown(0, count * static_cast<int64_t>(sizeof(T))));
    }

private:
    void* grown(size_t block, int64_t bytes) {
        Buffer& buffer = blocks_[block];
        if (buffer.bytes() < bytes) {
            buffer = {};  // the old block goes first: the peak is the larger one, not the sum
            buffer = Buffer::host(bytes + bytes / 4);
        }
        return buffer.data();
    }

    std::vector<Buffer> blocks_;
};

}  // namespace fathom
