#include "infer/grammar.h"

#include <fmt/format.h>
#include <algorithm>
#include <set>

#include "base/error.h"

namespace fathom {
namespace {

constexpr int64_t kMostNodes = 400'000, kMostStates = 60'000, kMostPlaces = 4'000;
constexpr uint32_t kLastCodePoint = 0x10FFFF;

std::string utf8(uint32_t c) {
    std::string bytes;
    const auto tail = [&](int shift) { bytes += static_cast<char>(0x80 | ((c >> shift) & 0x3F)); };
    if (c < 0x80) {
        bytes += static_cast<char>(c);
    } else if (c < 0x800) {
        bytes += static_cast<char>(0xC0 | (c >> 6));
        tail(0);
    } else if (c < 0x10000) {
        bytes += static_cast<char>(0xE0 | (c >> 12));
        tail(6), tail(0);
    } else {
        bytes += static_cast<char>(0xF0 | (c >> 18));
        tail(12), tail(6), tail(0);
    }
    return bytes;
}

GrammarExpr made(GrammarExpr::Kind kind, std::vector<GrammarExpr> parts) {
    GrammarExpr expr;
    expr.kind = kind;
    expr.parts = std::move(parts);
    return expr;
}

}  // namespace

GrammarExpr GrammarExpr::literal(std::string_view text) {
    GrammarExpr expr = made(Kind::kLiteral, {});
    expr.bytes = text;
    return expr;
}

GrammarExpr GrammarExpr::any_of(std::vector<Range> ranges) {
    GrammarExpr expr = made(Kind::kClass, {});
    expr.ranges = std::move(ranges);
    return expr;
}

GrammarExpr GrammarExpr::none_of(std::vector<Range> ranges) {
    std::ranges::sort(ranges);
    std::vector<Range> rest;
    uint32_t next = 0;
    for (const auto& [first, last] : ranges) {
        if (first > next) rest.emplace_back(next, first - 1);
        next = std::max(next, last + 1);
    }
    if (next <= kLastCodePoint) rest.emplace_back(next, kLastCodePoint);
    return any_of(std::move(rest));
}

GrammarExpr GrammarExpr::sequence(std::vector<GrammarExpr> parts) { return made(Kind::kSequence, std::move(parts)); }
GrammarExpr GrammarExpr::choice(std::vector<GrammarExpr> parts) { return made(Kind::kChoice, std::move(parts)); }

GrammarExpr GrammarExpr::repeat(GrammarExpr part, int64_t least, int64_t most) {
    GrammarExpr expr = made(Kind::kRepeat, {});
    expr.parts.push_back(std::move(part));
    expr.least = least;
    expr.most = most;
    return expr;
}

GrammarExpr GrammarExpr::rule(int32_t number) {
    GrammarExpr expr = made(Kind::kRule, {});
    expr.id = number;
    return expr;
}

GrammarExpr GrammarExpr::token(int32_t id) {
    GrammarExpr expr = made(Kind::kToken, {});
    expr.id = id;
    return expr;
}

GrammarAutomaton::GrammarAutomaton(const Grammar& grammar) {
    check(!grammar.empty(), "GrammarAutomaton: a grammar has at least one rule");
    for (size_t i = 0; i < grammar.size(); ++i) rule_starts_.push_back(new_node());
    for (size_t i = 0; i < grammar.size(); ++i) {
        const int32_t end = build(grammar[i], rule_starts_[i]);
        nodes_[static_cast<size_t>(end)].last = true;
    }
    refuse_left_recursion();
    start_ = close({{rule_starts_[0], kEmpty}});
}

int32_t GrammarAutomaton::new_node() {
    if (std::ssize(nodes_) >= kMostNodes) {
        throw Error(ErrorKind::kInput, "the grammar is too large: use smaller bounds for repetitions and lengths");
    }
    nodes_.emplace_back();
    return static_cast<int32_t>(nodes_.size()) - 1;
}

// Returns the node behind `expr`.
int32_t GrammarAutomaton::build(const GrammarExpr& expr, int32_t from) {
    const auto node = [this](int32_t index) -> Node& { return nodes_[static_cast<size_t>(index)]; };
    switch (expr.kind) {
        case GrammarExpr::Kind::kLiteral:
            for (const char c : expr.bytes) {
                const int32_t to = new_node();
                node(from).edges.push_back({static_cast<uint8_t>(c), static_cast<uint8_t>(c), to});
                from = to;
            }
            return from;
        case GrammarExpr::Kind::kClass:
            return build_class(expr, from);
        case GrammarExpr::Kind::kSequence:
            for (const GrammarExpr& part : expr.parts) from = build(part, from);
            return from;
        case GrammarExpr::Kind::kChoice: {
            const int32_t to = new_node();
            for (const GrammarExpr& part : expr.parts) {
                const int32_t begin = new_node();
                node(from).free.push_back(begin);
                const int32_t end = build(part, begin);
                node(end).free.push_back(to);
            }
            return to;
        }
        case GrammarExpr::Kind::kRepeat:
            return build_repeat(expr, from);
        case GrammarExpr::Kind::kRule: {
            check(expr.id >= 0 && static_cast<size_t>(expr.id) < rule_starts_.size(), "GrammarAutomaton: no such rule");
            const int32_t to = new_node();
            node(from).calls.emplace_back(expr.id, to);
            return to;
        }
        case GrammarExpr::Kind::kToken: {
            const int32_t to = new_node();
            node(from).tokens.emplace_back(expr.id, to);
            return to;
        }
    }
    return from;
}

int32_t GrammarAutomaton::build_repeat(const GrammarExpr& expr, int32_t from) {
    const auto skip = [this](int32_t a, int32_t b) { nodes_[static_cast<size_t>(a)].free.push_back(b); };
    for (int64_t i = 0; i < expr.least; ++i) from = build(expr.parts.front(), from);
    const int32_t to = new_node();
    if (expr.most < 0) {
        const int32_t loop = new_node();
        skip(from, loop);
        skip(build(expr.parts.front(), loop), loop);
        skip(loop, to);
        return to;
    }
    for (int64_t i = expr.least; i < expr.most; ++i) {
        skip(from, to);
        const int32_t begin = new_node();
        skip(from, begin);
        from = build(expr.parts.front(), begin);
    }
    skip(from, to);
    return to;
}

int32_t GrammarAutomaton::build_class(const GrammarExpr& expr, int32_t from) {
    const int32_t to = new_node();
    // Ranges whose UTF-8 has one length; surrogates have none.
    static constexpr std::array<GrammarExpr::Range, 5> kLengths{
        {{0, 0x7F}, {0x80, 0x7FF}, {0x800, 0xD7FF}, {0xE000, 0xFFFF}, {0x10000, kLastCodePoint}}};
    for (const auto& [first, last] : expr.ranges) {
        for (const auto& [least, most] : kLengths) {
            const uint32_t a = std::max(first, least), b = std::min(last, most);
            if (a <= b) build_bytes(a, b, from, to);
        }
    }
    return to;
}

// Code points first..last, all of the same length, as byte ranges: split until all but the last differing byte are equal, or
// run from their first to their last value.
void GrammarAutomaton::build_bytes(uint32_t first, uint32_t last, int32_t from, int32_t to) {
    const size_t length = utf8(first).size();
    for (size_t tail = 1; tail < length; ++tail) {
        const uint32_t mask = (1U << (6 * tail)) - 1;
        if ((first & ~mask) == (last & ~mask)) continue;
        if ((first & mask) != 0) {
            build_bytes(first, first | mask, from, to);
            return build_bytes((first | mask) + 1, last, from, to);
        }
        if ((last & mask) != mask) {
            build_bytes(first, (last & ~mask) - 1, from, to);
            return build_bytes(last & ~mask, last, from, to);
        }
    }
    const std::string low = utf8(first), high = utf8(last);
    for (size_t i = 0; i < length; ++i) {
        const int32_t next = i + 1 == length ? to : new_node();
        nodes_[static_cast<size_t>(from)].edges.push_back({static_cast<uint8_t>(low[i]), static_cast<uint8_t>(high[i]), next});
        from = next;
    }
}

// A rule that may begin with itself would be called without end before any byte is read.
void GrammarAutomaton::refuse_left_recursion() const {
    const size_t rules = rule_starts_.size();
    std::vector<char> empty(rules, 0);  // may a rule read nothing?
    std::vector<std::set<int32_t>> begins(rules);
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t rule = 0; rule < rules; ++rule) {
            std::vector<int32_t> todo{rule_starts_[rule]};
            std::set<int32_t> seen(todo.begin(), todo.end());
            while (!todo.empty()) {
                const Node& node = nodes_[static_cast<size_t>(todo.back())];
                todo.pop_back();
                if (node.last && empty[rule] == 0) empty[rule] = 1, changed = true;
                const auto visit = [&](int32_t to) {
                    if (seen.insert(to).second) todo.push_back(to);
                };
                for (const int32_t to : node.free) visit(to);
                for (const auto& [called, to] : node.calls) {
                    begins[rule].insert(called);
                    if (empty[static_cast<size_t>(called)] != 0) visit(to);
                }
            }
        }
    }
    for (size_t rule = 0; rule < rules; ++rule) {
        std::vector<int32_t> todo(begins[rule].begin(), begins[rule].end());
        std::set<int32_t> seen(todo.begin(), todo.end());
        while (!todo.empty()) {
            const auto called = static_cast<size_t>(todo.back());
            todo.pop_back();
            if (called == rule)
                throw Error(ErrorKind::kInput, fmt::format("the grammar is left-recursive: rule {} begins with itself", rule));
            for (const int32_t next : begins[called]) {
                if (seen.insert(next).second) todo.push_back(next);
            }
        }
    }
}

