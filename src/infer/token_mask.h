// Which tokens may come next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace fathom {

// One bit per id. Ids outside it are not allowed.
class TokenMask {
public:
    TokenMask() = default;
    TokenMask(int64_t vocab, bool allowed)
        : words_(static_cast<size_t>((vocab + 63) / 64), allowed ? std::numeric_limits<uint64_t>::max() : 0) {}

    [[nodiscard]] bool empty() const { return words_.empty(); }
    [[nodiscard]] bool allows(int32_t id) const {
        const auto word = static_cast<size_t>(id) / 64;
        return id >= 0 && word < words_.size() && (words_[word] >> (static_cast<size_t>(id) % 64) & 1) != 0;
    }
    void allow(int32_t id) {
        if (covers(id)) words_[static_cast<size_t>(id) / 64] |= bit(id);
    }
    void forbid(int32_t id) {
        if (covers(id)) words_[static_cast<size_t>(id) / 64] &= ~bit(id);
    }
    void intersect(const TokenMask& other) {
        for (size_t i = 0; i < words_.size(); ++i) words_[i] &= i < other.words_.size() ? other.words_[i] : 0;
    }
    void unite(const TokenMask& other) {
        for (size_t i = 0; i < std::min(words_.size(), other.words_.size()); ++i) words_[i] |= other.words_[i];
    }
    [[nodiscard]] const std::vector<uint64_t>& words() const { return words_; }
    bool operator==(const TokenMask&) const = default;

private:
    std::vector<uint64_t> words_;

    [[nodiscard]] bool covers(int32_t id) const { return id >= 0 && static_cast<size_t>(id) / 64 < words_.size(); }
    [[nodiscard]] static uint64_t bit(int32_t id) { return uint64_t{1} << (static_cast<size_t>(id) % 64); }
};

// A rule that an answer must follow, e.g. a grammar, and how far the answer has come. The engine asks before every token and
// tells which one came.
class TokenConstraint {
public:
    virtual ~TokenConstraint() = default;
    // The ids below `vocab` that may come next, end-of-sequence among them where the answer may end.
    [[nodiscard]] virtual TokenMask allowed(int64_t vocab) = 0;
    virtual void accept(int32_t token) = 0;
};

}  // namespace fathom
