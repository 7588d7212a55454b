// Reads Hugging Face's tokenizer.json, tokenizer_config.json and generation_config.json.
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/error.h"
#include "io/tokenizer_parts.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorKind::kInput, message); }

// Runs `read` on the parsed text and turns nlohmann's exceptions into ours.
template <typename Read>
void with_json(std::string_view text, Read read) {
    try {
        read(Json::parse(text));
    } catch (const Json::parse_error& e) {
        fail("not valid JSON (byte " + std::to_string(e.byte) + "); is the file truncated?");
    } catch (const Json::exception& e) {
        fail(std::string("a field is missing or of the wrong type: ") + e.what());
    }
}

bool flag(const Json& object, const char* key, bool otherwise) {
    const auto it = object.find(key);
    return it == object.end() || it->is_null() ? otherwise : it->get<bool>();
}

std::string text_or_empty(const Json& object, const char* key) {
    const auto it = object.find(key);
    return it == object.end() || it->is_null() ? std::string() : it->get<std::string>();
}

const Json& member_or_null(const Json& object, const char* key) {
    static const Json kNull;
    const auto it = object.find(key);
    return it == object.end() ? kNull : *it;
}

std::string escape_pattern(std::string_view literal) {
    std::string escaped;
    for (const char c : literal) {
        if (std::string_view("\\^$.|?*+()[]{}-&#").find(c) != std::string_view::npos) escaped += '\\';
        escaped += c;
    }
    return escaped;
}

// "pattern": {"Regex": "..."} or {"String": "..."}.
std::string pattern_of(const Json& step) {
    const Json& pattern = step.at("pattern");
    if (pattern.is_string()) return escape_pattern(pattern.get<std::string>());
    if (pattern.contains("Regex")) return pattern.at("Regex").get<std::string>();
    return escape_pattern(pattern.at("String").get<std::string>());
}

SplitBehavior behavior_of(const std::string& name) {
    if (name == "Removed") return SplitBehavior::kRemoved;
    if (name == "Isolated") return SplitBehavior::kIsolated;
    if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
    if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
    if (name == "Contiguous") return SplitBehavior::kContiguous;
    fail("pre_tokenizer: unknown Split behavior \"" + name + "\"");
}

void read_pre_tokenizer(const Json& step, TokenizerParts& parts) {
    if (step.is_null()) return;
    const auto type = step.at("type").get<std::string>();
    if (type == "Sequence") {
        for (const Json& inner : step.at("pretokenizers")) read_pre_tokenizer(inner, parts);
        return;
    }
    if (parts.bpe.byte_level) fail("pre_tokenizer: " + type + " after ByteLevel is not supported");
    if (type == "Split") {
        parts.splits.push_back(
            {pattern_of(step), behavior_of(step.at("behavior").get<std::string>()), flag(step, "invert", false)});
    } else if (type == "Digits") {
        if (flag(step, "individual_digits", false))
            parts.splits.push_back({"\\p{N}"});
        else
            parts.splits.push_back({"\\p{N}", SplitBehavior::kContiguous});
    } else if (type == "Whitespace") {
        parts.splits.push_back({"\\w+|[^\\w\\s]+", SplitBehavior::kRemoved, true});
    } else if (type == "WhitespaceSplit") {
        parts.splits.push_back({"\\s", SplitBehavior::kRemoved});
    } else if (type == "ByteLevel") {
        if (flag(step, "add_prefix_space", true)) fail("pre_tokenizer: ByteLevel with add_prefix_space is not supported");
        if (flag(step, "use_regex", true)) parts.splits.push_back(byte_level_split());
        parts.bpe.byte_level = true;
    } else {
        fail("pre_tokenizer: type \"" + type + "\" is not supported (Sequence, Split, Digits, ByteLevel, Whitespace are)");
    }
}

