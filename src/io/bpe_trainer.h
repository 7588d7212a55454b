// Learns the merges of a byte-level BPE from word counts.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/bpe.h"
#include "io/pretokenizer.h"

namespace fathom {

// The 256 bytes in the order of their letters' code points ('!' first), as every byte-level vocabulary lists them.
[[nodiscard]] std::vector<uint8_t> byte_alphabet();

// What training yields. Ids count from 0: first byte_alphabet(), then one id per new token, in the order they were learnt.
struct LearntMerges {
    std::vector<std::string> tokens;  // bytes by id
    std::vector<BpeMerge> merges;
};

// Counts pieces, then merges the most frequent pair again and again; of equally frequent pairs the one with the smallest
// ids, left before right, so that the result depends on the text alone.
class BpeTrainer {
public:
    explicit BpeTrainer(const PreTokenizer& pretokenizer) : pretokenizer_(pretokenizer) {}

    // `text`: one document. Bytes that are not UTF-8 are left out.
    void add(std::string_view text);

    // Learns until there are `tokens` tokens (>= 256) or no pair is left. progress(tokens so far) is called after each.
    [[nodiscard]] LearntMerges train(int64_t tokens, const std::function<void(int64_t)>& progress) const;

    [[nodiscard]] int64_t distinct_pieces() const { return static_cast<int64_t>(counts_.size()); }

private:
    struct Hash {
        using is_transparent = void;
        size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
    };
    const PreTokenizer& pretokenizer_;
    std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> counts_;
    std::vector<std::string_view> pieces_;
};

}  // namespace fathom
