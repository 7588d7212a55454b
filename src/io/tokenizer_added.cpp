#include "io/tokenizer_added.h"

#include <algorithm>

namespace fathom {
namespace {

// The last character of a non-empty text; length 0 when the text does not end in a whole one.
Character last_character(std::string_view text) {
    size_t begin = text.size() - 1;
    while (begin > 0 && text.size() - begin < 4 && (text[begin] & 0xC0) == 0x80) --begin;
    const Character character = first_character(text.substr(begin));
    return begin + character.length == text.size() ? character : Character{};
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)), nodes_(1) {
    for (size_t t = 0; t < tokens_.size(); ++t) {
        const AddedToken& token = tokens_[t];
        if (token.content.empty()) continue;
        starts_[static_cast<uint8_t>(token.content[0])] = true;
        int32_t node = 0;
        for (const char c : token.content) {
            const auto byte = static_cast<uint8_t>(c);
            int32_t next = child(node, byte);
            if (next < 0) {
                next = static_cast<int32_t>(nodes_.size());
                nodes_[node].children.emplace_back(byte, next);
                nodes_.emplace_back();
            }
            node = next;
        }
        nodes_[node].token = static_cast<int32_t>(t);
        if (token.lstrip || token.rstrip || token.single_word)
            if (!classes_) classes_ = std::make_unique<CharacterClasses>();
    }
}

int32_t AddedTokenMatcher::child(int32_t node, uint8_t byte) const {
    for (const auto& [label, next] : nodes_[node].children)
        if (label == byte) return next;
    return -1;
}

int32_t AddedTokenMatcher::longest_at(std::string_view text, size_t at) const {
    int32_t found = -1;
    for (int32_t node = 0; at < text.size(); ++at) {
        node = child(node, static_cast<uint8_t>(text[at]));
        if (node < 0) break;
        if (nodes_[node].token >= 0) found = nodes_[node].token;
    }
    return found;
}

bool AddedTokenMatcher::find(std::string_view text, size_t from, Hit& hit) const {
    if (nodes_.size() == 1) return false;
    for (size_t at = from; at < text.size(); ++at) {
        if (!starts_[static_cast<uint8_t>(text[at])]) continue;
        const int32_t found = longest_at(text, at);
        if (found < 0) continue;
        const AddedToken& token = tokens_[found];
        hit = {at, at + token.content.size(), token.id};
        if (token.single_word && touches_word(text, hit.begin, hit.end)) {
            at = hit.end - 1;
            continue;
        }
        if (token.lstrip || token.rstrip) strip(text, from, token, hit);
        return true;
    }
    return false;
}

bool AddedTokenMatcher::touches_word(std::string_view text, size_t begin, size_t end) const {
    const auto is_word = [&](Character character) { return character.length > 0 && (classes_->of(character.code) & kWord); };
    return (begin > 0 && is_word(last_character(text.substr(0, begin)))) ||
           (end < text.size() && is_word(first_character(text.substr(end))));
}

void AddedTokenMatcher::strip(std::string_view text, size_t from, const AddedToken& token, Hit& hit) const {
    const auto is_space = [&](Character character) { return character.length > 0 && (classes_->of(character.code) & kSpace); };
    while (token.lstrip && hit.begin > from) {
        const Character before = last_character(text.substr(from, hit.begin - from));
        if (!is_space(before)) break;
        hit.begin -= before.length;
    }
    while (token.rstrip && hit.end < text.size()) {
        const Character after = first_character(text.substr(hit.end));
        if (!is_space(after)) break;
        hit.end += after.length;
    }
}

}  // namespace fathom
