// Answers that must follow a grammar: what a request may ask for, compiled once and kept.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "infer/token_grammar.h"
#include "io/tokenizer.h"
#include "serve/api_error.h"
#include "serve/request_fields.h"

namespace fathom {

// Compiled grammars by their text, the most recently used ones. From any thread; what it returns belongs to the engine's
// thread.
class GrammarCache {
public:
    explicit GrammarCache(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

    // `key` says all about the grammar that `make` returns. Throws ApiError with the name of the request's field where it
    // cannot be compiled.
    template <class Make>
    [[nodiscard]] std::shared_ptr<TokenGrammar> get(const std::string& field, const std::string& key, const Make& make) {
        if (auto known = find(key)) return known;
        try {
            return add(key, make());
        } catch (const Error& error) {
            throw ApiError(400, field + ": " + error.what(), field, "invalid_grammar");
        }
    }

private:
    const Tokenizer& tokenizer_;
    std::mutex mutex_;
    std::optional<TokenTrie> trie_;                                           // made when it is first needed
    std::list<std::pair<std::string, std::shared_ptr<TokenGrammar>>> known_;  // the most recently used first

    [[nodiscard]] std::shared_ptr<TokenGrammar> find(const std::string& key);
    [[nodiscard]] std::shared_ptr<TokenGrammar> add(const std::string& key, const Grammar& grammar);
};

struct StructuredOutput {
    std::shared_ptr<TokenGrammar> grammar;
    std::optional<int32_t> starts_after;  // a token: what comes before it is free
    std::string call_name;                // the whole answer is the arguments of this tool; empty: it is not
};

// response_format, structured_outputs, guided_*, grammar and, for conversations, tools that must be used or are strict. Nothing
// when the answer is free. Throws ApiError.
[[nodiscard]] std::optional<StructuredOutput> read_structured_output(Fields& fields, const ServedModel& model,
                                                                     const ChatRequest* chat);
// Binds each of the requests, and tells how their answers are to be read.
void constrain(const std::optional<StructuredOutput>& structure, const ServedModel& model, std::vector<Request>& requests,
               AnswerFormat& format);

}  // namespace fathom
