#include "io/tokenizer_writer.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "io/tokenizer.h"

namespace fathom {
namespace {

TEST(TokenizerWriter, WritesWhatTheTokenizerReads) {
    const PreTokenizer pretokenizer(deepseek_v3_splits());
    BpeTrainer trainer(pretokenizer);
    for (int i = 0; i < 3; ++i) trainer.add("the cat and the hat sat on the mat, naïve 猫");
    const LearntMerges learnt = trainer.train(280, [](int64_t) {});
    std::vector<std::string> control = deepseek_v3_control_tokens();
    control.emplace_back("<|mine|>");
    const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "fathom_tokenizer_writer";
    write_tokenizer(folder, learnt, control);

    const Tokenizer tokenizer = Tokenizer::load(folder);
    EXPECT_EQ(tokenizer.vocab_size(), 280 + static_cast<int64_t>(control.size()));
    EXPECT_EQ(tokenizer.bos_id(), 0);
    EXPECT_EQ(tokenizer.eos_id(), 1);
    EXPECT_EQ(tokenizer.id_of("<｜▁pad▁｜>"), 2);
    EXPECT_EQ(tokenizer.id_of("!"), 3);
    EXPECT_EQ(tokenizer.id_of("<｜fim▁hole｜>"), 283);
    EXPECT_EQ(tokenizer.id_of("<|mine|>"), tokenizer.vocab_size() - 1);
    EXPECT_TRUE(tokenizer.is_special(1));
    EXPECT_FALSE(tokenizer.is_special(*tokenizer.id_of("</think>")));
    const std::string text = " the<think>cat\n\n😀 123</think><｜User｜>猫";
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    EXPECT_EQ(tokenizer.encode(" the").size(), 1u);
    const std::string once = read_text(folder / "tokenizer.json");
    write_tokenizer(folder, learnt, control);
    EXPECT_EQ(read_text(folder / "tokenizer.json"), once);
}

}  // namespace
}  // namespace fathom
