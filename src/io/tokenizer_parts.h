// What a tokenizer is made of, whichever file it came from.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/bpe.h"
#include "io/pretokenizer.h"

namespace fathom {

// A token found in the raw text, before any other rule; the flags are tokenizer.json's.
struct AddedToken {
    int32_t id;
    std::string content;
    bool special = false;      // left out by skip_special
    bool normalized = false;   // looked for after the others, in what they leave
    bool lstrip = false;       // takes the spaces before it too
    bool rstrip = false;       // and behind it
    bool single_word = false;  // only where no word character touches it
};

struct TokenizerParts {
    std::vector<Vocabulary::Entry> vocabulary;
    std::vector<BpeMerge> merges;
    BpeOptions bpe;
    std::vector<SplitStep> splits;
    std::vector<AddedToken> added;
    std::vector<std::pair<std::string, std::string>> replacements;  // text normalisation: from, to
    std::string prefix;                                             // put before every text that is not empty
    std::vector<std::pair<std::string, std::string>> decoded;       // the same back, for vocabularies of characters
    std::string bos, eos;                                           // by name; empty = look for a well-known name
    std::vector<int32_t> stop_ids;                                  // what generation_config.json calls EOS
    int32_t bos_id = -1;                                            // from generation_config.json
};

// tokenizer.json -> parts. Throws Error{kInput}.
[[nodiscard]] TokenizerParts parse_tokenizer_json(std::string_view text);

// tokenizer_config.json: names BOS and EOS. generation_config.json: the ids that end a reply. Throw Error{kInput}.
void read_tokenizer_config(std::string_view text, TokenizerParts& parts);
void read_generation_config(std::string_view text, TokenizerParts& parts);

}  // namespace fathom