int32_t GrammarAutomaton::push(int32_t node, int32_t stack) {
    const Node& back = nodes_[static_cast<size_t>(node)];
    const bool ends = back.last && back.edges.empty() && back.free.empty() && back.calls.empty() && back.tokens.empty();
    if (ends) return stack;  // a tail call returns to where its caller would
    const uint64_t key = (static_cast<uint64_t>(static_cast<uint32_t>(node)) << 32) | static_cast<uint32_t>(stack);
    const auto [found, fresh] = stack_numbers_.emplace(key, static_cast<int32_t>(stacks_.size()));
    if (fresh) stacks_.emplace_back(node, stack);
    return found->second;
}

// Follows everything that reads no byte, and numbers what is left.
int32_t GrammarAutomaton::close(std::vector<Place> places) {
    State state;
    std::set<Place> seen(places.begin(), places.end());
    places.assign(seen.begin(), seen.end());  // each once: what is twice in a state would be four times in the next
    while (!places.empty()) {
        const Place at = places.back();
        places.pop_back();
        if (std::ssize(seen) > kMostPlaces)
            throw Error(ErrorKind::kInput, "the grammar can be read in too many ways at a time");
        const auto visit = [&](int32_t node, int32_t stack) {
            if (seen.insert({node, stack}).second) places.push_back({node, stack});
        };
        const Node& node = nodes_[static_cast<size_t>(at.node)];
        for (const int32_t to : node.free) visit(to, at.stack);
        for (const auto& [rule, to] : node.calls) visit(rule_starts_[static_cast<size_t>(rule)], push(to, at.stack));
        if (node.last && at.stack == kEmpty) state.accepting = true;
        if (node.last && at.stack == kBottom) state.left = true;
        if (node.last && at.stack >= 0)
            visit(stacks_[static_cast<size_t>(at.stack)].first, stacks_[static_cast<size_t>(at.stack)].second);
        if (!node.edges.empty() || !node.tokens.empty()) state.places.push_back(at);
    }
    if (state.places.empty() && !state.accepting && !state.left) return kDead;
    std::ranges::sort(state.places);
    return number_of(std::move(state));
}

