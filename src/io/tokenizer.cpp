#include "io/tokenizer.h"

#include <algorithm>
#include <unordered_map>

#include "base/error.h"
#include "base/file.h"
#include "io/tiktoken.h"
#include "io/tokenizer_added.h"
#include "io/tokenizer_parts.h"

namespace fathom {
namespace {

using Replacements = std::vector<std::pair<std::string, std::string>>;

std::string replace_all(std::string_view text, const Replacements& replacements) {
    std::string result(text);
    for (const auto& [from, to] : replacements)
        for (size_t at = 0; (at = result.find(from, at)) != result.npos; at += to.size()) result.replace(at, from.size(), to);
    return result;
}

// A token that text from outside must not be able to write: flagged special, or V3's unflagged <｜User｜>.
bool is_control(const AddedToken& token) {
    return token.special || (token.content.starts_with('<') && token.content.ends_with('>'));
}

std::vector<AddedToken> select(const std::vector<AddedToken>& tokens, bool normalized, bool with_control) {
    std::vector<AddedToken> chosen;
    for (const AddedToken& token : tokens)
        if (token.normalized == normalized && (with_control || !is_control(token))) chosen.push_back(token);
    return chosen;
}

// The vocabulary with the added tokens in it, which name the ids that both have.
std::vector<Vocabulary::Entry> all_entries(const TokenizerParts& parts) {
    std::unordered_map<int32_t, const AddedToken*> added;
    for (const AddedToken& token : parts.added) added[token.id] = &token;
    std::vector<Vocabulary::Entry> entries;
    for (const auto& entry : parts.vocabulary) {
        const auto it = added.find(entry.id);
        if (it != added.end() && it->second->content != entry.bytes) continue;
        entries.push_back(entry);
        if (it != added.end()) added.erase(it);
    }
    for (const auto& [id, token] : added) entries.push_back({id, token->content, false});
    return entries;
}

// "<0x0A>" -> the byte it stands for, or -1.
int byte_of_name(std::string_view name) {
    if (name.size() != 6 || !name.starts_with("<0x") || name[5] != '>') return -1;
    int byte = 0;
    for (const char c : name.substr(3, 2)) {
        const size_t digit = std::string_view("0123456789ABCDEF").find(c);
        if (digit == std::string_view::npos) return -1;
        byte = byte * 16 + static_cast<int>(digit);
    }
    return byte;
}

}  // namespace

struct Tokenizer::Model {
    explicit Model(const TokenizerParts& parts);

    Bpe bpe;
    PreTokenizer pretokenizer;
    // [0]: without control tokens, [1]: with them. Tokens not `normalized` are looked for first, the others in what is left.
    AddedTokenMatcher raw[2], normalized[2];
    Replacements replacements;
    std::string prefix;
    std::unordered_map<std::string, int32_t> names;  // of added tokens
    std::vector<bool> special;                       // by id
    std::vector<std::string> decoded;                // by id, where a token's bytes are not its text; else empty
    std::optional<int32_t> bos, eos;
    std::vector<int32_t> stop_ids;

