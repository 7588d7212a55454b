// Any text as a grammar, of the kind that its first byte says: an Error, or an automaton that can be walked.
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "serve/fields.h"
#include "serve/grammar_text.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0 || size > 4096) return 0;
    const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        fathom::Grammar grammar;
        if (data[0] % 3 == 0) grammar = {fathom::parse_regex(text)};
        if (data[0] % 3 == 1) grammar = fathom::parse_gbnf(text);
        if (data[0] % 3 == 2) grammar = fathom::parse_json_schema(fathom::parse_body(text));
        fathom::GrammarAutomaton automaton(grammar);
        // Always the first byte that may come: a way that ends, or goes on, but never breaks.
        int32_t state = automaton.start();
        for (int step = 0; step < 64 && state != fathom::GrammarAutomaton::kDead; ++step) {
            int32_t next = fathom::GrammarAutomaton::kDead;
            for (int byte = 0; byte < 256 && next == fathom::GrammarAutomaton::kDead; ++byte) {
                next = automaton.step(state, static_cast<uint8_t>(byte));
            }
            if (next == fathom::GrammarAutomaton::kDead) break;
            state = next;
        }
    } catch (const fathom::Error&) {     // a refusal
    } catch (const fathom::ApiError&) {  // no JSON
    }
    return 0;
}