int32_t GrammarAutomaton::number_of(State state) {
    std::string key(reinterpret_cast<const char*>(state.places.data()), state.places.size() * sizeof(Place));
    key += static_cast<char>((state.accepting ? 1 : 0) | (state.left ? 2 : 0));
    const auto [found, fresh] = state_numbers_.emplace(std::move(key), static_cast<int32_t>(states_.size()));
    if (fresh) {
        if (std::ssize(states_) >= kMostStates) throw Error(ErrorKind::kInput, "the grammar needs too many states");
        states_.push_back(std::move(state));
    }
    return found->second;
}

int32_t GrammarAutomaton::step(int32_t state, uint8_t byte) {
    if (state == kDead) return kDead;
    auto& next = states_[static_cast<size_t>(state)].next;
    if (!next) {
        next = std::make_unique<std::array<int32_t, 256>>();
        next->fill(kUnknown);
    }
    if ((*next)[byte] != kUnknown) return (*next)[byte];
    std::vector<Place> places;
    for (const Place& place : states_[static_cast<size_t>(state)].places) {
        for (const Edge& edge : nodes_[static_cast<size_t>(place.node)].edges) {
            if (edge.first <= byte && byte <= edge.last) places.push_back({edge.to, place.stack});
        }
    }
    const int32_t to = places.empty() ? kDead : close(std::move(places));
    (*states_[static_cast<size_t>(state)].next)[byte] = to;
    return to;
}

int32_t GrammarAutomaton::step_token(int32_t state, int32_t token) {
    std::vector<Place> places;
    for (const Place& place : states_[static_cast<size_t>(state)].places) {
        for (const auto& [id, to] : nodes_[static_cast<size_t>(place.node)].tokens) {
            if (id == token) places.push_back({to, place.stack});
        }
    }
    return places.empty() ? kDead : close(std::move(places));
}

int32_t GrammarAutomaton::alone(int32_t node) { return number_of({{{node, kBottom}}, false, false, nullptr}); }

std::vector<int32_t> GrammarAutomaton::tokens_at(int32_t node) const {
    std::vector<int32_t> ids;
    for (const auto& [id, to] : nodes_[static_cast<size_t>(node)].tokens) ids.push_back(id);
    return ids;
}

}  // namespace fathom
