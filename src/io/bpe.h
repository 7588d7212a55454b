// Byte-pair encoding of one piece: a vocabulary of byte strings and the ranked merges between them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

// Token bytes by id, and ids by bytes.
class Vocabulary {
public:
    struct Entry {
        int32_t id;
        std::string bytes;
        bool in_text = true;  // false: text never becomes this token by itself (a control token's name)
    };

    // Ids need not be dense. Throws Error{kInput} for negative, far too large or repeated ids.
    explicit Vocabulary(const std::vector<Entry>& entries);

    [[nodiscard]] int32_t size() const { return static_cast<int32_t>(offsets_.size()) - 1; }  // largest id + 1
    [[nodiscard]] std::string_view bytes(int32_t id) const {
        return {blob_.data() + offsets_[id], offsets_[id + 1] - offsets_[id]};
    }
    // The id of the token in_text with these bytes; -1 when there is none.
    [[nodiscard]] int32_t find(std::string_view bytes) const;

private:
    std::string blob_;
    std::vector<size_t> offsets_;  // [size + 1]
    struct Slot {
        uint32_t hash = 0;
        int32_t id = -1;
    };
    std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
};

struct BpeMerge {
    int32_t left, right, result;  // ids
    uint32_t rank;                // the lowest goes first
};

struct BpeOptions {
    bool byte_level = true;      // symbols start as bytes; false: as characters
    bool ignore_merges = false;  // a piece that is a token becomes it whether merges lead there or not
    bool byte_fallback = false;  // what has no token becomes its bytes' tokens <0x00> ... <0xFF>
    int32_t unknown_id = -1;     // what is left has this token, or none
    bool fuse_unknown = false;   // neighbouring unknowns become one
};

// Immutable; safe from several threads.
class Bpe {
public:
    Bpe(const std::vector<Vocabulary::Entry>& entries, const std::vector<BpeMerge>& merges, const BpeOptions& options);

    // Appends the ids of one piece: again and again the pair of lowest rank, the leftmost of equals, is merged.
    void encode(std::string_view piece, std::vector<int32_t>& ids) const;

    [[nodiscard]] const Vocabulary& vocabulary() const { return vocabulary_; }

private:
    struct PairSlot {
        uint64_t pair = kNoPair;
        uint32_t rank = 0;
        int32_t result = -1;
    };
    struct Symbol {
        int32_t id;
        uint32_t rank;  // of the merge with the symbol to the right
    };
    static constexpr uint64_t kNoPair = ~uint64_t{0};
    static constexpr uint32_t kNoRank = ~uint32_t{0};
    static constexpr size_t kShort = 64;  // symbols up to which a scan beats a heap

    Vocabulary vocabulary_;
    BpeOptions options_;
    std::vector<PairSlot> pairs_;                    // open addressing
    std::array<std::vector<int32_t>, 256> symbols_;  // first ids of each byte
    std::vector<bool> whole_;                        // by id: merging this token's bytes gives this token

    [[nodiscard]] const PairSlot* find_pair(int32_t left, int32_t right) const;
    [[nodiscard]] uint32_t rank_of(int32_t left, int32_t right) const;
    void add_pairs(const std::vector<BpeMerge>& merges);
    void append_symbols(std::string_view piece, std::vector<int32_t>& ids) const;
    void append_fallback(std::string_view bytes, std::vector<int32_t>& ids) const;
    void merge(std::string_view piece, std::vector<int32_t>& ids) const;
    void merge_short(std::vector<int32_t>& ids, size_t first) const;
    void merge_long(std::vector<int32_t>& ids, size_t first) const;
};

// GPT-2's printable letter for each byte, as UTF-8: "Ġ" for a space. tokenizer.json spells byte-level tokens with them.
[[nodiscard]] std::array<std::string, 256> byte_letters();

}  // namespace fathom
