#include "base/error.h"

#include <gtest/gtest.h>

namespace fathom {
namespace {

TEST(Check, NamesTheLineOfTheCaller) {
    EXPECT_NO_THROW(check(true, "fine"));
    try {
        check(false, "rank must be 2");
        FAIL();
    } catch (const LogicError& error) {
        const std::string message = error.what();
        EXPECT_NE(message.find("error_test.cpp:"), std::string::npos) << message;
        EXPECT_NE(message.find("rank must be 2"), std::string::npos) << message;
    }
}

TEST(Error, CollectsItsContextWhileUnwinding) {
    const Error error = Error(ErrorKind::kInput, "tensor w: wrong shape").within("model.safetensors").within("models/stories");
    EXPECT_STREQ(error.what(), "models/stories: model.safetensors: tensor w: wrong shape");
    EXPECT_EQ(error.kind(), ErrorKind::kInput);
}

}  // namespace
}  // namespace fathom
