// Context-free grammars over bytes, and the automaton that says which bytes may come next.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace fathom {

// What a rule says, as a tree. Characters are Unicode code points and stand for their UTF-8 bytes.
struct GrammarExpr {
    enum class Kind : uint8_t { kLiteral, kClass, kSequence, kChoice, kRepeat, kRule, kToken };
    using Range = std::pair<uint32_t, uint32_t>;  // code points, both ends included

    Kind kind = Kind::kSequence;
    std::string bytes;               // kLiteral
    std::vector<Range> ranges;       // kClass
    std::vector<GrammarExpr> parts;  // of a sequence or a choice; the one thing that is repeated
    int64_t least = 0, most = -1;    // kRepeat; -1: without end
    int32_t id = 0;                  // kRule: its number; kToken: a token that has no text (<｜tool▁sep｜>)

    [[nodiscard]] static GrammarExpr literal(std::string_view text);
    [[nodiscard]] static GrammarExpr any_of(std::vector<Range> ranges);
    [[nodiscard]] static GrammarExpr none_of(std::vector<Range> ranges);  // every code point but these
    [[nodiscard]] static GrammarExpr sequence(std::vector<GrammarExpr> parts);
    [[nodiscard]] static GrammarExpr choice(std::vector<GrammarExpr> parts);
    [[nodiscard]] static GrammarExpr repeat(GrammarExpr part, int64_t least, int64_t most = -1);
    [[nodiscard]] static GrammarExpr optional(GrammarExpr part) { return repeat(std::move(part), 0, 1); }
    [[nodiscard]] static GrammarExpr rule(int32_t number);
    [[nodiscard]] static GrammarExpr token(int32_t id);
};

// Rule 0 is the whole.
using Grammar = std::vector<GrammarExpr>;

// Rules as a network of nodes, and calls between them kept on stacks, of which there may be several at a time (a
// nondeterministic pushdown automaton). Sets of (node, stack) get numbers, and steps between them are remembered: what was seen
// once costs a look-up. Not safe from several threads.
class GrammarAutomaton {
public:
    static constexpr int32_t kDead = -1;

    // Throws Error{kInput}: a rule that begins with itself, a grammar that is too large.
    explicit GrammarAutomaton(const Grammar& grammar);

    [[nodiscard]] int32_t start() const { return start_; }
    // The state behind one more byte or token; kDead when it may not come. Throws Error{kInput} for grammars that can be read
    // in too many ways.
    [[nodiscard]] int32_t step(int32_t state, uint8_t byte);
    [[nodiscard]] int32_t step_token(int32_t state, int32_t token);
    [[nodiscard]] bool accepting(int32_t state) const { return states_[static_cast<size_t>(state)].accepting; }

    // For masks: the places of a state, and each place as a state that knows nothing of its stack: left() says that such a
    // state may have come to the end of its rule.
    struct Place {
        int32_t node, stack;
        auto operator<=>(const Place&) const = default;
    };
    [[nodiscard]] const std::vector<Place>& places(int32_t state) const { return states_[static_cast<size_t>(state)].places; }
    [[nodiscard]] int32_t alone(int32_t node);
    [[nodiscard]] bool left(int32_t state) const { return states_[static_cast<size_t>(state)].left; }
    [[nodiscard]] std::vector<int32_t> tokens_at(int32_t node) const;
    [[nodiscard]] int64_t states() const { return std::ssize(states_); }

private:
    struct Edge {
        uint8_t first, last;
        int32_t to;
    };
    struct Node {
        std::vector<Edge> edges;
        std::vector<int32_t> free;                        // reached without a byte
        std::vector<std::pair<int32_t, int32_t>> calls;   // rule, where to go on
        std::vector<std::pair<int32_t, int32_t>> tokens;  // token, where to go on
        bool last = false;                                // its rule may end here
    };
    struct State {
        std::vector<Place> places;
        bool accepting = false, left = false;
        std::unique_ptr<std::array<int32_t, 256>> next;
    };
    static constexpr int32_t kUnknown = -2, kEmpty = -1, kBottom = -2;  // stacks below zero: nothing, something unknown

    std::vector<Node> nodes_;
    std::vector<int32_t> rule_starts_;
    std::vector<std::pair<int32_t, int32_t>> stacks_;  // node to return to, stack below
    std::unordered_map<uint64_t, int32_t> stack_numbers_;
    std::vector<State> states_;
    std::unordered_map<std::string, int32_t> state_numbers_;
    int32_t start_ = kDead;

    [[nodiscard]] int32_t new_node();
    [[nodiscard]] int32_t build(const GrammarExpr& expr, int32_t from);
    [[nodiscard]] int32_t build_class(const GrammarExpr& expr, int32_t from);
    [[nodiscard]] int32_t build_repeat(const GrammarExpr& expr, int32_t from);
    void build_bytes(uint32_t first, uint32_t last, int32_t from, int32_t to);
    void refuse_left_recursion() const;
    [[nodiscard]] int32_t push(int32_t node, int32_t stack);
    [[nodiscard]] int32_t close(std::vector<Place> places);
    [[nodiscard]] int32_t number_of(State state);
};

}  // namespace fathom
