#include <gtest/gtest.h>

#include "serve/http.h"

namespace fathom {
namespace {

constexpr const char* kPost = "POST /v1/chat%20x?a=1 HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\nX-Api-Key: k\r\n\r\nhello";

TEST(HttpParser, GivesTheSameRequestHoweverTheBytesAreCut) {
    for (const size_t size : {1, 2, 7, 1000}) {
        HttpParser parser{HttpLimits{}};
        std::string data;
        auto state = HttpParser::State::kMore;
        const std::string_view all = kPost;
        for (size_t at = 0; at < all.size(); at += size) {
            ASSERT_EQ(state, HttpParser::State::kMore);
            data += all.substr(at, size);
            state = parser.feed(data);
        }
        ASSERT_EQ(state, HttpParser::State::kDone);
        const HttpRequest request = parser.take();
        EXPECT_EQ(request.method, "POST");
        EXPECT_EQ(request.path, "/v1/chat x");
        EXPECT_EQ(request.query, "a=1");
        EXPECT_EQ(request.body, "hello");
        EXPECT_EQ(request.header("x-api-key"), "k");
        EXPECT_EQ(request.header("absent"), "");
        EXPECT_TRUE(request.keep_alive);
    }
}

TEST(HttpParser, LeavesTheNextRequestAlone) {
    HttpParser parser{HttpLimits{}};
    std::string data = std::string("GET / HTTP/1.1\r\nHost: a\r\n\r\n") + kPost;
    ASSERT_EQ(parser.feed(data), HttpParser::State::kDone);
    EXPECT_EQ(data, kPost);
}

TEST(HttpParser, ChunkedBodiesAreJoined) {
    HttpParser parser{HttpLimits{}};
    std::string data = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    ASSERT_EQ(parser.feed(data), HttpParser::State::kDone);
    EXPECT_EQ(parser.take().body, "abcde");
}

// Found by fuzzing: the parser of Boost 1.81 asserts that more than the last chunk's "0" stands there when it looks again.
TEST(HttpParser, TheLastChunkMayComeByteByByte) {
    HttpParser parser{HttpLimits{}};
    std::string data = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
    ASSERT_EQ(parser.feed(data), HttpParser::State::kMore);
    data += "\r";
    ASSERT_EQ(parser.feed(data), HttpParser::State::kMore);
    data += "\n";
    ASSERT_EQ(parser.feed(data), HttpParser::State::kDone);
    EXPECT_EQ(parser.take().body, "");
}

int refusal(std::string data, const HttpLimits& limits) {
    HttpParser parser(limits);
    return parser.feed(data) == HttpParser::State::kFailed ? parser.error_status() : 0;
}

TEST(HttpParser, LimitsAndNonsenseHaveTheirStatus) {
    HttpLimits limits;
    limits.header_bytes = 200;
    limits.body_bytes = 10;
    EXPECT_EQ(refusal("GET / HTTP/1.1\r\nX: " + std::string(300, 'x') + "\r\n\r\n", limits), 431);
    EXPECT_EQ(refusal("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", limits), 413);
    EXPECT_EQ(refusal("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n" + std::string(255, 'x'), limits),
              413);
    EXPECT_EQ(refusal("hello\r\n\r\n", limits), 400);
    EXPECT_EQ(refusal("GET / HTTP/9.9\r\n\r\n", limits), 400);
    EXPECT_EQ(refusal("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", limits), 400);
    EXPECT_EQ(refusal("POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", limits), 400);
    EXPECT_EQ(refusal(std::string("\0\0\0\0\r\n\r\n", 8), limits), 400);
}

TEST(PercentDecode, GivesNothingForBrokenText) {
    EXPECT_EQ(percent_decode("a%2Fb%e4"), "a/b\xE4");
    EXPECT_EQ(percent_decode("%2"), "");
    EXPECT_EQ(percent_decode("%zz"), "");
}

}  // namespace
}  // namespace fathom
