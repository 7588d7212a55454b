// Any bytes as a tokenizer.json: an Error, or a tokenizer that encodes and decodes.
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "io/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    try {
        const fathom::Tokenizer tokenizer = fathom::Tokenizer::from_json(text);
        (void)tokenizer.decode(tokenizer.encode("the cat <｜User｜> 12345\n\n\xff 猫 "));
        (void)tokenizer.decode(tokenizer.encode(text.substr(0, 64)), true);
    } catch (const fathom::Error&) {  // a refusal
    }
    return 0;
}
