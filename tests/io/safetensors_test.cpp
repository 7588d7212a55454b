#include "io/safetensors.h"

#include <gtest/gtest.h>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/file.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

const fs::path kEveryDtype = fs::path(FATHOM_TEST_DATA) / "safetensors" / "every_dtype.safetensors";

// A file with this header and `data_bytes` zero bytes after it.
std::string file_of(std::string header, size_t data_bytes) {
    std::string file(8, '\0');
    const uint64_t length = header.size();
    std::memcpy(file.data(), &length, 8);
    return file + header + std::string(data_bytes, '\0');
}

SafetensorsView view_of(std::string_view file) { return SafetensorsView(std::as_bytes(std::span(file))); }

// What the reader says; empty when it accepts the file.
std::string complaint(std::string_view file) {
    try {
        (void)view_of(file);
        return "";
    } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::kInput);
        return e.what();
    }
}

TEST(Safetensors, TheOfficialWritersFileIsReadInDataOrder) {
    const SafetensorsFile file(kEveryDtype);
    std::vector<std::string> names, shapes;
    for (const NamedTensor& t : file.tensors()) {
        names.push_back(t.name);
        shapes.push_back(t.tensor.describe());
        EXPECT_TRUE(t.tensor.contiguous());
        EXPECT_EQ(reinterpret_cast<uintptr_t>(t.tensor.data) % static_cast<uintptr_t>(size_of(t.tensor.dtype)), 0u) << t.name;
    }
    EXPECT_EQ(names, (std::vector<std::string>{"i64", "f64", "f32", "naïve \"name\"", "i32", "bf16", "f16", "i16", "f8", "i8",
                                               "u8", "bool"}));
    EXPECT_EQ(shapes, (std::vector<std::string>{"I64[]", "F64[2]", "F32[2, 3]", "F32[1]", "I32[0, 4]", "BF16[3]",
                                                "F16[1, 2, 1, 3]", "I16[3]", "F8_E4M3[5]", "I8[7]", "U8[2]", "BOOL[3]"}));
    EXPECT_EQ(file.metadata(), (SafetensorsMetadata{{"format", "pt"}}));
    EXPECT_EQ(file.find("bool")->as<uint8_t>()[2], 1);
    EXPECT_EQ(file.find("i64")->size(), 1);
    EXPECT_FALSE(file.find("absent"));
}

TEST(Safetensors, MovingAFileKeepsItsTensors) {
    SafetensorsFile file(kEveryDtype);
    const void* data = file.find("bool")->data;
    std::vector<SafetensorsFile> files;
    files.push_back(std::move(file));
    files.reserve(100);
    EXPECT_EQ(files[0].find("bool")->data, data);
    EXPECT_EQ(files[0].find("bool")->as<uint8_t>()[0], 1);
}

TEST(Safetensors, EveryTruncationIsRefused) {
    const std::string whole = read_text(kEveryDtype);
    EXPECT_EQ(complaint(whole), "");
    for (size_t size = 0; size < whole.size(); ++size) EXPECT_NE(complaint(whole.substr(0, size)), "") << size;
    EXPECT_NE(complaint(whole.substr(0, whole.size() - 1)).find("truncated"), std::string::npos);
    EXPECT_NE(complaint(whole + "x").find("1 bytes at the end belong to no tensor"), std::string::npos);
}

TEST(Safetensors, FlippedHeaderBytesNeverCrash) {
    const std::string whole = read_text(kEveryDtype);
    uint64_t header = 0;
    std::memcpy(&header, whole.data(), 8);
    size_t refused = 0;
    for (size_t at = 0; at < 8 + header; ++at) {
        for (const int flip : {1, 0x20, 0x80}) {
            std::string broken = whole;
            broken[at] = static_cast<char>(broken[at] ^ flip);
            refused += complaint(broken).empty() ? 0 : 1;
        }
    }
    EXPECT_GT(refused, header) << "most flips break JSON, a dtype, a size or an offset; the others rename something";
}

TEST(Safetensors, EveryDefectOfTheHeaderIsNamed) {
    const std::string good = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
    const std::tuple<std::string, size_t, const char*> cases[] = {
        {"", 0, "not valid JSON"},
        {"[]", 0, "not a JSON object"},
        {"{" + good + "} x", 8, "not valid JSON"},
        {"{" + good + "," + good + "}", 8, "tensor a: listed twice"},
        {R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, "repeats the key dtype"},
        {R"({"a":3})", 0, "tensor a: its description is not an object"},
        {R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8, "tensor a: it has no dtype"},
        {R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8, "tensor a: it has no shape"},
        {R"({"a":{"dtype":"F32","shape":[2]}})", 8, "tensor a: it has no data_offsets"},
        {R"({"a":{"dtype":4,"shape":[2],"data_offsets":[0,8]}})", 8, "tensor a: its dtype is not a string"},
        {R"({"a":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[0,2]}})", 2, "dtype F8_E8M0 is not supported"},
        {R"({"a":{"dtype":"DUAL","shape":[1],"data_offsets":[0,16]}})", 16, "dtype DUAL is not supported"},
        {R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", 8, "tensor a: its shape is not a list"},
        {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, "tensor a: its shape is not a list of sizes"},
        {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8, "tensor a: its shape is not a list of sizes"},
        {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})", 8, "not a list of sizes"},
        {R"({"a":{"dtype":"U8","shape":[1,1,1,1,1],"data_offsets":[0,1]}})", 1, "5 dimensions, but at most 4"},
        {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", 8, "absurdly large"},
        {R"({"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})", 0, "absurdly large"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "do not hold the 8 bytes of F32[2]"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, "do not hold the 8 bytes"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8, "data_offsets are not two byte positions"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", 8, "data_offsets are not two byte positions"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12, "4 bytes before its data belong to no tensor"},
        {"{" + good + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12, "tensor b: its data overlaps"},
        {"{" + good + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, "overlaps"},
        {"{" + good + "}", 4, "tensor a: it ends at byte 8 of data, but the file holds only 4"},
        {R"({"__metadata__":7})", 0, "__metadata__ is not an object"},
        {R"({"__metadata__":{"format":7}})", 0, "__metadata__.format is not a string"},
        {std::string(1000, '['), 0, "nested too deeply"},
    };
    for (const auto& [header, data_bytes, expected] : cases)
        EXPECT_NE(complaint(file_of(header, data_bytes)).find(expected), std::string::npos)
            << header << "\n  says: " << complaint(file_of(header, data_bytes));
    std::string huge = file_of("{}", 0);
    huge[7] = 0x7f;
    EXPECT_NE(complaint(huge).find("this is no safetensors file"), std::string::npos);
    EXPECT_EQ(complaint(file_of("{" + good + "}", 8)), "");
    EXPECT_EQ(complaint(file_of("{}", 0)), "");
}