void read_normalizer(const Json& step, TokenizerParts& parts) {
    if (step.is_null()) return;
    const auto type = step.at("type").get<std::string>();
    if (type == "Sequence") {
        for (const Json& inner : step.at("normalizers")) read_normalizer(inner, parts);
    } else if (type == "Replace" && step.at("pattern").contains("String")) {
        parts.replacements.emplace_back(step.at("pattern").at("String").get<std::string>(),
                                        step.at("content").get<std::string>());
        if (parts.replacements.back().first.empty()) fail("normalizer: Replace of an empty text");
    } else if (type == "Prepend" && parts.replacements.empty()) {
        parts.prefix = step.at("prepend").get<std::string>() + parts.prefix;
    } else {
        fail("normalizer: type \"" + type + "\" is not supported here (Prepend, then Replace of a String, are)");
    }
}

void read_decoder(const Json& step, TokenizerParts& parts) {
    if (step.is_null()) return;
    const auto type = step.at("type").get<std::string>();
    if (type == "Sequence") {
        for (const Json& inner : step.at("decoders")) read_decoder(inner, parts);
    } else if (type == "Replace" && step.at("pattern").contains("String")) {
        parts.decoded.emplace_back(step.at("pattern").at("String").get<std::string>(), step.at("content").get<std::string>());
        if (parts.decoded.back().first.empty()) fail("decoder: Replace of an empty text");
    } else if (type != "ByteLevel" && type != "ByteFallback" && type != "Fuse") {
        fail("decoder: type \"" + type + "\" is not supported (ByteLevel, Replace of a String, ByteFallback, Fuse are)");
    }
}

// Spells byte-level tokens back into bytes; false for a token with a letter that stands for no byte.
class LetterDecoder {
public:
    LetterDecoder() : bytes_(kLetters, -1) {
        const std::array<std::string, 256> letters = byte_letters();
        for (int byte = 0; byte < 256; ++byte) bytes_[first_character(letters[byte]).code] = static_cast<int16_t>(byte);
    }

    [[nodiscard]] bool decode(std::string_view token, std::string& bytes) const {
        bytes.clear();
        while (!token.empty()) {
            const Character letter = first_character(token);
            if (letter.length == 0 || letter.code >= kLetters || bytes_[letter.code] < 0) return false;
            bytes.push_back(static_cast<char>(bytes_[letter.code]));
            token.remove_prefix(letter.length);
        }
        return true;
    }

private:
    static constexpr size_t kLetters = 512;
    std::vector<int16_t> bytes_;
};

using Ids = std::unordered_map<std::string_view, int32_t>;

int32_t id_of_part(const Ids& ids, std::string_view token, size_t rank) {
    const auto it = ids.find(token);
    if (it == ids.end())
        fail("model.merges[" + std::to_string(rank) + "]: \"" + std::string(token) + "\" is not in the vocabulary");
    return it->second;
}

// Merges are ["left", "right"] or, in older files, "left right".
void read_merges(const Json& merges, const Ids& ids, TokenizerParts& parts) {
    parts.merges.reserve(merges.size());
    std::string joined;
    for (size_t rank = 0; rank < merges.size(); ++rank) {
        const Json& merge = merges[rank];
        std::string_view left, right;
        if (merge.is_array()) {
            if (merge.size() != 2) fail("model.merges[" + std::to_string(rank) + "] is not a pair");
            left = merge[0].get_ref<const std::string&>();
            right = merge[1].get_ref<const std::string&>();
        } else {
            const std::string_view pair = merge.get_ref<const std::string&>();
            const size_t space = pair.find(' ');
            if (space == pair.npos || pair.find(' ', space + 1) != pair.npos)
                fail("model.merges[" + std::to_string(rank) + "] \"" + std::string(pair) +
                     "\" is not two tokens with a space between");
            left = pair.substr(0, space);
            right = pair.substr(space + 1);
        }
        joined.assign(left).append(right);
        parts.merges.push_back({id_of_part(ids, left, rank), id_of_part(ids, right, rank), id_of_part(ids, joined, rank),
                                static_cast<uint32_t>(rank)});
    }
}

