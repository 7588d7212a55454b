// From a grammar to masks: which tokens of a vocabulary may come next.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "infer/grammar.h"
#include "infer/token_mask.h"

namespace fathom {

// The tokens' bytes as a prefix tree in preorder, so that a walk over all tokens visits every common beginning once.
class TokenTrie {
public:
    // Tokens that stand for text; control tokens are left out.
    TokenTrie(std::vector<std::pair<std::string, int32_t>> tokens, int64_t vocab);

    struct Node {
        uint8_t byte = 0;
        int32_t depth = 1;  // bytes from the root
        int32_t end = 0;    // the first node that is not below this one
        int32_t first_token = 0, tokens = 0;
    };
    [[nodiscard]] const std::vector<Node>& nodes() const { return nodes_; }
    [[nodiscard]] const std::vector<int32_t>& ids() const { return ids_; }
    [[nodiscard]] int64_t vocab() const { return vocab_; }
    [[nodiscard]] std::string_view bytes(int32_t id) const { return bytes_[static_cast<size_t>(id)]; }

private:
    std::vector<Node> nodes_;
    std::vector<int32_t> ids_;
    std::vector<std::string> bytes_;  // by id
    int64_t vocab_;
};

// A grammar over a vocabulary. Masks are made when they are first needed and kept: per node of the grammar what its own rule
// says about every token, and per state the sum of its places, where only the tokens that reach beyond the end of a rule must
// be tried one by one. Shared by requests with the same grammar, on one thread (the engine's).
class TokenGrammar {
public:
    // The trie must outlive it. Throws what GrammarAutomaton throws.
    TokenGrammar(const Grammar& grammar, const TokenTrie& trie) : automaton_(grammar), trie_(trie) {}

    [[nodiscard]] int32_t start() const { return automaton_.start(); }
    [[nodiscard]] const TokenMask& mask(int32_t state);
    [[nodiscard]] int32_t accept(int32_t state, int32_t token);
    [[nodiscard]] bool complete(int32_t state) const { return automaton_.accepting(state); }
    [[nodiscard]] int64_t states() const { return automaton_.states(); }

private:
    struct NodeMask {
        TokenMask allowed;
        std::vector<int32_t> beyond;  // tokens that leave the rule before their last byte
    };
    GrammarAutomaton automaton_;
    const TokenTrie& trie_;
    std::unordered_map<int32_t, NodeMask> node_masks_;
    std::unordered_map<int32_t, TokenMask> masks_;

    [[nodiscard]] const NodeMask& node_mask(int32_t node);
};

// One answer's way through a grammar. It may end where the grammar is complete: then stop_ids are allowed.
class GrammarConstraint final : public TokenConstraint {
public:
    // starts_after: anything may be said until this token has come (the end of thinking).
    GrammarConstraint(std::shared_ptr<TokenGrammar> grammar, std::vector<int32_t> stop_ids,
                      std::optional<int32_t> starts_after = std::nullopt)
        : grammar_(std::move(grammar)),
          stop_ids_(std::move(stop_ids)),
          starts_after_(starts_after),
          state_(grammar_->start()) {}

    [[nodiscard]] TokenMask allowed(int64_t vocab) override;
    void accept(int32_t token) override;

private:
    std::shared_ptr<TokenGrammar> grammar_;
    std::vector<int32_t> stop_ids_;
    std::optional<int32_t> starts_after_;
    int32_t state_;
};

}  // namespace fathom
