// The cache of a running model: pages of every layer and every state that the layers declare, and who owns which page.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nn/batch.h"

namespace fathom {

class CachedSequence;

// One tensor [blocks, block_size, width] per layer and state. Page b holds the same tokens in all of them, so a sequence needs
// a single list of pages. Moving it would leave sequences pointing nowhere: it stays where it was built.
class PagedCache {
public:
    // states: DeepSeek::cache_states(). dtype: kF32 or kBF16. Room for `tokens`, rounded up to whole pages.
    PagedCache(Ops& ops, const std::vector<std::vector<CacheState>>& states, int64_t tokens, int64_t block_size, DType dtype);
    PagedCache(const PagedCache&) = delete;
    PagedCache& operator=(const PagedCache&) = delete;

    [[nodiscard]] const CacheView& view() const { return view_; }
    [[nodiscard]] int64_t block_size() const { return block_size_; }
    [[nodiscard]] int64_t capacity() const { return blocks_ * block_size_; }  // tokens
    [[nodiscard]] int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }

    // Numbers that all layers together keep of one token.
    [[nodiscard]] static int64_t width_per_token(const std::vector<std::vector<CacheState>>& states);

private:
    friend class CachedSequence;
    int64_t block_size_, blocks_;
    std::vector<Buffer> memory_;
    CacheView view_;
    std::vector<int32_t> free_;  // taken from the back: low pages first
};

// The pages of one sequence, given back when it dies. The cache must outlive it.
class CachedSequence {
public:
    explicit CachedSequence(PagedCache& cache) : cache_(&cache) {}
    ~CachedSequence() { rollback(0); }
    CachedSequence(CachedSequence&& other) noexcept;
    CachedSequence& operator=(CachedSequence&& other) noexcept;
    CachedSequence(const CachedSequence&) = delete;
    CachedSequence& operator=(const CachedSequence&) = delete;

    // Tokens whose state is in the cache.
    [[nodiscard]] int64_t length() const { return length_; }
    // Takes pages so that `count` more tokens fit. False, and nothing changed, when too few are free.
    [[nodiscard]] bool reserve(int64_t count);
    // The next `count` tokens have been written into the reserved room.
    void commit(int64_t count);
    // Forgets all but the first `length` tokens (a rejected draft, another continuation) and room that was reserved.
    void rollback(int64_t length);
    // Page of every block_size tokens, reserved ones included.
    [[nodiscard]] std::span<const int32_t> block_table() const { return blocks_; }

private:
    PagedCache* cache_;
    std::vector<int32_t> blocks_;
    int64_t length_ = 0;
};

}  // namespace fathom
