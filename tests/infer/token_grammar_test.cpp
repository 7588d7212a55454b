#include "infer/token_grammar.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/rng.h"

namespace fathom {
namespace {

using E = GrammarExpr;

// A vocabulary of all short texts over a few letters, so that many tokens reach across the ends of rules.
TokenTrie letters_trie(const std::string& letters, int longest) {
    std::vector<std::pair<std::string, int32_t>> tokens;
    std::vector<std::string> texts{""};
    for (int length = 1; length <= longest; ++length) {
        std::vector<std::string> longer;
        for (const std::string& text : texts) {
            for (const char letter : letters) longer.push_back(text + letter);
        }
        for (const std::string& text : longer) tokens.emplace_back(text, static_cast<int32_t>(tokens.size()));
        texts = std::move(longer);
    }
    const auto vocab = std::ssize(tokens) + 1;  // one id stands for no text
    return {std::move(tokens), vocab};
}

// list ::= "[" (item ("," item)*)? "]"    item ::= list | a+ | b
Grammar nested_lists() {
    const E item = E::rule(1), more = E::repeat(E::sequence({E::literal(","), item}), 0);
    return {E::sequence({E::literal("["), E::optional(E::sequence({item, more})), E::literal("]")}),
            E::choice({E::rule(0), E::repeat(E::literal("a"), 1), E::literal("b")})};
}

// The oracle: a token is allowed if and only if the automaton lives through its bytes.
TEST(TokenGrammar, MasksAgreeWithTryingEveryToken) {
    const TokenTrie trie = letters_trie("[],ab", 4);
    TokenGrammar grammar(nested_lists(), trie);
    GrammarAutomaton oracle(nested_lists());
    Rng random(1);
    for (int round = 0; round < 20; ++round) {
        int32_t state = grammar.start(), expected = oracle.start();
        for (int step = 0; step < 12; ++step) {
            const TokenMask mask = grammar.mask(state);
            std::vector<int32_t> allowed;
            for (int32_t id = 0; id < trie.vocab(); ++id) {
                int32_t at = trie.bytes(id).empty() ? GrammarAutomaton::kDead : expected;
                for (const char c : trie.bytes(id)) at = oracle.step(at, static_cast<uint8_t>(c));
                ASSERT_EQ(mask.allows(id), at != GrammarAutomaton::kDead) << "token \"" << trie.bytes(id) << "\"";
                if (mask.allows(id)) allowed.push_back(id);
            }
            if (allowed.empty()) break;
            const int32_t chosen = allowed[random.below(allowed.size())];
            state = grammar.accept(state, chosen);
            for (const char c : trie.bytes(chosen)) expected = oracle.step(expected, static_cast<uint8_t>(c));
            EXPECT_EQ(grammar.complete(state), oracle.accepting(expected));
        }
    }
}

TEST(TokenGrammar, ControlTokensComeWhereTheGrammarNamesThem) {
    const TokenTrie trie = letters_trie("ab", 2);
    const auto control = static_cast<int32_t>(trie.vocab()) - 1;
    TokenGrammar grammar({E::sequence({E::literal("a"), E::token(control), E::literal("b")})}, trie);
    EXPECT_FALSE(grammar.mask(grammar.start()).allows(control));
    const int32_t behind_a = grammar.accept(grammar.start(), 0);
    EXPECT_TRUE(grammar.mask(behind_a).allows(control));
    EXPECT_TRUE(grammar.complete(grammar.accept(grammar.accept(behind_a, control), 1)));
}

TEST(TokenGrammar, AnAnswerMayStopWhereTheGrammarIsComplete) {
    const TokenTrie trie = letters_trie("ab", 1);
    const auto grammar = std::make_shared<TokenGrammar>(Grammar{E::repeat(E::literal("a"), 1)}, trie);
    GrammarConstraint constraint(grammar, {2});
    EXPECT_FALSE(constraint.allowed(3).allows(2));
    constraint.accept(0);
    const TokenMask mask = constraint.allowed(3);
    EXPECT_TRUE(mask.allows(2));
    EXPECT_TRUE(mask.allows(0));
    EXPECT_FALSE(mask.allows(1));
}

TEST(TokenGrammar, FreeSpeechMayComeFirst) {
    const TokenTrie trie = letters_trie("ab", 1);
    const auto grammar = std::make_shared<TokenGrammar>(Grammar{E::literal("a")}, trie);
    GrammarConstraint constraint(grammar, {}, 2);
    constraint.accept(1);
    EXPECT_TRUE(constraint.allowed(3).allows(1));
    constraint.accept(2);
    EXPECT_FALSE(constraint.allowed(3).allows(1));
    EXPECT_TRUE(constraint.allowed(3).allows(0));
}

TEST(Grammar, LeftRecursionAndSizeAreRefused) {
    EXPECT_THROW(GrammarAutomaton({E::sequence({E::rule(0), E::literal("a")})}), Error);
    EXPECT_THROW(GrammarAutomaton({E::sequence({E::optional(E::literal("b")), E::rule(1)}), E::rule(0)}), Error);
    EXPECT_THROW(GrammarAutomaton({E::repeat(E::repeat(E::literal("abc"), 1000), 1000)}), Error);
    EXPECT_NO_THROW(GrammarAutomaton({E::choice({E::sequence({E::literal("a"), E::rule(0)}), E::literal("b")})}));
}

}  // namespace
}  // namespace fathom
