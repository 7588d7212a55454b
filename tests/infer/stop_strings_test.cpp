#include "infer/stop_strings.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace fathom {
namespace {

// The text cut into pieces of `size` bytes.
std::string through(StopStrings stops, const std::string& text, size_t size) {
    std::string passed;
    for (size_t at = 0; at < text.size() && !stops.found(); at += size) passed += stops.push(text.substr(at, size));
    return passed + stops.finish();
}

TEST(StopStrings, TextBeforeTheFirstOneComesThroughHoweverItIsCut) {
    for (size_t size = 1; size < 12; ++size) {
        EXPECT_EQ(through(StopStrings({"END", "\n\n"}), "one ENE two\nthree\n\nfour END", size), "one ENE two\nthree");
        EXPECT_EQ(through(StopStrings({"aab"}), "aaab", size), "a");
        EXPECT_EQ(through(StopStrings({"zzz"}), "no such thing zz", size), "no such thing zz");
    }
}

TEST(StopStrings, TheEarliestOneCounts) {
    StopStrings stops({"late", "soon"});
    EXPECT_EQ(stops.push("a soon b late"), "a ");
    EXPECT_TRUE(stops.found());
    EXPECT_EQ(stops.push("more"), "");
    EXPECT_EQ(stops.finish(), "");
}

TEST(StopStrings, ABeginningIsHeldBackUntilItIsClear) {
    StopStrings stops({"<end>"});
    EXPECT_EQ(stops.push("text <e"), "text ");
    EXPECT_EQ(stops.push("arth>"), "<earth>");
    EXPECT_EQ(stops.push("<en"), "");
    EXPECT_FALSE(stops.found());
    EXPECT_EQ(stops.finish(), "<en");
}

TEST(StopStrings, NoneAndEmptyOnesLetEverythingThrough) {
    EXPECT_EQ(through(StopStrings({}), "anything", 3), "anything");
    EXPECT_EQ(through(StopStrings({""}), "anything", 3), "anything");
}

}  // namespace
}  // namespace fathom
