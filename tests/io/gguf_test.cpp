#include "io/gguf.h"

#include <gtest/gtest.h>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/gguf_tokenizer.h"
#include "io/tokenizer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

// The header of a file, piece by piece.
class Bytes {
public:
    template <class T>
    Bytes& number(T value) {
        text_.append(reinterpret_cast<const char*>(&value), sizeof value);
        return *this;
    }
    Bytes& string(const std::string& text) {
        number<uint64_t>(text.size());
        text_ += text;
        return *this;
    }
    Bytes& begin(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
        text_ += "GGUF";
        return number(version).number(tensors).number(keys);
    }
    Bytes& tensor(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
        string(name).number(static_cast<uint32_t>(dims.size()));
        for (const uint64_t dim : dims) number(dim);
        return number(type).number(offset);
    }
    Bytes& data(size_t bytes) {
        text_.resize((text_.size() + 31) / 32 * 32 + bytes);
        return *this;
    }
    [[nodiscard]] std::span<const std::byte> span() const { return std::as_bytes(std::span(text_)); }

private:
    std::string text_;
};

std::string refusal(const Bytes& bytes) {
    try {
        const GgufView view(bytes.span());
    } catch (const Error& error) {
        return error.what();
    }
    return "accepted";
}

class GgufFiles : public ::testing::Test {
protected:
    fs::path folder_ = fs::path(::testing::TempDir()) / "fathom_gguf";
    fs::path path_ = folder_ / "model.gguf";
    void SetUp() override { fs::create_directories(folder_); }
    void TearDown() override { fs::remove_all(folder_); }
};

TEST_F(GgufFiles, WhatIsWrittenIsReadBack) {
    const std::vector<std::pair<std::string, GgufValue>> metadata{{"a.integer", int64_t{7}},
                                                                  {"a.large", int64_t{1} << 40},
                                                                  {"a.negative", int64_t{-3}},
                                                                  {"a.number", 0.5},
                                                                  {"a.flag", true},
                                                                  {"a.text", std::string("text")},
                                                                  {"a.list", std::vector<int64_t>{1, -2}},
                                                                  {"a.texts", std::vector<std::string>{"x", ""}}};
    const std::vector<GgufSpec> specs{
        {"vector", {3}, DType::kF32}, {"matrix", {2, 4}, DType::kBF16}, {"experts", {3, 2, 64}, DType::kU8, BlockType::kQ80}};
    std::vector<std::byte> content(1000);
    for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<std::byte>(i % 251);
    GgufWriter writer(path_, metadata, specs);
    for (const GgufSpec& spec : writer.order()) {  // in two parts each
        const auto bytes = static_cast<size_t>(spec.bytes());
        writer.write(std::span(content).first(bytes / 2));
        writer.write(std::span(content).subspan(bytes / 2, bytes - bytes / 2));
    }
    writer.commit();
    ASSERT_TRUE(is_gguf(path_));
    const GgufFile file(path_);
    const GgufView& view = file.view();
    EXPECT_EQ(view.integer("a.integer"), 7);
    EXPECT_EQ(view.integer("a.large"), int64_t{1} << 40);
    EXPECT_EQ(view.integer("a.negative"), -3);
    EXPECT_EQ(view.number("a.number"), 0.5);
    EXPECT_EQ(view.boolean("a.flag"), true);
    EXPECT_EQ(view.text("a.text"), "text");
    EXPECT_EQ(*view.integers("a.list"), (std::vector<int64_t>{1, -2}));
    EXPECT_EQ(*view.texts("a.texts"), (std::vector<std::string>{"x", ""}));
    EXPECT_FALSE(view.integer("b"));
    EXPECT_THROW((void)view.integer("a.text"), Error);
    for (const GgufSpec& spec : specs) {
        const GgufTensor* tensor = view.find(spec.name);
        ASSERT_NE(tensor, nullptr);
        EXPECT_EQ(tensor->shape, spec.shape);
        EXPECT_EQ(tensor->block, spec.block);
        EXPECT_EQ(tensor->bytes, spec.bytes());
        EXPECT_EQ(std::memcmp(tensor->data, content.data(), static_cast<size_t>(tensor->bytes)), 0) << spec.name;
    }
    const Weight experts = view.find("experts")->matrix();
    EXPECT_EQ(experts.out_features(), 6);
    EXPECT_EQ(experts.in_features(), 64);
}

