#include "io/bpe_trainer.h"

#include <gtest/gtest.h>

#include <map>

#include "base/rng.h"

namespace fathom {
namespace {

// Counts all pairs afresh before each merge.
std::vector<std::pair<int32_t, int32_t>> train_plainly(const std::map<std::string, int>& words, int merges) {
    std::vector<uint8_t> alphabet = byte_alphabet();
    std::vector<std::pair<std::vector<int32_t>, int>> state;
    for (const auto& [word, count] : words) {
        auto& symbols = state.emplace_back(std::vector<int32_t>{}, count).first;
        for (const char c : word)
            symbols.push_back(
                static_cast<int32_t>(std::find(alphabet.begin(), alphabet.end(), static_cast<uint8_t>(c)) - alphabet.begin()));
    }
    std::vector<std::pair<int32_t, int32_t>> learnt;
    for (int32_t id = 256; id < 256 + merges; ++id) {
        std::map<std::pair<int32_t, int32_t>, int> counts;
        for (const auto& [symbols, count] : state)
            for (size_t i = 0; i + 1 < symbols.size(); ++i) counts[{symbols[i], symbols[i + 1]}] += count;
        auto best = counts.begin();
        for (auto it = counts.begin(); it != counts.end(); ++it)
            if (it->second > best->second) best = it;  // the map's order settles ties
        if (best == counts.end()) break;
        const auto pair = best->first;
        learnt.push_back(pair);
        for (auto& [symbols, count] : state)
            for (size_t i = 0; i + 1 < symbols.size(); ++i)
                if (symbols[i] == pair.first && symbols[i + 1] == pair.second) {
                    symbols[i] = id;
                    symbols.erase(symbols.begin() + static_cast<int64_t>(i) + 1);
                }
    }
    return learnt;
}

TEST(BpeTrainer, LearnsWhatCountingAfreshBeforeEveryMergeLearns) {
    Rng rng(3);
    const PreTokenizer words_at_spaces({{" ", SplitBehavior::kRemoved}});
    for (int round = 0; round < 20; ++round) {
        BpeTrainer trainer(words_at_spaces);
        std::map<std::string, int> words;
        for (int i = 0; i < 60; ++i) {
            std::string word;
            for (uint64_t left = 1 + rng.below(8); left > 0; --left) word += static_cast<char>('a' + rng.below(3));
            ++words[word];
            trainer.add(" " + word);
        }
        const LearntMerges learnt = trainer.train(256 + 40, [](int64_t) {});
        std::vector<std::pair<int32_t, int32_t>> pairs;
        for (const BpeMerge& merge : learnt.merges) pairs.emplace_back(merge.left, merge.right);
        ASSERT_EQ(pairs, train_plainly(words, 40));
    }
}

TEST(BpeTrainer, StopsWhenNoPairIsLeft) {
    const PreTokenizer whole({});
    BpeTrainer trainer(whole);
    trainer.add("abc\xff");  // the last byte is not UTF-8 and is left out
    const LearntMerges learnt = trainer.train(1000, [](int64_t) {});
    EXPECT_EQ(learnt.tokens.size(), 258u);
    EXPECT_EQ(learnt.tokens.back(), "abc");
}

TEST(ByteAlphabet, StartsWithTheExclamationMarkAndHoldsEveryByteOnce) {
    std::vector<uint8_t> alphabet = byte_alphabet();
    EXPECT_EQ(alphabet[0], '!');
    EXPECT_EQ(alphabet[64], 'a');  // V3: a = 67 behind three control tokens
    std::sort(alphabet.begin(), alphabet.end());
    for (int byte = 0; byte < 256; ++byte) EXPECT_EQ(alphabet[byte], byte);
}

}  // namespace
}  // namespace fathom
