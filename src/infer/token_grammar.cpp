#include "infer/token_grammar.h"

#include <algorithm>

namespace fathom {

TokenTrie::TokenTrie(std::vector<std::pair<std::string, int32_t>> tokens, int64_t vocab)
    : bytes_(static_cast<size_t>(vocab)),
      vocab_(vocab) {
    std::erase_if(tokens, [&](const auto& token) { return token.first.empty() || token.second < 0 || token.second >= vocab; });
    std::ranges::sort(tokens);
    std::vector<int32_t> path;  // the nodes of the last token
    const auto leave = [&](size_t depth) {
        for (; path.size() > depth; path.pop_back())
            nodes_[static_cast<size_t>(path.back())].end = static_cast<int32_t>(nodes_.size());
    };
    std::string_view last;
    for (const auto& [text, id] : tokens) {
        const auto common = static_cast<size_t>(std::ranges::mismatch(text, last).in1 - text.begin());
        leave(common);
        for (size_t i = common; i < text.size(); ++i) {
            path.push_back(static_cast<int32_t>(nodes_.size()));
            nodes_.push_back(
                {static_cast<uint8_t>(text[i]), static_cast<int32_t>(i) + 1, 0, static_cast<int32_t>(ids_.size()), 0});
        }
        ++nodes_[static_cast<size_t>(path.back())].tokens;  // equal texts stand next to each other
        ids_.push_back(id);
        bytes_[static_cast<size_t>(id)] = text;
        last = text;
    }
    leave(0);
}

const TokenGrammar::NodeMask& TokenGrammar::node_mask(int32_t node) {
    const auto found = node_masks_.find(node);
    if (found != node_masks_.end()) return found->second;
    NodeMask result{TokenMask(trie_.vocab(), false), {}};
    for (const int32_t id : automaton_.tokens_at(node)) result.allowed.allow(id);
    struct Level {
        int32_t state;
        bool left;  // the rule may have ended behind one of the bytes so far
    };
    std::vector<Level> path{{automaton_.alone(node), false}};
    const auto& nodes = trie_.nodes();
    for (size_t i = 0; i < nodes.size();) {
        const TokenTrie::Node& at = nodes[i];
        path.resize(static_cast<size_t>(at.depth));
        const Level before = path.back();
        const int32_t state = automaton_.step(before.state, at.byte);
        if (state == GrammarAutomaton::kDead && !before.left) {
            i = static_cast<size_t>(at.end);
            continue;
        }
        for (int32_t t = at.first_token; t < at.first_token + at.tokens; ++t) {
            const int32_t id = trie_.ids()[static_cast<size_t>(t)];
            if (state != GrammarAutomaton::kDead) {
                result.allowed.allow(id);
            } else {
                result.beyond.push_back(id);
            }
        }
        path.push_back({state, before.left || (state != GrammarAutomaton::kDead && automaton_.left(state))});
        ++i;
    }
    return node_masks_.emplace(node, std::move(result)).first->second;
}

const TokenMask& TokenGrammar::mask(int32_t state) {
    constexpr size_t kMostMasks = 2048;
    const auto found = masks_.find(state);
    if (found != masks_.end()) return found->second;
    if (masks_.size() >= kMostMasks) masks_.clear();
    TokenMask mask(trie_.vocab(), false);
    const std::vector<GrammarAutomaton::Place> places = automaton_.places(state);  // a copy: the walk adds states
    for (const auto& place : places) mask.unite(node_mask(place.node).allowed);
    for (const auto& place : places) {
        for (const int32_t id : node_mask(place.node).beyond) {
            if (!mask.allows(id) && accept(state, id) != GrammarAutomaton::kDead) mask.allow(id);
        }
    }
    return masks_.emplace(state, std::move(mask)).first->second;
}

int32_t TokenGrammar::accept(int32_t state, int32_t token) {
    if (state == GrammarAutomaton::kDead) return state;
    const std::string_view bytes = trie_.bytes(token);
    if (bytes.empty()) return automaton_.step_token(state, token);
    for (const char byte : bytes) {
        state = automaton_.step(state, static_cast<uint8_t>(byte));
        if (state == GrammarAutomaton::kDead) break;
    }
    return state;
}

TokenMask GrammarConstraint::allowed(int64_t vocab) {
    if (starts_after_) return TokenMask(vocab, true);
    if (state_ == GrammarAutomaton::kDead) return TokenMask(vocab, false);
    TokenMask mask = grammar_->mask(state_);
    if (!grammar_->complete(state_)) return mask;
    for (const int32_t id : stop_ids_) mask.allow(id);
    return mask;
}

void GrammarConstraint::accept(int32_t token) {
    if (starts_after_) {
        if (token == *starts_after_) starts_after_.reset();
        return;
    }
    if (std::ranges::find(stop_ids_, token) != stop_ids_.end()) return;
    state_ = grammar_->accept(state_, token);
}

}  // namespace fathom
