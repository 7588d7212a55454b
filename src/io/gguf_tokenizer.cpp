// Tokens, merges and the name of the split patterns are all that GGUF keeps; the patterns themselves stand in llama.cpp's code
// and here (from the reference pretokenizers.json).
#include "io/gguf_tokenizer.h"

#include <fmt/format.h>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "io/pretokenizer.h"
#include "io/tiktoken.h"
#include "io/tokenizer_parts.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

enum TokenType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5 };

[[noreturn]] void fail(std::string sentence) { throw Error(ErrorKind::kInput, std::move(sentence)); }

std::vector<SplitStep> isolated(std::initializer_list<const char*> patterns) {
    std::vector<SplitStep> steps;
    for (const char* pattern : patterns) steps.push_back({pattern});
    return steps;
}

struct NamedSplits {
    std::string_view name;
    std::vector<SplitStep> splits;
};

std::vector<NamedSplits> known_splits() {
    return {
        {"deepseek-v3", deepseek_v3_splits()},
        {"kimi-k2", kimi_splits()},
        {"deepseek-llm",
         isolated(
             {R"([\r\n])",
              R"(\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ)"
              R"(ἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛ)"
              R"(Ꜣ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+)",
              R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)", R"(\s+$)", R"([一-龥ࠀ-一가-퟿]+)", R"(\p{N}+)"})},
        {"deepseek-coder", isolated({R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", R"([一-龥ࠀ-一가-퟿]+)", R"(\p{N})"})},
        {"gpt-2", {byte_level_split()}},
    };
}

const std::vector<std::string>& tokens_of(const GgufView& file) {
    const auto* tokens = file.texts("tokenizer.ggml.tokens");
    if (tokens == nullptr || tokens->empty()) fail("no tokenizer in the file (key tokenizer.ggml.tokens)");
    if (const auto model = file.text("tokenizer.ggml.model").value_or("none"); model != "gpt2")
        fail(fmt::format("its tokenizer is of the kind {}; byte-level BPE (gpt2) is supported", model));
    return *tokens;
}

Json pre_tokenizer(const GgufView& file) {
    const std::string name = file.text("tokenizer.ggml.pre").value_or("gpt-2");
    const auto known = known_splits();
    const auto found = std::ranges::find(known, name, &NamedSplits::name);
    if (found == known.end()) fail(fmt::format("key tokenizer.ggml.pre: split patterns called {} are not known", name));
    Json steps = Json::array();
    for (const SplitStep& step : found->splits)
        steps.push_back(
            {{"type", "Split"}, {"pattern", {{"Regex", step.pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
    steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}});
    return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

// What GGUF calls the patterns of a tokenizer.
std::string name_of_splits(const std::vector<SplitStep>& splits) {
    for (const NamedSplits& known : known_splits())
        if (known.splits == splits) return std::string(known.name);
    // DeepSeek's V1 and V2 files spell the same splits in more steps (digits one by one, line breaks first).
    for (const SplitStep& step : splits) {
        if (step.pattern.find("µÀ-ÖØ-öø-ƺ") != std::string::npos) return "deepseek-llm";
        if (step.pattern == "\\s?\\p{L}+") return "deepseek-coder";
    }
    fail("GGUF has no name for this tokenizer's split patterns (it has some for DeepSeek's, Kimi's and GPT-2's)");
}

TokenizerParts parts_of_folder(const std::filesystem::path& folder) {
    const auto text = [&](const char* name) {
        return std::filesystem::exists(folder / name) ? read_text(folder / name) : std::string();
    };
    const std::string config = text("tokenizer_config.json");
    if (std::filesystem::exists(folder / "tokenizer.json")) {
        TokenizerParts parts = parse_tokenizer_json(text("tokenizer.json"));
        if (!config.empty()) read_tokenizer_config(config, parts);
        return parts;
    }
    if (!std::filesystem::exists(folder / "tiktoken.model"))
        fail(folder.string() + ": no tokenizer.json or tiktoken.model there to put into the GGUF file");
    return parse_tiktoken(text("tiktoken.model"), config);
}

// The tokens by id, in the spelling of byte-level vocabularies.
struct TokenList {
    std::vector<std::string> tokens;
    std::vector<int64_t> types;

    TokenList(const TokenizerParts& parts, int64_t size) : types(static_cast<size_t>(size), kUnused) {
        for (int64_t id = 0; id < size; ++id) tokens.push_back(fmt::format("[PAD{}]", id));
        const std::array<std::string, 256> letters = byte_letters();
        for (const Vocabulary::Entry& entry : parts.vocabulary) {
            std::string spelled;
            for (const char c : entry.bytes) spelled += letters[static_cast<uint8_t>(c)];
            set(entry.id, entry.in_text ? spelled : entry.bytes, kNormal);
        }
        for (const AddedToken& token : parts.added) {
            // llama.cpp finds only control and user-defined tokens in a text before merging.
            set(token.id, token.content, token.special || is_control(token.content) ? kControl : kUserDefined);
        }
    }

private:
    static bool is_control(std::string_view text) {
        return (text.starts_with("<|") && text.ends_with("|>")) || (text.starts_with("<｜") && text.ends_with("｜>"));
    }
    void set(int32_t id, std::string text, TokenType type) {
        if (id < 0 || static_cast<size_t>(id) >= tokens.size())
            fail(fmt::format("token {} \"{}\" lies outside of the model's vocabulary of {}", id, text, tokens.size()));
        tokens[static_cast<size_t>(id)] = std::move(text);
        types[static_cast<size_t>(id)] = type;
    }
};

std::optional<int64_t> id_of(const TokenList& list, const std::string& token) {
    const auto found = std::ranges::find(list.tokens, token);
    if (token.empty() || found == list.tokens.end()) return std::nullopt;
    return found - list.tokens.begin();
}

}  // namespace

TokenizerFiles tokenizer_files_of_gguf(const GgufView& file) {
    const std::vector<std::string>& tokens = tokens_of(file);
    const auto* types = file.integers("tokenizer.ggml.token_type");
    const auto* merges = file.texts("tokenizer.ggml.merges");
    if (types != nullptr && types->size() != tokens.size()) fail("key tokenizer.ggml.token_type: not one type per token");
    Json vocab = Json::object(), added = Json::array();
    auto& list = vocab.get_ref<Json::object_t&>();  // operator[] searches all keys for each new one
    for (size_t id = 0; id < tokens.size(); ++id) {
        const int64_t type = types == nullptr ? kNormal : (*types)[id];
        if (type == kUnused) continue;
        if (type != kControl && type != kUserDefined) {
            list.Container::emplace_back(tokens[id], id);
            continue;
        }
        added.push_back({{"id", id},
                         {"content", tokens[id]},
                         {"single_word", false},
                         {"lstrip", false},
                         {"rstrip", false},
                         {"normalized", false},
                         {"special", type == kControl}});
    }
    const Json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
    const bool ignore_merges = file.text("tokenizer.ggml.pre").value_or("") == "kimi-k2";
    const Json model = {{"type", "BPE"},
                        {"ignore_merges", ignore_merges},
                        {"vocab", std::move(vocab)},
                        {"merges", merges == nullptr ? Json::array() : Json(*merges)}};
    const Json tokenizer = {
        {"version", "1.0"},          {"added_tokens", added}, {"normalizer", nullptr}, {"pre_tokenizer", pre_tokenizer(file)},
        {"post_processor", nullptr}, {"decoder", byte_level}, {"model", model}};
    const auto name = [&](const char* key) -> Json {
        const auto id = file.integer(key);
        if (!id || *id < 0 || static_cast<size_t>(*id) >= tokens.size()) return nullptr;
        return tokens[static_cast<size_t>(*id)];
    };
    Json config = {{"add_bos_token", file.boolean("tokenizer.ggml.add_bos_token").value_or(true)},
                   {"add_eos_token", false},
                   {"bos_token", name("tokenizer.ggml.bos_token_id")},
                   {"eos_token", name("tokenizer.ggml.eos_token_id")},
                   {"pad_token", name("tokenizer.ggml.padding_token_id")},
                   {"tokenizer_class", "PreTrainedTokenizerFast"}};
    if (const auto chat = file.text("tokenizer.chat_template")) config["chat_template"] = *chat;
    constexpr auto kReplace = Json::error_handler_t::replace;  // a file's texts need not be UTF-8
    return {tokenizer.dump(1, ' ', false, kReplace) + "\n", config.dump(2, ' ', false, kReplace) + "\n"};
}

void write_gguf_tokenizer(const GgufView& file, const std::filesystem::path& folder) {
    if (file.texts("tokenizer.ggml.tokens") == nullptr) return;
    const TokenizerFiles files = tokenizer_files_of_gguf(file);
    write_text_atomically(folder / "tokenizer.json", files.tokenizer_json);
    write_text_atomically(folder / "tokenizer_config.json", files.tokenizer_config);
}

std::vector<std::pair<std::string, GgufValue>> gguf_tokenizer_metadata(const std::filesystem::path& folder,
                                                                       int64_t vocab_size) {
    const TokenizerParts parts = parts_of_folder(folder);
    const TokenList list(parts, vocab_size);
    std::vector<std::string> merges;
    for (const BpeMerge& merge : parts.merges)
        merges.push_back(list.tokens[static_cast<size_t>(merge.left)] + " " + list.tokens[static_cast<size_t>(merge.right)]);
    std::vector<std::pair<std::string, GgufValue>> m{{"tokenizer.ggml.model", std::string("gpt2")},
                                                     {"tokenizer.ggml.pre", name_of_splits(parts.splits)},
                                                     {"tokenizer.ggml.tokens", list.tokens},
                                                     {"tokenizer.ggml.token_type", list.types},
                                                     {"tokenizer.ggml.merges", std::move(merges)}};
    if (const auto id = id_of(list, parts.bos)) m.emplace_back("tokenizer.ggml.bos_token_id", *id);
    if (const auto id = id_of(list, parts.eos)) m.emplace_back("tokenizer.ggml.eos_token_id", *id);
    const auto path = folder / "tokenizer_config.json";
    if (!std::filesystem::exists(path)) return m;
    const Json config = Json::parse(read_text(path), nullptr, false);
    if (!config.is_object()) return m;
    if (const auto add = config.find("add_bos_token"); add != config.end() && add->is_boolean())
        m.emplace_back("tokenizer.ggml.add_bos_token", add->get<bool>());
    if (const auto chat = config.find("chat_template"); chat != config.end() && chat->is_string())
        m.emplace_back("tokenizer.chat_template", chat->get<std::string>());
    return m;
}

}  // namespace fathom
