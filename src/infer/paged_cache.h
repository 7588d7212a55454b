// The cache of a running model: pages of every layer and every state that the layers declare, who uses which page, and what
// finished sequences left behind for those who begin alike.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "nn/batch.h"

namespace fathom {

class CachedSequence;

// XXH3 over all tokens in front of a page.
struct PrefixHash {
    uint64_t low = 0, high = 0;

    bool operator==(const PrefixHash&) const = default;
    [[nodiscard]] PrefixHash extended(std::span<const int32_t> tokens) const;
};

// Pages [blocks, block_size, width] per layer and state. Page b holds the same tokens in all of them, so a sequence needs
// a single list of pages. Pages are counted by reference: sequences that begin alike share their full pages. A page that nobody
// uses any more keeps its content until its room is needed, the least recently used one first (the end of a sequence before
// its beginning, so that no page is unreachable while it is kept). Moving the cache would leave sequences pointing nowhere: it
// stays where it was built.
class PagedCache {
public:
    // states: DeepSeek::cache_states(). Room for `tokens`, rounded up to whole pages.
    PagedCache(Ops& ops, const std::vector<std::vector<CacheState>>& states, int64_t tokens, int64_t block_size,
               const CacheType& type);
    PagedCache(const PagedCache&) = delete;
    PagedCache& operator=(const PagedCache&) = delete;

    [[nodiscard]] const CacheView& view() const { return view_; }
    [[nodiscard]] int64_t block_size() const { return block_size_; }
    [[nodiscard]] int64_t blocks() const { return static_cast<int64_t>(pages_.size()); }
    [[nodiscard]] int64_t capacity() const { return blocks() * block_size_; }                     // tokens
    [[nodiscard]] int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }      // used by no sequence
    [[nodiscard]] int64_t listed_blocks() const { return static_cast<int64_t>(listed_.size()); }  // that can be found again
    // Forgets what finished sequences left behind.
    void forget();

    // Numbers that all layers together keep of one token.
    [[nodiscard]] static int64_t width_per_token(const std::vector<std::vector<CacheState>>& states);

private:
    friend class CachedSequence;
    struct Page {
        int64_t references = 0;
        PrefixHash before;
        std::vector<int32_t> tokens;  // whose state it holds
        bool listed = false;
        std::list<int32_t>::iterator place;  // in free_, while references is 0
    };
    struct Hasher {
        size_t operator()(const PrefixHash& hash) const { return static_cast<size_t>(hash.low); }
    };

    Ops& ops_;
    int64_t block_size_;
    std::vector<Buffer> memory_;
    CacheView view_;
    std::vector<Page> pages_;
    std::list<int32_t> free_;                                      // what is taken next stands first
    std::unordered_multimap<PrefixHash, int32_t, Hasher> listed_;  // by what stands before the page

    [[nodiscard]] Page& page(int32_t index) { return pages_[static_cast<size_t>(index)]; }
    [[nodiscard]] int32_t take();  // a free page, forgotten; there must be one
    void use(int32_t index);
    void release(int32_t index);
    void list(int32_t index);
    void unlist(int32_t index);
    struct Match {
        int32_t page = -1;
        int64_t tokens = 0;
    };
    [[nodiscard]] Match find(const PrefixHash& before, std::span<const int32_t> tokens) const;
    void copy_rows(int32_t to, int32_t from, int64_t rows);
};

// The pages of one sequence, given back when it dies. The cache must outlive it.
class CachedSequence {
public:
    // `salt`: sequences share pages with those of the same salt only.
    explicit CachedSequence(PagedCache& cache, uint64_t salt = 0) : cache_(&cache), root_{salt, 0} {}
    ~CachedSequence();
    CachedSequence(CachedSequence&& other) noexcept;
    CachedSequence& operator=(CachedSequence&& other) noexcept;
    CachedSequence(const CachedSequence&) = delete;
    CachedSequence& operator=(const CachedSequence&) = delete;

    // Tokens whose state is in the cache.
    [[nodiscard]] int64_t length() const { return length_; }
    // Of an empty sequence: takes over what is known of the beginning of `tokens`: full pages are shared, part of one is
    // copied. Returns how many tokens that are.
    int64_t reuse(std::span<const int32_t> tokens);
    // Takes pages so that `count` more tokens fit. False, and nothing changed, when too few are free.
    [[nodiscard]] bool reserve(int64_t count);
    // What is committed from now on is not found by others.
    void keep_private() { shared_ = false; }
    // These tokens have been written into the reserved room.
    void commit(std::span<const int32_t> tokens);
    // Forgets what stands behind the first `length` tokens, and room that was reserved. Pages that others use, too, are given
    // back whole: then fewer tokens are left, see length().
    void rollback(int64_t length);
    // Page of every block_size tokens, reserved ones included.
    [[nodiscard]] std::span<const int32_t> block_table() const { return blocks_; }

private:
    PagedCache* cache_;
    PrefixHash root_;
    std::vector<int32_t> blocks_;
    int64_t length_ = 0;
    bool shared_ = true;

    [[nodiscard]] PrefixHash hash_before(size_t block) const;
};

}  // namespace fathom
