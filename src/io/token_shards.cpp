#include "io/token_shards.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace fathom {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are mapped as they are");

constexpr std::string_view kMagic = "FTOK";
constexpr size_t kHeaderBytes = 72, kChecksumBytes = 8;
constexpr int64_t kLargestShortVocab = 65536;

// The header as it lies in the file.
struct RawHeader {
    char magic[4];
    uint32_t version;
    uint64_t bytes_per_token, vocab_size, documents, tokens, settings_hash, source_begin, source_end, text_bytes;
};
static_assert(sizeof(RawHeader) == kHeaderBytes);

template <class T>
std::span<const std::byte> as_bytes(const std::vector<T>& values) {
    return std::as_bytes(std::span<const T>(values));
}

template <class T>
int64_t largest(const std::byte* tokens, int64_t count) {
    const T* ids = reinterpret_cast<const T*>(tokens);
    T most = 0;
    for (int64_t i = 0; i < count; ++i) most = std::max(most, ids[i]);
    return static_cast<int64_t>(most);
}

}  // namespace

std::filesystem::path shard_path(const std::filesystem::path& folder, int64_t index) {
    return folder / fmt::format("shard-{:05}.ftok", index);
}

std::filesystem::path manifest_path(const std::filesystem::path& folder) { return folder / "manifest.json"; }

