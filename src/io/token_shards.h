// Token shards: the tokenised documents of a data set, as memory-mapped files. A data set is a folder of shards
// shard-00000.ftok, shard-00001.ftok, ... and a manifest.json, which is written last: without it the folder is unfinished.
//
// File format .ftok, version 1; integers little endian, no padding:
//   offset  type   meaning
//        0  u8[4]  "FTOK"
//        4  u32    version, 1
//        8  u64    bytes per token: 2 when vocab_size <= 65536, else 4
//       16  u64    vocab_size; every id is below it
//       24  u64    documents, at least 1
//       32  u64    tokens
//       40  u64    hash of the settings that made it (inputs, tokenizer, ...): shards of one data set agree
//       48  u64    source_begin: the shard holds what was kept of the input documents [source_begin, source_end),
//       56  u64    source_end:   counted through all inputs; an interrupted preparation goes on at source_end
//       64  u64    bytes of text these tokens were made of
//       72  u64 x (documents + 1)  offsets: document i is tokens [offsets[i], offsets[i + 1]); never empty
//        .  u16 or u32 x tokens    ids: (BOS) text EOS, as the data set was prepared
//        .  u64    XXH3-64 of all bytes before it
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"

namespace fathom {

struct ShardHeader {
    int64_t vocab_size = 0;
    int64_t documents = 0;
    int64_t tokens = 0;
    uint64_t settings_hash = 0;
    int64_t source_begin = 0, source_end = 0;
    int64_t text_bytes = 0;
};

// A read-only shard. Opening it checks everything: sizes, checksum, offsets and ids, so that reading need not.
class TokenShard {
public:
    // Throws Error{kIo} when unreadable, Error{kInput} when it is not a whole and unharmed shard of this version.
    explicit TokenShard(const std::filesystem::path& path);

    [[nodiscard]] const ShardHeader& header() const { return header_; }
    [[nodiscard]] int64_t bytes_per_token() const { return bytes_per_token_; }
    [[nodiscard]] uint64_t checksum() const { return checksum_; }
    // Tokens of document `i`.
    [[nodiscard]] int64_t length(int64_t i) const;
    // out[k] = token offset + k of document `i`.
    void read(std::span<int32_t> out, int64_t i, int64_t offset) const;

private:
    MappedFile file_;
    ShardHeader header_;
    int64_t bytes_per_token_ = 0;
    uint64_t checksum_ = 0;
    std::span<const uint64_t> offsets_;  // [documents + 1]
    const std::byte* tokens_ = nullptr;

    void read_header();
    void check_content() const;
    [[noreturn]] void fail(const std::string& what) const;
};

// Collects documents and writes them as one shard, whole or not at all.
class TokenShardWriter {
public:
    // header: vocab_size, settings_hash and source_begin are taken from it, the rest is counted.
    explicit TokenShardWriter(const ShardHeader& header);

    // One document of at least one token. Ids outside [0, vocab_size) are a programmer's error.
    void add(std::span<const int32_t> ids, int64_t text_bytes);
    [[nodiscard]] int64_t documents() const { return static_cast<int64_t>(offsets_.size()) - 1; }
    [[nodiscard]] int64_t tokens() const { return static_cast<int64_t>(tokens_.size()); }
    // Needs one document at least.
    void write(const std::filesystem::path& path, int64_t source_end) const;

private:
    ShardHeader header_;
    std::vector<uint64_t> offsets_{0};
    std::vector<uint32_t> tokens_;
};

// All shards of one data set. Documents are numbered through the shards. Moves, never copies.
class TokenDataset {
public:
    // Throws Error{kInput} when the preparation is unfinished or a shard is missing, harmed or of another data set.
    explicit TokenDataset(const std::filesystem::path& folder);

    [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
    [[nodiscard]] int64_t documents() const { return first_document_.back(); }
    [[nodiscard]] int64_t tokens() const { return tokens_; }
    [[nodiscard]] int64_t text_bytes() const { return text_bytes_; }
    [[nodiscard]] int64_t vocab_size() const { return vocab_size_; }
    [[nodiscard]] std::optional<int32_t> bos_id() const { return bos_id_; }
    [[nodiscard]] int32_t eos_id() const { return eos_id_; }
    [[nodiscard]] const std::vector<TokenShard>& shards() const { return shards_; }

    [[nodiscard]] int64_t length(int64_t document) const;
    void read(std::span<int32_t> out, int64_t document, int64_t offset) const;

private:
    std::filesystem::path folder_;
    std::vector<TokenShard> shards_;
    std::vector<int64_t> first_document_{0};  // [shards + 1]
    int64_t tokens_ = 0, text_bytes_ = 0, vocab_size_ = 0;
    std::optional<int32_t> bos_id_;
    int32_t eos_id_ = 0;

    [[nodiscard]] size_t shard_of(int64_t document) const;
    void open_shards(const std::string& manifest);
};

inline constexpr int kTokenShardVersion = 1;
[[nodiscard]] std::filesystem::path shard_path(const std::filesystem::path& folder, int64_t index);
[[nodiscard]] std::filesystem::path manifest_path(const std::filesystem::path& folder);

// XXH3-64: tells contents apart, here and in the settings of a data set. `hash_text` spells it as 16 hexadecimal digits.
[[nodiscard]] uint64_t hash_bytes(std::span<const std::byte> bytes);
[[nodiscard]] std::string hash_text(uint64_t hash);

}  // namespace fathom
