#include "io/bpe_trainer.h"

#include <algorithm>
#include <numeric>
#include <queue>

#include "base/error.h"

namespace fathom {
namespace {

struct Word {
    std::vector<int32_t> symbols;
    int64_t count;
};

struct Pair {
    int32_t left, right;

    [[nodiscard]] uint64_t key() const { return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right); }
};

// All pairs of neighbours with their counts, and the most frequent one on top of a heap whose entries are brought up to date
// only when they surface: counts never grow after a pair's first appearance, so a stale entry can only be too high.
class PairCounts {
public:
    void add(Pair pair, int64_t change, int32_t word) {
        Place& place = places_[pair.key()];
        place.count += change;
        if (change <= 0) return;
        if (place.words.empty() || place.words.back() != word) place.words.push_back(word);
        if (!place.queued) fresh_.push_back(pair);
        place.queued = true;
    }

    // Enters the pairs that appeared since the last call.
    void queue_fresh() {
        for (const Pair pair : fresh_) heap_.push({places_[pair.key()].count, pair});
        fresh_.clear();
    }

    // The next pair to merge and the words that held it; false when no pair is left.
    bool pop(Pair& pair, std::vector<int32_t>& words) {
        while (!heap_.empty()) {
            Entry top = heap_.top();
            heap_.pop();
            const auto it = places_.find(top.pair.key());
            if (it->second.count != top.count) {
                top.count = it->second.count;
                if (top.count > 0) heap_.push(top);
                continue;
            }
            pair = top.pair;
            words = std::move(it->second.words);
            places_.erase(it);
            return true;
        }
        return false;
    }

private:
    struct Place {
        int64_t count = 0;
        std::vector<int32_t> words;  // where it has appeared; it may have gone from some since
        bool queued = false;
    };
    struct Entry {
        int64_t count;
        Pair pair;

        bool operator<(const Entry& other) const {
            if (count != other.count) return count < other.count;
            return pair.key() > other.pair.key();
        }
    };
    std::unordered_map<uint64_t, Place> places_;
    std::vector<Pair> fresh_;
    std::priority_queue<Entry> heap_;
};

// Replaces the pair by `merged` in one word, left to right, and reports how its neighbours' counts change.
void merge_in_word(Word& word, int32_t index, Pair pair, int32_t merged, PairCounts& counts) {
    std::vector<int32_t>& symbols = word.symbols;
    size_t kept = 0;
    for (size_t i = 0; i < symbols.size(); ++i, ++kept) {
        if (i + 1 == symbols.size() || symbols[i] != pair.left || symbols[i + 1] != pair.right) {
            symbols[kept] = symbols[i];
            continue;
        }
        if (kept > 0) {
            counts.add({symbols[kept - 1], pair.left}, -word.count, index);
            counts.add({symbols[kept - 1], merged}, word.count, index);
        }
        ++i;
        if (i + 1 < symbols.size()) {
            counts.add({pair.right, symbols[i + 1]}, -word.count, index);
            counts.add({merged, symbols[i + 1]}, word.count, index);
        }
        symbols[kept] = merged;
    }
    symbols.resize(kept);
}

}  // namespace

std::vector<uint8_t> byte_alphabet() {
    const std::array<std::string, 256> letters = byte_letters();
    std::vector<uint8_t> order(256);
    std::iota(order.begin(), order.end(), uint8_t{0});
    // UTF-8 sorts like the code points it encodes.
    std::sort(order.begin(), order.end(), [&](uint8_t a, uint8_t b) { return letters[a] < letters[b]; });
    return order;
}

void BpeTrainer::add(std::string_view text) {
    while (!text.empty()) {
        const size_t valid = valid_utf8_prefix(text);
        pieces_.clear();
        pretokenizer_.split(text.substr(0, valid), pieces_);
        for (const std::string_view piece : pieces_) {
            const auto it = counts_.find(piece);
            if (it != counts_.end())
                ++it->second;
            else
                counts_.emplace(piece, 1);
        }
        text.remove_prefix(valid);
        if (!text.empty()) text.remove_prefix(invalid_utf8_length(text));
    }
}

LearntMerges BpeTrainer::train(int64_t tokens, const std::function<void(int64_t)>& progress) const {
    check(tokens >= 256, "BpeTrainer::train: fewer tokens than bytes");
    LearntMerges learnt;
    std::array<int32_t, 256> byte_ids{};
    std::unordered_map<std::string, int32_t> ids;
    for (const uint8_t byte : byte_alphabet()) {
        byte_ids[byte] = static_cast<int32_t>(learnt.tokens.size());
        ids.emplace(std::string(1, static_cast<char>(byte)), byte_ids[byte]);
        learnt.tokens.emplace_back(1, static_cast<char>(byte));
    }
    std::vector<Word> words;
    PairCounts counts;
    for (const auto& [piece, count] : counts_) {
        Word word{{}, count};
        for (const char c : piece) word.symbols.push_back(byte_ids[static_cast<uint8_t>(c)]);
        for (size_t i = 0; i + 1 < word.symbols.size(); ++i)
            counts.add({word.symbols[i], word.symbols[i + 1]}, count, static_cast<int32_t>(words.size()));
        words.push_back(std::move(word));
    }
    Pair pair;
    std::vector<int32_t> places;
    for (counts.queue_fresh(); static_cast<int64_t>(learnt.tokens.size()) < tokens && counts.pop(pair, places);
         counts.queue_fresh()) {
        const std::string token = learnt.tokens[pair.left] + learnt.tokens[pair.right];
        const auto [it, is_new] = ids.emplace(token, static_cast<int32_t>(learnt.tokens.size()));
        if (is_new) learnt.tokens.push_back(token);
        learnt.merges.push_back({pair.left, pair.right, it->second, static_cast<uint32_t>(learnt.merges.size())});
        for (const int32_t word : places) merge_in_word(words[word], word, pair, it->second, counts);
        progress(static_cast<int64_t>(learnt.tokens.size()));
    }
    return learnt;
}

}  // namespace fathom
