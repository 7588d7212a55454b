#include "io/bpe.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/rng.h"

namespace fathom {
namespace {

// Tokens "a", "b", then random pairs of earlier ones.
struct Grammar {
    std::vector<Vocabulary::Entry> entries;
    std::vector<BpeMerge> merges;
};

Grammar random_grammar(Rng& rng, int merges) {
    Grammar grammar;
    grammar.entries = {{0, "a"}, {1, "b"}};
    for (int rank = 0; rank < merges; ++rank) {
        const auto pick = [&] { return static_cast<int32_t>(rng.below(grammar.entries.size())); };
        const int32_t left = pick(), right = pick(), id = static_cast<int32_t>(grammar.entries.size());
        std::string bytes = grammar.entries[left].bytes + grammar.entries[right].bytes;
        bool known = false;
        for (const auto& entry : grammar.entries) known = known || entry.bytes == bytes;
        if (known || bytes.size() > 40) continue;
        grammar.entries.push_back({id, bytes});
        grammar.merges.push_back({left, right, id, static_cast<uint32_t>(rank)});
    }
    return grammar;
}

// The definition, word for word: while a pair can merge, merge the leftmost of those with the lowest rank.
std::vector<int32_t> merge_plainly(const Grammar& grammar, std::string_view text) {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(c - 'a');
    while (true) {
        const BpeMerge* best = nullptr;
        size_t place = 0;
        for (size_t i = 0; i + 1 < ids.size(); ++i)
            for (const BpeMerge& merge : grammar.merges)
                if (merge.left == ids[i] && merge.right == ids[i + 1] && (!best || merge.rank < best->rank)) {
                    best = &merge;
                    place = i;
                }
        if (!best) return ids;
        ids[place] = best->result;
        ids.erase(ids.begin() + static_cast<int64_t>(place) + 1);
    }
}

TEST(Bpe, MergesLowestRankLeftmostFirstAtEveryLength) {
    Rng rng(7);
    for (int round = 0; round < 60; ++round) {
        const Grammar grammar = random_grammar(rng, 12);
        const Bpe bpe(grammar.entries, grammar.merges, {});
        for (const int length : {1, 2, 3, 10, 63, 64, 65, 66, 200}) {
            std::string text;
            for (int i = 0; i < length; ++i) text += rng.below(3) ? 'a' : 'b';
            std::vector<int32_t> ids;
            bpe.encode(text, ids);
            ASSERT_EQ(ids, merge_plainly(grammar, text)) << text;
        }
    }
}

TEST(Bpe, EncodesAMegabyteWithoutSpacesInTime) {
    Rng rng(8);
    const Grammar grammar = random_grammar(rng, 12);
    const Bpe bpe(grammar.entries, grammar.merges, {});
    std::vector<int32_t> ids;
    bpe.encode(std::string(1 << 20, 'a'), ids);  // a quadratic algorithm would take an hour
    size_t bytes = 0;
    for (const int32_t id : ids) bytes += bpe.vocabulary().bytes(id).size();
    EXPECT_EQ(bytes, size_t{1} << 20);
}

TEST(Bpe, IgnoreMergesPrefersTheWholePiece) {
    const std::vector<Vocabulary::Entry> entries = {{0, "a"}, {1, "b"}, {2, "ab"}};
    std::vector<int32_t> with, without;
    Bpe(entries, {}, {.ignore_merges = true}).encode("ab", with);
    Bpe(entries, {}, {}).encode("ab", without);
    EXPECT_EQ(with, (std::vector<int32_t>{2}));
    EXPECT_EQ(without, (std::vector<int32_t>{0, 1}));
}

TEST(Vocabulary, RefusesDamagedIds) {
    EXPECT_THROW(Vocabulary({{-1, "a"}}), Error);
    EXPECT_THROW(Vocabulary({{0, "a"}, {0, "b"}}), Error);
    EXPECT_THROW(Vocabulary({{2000000000, "a"}}), Error);
}

TEST(ByteLetters, AreGpt2s) {
    const auto letters = byte_letters();
    EXPECT_EQ(letters[' '], "Ġ");
    EXPECT_EQ(letters['\n'], "Ċ");
    EXPECT_EQ(letters['A'], "A");
    EXPECT_EQ(letters[0xAD], "Ń");
    EXPECT_EQ(letters[0xFF], "ÿ");
}

}  // namespace
}  // namespace fathom
