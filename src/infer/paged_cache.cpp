#include "infer/paged_cache.h"

#include <utility>

namespace fathom {
namespace {

int64_t pages_for(int64_t tokens, int64_t block_size) { return (tokens + block_size - 1) / block_size; }

}  // namespace

PagedCache::PagedCache(Ops& ops, const std::vector<std::vector<CacheState>>& states, int64_t tokens, int64_t block_size,
                       DType dtype)
    : block_size_(block_size),
      blocks_(pages_for(tokens, block_size)) {
    check(tokens > 0 && block_size > 0, "PagedCache: needs room for at least one token");
    check(dtype == DType::kF32 || dtype == DType::kBF16, "PagedCache: pages are F32 or BF16");
    for (const auto& layer : states) {
        LayerCache& pages = view_.layers.emplace_back();
        for (const CacheState& state : layer) {
            const Buffer& buffer = memory_.emplace_back(ops.allocate(capacity() * state.width * size_of(dtype)));
            pages.states.emplace_back(buffer.data(), dtype, std::initializer_list<int64_t>{blocks_, block_size, state.width});
        }
    }
    for (int64_t block = blocks_; block-- > 0;) free_.push_back(static_cast<int32_t>(block));
}

int64_t PagedCache::width_per_token(const std::vector<std::vector<CacheState>>& states) {
    int64_t width = 0;
    for (const auto& layer : states) {
        for (const CacheState& state : layer) width += state.width;
    }
    return width;
}

CachedSequence::CachedSequence(CachedSequence&& other) noexcept
    : cache_(other.cache_),
      blocks_(std::exchange(other.blocks_, {})),
      length_(std::exchange(other.length_, 0)) {}

CachedSequence& CachedSequence::operator=(CachedSequence&& other) noexcept {
    std::swap(cache_, other.cache_);
    std::swap(blocks_, other.blocks_);
    std::swap(length_, other.length_);
    return *this;
}

bool CachedSequence::reserve(int64_t count) {
    const int64_t wanted = pages_for(length_ + count, cache_->block_size_),
                  more = wanted - static_cast<int64_t>(blocks_.size());
    if (more > cache_->free_blocks()) return false;
    for (int64_t i = 0; i < more; ++i) {
        blocks_.push_back(cache_->free_.back());
        cache_->free_.pop_back();
    }
    return true;
}

void CachedSequence::commit(int64_t count) {
    check(pages_for(length_ + count, cache_->block_size_) <= static_cast<int64_t>(blocks_.size()),
          "CachedSequence::commit: no room was reserved");
    length_ += count;
}

void CachedSequence::rollback(int64_t length) {
    check(length <= length_, "CachedSequence::rollback: cannot go forward");
    length_ = length;
    const auto kept = static_cast<size_t>(pages_for(length, cache_->block_size_));
    for (; blocks_.size() > kept; blocks_.pop_back()) cache_->free_.push_back(blocks_.back());
}

}  // namespace fathom