uint64_t hash_bytes(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string hash_text(uint64_t hash) { return fmt::format("{:016x}", hash); }

TokenShard::TokenShard(const std::filesystem::path& path) : file_(path) {
    read_header();
    check_content();
}

void TokenShard::fail(const std::string& what) const {
    throw Error{ErrorKind::kInput, fmt::format("{}: {}", file_.path().string(), what)};
}

void TokenShard::read_header() {
    constexpr const char* kAgain = "prepare the data again with fathom data prepare";
    const auto bytes = file_.bytes();
    RawHeader raw{};
    std::copy_n(bytes.begin(), std::min(bytes.size(), sizeof raw), reinterpret_cast<std::byte*>(&raw));
    if (std::string_view(raw.magic, kMagic.size()) != kMagic)
        fail(fmt::format("not a token shard (no FTOK at its start); {}", kAgain));
    if (bytes.size() >= 8 && raw.version != kTokenShardVersion)
        fail(fmt::format("a token shard of version {}, this program reads version {}; {}", raw.version, kTokenShardVersion,
                         kAgain));
    // Bounds first, so that the size below cannot overflow.
    const uint64_t size = bytes.size();
    const bool plausible = size >= kHeaderBytes + kChecksumBytes && (raw.bytes_per_token == 2 || raw.bytes_per_token == 4) &&
                           raw.documents < size / 8 && raw.tokens < size;
    if (!plausible || size != kHeaderBytes + 8 * (raw.documents + 1) + raw.tokens * raw.bytes_per_token + kChecksumBytes)
        fail(fmt::format(
            "truncated or corrupt: {} bytes are not what its header announces; delete it and run fathom data prepare again",
            size));
    std::memcpy(&checksum_, bytes.data() + size - kChecksumBytes, kChecksumBytes);
    if (hash_bytes(bytes.first(size - kChecksumBytes)) != checksum_)
        fail("corrupt: its checksum does not match; delete it and run fathom data prepare again");
    bytes_per_token_ = static_cast<int64_t>(raw.bytes_per_token);
    header_ = {static_cast<int64_t>(raw.vocab_size),   static_cast<int64_t>(raw.documents),
               static_cast<int64_t>(raw.tokens),       raw.settings_hash,
               static_cast<int64_t>(raw.source_begin), static_cast<int64_t>(raw.source_end),
               static_cast<int64_t>(raw.text_bytes)};
    offsets_ = {reinterpret_cast<const uint64_t*>(bytes.data() + kHeaderBytes), raw.documents + 1};
    tokens_ = bytes.data() + kHeaderBytes + offsets_.size_bytes();
}

// A right checksum over wrong content is another program's mistake, not the disk's.
void TokenShard::check_content() const {
    const bool ascending = std::adjacent_find(offsets_.begin(), offsets_.end(), std::greater_equal<>()) == offsets_.end();
    if (header_.documents == 0 || !ascending || offsets_.front() != 0 ||
        offsets_.back() != static_cast<uint64_t>(header_.tokens))
        fail("document offsets do not ascend from 0 to the number of tokens; this file was not written by fathom data prepare");
    const int64_t id =
        bytes_per_token_ == 2 ? largest<uint16_t>(tokens_, header_.tokens) : largest<uint32_t>(tokens_, header_.tokens);
    if (id >= header_.vocab_size)
        fail(fmt::format("token id {} in a vocabulary of {}; this file was not written by fathom data prepare", id,
                         header_.vocab_size));
}

int64_t TokenShard::length(int64_t i) const {
    check(i >= 0 && i < header_.documents, "a document of this shard");
    const auto k = static_cast<size_t>(i);
    return static_cast<int64_t>(offsets_[k + 1] - offsets_[k]);
}

void TokenShard::read(std::span<int32_t> out, int64_t i, int64_t offset) const {
    check(offset >= 0 && offset + std::ssize(out) <= length(i), "tokens of this document");
    const size_t first = offsets_[static_cast<size_t>(i)] + static_cast<size_t>(offset);
    if (bytes_per_token_ == 2) {
        const auto* ids = reinterpret_cast<const uint16_t*>(tokens_) + first;
        std::copy(ids, ids + out.size(), out.begin());
    } else {
        std::memcpy(out.data(), tokens_ + 4 * first, out.size_bytes());
    }
}

TokenShardWriter::TokenShardWriter(const ShardHeader& header) : header_(header) {
    check(header.vocab_size > 0, "a vocabulary");
    header_.text_bytes = 0;
}

void TokenShardWriter::add(std::span<const int32_t> ids, int64_t text_bytes) {
    check(!ids.empty(), "a document has tokens");
    for (const int32_t id : ids) check(id >= 0 && id < header_.vocab_size, "a token id lies inside the vocabulary");
    tokens_.insert(tokens_.end(), ids.begin(), ids.end());
    offsets_.push_back(tokens_.size());
    header_.text_bytes += text_bytes;
}

void TokenShardWriter::write(const std::filesystem::path& path, int64_t source_end) const {
    check(documents() > 0, "a shard holds a document");
    const bool narrow = header_.vocab_size <= kLargestShortVocab;
    const RawHeader raw{{'F', 'T', 'O', 'K'},
                        kTokenShardVersion,
                        narrow ? 2u : 4u,
                        static_cast<uint64_t>(header_.vocab_size),
                        static_cast<uint64_t>(documents()),
                        tokens_.size(),
                        header_.settings_hash,
                        static_cast<uint64_t>(header_.source_begin),
                        static_cast<uint64_t>(source_end),
                        static_cast<uint64_t>(header_.text_bytes)};
    std::vector<std::byte> image;
    image.reserve(sizeof raw + 8 * offsets_.size() + 4 * tokens_.size() + kChecksumBytes);
    const auto append = [&](std::span<const std::byte> bytes) { image.insert(image.end(), bytes.begin(), bytes.end()); };
    append(std::as_bytes(std::span(&raw, 1)));
    append(as_bytes(offsets_));
    append(narrow ? as_bytes(std::vector<uint16_t>(tokens_.begin(), tokens_.end())) : as_bytes(tokens_));
    const uint64_t checksum = hash_bytes(image);
    append(std::as_bytes(std::span(&checksum, 1)));
    AtomicFile file(path);
    file.write(image);
    file.commit();
}

TokenDataset::TokenDataset(const std::filesystem::path& folder) : folder_(folder) {
    const auto manifest = manifest_path(folder);
    if (!std::filesystem::exists(manifest))
        throw Error{ErrorKind::kInput,
                    fmt::format("{}: no finished data set here (no manifest.json); run fathom data prepare, or run it again "
                                "with the same arguments to finish what was interrupted",
                                folder.string())};
    try {
        open_shards(read_text(manifest));
    } catch (const nlohmann::json::exception& e) {
        throw Error{ErrorKind::kInput, fmt::format("{}: not a manifest of token shards ({}); run fathom data prepare again",
                                                   manifest.string(), e.what())};
    }
}

void TokenDataset::open_shards(const std::string& manifest) {
    const auto json = nlohmann::json::parse(manifest);
    if (const int version = json.at("version"); version != kTokenShardVersion)
        throw Error{ErrorKind::kInput,
                    fmt::format("{}: a data set of version {}, this program reads version {}; prepare the data again",
                                folder_.string(), version, kTokenShardVersion)};
    vocab_size_ = json.at("vocab_size");
    eos_id_ = json.at("eos_id");
    if (!json.at("bos_id").is_null()) bos_id_ = json.at("bos_id").get<int32_t>();
    for (const auto& entry : json.at("shards")) {
        const auto& shard = shards_.emplace_back(shard_path(folder_, std::ssize(shards_)));
        if (hash_text(shard.checksum()) != entry.at("checksum").get<std::string>() || shard.header().vocab_size != vocab_size_)
            throw Error{ErrorKind::kInput,
                        fmt::format("{}: not the shard that manifest.json lists; prepare the data again into an empty folder",
                                    shard_path(folder_, std::ssize(shards_) - 1).string())};
        first_document_.push_back(first_document_.back() + shard.header().documents);
        tokens_ += shard.header().tokens;
        text_bytes_ += shard.header().text_bytes;
    }
    if (shards_.empty())
        throw Error{ErrorKind::kInput, fmt::format("{}: a data set without shards; prepare the data again", folder_.string())};
}

size_t TokenDataset::shard_of(int64_t document) const {
    check(document >= 0 && document < documents(), "a document of this data set");
    return static_cast<size_t>(std::upper_bound(first_document_.begin(), first_document_.end(), document) -
                               first_document_.begin()) -
           1;
}

int64_t TokenDataset::length(int64_t document) const {
    const size_t s = shard_of(document);
    return shards_[s].length(document - first_document_[s]);
}

void TokenDataset::read(std::span<int32_t> out, int64_t document, int64_t offset) const {
    const size_t s = shard_of(document);
    shards_[s].read(out, document - first_document_[s], offset);
}

}  // namespace fathom