    void encode_text(std::string_view text, std::vector<int32_t>& ids) const;
    void encode_normalized(std::string_view text, bool parse_special, std::vector<int32_t>& ids) const;
    [[nodiscard]] std::optional<int32_t> find(const std::string& name) const;

private:
    void decode_characters(const TokenizerParts& parts);
    void choose_ends(const TokenizerParts& parts);
};

Tokenizer::Model::Model(const TokenizerParts& parts)
    : bpe(all_entries(parts), parts.merges, parts.bpe),
      pretokenizer(parts.splits),
      raw{AddedTokenMatcher(select(parts.added, false, false)), AddedTokenMatcher(select(parts.added, false, true))},
      normalized{AddedTokenMatcher(select(parts.added, true, false)), AddedTokenMatcher(select(parts.added, true, true))},
      replacements(parts.replacements),
      prefix(parts.prefix),
      special(bpe.vocabulary().size()) {
    for (const AddedToken& token : parts.added) {
        names[token.content] = token.id;
        special[token.id] = token.special;
    }
    if (!parts.bpe.byte_level) decode_characters(parts);
    choose_ends(parts);
}

void Tokenizer::Model::decode_characters(const TokenizerParts& parts) {
    for (int32_t id = 0; id < bpe.vocabulary().size(); ++id) {
        const std::string_view bytes = bpe.vocabulary().bytes(id);
        const int byte = parts.bpe.byte_fallback ? byte_of_name(bytes) : -1;
        decoded.push_back(byte >= 0 ? std::string(1, static_cast<char>(byte)) : replace_all(bytes, parts.decoded));
    }
}

void Tokenizer::Model::choose_ends(const TokenizerParts& parts) {
    const auto first_known = [&](std::initializer_list<const char*> well_known) -> std::optional<int32_t> {
        for (const char* name : well_known)
            if (const auto it = names.find(name); it != names.end()) return it->second;
        return std::nullopt;
    };
    const int32_t size = bpe.vocabulary().size();
    if (!parts.bos.empty()) bos = find(parts.bos);
    if (!bos && parts.bos_id >= 0 && parts.bos_id < size) bos = parts.bos_id;
    if (!bos) bos = first_known({"<｜begin▁of▁sentence｜>", "[BOS]", "<s>", "<|begin_of_text|>"});
    if (!parts.eos.empty()) eos = find(parts.eos);
    for (const int32_t id : parts.stop_ids)
        if (id >= 0 && id < size) stop_ids.push_back(id);
    if (!eos && !stop_ids.empty()) eos = stop_ids.front();
    if (!eos) eos = first_known({"<｜end▁of▁sentence｜>", "[EOS]", "</s>", "<|endoftext|>"});
    if (eos && std::find(stop_ids.begin(), stop_ids.end(), *eos) == stop_ids.end()) stop_ids.insert(stop_ids.begin(), *eos);
}

std::optional<int32_t> Tokenizer::Model::find(const std::string& name) const {
    if (const auto it = names.find(name); it != names.end()) return it->second;
    const int32_t id = bpe.vocabulary().find(name);
    return id >= 0 ? std::optional(id) : std::nullopt;
}

// Text without added tokens. Bytes that are no UTF-8 are pieces of their own.
void Tokenizer::Model::encode_text(std::string_view text, std::vector<int32_t>& ids) const {
    std::vector<std::string_view> pieces;
    while (!text.empty()) {
        const size_t valid = valid_utf8_prefix(text);
        pieces.clear();
        pretokenizer.split(text.substr(0, valid), pieces);
        for (const std::string_view piece : pieces) bpe.encode(piece, ids);
        text.remove_prefix(valid);
        if (text.empty()) break;
        const size_t broken = invalid_utf8_length(text);
        const size_t before = ids.size();
        bpe.encode(text.substr(0, broken), ids);
        // V1's and V2's vocabularies lack the bytes that never occur in UTF-8: say U+FFFD, as every HF tokenizer would.
        if (ids.size() == before) bpe.encode("\uFFFD", ids);
        text.remove_prefix(broken);
    }
}

void Tokenizer::Model::encode_normalized(std::string_view text, bool parse_special, std::vector<int32_t>& ids) const {
    std::string changed;
    if (!replacements.empty() || !prefix.empty()) {
        changed = replace_all(prefix + std::string(text), replacements);
        text = changed;
    }
    size_t done = 0;
    AddedTokenMatcher::Hit hit;
    while (normalized[parse_special].find(text, done, hit)) {
        encode_text(text.substr(done, hit.begin - done), ids);
        ids.push_back(hit.id);
        done = hit.end;
    }
    encode_text(text.substr(done), ids);
}

Tokenizer::Tokenizer(std::unique_ptr<Model> model) : model_(std::move(model)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::from_json(std::string_view tokenizer_json, std::string_view config) {
    TokenizerParts parts = parse_tokenizer_json(tokenizer_json);
    if (!config.empty()) read_tokenizer_config(config, parts);
    return Tokenizer(std::make_unique<Model>(parts));
}

Tokenizer Tokenizer::from_tiktoken(std::string_view ranks, std::string_view config) {
    return Tokenizer(std::make_unique<Model>(parse_tiktoken(ranks, config)));
}

Tokenizer Tokenizer::load(const std::filesystem::path& file_or_dir) {
    std::filesystem::path file = file_or_dir;
    if (std::filesystem::is_directory(file)) {
        file = file_or_dir / "tokenizer.json";
        if (!std::filesystem::exists(file)) file = file_or_dir / "tiktoken.model";
        if (!std::filesystem::exists(file))
            throw Error(ErrorKind::kInput,
                        file_or_dir.string() + ": neither tokenizer.json nor tiktoken.model is in this folder");
    }
    const std::string text = read_text(file);
    const auto beside = [&](const char* name) {
        const std::filesystem::path path = file.parent_path() / name;
        return std::filesystem::exists(path) ? read_text(path) : std::string();
    };
    const auto within = [](const std::filesystem::path& path, const auto& read) {
        try {
            return read();
        } catch (const Error& e) {
            throw e.within(path.string());
        }
    };
    const std::filesystem::path config_file = file.parent_path() / "tokenizer_config.json";
    const std::string config = beside("tokenizer_config.json"), generation = beside("generation_config.json");
    const bool is_json = file.extension() == ".json";
    TokenizerParts parts = within(file, [&] { return is_json ? parse_tokenizer_json(text) : parse_tiktoken(text, config); });
    within(config_file, [&] { return config.empty() ? void() : read_tokenizer_config(config, parts); });
    within(file.parent_path() / "generation_config.json",
           [&] { return generation.empty() ? void() : read_generation_config(generation, parts); });
    return within(file, [&] { return Tokenizer(std::make_unique<Model>(parts)); });
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special) const {
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 4 + 8);
    size_t done = 0;
    AddedTokenMatcher::Hit hit;
    while (model_->raw[parse_special].find(text, done, hit)) {
        if (hit.begin > done) model_->encode_normalized(text.substr(done, hit.begin - done), parse_special, ids);
        ids.push_back(hit.id);
        done = hit.end;
    }
    if (done < text.size()) model_->encode_normalized(text.substr(done), parse_special, ids);
    return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
    std::string text;
    for (const int32_t id : ids)
        if (!(skip_special && is_special(id))) text += token_bytes(id);
    return text;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
    if (id < 0 || id >= model_->bpe.vocabulary().size()) return {};
    return model_->decoded.empty() ? model_->bpe.vocabulary().bytes(id) : std::string_view(model_->decoded[id]);
}

std::optional<int32_t> Tokenizer::id_of(std::string_view token) const { return model_->find(std::string(token)); }
std::optional<int32_t> Tokenizer::bos_id() const { return model_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return model_->eos; }
std::span<const int32_t> Tokenizer::stop_ids() const { return model_->stop_ids; }
int64_t Tokenizer::vocab_size() const { return model_->bpe.vocabulary().size(); }

bool Tokenizer::is_special(int32_t id) const {
    return id >= 0 && id < static_cast<int32_t>(model_->special.size()) && model_->special[id];
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer),
      skip_special_(skip_special) {}

std::string StreamDecoder::push(int32_t id) {
    if (skip_special_ && tokenizer_.is_special(id)) return {};
    pending_ += tokenizer_.token_bytes(id);
    // Up to three bytes at the end may be a character that the next token completes.
    size_t keep = pending_.size();
    for (size_t back = 1; back <= 3 && back <= pending_.size(); ++back) {
        const std::string_view tail = std::string_view(pending_).substr(pending_.size() - back);
        if ((tail[0] & 0xC0) == 0x80) continue;
        if (static_cast<uint8_t>(tail[0]) >= 0x80 && is_cut_character(tail)) keep = pending_.size() - back;
        break;
    }
    std::string text = replace_invalid_utf8(std::string_view(pending_).substr(0, keep));
    pending_.erase(0, keep);
    return text;
}

std::string StreamDecoder::finish() {
    std::string text = replace_invalid_utf8(pending_);
    pending_.clear();
    return text;
}

std::string replace_invalid_utf8(std::string_view text) {
    std::string result;
    while (!text.empty()) {
        const size_t valid = valid_utf8_prefix(text);
        result += text.substr(0, valid);
        text.remove_prefix(valid);
        if (text.empty()) break;
        result += "\uFFFD";
        text.remove_prefix(invalid_utf8_length(text));
    }
    return result;
}

}  // namespace fathom
