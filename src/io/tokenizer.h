// Text to token ids and back: byte-level BPE from a Hugging Face tokenizer.json or a tiktoken.model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

// Immutable once loaded: every member is const and safe to call from several threads at a time.
class Tokenizer {
public:
    // `file_or_dir`: a tokenizer.json, a tiktoken.model, or a model folder holding one. tokenizer_config.json and
    // generation_config.json beside it name BOS and EOS. Throws Error{kInput} naming the file and what is wrong with it.
    [[nodiscard]] static Tokenizer load(const std::filesystem::path& file_or_dir);

    // The same from memory. `config` is the text of tokenizer_config.json, empty when there is none.
    [[nodiscard]] static Tokenizer from_json(std::string_view tokenizer_json, std::string_view config = {});
    [[nodiscard]] static Tokenizer from_tiktoken(std::string_view ranks, std::string_view config = {});

    Tokenizer(Tokenizer&&) noexcept;
    Tokenizer& operator=(Tokenizer&&) noexcept;
    ~Tokenizer();

    // Never adds BOS or EOS by itself. parse_special = false reads the text of control tokens (those flagged special or
    // written <...>) as plain text, for input that must not be able to forge a role. Invalid UTF-8 is encoded byte by byte.
    [[nodiscard]] std::vector<int32_t> encode(std::string_view text, bool parse_special = true) const;

    // The bytes of the tokens, joined: valid UTF-8 only if the ids say so (replace_invalid_utf8 makes it so). Ids without a
    // token decode to nothing; skip_special leaves out the tokens flagged special.
    [[nodiscard]] std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

    [[nodiscard]] std::string_view token_bytes(int32_t id) const;              // empty for an id without a token
    [[nodiscard]] std::optional<int32_t> id_of(std::string_view token) const;  // by the token's bytes, "<｜User｜>" or " the"
    [[nodiscard]] std::optional<int32_t> bos_id() const;
    [[nodiscard]] std::optional<int32_t> eos_id() const;
    [[nodiscard]] std::span<const int32_t> stop_ids() const;  // EOS and what generation_config.json adds to it
    [[nodiscard]] int64_t vocab_size() const;                 // largest id + 1
    [[nodiscard]] bool is_special(int32_t id) const;

private:
    struct Model;
    explicit Tokenizer(std::unique_ptr<Model> model);
    std::unique_ptr<Model> model_;
};

// Decodes a stream of ids; only whole UTF-8 characters come out. The tokenizer must outlive it.
class StreamDecoder {
public:
    explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special);

    [[nodiscard]] std::string push(int32_t id);  // the characters completed by this token, perhaps none
    [[nodiscard]] std::string finish();          // a cut character at the end comes out as U+FFFD

private:
    const Tokenizer& tokenizer_;
    bool skip_special_;
    std::string pending_;  // the first bytes of a character
};

// Each maximal invalid part becomes U+FFFD, as in Rust's and Python's lossy decoders.
[[nodiscard]] std::string replace_invalid_utf8(std::string_view text);

}  // namespace fathom
