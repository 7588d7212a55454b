#include "infer/paged_cache.h"

#include <xxhash.h>
#include <algorithm>
#include <array>
#include <utility>

#include "nn/cache_type.h"

namespace fathom {
namespace {

int64_t pages_for(int64_t tokens, int64_t block_size) { return (tokens + block_size - 1) / block_size; }

}  // namespace

PrefixHash PrefixHash::extended(std::span<const int32_t> tokens) const {
    const std::array<uint64_t, 2> before{low, high};
    const XXH128_hash_t mixed = XXH3_128bits(before.data(), sizeof before);
    const XXH128_hash_t hash = XXH3_128bits_withSeed(tokens.data(), tokens.size_bytes(), mixed.low64);
    return {hash.low64, hash.high64 ^ mixed.high64};
}

PagedCache::PagedCache(Ops& ops, const std::vector<std::vector<CacheState>>& states, int64_t tokens, int64_t block_size,
                       const CacheType& type)
    : ops_(ops),
      block_size_(block_size) {
    check(tokens > 0 && block_size > 0, "PagedCache: needs room for at least one token");
    check_cache_type(ops, type);
    const int64_t blocks = pages_for(tokens, block_size);
    pages_.resize(static_cast<size_t>(blocks));
    for (const auto& layer : states) {
        LayerCache& pages = view_.layers.emplace_back();
        for (const CacheState& state : layer) {
            const Buffer& buffer = memory_.emplace_back(ops.allocate(capacity() * cache_row_bytes(type, state.width)));
            pages.states.push_back(cache_rows(buffer.data(), type, {blocks, block_size}, state.width));
        }
    }
    for (int32_t block = 0; block < blocks; ++block) page(block).place = free_.insert(free_.end(), block);
}

int64_t PagedCache::width_per_token(const std::vector<std::vector<CacheState>>& states) {
    int64_t width = 0;
    for (const auto& layer : states) {
        for (const CacheState& state : layer) width += state.width;
    }
    return width;
}

int32_t PagedCache::take() {
    const int32_t index = free_.front();
    unlist(index);
    page(index).tokens.clear();
    use(index);
    return index;
}

void PagedCache::use(int32_t index) {
    Page& used = page(index);
    if (used.references++ == 0) free_.erase(used.place);
}

// What can be found again is kept longest; what nobody can find is taken first.
void PagedCache::release(int32_t index) {
    Page& released = page(index);
    if (--released.references > 0) return;
    released.place = free_.insert(released.listed ? free_.end() : free_.begin(), index);
}

void PagedCache::list(int32_t index) {
    Page& known = page(index);
    const auto full = static_cast<int64_t>(known.tokens.size());
    if (known.listed || full == 0 || find(known.before, known.tokens).tokens == full) return;
    known.listed = true;
    listed_.emplace(known.before, index);
}

void PagedCache::unlist(int32_t index) {
    Page& known = page(index);
    if (!std::exchange(known.listed, false)) return;
    const auto [begin, end] = listed_.equal_range(known.before);
    listed_.erase(std::find_if(begin, end, [&](const auto& entry) { return entry.second == index; }));
}

void PagedCache::forget() {
    for (const int32_t index : free_) unlist(index);
}

// The page that agrees with the beginning of `tokens` longest.
PagedCache::Match PagedCache::find(const PrefixHash& before, std::span<const int32_t> tokens) const {
    Match best;
    const auto [begin, end] = listed_.equal_range(before);
    for (auto entry = begin; entry != end && best.tokens < block_size_; ++entry) {
        const auto& known = pages_[static_cast<size_t>(entry->second)].tokens;
        const auto agreed = std::mismatch(known.begin(), known.end(), tokens.begin(), tokens.end()).first - known.begin();
        if (agreed > best.tokens) best = {entry->second, agreed};
    }
    return best;
}

void PagedCache::copy_rows(int32_t to, int32_t from, int64_t rows) {
    for (const LayerCache& layer : view_.layers) {
        for (const Weight& state : layer.states) {
            const auto rows_of = [&](int32_t index) {
                return page_rows(state).codes.slice(0, index * block_size_, index * block_size_ + rows);
            };
            ops_.copy(rows_of(to), rows_of(from));
        }
    }
}

CachedSequence::~CachedSequence() {
    rollback(length_);
    if (!blocks_.empty() && shared_) cache_->list(blocks_.back());
    for (; !blocks_.empty(); blocks_.pop_back()) cache_->release(blocks_.back());
}

CachedSequence::CachedSequence(CachedSequence&& other) noexcept
    : cache_(other.cache_),
      root_(other.root_),
      blocks_(std::exchange(other.blocks_, {})),
      length_(std::exchange(other.length_, 0)),
      shared_(other.shared_) {}

CachedSequence& CachedSequence::operator=(CachedSequence&& other) noexcept {
    std::swap(cache_, other.cache_);
    std::swap(root_, other.root_);
    std::swap(blocks_, other.blocks_);
    std::swap(length_, other.length_);
    std::swap(shared_, other.shared_);
    return *this;
}

PrefixHash CachedSequence::hash_before(size_t block) const {
    if (block == 0) return root_;
    const auto& previous = cache_->page(blocks_[block - 1]);
    return previous.before.extended(previous.tokens);
}

int64_t CachedSequence::reuse(std::span<const int32_t> tokens) {
    check(blocks_.empty(), "CachedSequence::reuse: only an empty sequence can begin like another");
    const int64_t block_size = cache_->block_size_;
    while (length_ < static_cast<int64_t>(tokens.size())) {
        const auto rest = tokens.subspan(static_cast<size_t>(length_));
        const PagedCache::Match match = cache_->find(hash_before(blocks_.size()), rest);
        if (match.tokens == 0) break;
        cache_->use(match.page);  // first of all: it must not be taken for the copy
        if (match.tokens == block_size) {
            blocks_.push_back(match.page);
            length_ += block_size;
            continue;
        }
        if (reserve(match.tokens)) {
            cache_->copy_rows(blocks_.back(), match.page, match.tokens);
            commit(rest.first(static_cast<size_t>(match.tokens)));
        }
        cache_->release(match.page);
        break;
    }
    return length_;
}

bool CachedSequence::reserve(int64_t count) {
    const int64_t wanted = pages_for(length_ + count, cache_->block_size_),
                  more = wanted - static_cast<int64_t>(blocks_.size());
    if (more > cache_->free_blocks()) return false;
    for (int64_t i = 0; i < more; ++i) blocks_.push_back(cache_->take());
    return true;
}

void CachedSequence::commit(std::span<const int32_t> tokens) {
    const auto block_size = static_cast<size_t>(cache_->block_size_);
    check(pages_for(length_ + static_cast<int64_t>(tokens.size()), cache_->block_size_) <= static_cast<int64_t>(blocks_.size()),
          "CachedSequence::commit: no room was reserved");
    while (!tokens.empty()) {
        const auto block = static_cast<size_t>(length_) / block_size;
        auto& page = cache_->page(blocks_[block]);
        if (page.tokens.empty()) page.before = hash_before(block);
        const size_t count = std::min(block_size - page.tokens.size(), tokens.size());
        page.tokens.insert(page.tokens.end(), tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(count));
        tokens = tokens.subspan(count);
        length_ += static_cast<int64_t>(count);
        if (page.tokens.size() == block_size && shared_) cache_->list(blocks_[block]);
    }
}

void CachedSequence::rollback(int64_t length) {
    check(length <= length_, "CachedSequence::rollback: cannot go forward");
    length_ = length;
    const int64_t block_size = cache_->block_size_;
    const auto kept = static_cast<size_t>(pages_for(length, block_size));
    for (; blocks_.size() > kept; blocks_.pop_back()) cache_->release(blocks_.back());
    if (kept == 0 || length % block_size == 0) return;
    auto& last = cache_->page(blocks_.back());
    if (static_cast<int64_t>(last.tokens.size()) == length % block_size) return;
    if (last.references > 1) {
        length_ -= length % block_size;
        cache_->release(blocks_.back());
        blocks_.pop_back();
        return;
    }
    cache_->unlist(blocks_.back());
    last.tokens.resize(static_cast<size_t>(length % block_size));
}

}  // namespace fathom