TEST(Safetensors, AHeaderOfManyTensorsIsReadInLinearTime) {
    std::string header;  // as many as a model of 671 B parameters has; a quadratic reader takes minutes
    for (int i = 0; i < 100'000; ++i)
        header += (i == 0 ? "{" : ",") + ("\"t" + std::to_string(i)) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
    EXPECT_EQ(view_of(file_of(header + "}", 0)).tensors().size(), 100'000u);
}

TEST(Safetensors, MisalignedTensorsAreCopiedIntoAlignment) {
    std::string file = file_of(
        R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F64","shape":[2],"data_offsets":[1,17]}})", 17);
    const double values[] = {1.5, -2.25};
    std::memcpy(file.data() + file.size() - 16, values, 16);
    const SafetensorsView view = view_of(file);
    const Tensor b = *view.find("b");
    ASSERT_EQ(reinterpret_cast<uintptr_t>(b.data) % 8, 0u);
    EXPECT_EQ(b.as<double>()[0], 1.5);
    EXPECT_EQ(b.as<double>()[1], -2.25);
}

TEST(Safetensors, ErrorsNameTheFile) {
    const fs::path path = fs::path(testing::TempDir()) / "broken.safetensors";
    write_text_atomically(path, "short");
    try {
        (void)SafetensorsFile(path);
        FAIL();
    } catch (const Error& e) {
        EXPECT_EQ(std::string(e.what()).find(path.string() + ": 5 bytes are too few"), 0u) << e.what();
    }
    fs::remove(path);
    EXPECT_THROW((void)SafetensorsFile("/nowhere/model.safetensors"), Error);
}

template <class Code, class Float>
void expect_exactly_the_nan_codes_found(DType type) {
    for (int64_t code = 0; code <= std::numeric_limits<Code>::max(); ++code) {
        std::array<Code, 5> data{};
        data[3] = static_cast<Code>(code);
        Float value;
        value.bits = static_cast<Code>(code);
        const auto f = static_cast<float>(value);
        ASSERT_EQ(any_nan(Tensor(data.data(), type, {5})), f != f) << code;
    }
}

TEST(AnyNan, FindsExactlyTheNanCodesOfEveryFormat) {
    expect_exactly_the_nan_codes_found<uint16_t, BFloat16>(DType::kBF16);
    expect_exactly_the_nan_codes_found<uint16_t, Float16>(DType::kF16);
    expect_exactly_the_nan_codes_found<uint8_t, Float8E4M3>(DType::kF8E4M3);
    using Limits = std::numeric_limits<float>;
    for (const float f : {0.0f, -0.0f, 1.0f, Limits::max(), Limits::lowest(), Limits::denorm_min(), Limits::infinity(),
                          -Limits::infinity(), Limits::quiet_NaN(), -Limits::quiet_NaN(), Limits::signaling_NaN()}) {
        float data[] = {1, f, 1};
        EXPECT_EQ(any_nan(Tensor(data, DType::kF32, {3})), f != f) << f;
        double wide[] = {1, f, 1};
        EXPECT_EQ(any_nan(Tensor(wide, DType::kF64, {3})), f != f) << f;
    }
}

TEST(AnyNan, LooksAtEveryPosition) {
    const Buffer memory = Buffer::host(3'000'005 * 2);
    const Tensor tensor(memory.data(), DType::kBF16, {3'000'005});
    EXPECT_FALSE(any_nan(tensor));
    for (const int64_t at : {int64_t{0}, int64_t{524'287}, int64_t{524'288}, int64_t{3'000'001}, int64_t{3'000'004}}) {
        tensor.as<uint16_t>()[at] = 0xffff;
        EXPECT_TRUE(any_nan(tensor)) << at;
        tensor.as<uint16_t>()[at] = 0;
    }
}

TEST(AnyNan, IntegersHaveNone) {
    std::array<int32_t, 2> data{-1, 0x7fffffff};
    EXPECT_FALSE(any_nan(Tensor(data.data(), DType::kI32, {2})));
    EXPECT_FALSE(any_nan(Tensor(nullptr, DType::kF32, {0, 4})));
}

}  // namespace
}  // namespace fathom
