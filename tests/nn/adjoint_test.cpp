#include "nn/adjoint.h"

#include <gtest/gtest-spi.h>

#include "nn/linear.h"

namespace fathom {
namespace {

// y = RMSNorm(x) W^T + b with a gradient of x that is `error` times too large.
template <class Side>
void norm_and_linear(Side& side, double error) {
    RmsNorm norm(5, 1e-6);
    Linear layer(3, 5, true);
    side.bind(norm);
    side.bind(layer);
    const Tensor x = side.input({7, 5});
    const Tensor z = rms_norm(side.cx, x, norm, true);
    const Tensor dy = side.output(linear(side.cx, z, layer));
    const Tensor dx = rms_norm_backward(side.cx, linear_backward(side.cx, dy, z, layer), x, norm);
    const Tensor wrong = side.cx.empty({7, 5});
    side.cx.ops.fill(wrong, error);
    side.cx.ops.add(wrong, wrong, dx);
    side.gradient(x, wrong);
}

TEST(Adjoint, AcceptsRightGradients) {
    expect_adjoint([](auto& side) { norm_and_linear(side, 0); });
}

TEST(Adjoint, NamesTheTensorWhoseGradientIsWrong) {
    testing::TestPartResultArray failures;
    {
        testing::ScopedFakeTestPartResultReporter reporter(&failures);
        expect_adjoint([](auto& side) { norm_and_linear(side, 1e-9); });
    }
    ASSERT_EQ(failures.size(), 2);
    EXPECT_NE(std::string(failures.GetTestPartResult(1).message()).find("wrong along input 3"), std::string::npos)
        << failures.GetTestPartResult(1).message();
}

}  // namespace
}  // namespace fathom
