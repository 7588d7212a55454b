#include "io/tokenizer_writer.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "io/pretokenizer.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

// A Jinja form of the V3 chat format for Python tools; fathom itself uses ChatFormat.
constexpr const char* kChatTemplate =
    "{{ bos_token }}"
    "{% for m in messages if m['role'] == 'system' %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}{{ m['content'] }}{% "
    "endfor %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}";

Json added_token(int64_t id, const std::string& content) {
    // V3 flags as special what no reader of a reply should see; roles, tools and think tags are part of the text.
    const bool special = id < kLeadingControlTokens || content == "<|EOT|>";
    return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
            {"rstrip", false}, {"normalized", false}, {"special", special}};
}

Json pre_tokenizer() {
    Json steps = Json::array();
    for (const SplitStep& step : deepseek_v3_splits())
        steps.push_back(
            {{"type", "Split"}, {"pattern", {{"Regex", step.pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
    steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}});
    return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

Json model(const LearntMerges& learnt, const std::vector<std::string>& control) {
    const std::array<std::string, 256> letters = byte_letters();
    std::vector<std::string> spelled;
    for (const std::string& token : learnt.tokens) {
        std::string& letter_text = spelled.emplace_back();
        for (const char c : token) letter_text += letters[static_cast<uint8_t>(c)];
    }
    Json vocab = Json::object(), merges = Json::array();
    // Written through the underlying list: ordered_json's operator[] searches all keys for each new one.
    auto& list = vocab.get_ref<Json::object_t&>();
    for (int id = 0; id < kLeadingControlTokens; ++id) list.Container::emplace_back(control[id], id);
    for (const std::string& token : spelled) list.Container::emplace_back(token, list.size());
    for (const BpeMerge& merge : learnt.merges) merges.push_back(spelled[merge.left] + " " + spelled[merge.right]);
    return {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", merges}};
}

}  // namespace

std::vector<std::string> deepseek_v3_control_tokens() {
    return {"<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜▁pad▁｜>",
            "<｜fim▁hole｜>",
            "<｜fim▁begin｜>",
            "<｜fim▁end｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<|EOT|>",
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁outputs▁begin｜>",
            "<｜tool▁outputs▁end｜>",
            "<｜tool▁output▁begin｜>",
            "<｜tool▁output▁end｜>",
            "<｜tool▁sep｜>",
            "<think>",
            "</think>"};
}

void write_tokenizer(const std::filesystem::path& folder, const LearntMerges& learnt, const std::vector<std::string>& control) {
    check(control.size() >= kLeadingControlTokens, "write_tokenizer: BOS, EOS and padding are required");
    Json added = Json::array();
    for (size_t i = 0; i < control.size(); ++i)
        added.push_back(
            added_token(static_cast<int64_t>(i < kLeadingControlTokens ? i : learnt.tokens.size() + i), control[i]));
    const Json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
    const Json tokenizer = {{"version", "1.0"},          {"truncation", nullptr}, {"padding", nullptr},
                            {"added_tokens", added},     {"normalizer", nullptr}, {"pre_tokenizer", pre_tokenizer()},
                            {"post_processor", nullptr}, {"decoder", byte_level}, {"model", model(learnt, control)}};
    const Json config = {{"add_bos_token", false},
                         {"add_eos_token", false},
                         {"bos_token", control[0]},
                         {"eos_token", control[1]},
                         {"pad_token", control[2]},
                         {"unk_token", nullptr},
                         {"clean_up_tokenization_spaces", false},
                         {"tokenizer_class", "PreTrainedTokenizerFast"},
                         {"chat_template", kChatTemplate}};
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) throw Error(ErrorKind::kIo, folder.string() + ": cannot make this folder: " + error.message());
    write_text_atomically(folder / "tokenizer.json", tokenizer.dump(1) + "\n");
    write_text_atomically(folder / "tokenizer_config.json", config.dump(2) + "\n");
}

}  // namespace fathom
