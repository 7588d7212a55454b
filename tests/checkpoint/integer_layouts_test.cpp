// The integer layouts of Hugging Face's quantizers, against tools/make_integer_vectors.py.
#include "checkpoint/integer_layouts.h"

#include <gtest/gtest.h>
#include <cstring>

#include "base/error.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

struct Case {
    IntegerLayout layout = IntegerLayout::kPackQuantized;
    int bits = 4;
    bool zeros = false;
    Tensor numbers;  // [rows, columns] f32
};

class IntegerLayouts : public ::testing::Test {
protected:
    SafetensorsFile file_{FATHOM_TEST_DATA "/integers/vectors.safetensors"};
    Arena arena_{"unpacked", Buffer::host, 1 << 16};
    std::set<std::string> used_;

    [[nodiscard]] static std::string name_of_case(int i) { return "case" + std::to_string(i); }
    [[nodiscard]] std::optional<Case> at(int i) const {
        const auto numbers = file_.find(name_of_case(i) + ".numbers");
        if (!numbers) return std::nullopt;
        constexpr IntegerLayout kLayouts[] = {IntegerLayout::kPackQuantized, IntegerLayout::kIntQuantized,
                                              IntegerLayout::kGptq,          IntegerLayout::kGptqV2,
                                              IntegerLayout::kAwq,           IntegerLayout::kMxfp4};
        const auto* said = file_.find(name_of_case(i) + ".layout")->as<const uint8_t>();
        return Case{kLayouts[said[0]], said[1], said[3] != 0, *numbers};
    }
    std::optional<Weight> read(int i, const Case& c, const FindTensor& find) {
        return read_integers(c.layout, find, name_of_case(i) + ".weight", c.numbers.dim(0), c.numbers.dim(1), arena_, used_);
    }
    [[nodiscard]] FindTensor find() const {
        return [this](const std::string& name) { return file_.find(name); };
    }
    // What reading says when `change` has been at the tensors.
    std::string complaint(int i, const std::function<void(const std::string& name, Tensor& tensor)>& change) {
        const FindTensor changed = [&](const std::string& name) {
            std::optional<Tensor> found = file_.find(name);
            if (found) change(name, *found);
            return found && found->defined() ? found : std::nullopt;
        };
        try {
            (void)read(i, *at(i), changed);
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    }
};

TEST_F(IntegerLayouts, DecodeToTheNumbersOfTheirDescriptions) {
    int cases = 0;
    for (; at(cases); ++cases) {
        const Case c = *at(cases);
        const auto w = read(cases, c, find());
        ASSERT_TRUE(w) << cases;
        std::vector<float> row(static_cast<size_t>(c.numbers.dim(1)));
        for (int64_t i = 0; i < c.numbers.dim(0); ++i) {
            decode_row(row.data(), *w, i);
            ASSERT_EQ(std::memcmp(row.data(), c.numbers.as<float>() + i * c.numbers.dim(1), 4 * row.size()), 0)
                << "case " << cases << " row " << i;
        }
    }
    EXPECT_EQ(cases, 14);
}

TEST_F(IntegerLayouts, ArePackedToTheTensorsTheyWereReadFrom) {
    int packed = 0;
    for (int i = 0; at(i); ++i) {
        const Weight w = *read(i, *at(i), find());
        if (w.scheme == Scheme::kPlain) continue;  // columns in disorder, 8 bits with zero points
        for (const PackedTensor& part : pack_integers(at(i)->layout, name_of_case(i) + ".weight", w)) {
            const auto expected = file_.find(part.spec.name);
            ASSERT_TRUE(expected) << part.spec.name;
            EXPECT_EQ(part.tensor().describe(), expected->describe()) << part.spec.name;
            EXPECT_EQ(std::memcmp(part.data.data(), expected->data, static_cast<size_t>(expected->bytes())), 0)
                << part.spec.name;
        }
        ++packed;
    }
    EXPECT_EQ(packed, 12);
}

TEST_F(IntegerLayouts, TheirScalesMayBeStoredInAnyFloat) {
    for (const int i : {0, 6, 11}) {
        const Weight w = *read(i, *at(i), find());
        EXPECT_EQ(w.scales.dtype, i == 0 ? DType::kBF16 : DType::kF16);
        EXPECT_EQ(group_format(w).group_size, 32);
    }
}

TEST_F(IntegerLayouts, OtherMatricesAreNotTheirs) {
    EXPECT_FALSE(read_integers(IntegerLayout::kGptq, find(), "case0.weight", 24, 96, arena_, used_));
    EXPECT_FALSE(read_integers(IntegerLayout::kPackQuantized, find(), "case6.weight", 24, 96, arena_, used_));
    EXPECT_FALSE(read_integers(IntegerLayout::kAwq, find(), "nothing.weight", 24, 96, arena_, used_));
    EXPECT_TRUE(used_.empty());
}

TEST_F(IntegerLayouts, WhatDoesNotFitIsNamed) {
    const auto without = [&](int i, const std::string& tensor) {
        return complaint(i, [&](const std::string& name, Tensor& t) {
            if (name == tensor) t = {};
        });
    };
    EXPECT_EQ(without(0, "case0.weight_scale"), "missing case0.weight_scale");
    EXPECT_EQ(without(6, "case6.qzeros"), "missing case6.qzeros");
    const auto retyped = [&](int i, const std::string& tensor, DType dtype, std::initializer_list<int64_t> shape) {
        return complaint(i, [&](const std::string& name, Tensor& t) {
            if (name == tensor) t = Tensor(t.data, dtype, shape);
        });
    };
    for (const auto& [i, tensor] : {std::pair(0, "case0.weight_packed"),
                                    {0, "case0.weight_scale"},
                                    {1, "case1.weight_zero_point"},
                                    {5, "case5.weight_scale"},
                                    {6, "case6.qweight"},
                                    {6, "case6.scales"},
                                    {6, "case6.g_idx"},
                                    {11, "case11.qweight"},
                                    {11, "case11.qzeros"},
                                    {13, "case13.weight_packed"},
                                    {13, "case13.weight_scale"}}) {
        EXPECT_NE(retyped(i, tensor, DType::kI32, {3, 5}).find(tensor), std::string::npos) << tensor;
        EXPECT_NE(retyped(i, tensor, DType::kI32, {7}).find(tensor), std::string::npos) << tensor;
        EXPECT_NE(retyped(i, tensor, DType::kU8, {4, 4}).find(tensor), std::string::npos) << tensor;
    }
    std::vector<int32_t> order(96, 3);
    const std::string message = complaint(6, [&](const std::string& name, Tensor& t) {
        if (name == "case6.g_idx") t.data = order.data();
    });
    EXPECT_EQ(message, "case6.g_idx puts column 0 into group 3 of 3");
    std::vector<uint8_t> scales(72, 127);
    scales[40] = 255;
    EXPECT_EQ(complaint(13,
                        [&](const std::string& name, Tensor& t) {
                            if (name == "case13.weight_scale") t.data = scales.data();
                        }),
              "case13.weight_scale holds NaN (the byte 255)");
    std::vector<int64_t> shape{24, 95};
    EXPECT_NE(complaint(0,
                        [&](const std::string& name, Tensor& t) {
                            if (name == "case0.weight_shape") t.data = shape.data();
                        })
                  .find("says [24, 95], the config asks for [24, 96]"),
              std::string::npos);
}

}  // namespace
}  // namespace fathom
