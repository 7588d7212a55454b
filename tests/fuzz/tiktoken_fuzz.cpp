// Any bytes as a tiktoken.model, and what follows a zero byte as its tokenizer_config.json.
#include <algorithm>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "io/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const size_t zero = std::min(text.find('\0'), size);
    try {
        const fathom::Tokenizer tokenizer =
            fathom::Tokenizer::from_tiktoken(text.substr(0, zero), text.substr(std::min(zero + 1, size)));
        (void)tokenizer.decode(tokenizer.encode("the cat don't [EOS] 12345\n\n\xff 猫 "));
    } catch (const fathom::Error&) {  // a refusal
    }
    return 0;
}