TEST_F(GgufFiles, WithoutCommitNothingIsLeft) {
    { GgufWriter writer(path_, {}, {{"vector", {3}, DType::kF32}}); }
    EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(GgufFiles, AJobGoesOnBehindItsWholeTensorsToTheSameBytes) {
    const std::vector<std::pair<std::string, GgufValue>> metadata{{"a.text", std::string("text")}};
    const std::vector<GgufSpec> specs{
        {"a", {3}, DType::kF32}, {"b", {2, 4}, DType::kBF16}, {"c", {5}, DType::kF32}, {"d", {7}, DType::kF32}};
    const auto write_from = [&](GgufWriter& writer, size_t end) {
        for (size_t i = writer.first(); i < end; ++i)
            writer.write(std::vector<std::byte>(static_cast<size_t>(specs[i].bytes()), static_cast<std::byte>(i + 1)));
    };
    GgufWriter whole(folder_ / "whole.gguf", metadata, specs);
    write_from(whole, specs.size());
    whole.commit();
    for (const size_t end : {1U, 2U, 3U, 4U}) {  // how far the interrupted one comes; every second tensor is kept
        {
            GgufWriter writer(path_, metadata, specs, "job", 40);
            write_from(writer, end);
        }
        GgufWriter writer(path_, metadata, specs, "job", 40);
        EXPECT_EQ(writer.first(), end < 2 ? 0U : 2U) << end;
        write_from(writer, specs.size());
        writer.commit();
        EXPECT_EQ(read_text(path_), read_text(folder_ / "whole.gguf")) << end;
    }
    {
        GgufWriter writer(path_, metadata, specs, "job", 1);
        write_from(writer, 2);
    }
    EXPECT_EQ(GgufWriter(path_, metadata, specs, "another job", 1).first(), 0U);
}

TEST(Gguf, DefectsAreRefusedByName) {
    EXPECT_NE(refusal(Bytes().number<uint32_t>(1)).find("does not begin with GGUF"), std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(0, 0, 1)).find("version 1"), std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(uint64_t{1} << 60, 0)).find("more than the file can hold"), std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(0, 1).string("k").number<uint32_t>(77).number<uint32_t>(0)).find("key k"),
              std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(0, 1).string("k").number<uint32_t>(9).number<uint32_t>(9).number<uint64_t>(1))
                  .find("an array of arrays"),
              std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(0, 1).string("k").number<uint32_t>(9).number<uint32_t>(4).number(uint64_t{1} << 62))
                  .find("key k"),
              std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(0, 1).string("k").number<uint32_t>(8).number(~uint64_t{0})).find("a text of"),
              std::string::npos);
    const auto twice = [](const char* key) {
        return [=](Bytes& b) -> Bytes& { return b.string(key).number<uint32_t>(4).number<uint32_t>(1); };
    };
    Bytes repeated;
    repeated.begin(0, 2);
    twice("k")(repeated);
    EXPECT_NE(refusal(twice("k")(repeated)).find("key k: there twice"), std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(1, 0).tensor("t", {4}, 16, 0).data(64)).find("tensor t: its type IQ2_XXS"),
              std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(1, 0).tensor("t", {4}, 99, 0).data(64)).find("number 99"), std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(1, 0).tensor("t", {}, 0, 0).data(64)).find("0 dimensions"), std::string::npos);
    EXPECT_NE(
        refusal(Bytes().begin(1, 0).tensor("t", {uint64_t{1} << 40, uint64_t{1} << 40}, 0, 0).data(64)).find("impossible"),
        std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(1, 0).tensor("t", {33}, 8, 0).data(64)).find("cannot be Q8_0 blocks"), std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(1, 0).tensor("t", {4}, 0, 32).data(40)).find("truncated"), std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(1, 0).tensor("t", {4}, 0, 8).data(64)).find("not a multiple of 32"), std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(2, 0).tensor("t", {16}, 0, 0).tensor("u", {4}, 0, 32).data(96)).find("overlaps t"),
              std::string::npos);
    EXPECT_NE(refusal(Bytes().begin(2, 0).tensor("t", {4}, 0, 0).tensor("t", {4}, 0, 32).data(96)).find("there twice"),
              std::string::npos);
    EXPECT_EQ(refusal(Bytes().begin(2, 0).tensor("t", {4}, 0, 0).tensor("u", {4}, 0, 32).data(96)), "accepted");
}

TEST(Gguf, EveryTruncationIsRefused) {
    Bytes bytes;
    bytes.begin(1, 1).string("general.alignment").number<uint32_t>(4).number<uint32_t>(64).tensor("t", {4}, 0, 0).data(64);
    const auto whole = bytes.span();
    ASSERT_NO_THROW(GgufView{whole});
    for (size_t length = 0; length + 33 < whole.size(); ++length) EXPECT_THROW(GgufView{whole.first(length)}, Error) << length;
}

TEST_F(GgufFiles, ATokenizerSurvivesTheWayThere) {
    const fs::path stories = fs::path(FATHOM_SOURCE) / "models/stories";
    const Tokenizer before = Tokenizer::load(stories);
    GgufWriter(path_, gguf_tokenizer_metadata(stories, before.vocab_size()), {}).commit();
    const GgufFile file(path_);
    EXPECT_EQ(file.view().text("tokenizer.ggml.pre"), "deepseek-v3");
    const TokenizerFiles files = tokenizer_files_of_gguf(file.view());
    const Tokenizer after = Tokenizer::from_json(files.tokenizer_json, files.tokenizer_config);
    for (const char* text :
         {"Once upon a time, there were 1234 grey mice.\n\n\tThey said: \"naïve — 你好\"", "<｜User｜>hi<think>", ""})
        EXPECT_EQ(after.encode(text), before.encode(text)) << text;
    EXPECT_EQ(after.bos_id(), before.bos_id());
    EXPECT_EQ(after.eos_id(), before.eos_id());
    EXPECT_EQ(after.vocab_size(), before.vocab_size());
    EXPECT_THROW((void)gguf_tokenizer_metadata(stories, before.vocab_size() - 1), Error);
}

}  // namespace
}  // namespace fathom