void read_model(const Json& model, TokenizerParts& parts) {
    const std::string type = model.contains("type") ? model.at("type").get<std::string>() : "BPE";
    if (type != "BPE") fail("model.type \"" + type + "\" is not supported (BPE is)");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
        if (!text_or_empty(model, key).empty()) fail(std::string("model.") + key + " is not supported");
    parts.bpe.byte_fallback = flag(model, "byte_fallback", false);
    parts.bpe.ignore_merges = flag(model, "ignore_merges", false);
    parts.bpe.fuse_unknown = flag(model, "fuse_unk", false);
    const LetterDecoder letters;
    Ids ids;
    const Json& vocab = model.at("vocab");
    if (!vocab.is_object() || vocab.empty()) fail("model.vocab is not an object with tokens");
    ids.reserve(vocab.size());
    std::string bytes;
    for (const auto& [token, id] : vocab.items()) {
        const auto value = id.get<int64_t>();
        if (value < 0 || value > INT32_MAX) fail("model.vocab: id " + std::to_string(value) + " is out of range");
        ids.emplace(token, static_cast<int32_t>(value));
        const bool in_text = !parts.bpe.byte_level || letters.decode(token, bytes);
        parts.vocabulary.push_back({static_cast<int32_t>(value), parts.bpe.byte_level && in_text ? bytes : token, in_text});
    }
    if (const std::string unknown = text_or_empty(model, "unk_token"); !unknown.empty())
        if (const auto it = ids.find(unknown); it != ids.end()) parts.bpe.unknown_id = it->second;
    read_merges(model.at("merges"), ids, parts);
}

void read_added_tokens(const Json& tokens, TokenizerParts& parts) {
    for (const Json& token : tokens) {
        const auto id = token.at("id").get<int64_t>();
        if (id < 0 || id > INT32_MAX) fail("added_tokens: id " + std::to_string(id) + " is out of range");
        const bool special = flag(token, "special", false);
        parts.added.push_back({static_cast<int32_t>(id), token.at("content").get<std::string>(), special,
                               flag(token, "normalized", !special), flag(token, "lstrip", false), flag(token, "rstrip", false),
                               flag(token, "single_word", false)});
    }
}

// "bos_token": "text", {"content": "text"} or null.
std::string token_name(const Json& config, const char* key) {
    const Json& token = member_or_null(config, key);
    if (token.is_object()) return text_or_empty(token, "content");
    return token.is_string() ? token.get<std::string>() : std::string();
}

}  // namespace

TokenizerParts parse_tokenizer_json(std::string_view text) {
    TokenizerParts parts;
    parts.bpe.byte_level = false;  // until the pre-tokenizer says so
    with_json(text, [&](const Json& file) {
        if (!file.is_object() || !file.contains("model")) fail("there is no \"model\" in it");
        read_normalizer(member_or_null(file, "normalizer"), parts);
        read_pre_tokenizer(member_or_null(file, "pre_tokenizer"), parts);
        read_decoder(member_or_null(file, "decoder"), parts);
        read_model(file.at("model"), parts);
        if (file.contains("added_tokens")) read_added_tokens(file.at("added_tokens"), parts);
    });
    return parts;
}

void read_tokenizer_config(std::string_view text, TokenizerParts& parts) {
    with_json(text, [&](const Json& config) {
        parts.bos = token_name(config, "bos_token");
        parts.eos = token_name(config, "eos_token");
    });
}

void read_generation_config(std::string_view text, TokenizerParts& parts) {
    with_json(text, [&](const Json& config) {
        if (const Json& bos = member_or_null(config, "bos_token_id"); bos.is_number_integer())
            parts.bos_id = bos.get<int32_t>();
        const Json& eos = member_or_null(config, "eos_token_id");
        if (eos.is_number_integer()) parts.stop_ids.push_back(eos.get<int32_t>());
        if (eos.is_array())
            for (const Json& id : eos) parts.stop_ids.push_back(id.get<int32_t>());
    });
}

}  // namespace fathom
