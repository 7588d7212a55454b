// Finds added tokens ("<｜User｜>") in raw text: leftmost first, of those the longest.
#pragma once

#include <array>
#include <memory>
#include <string_view>
#include <vector>

#include "io/tokenizer_parts.h"

namespace fathom {

class AddedTokenMatcher {
public:
    struct Hit {
        size_t begin = 0, end = 0;  // bytes, stripped spaces included
        int32_t id = -1;
    };

    explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

    // The first hit in `text` at or after `from`; false when there is none.
    [[nodiscard]] bool find(std::string_view text, size_t from, Hit& hit) const;

private:
    struct Node {
        std::vector<std::pair<uint8_t, int32_t>> children;  // byte -> node
        int32_t token = -1;                                 // index into tokens_
    };
    std::vector<AddedToken> tokens_;
    std::vector<Node> nodes_;  // a trie over bytes; 0 is the root
    std::array<bool, 256> starts_{};
    std::unique_ptr<const CharacterClasses> classes_;  // set when a token asks about its surroundings

    [[nodiscard]] int32_t longest_at(std::string_view text, size_t at) const;
    [[nodiscard]] int32_t child(int32_t node, uint8_t byte) const;
    [[nodiscard]] bool touches_word(std::string_view text, size_t begin, size_t end) const;
    void strip(std::string_view text, size_t from, const AddedToken& token, Hit& hit) const;
};

}  // namespace fathom
