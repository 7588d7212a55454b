// Any bytes as what a client sends, cut into pieces as the first byte says: requests, a refusal, or the wait for more.
#include <algorithm>
#include <cstdint>
#include <string>

#include "base/error.h"
#include "serve/http.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const size_t piece = static_cast<size_t>(data[0]) + 1;
    fathom::HttpLimits limits;
    limits.header_bytes = 512;
    limits.body_bytes = 1024;
    fathom::HttpParser parser(limits);
    std::string received;
    for (size_t at = 1; at < size; at += piece) {
        received.append(reinterpret_cast<const char*>(data) + at, std::min(piece, size - at));
        auto state = parser.feed(received);
        while (state == fathom::HttpParser::State::kDone) {
            const fathom::HttpRequest request = parser.take();
            fathom::check(request.body.size() <= 1024, "a body keeps its limit");
            parser = fathom::HttpParser(limits);
            state = parser.feed(received);
        }
        if (state == fathom::HttpParser::State::kFailed) {
            fathom::check(parser.error_status() >= 400 && !parser.error().empty(), "a refusal says why");
            return 0;
        }
    }
    return 0;
}
