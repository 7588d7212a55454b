#include "checkpoint/repack_cache.h"

#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/rng.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSample = 4096;
constexpr int64_t kSamples = 64;                  // of the source
constexpr int64_t kWholeUpTo = int64_t{1} << 30;  // bytes of kept weights whose checksum is of everything
constexpr int64_t kAlignment = 64;
constexpr const char *kSource = "source", *kLayout = "layout", *kChecksum = "checksum", *kPadding = "padding";

class Hash {
public:
    Hash() : state_(XXH3_createState(), XXH3_freeState) { XXH3_64bits_reset(state_.get()); }
    void add(const void* data, int64_t bytes) { XXH3_64bits_update(state_.get(), data, static_cast<size_t>(bytes)); }
    void add(int64_t value) { add(&value, sizeof value); }
    [[nodiscard]] std::string text() const { return fmt::format("{:016x}", XXH3_64bits_digest(state_.get())); }

private:
    std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

std::string hash_of_source(const GgufFile& source) {
    const std::span<const std::byte> bytes = source.content();
    const auto size = static_cast<int64_t>(bytes.size());
    Hash hash;
    hash.add(size);
    hash.add(fs::last_write_time(source.path()).time_since_epoch().count());
    for (int64_t i = 0; i < kSamples; ++i) {
        const int64_t begin = size / kSamples * i;
        hash.add(bytes.data() + begin, std::min(kSample, size - begin));
    }
    return hash.text();
}

// Of everything that a pack may look like: changes with any layout, so that nobody has to count versions.
std::string hash_of_layouts(Ops& ops) {
    constexpr int64_t kRows = 16, kColumns = 512;
    Hash hash;
    Rng rng(1);
    std::vector<uint8_t> codes(kRows * kColumns * 4);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(rng.below(256));
    Arena arena("layouts", Buffer::host, 1 << 20);
    const auto add = [&](const Weight& weight) {
        const Weight packed = ops.pack(weight, arena);
        hash.add(static_cast<int64_t>(packed.scheme));
        hash.add(packed.codes.data, packed.codes.bytes());
    };
    for (int type = static_cast<int>(BlockType::kQ40); type <= static_cast<int>(BlockType::kMxfp4); ++type) {
        const BlockTraits& traits = traits_of(static_cast<BlockType>(type));
        add({Tensor(codes.data(), DType::kU8, {kRows, kColumns / traits.elements * traits.bytes}),
             static_cast<BlockType>(type)});
    }
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) add(Tensor(codes.data(), dtype, {kRows, kColumns}));
    return hash.text();
}

std::string checksum_of(std::span<const NamedTensor> tensors) {
    int64_t total = 0;
    for (const NamedTensor& named : tensors) total += named.tensor.bytes();
    Hash hash;
    for (const auto& [name, tensor] : tensors) {
        hash.add(name.data(), std::ssize(name));
        const auto* data = tensor.as<std::byte>();
        const int64_t bytes = tensor.bytes(), part = std::min(bytes, kSample);
        if (total <= kWholeUpTo) {
            hash.add(data, bytes);
        } else {
            hash.add(data, part);
            hash.add(data + bytes - part, part);
        }
    }
    return hash.text();
}

// Before the work of packing, not behind it.
void require_writable(const fs::path& folder) {
    std::error_code code;
    fs::create_directories(folder, code);
    if (!code && ::access(folder.c_str(), W_OK) == 0) return;
    throw Error(ErrorKind::kIo, fmt::format("--repack-cache {}: cannot write to this folder: {}", folder.string(),
                                            code ? code.message() : std::strerror(errno)));
}

}  // namespace

RepackCache::RepackCache(const fs::path& folder, const GgufFile& source, Ops& ops)
    : identity_{{kSource, hash_of_source(source)}, {kLayout, hash_of_layouts(ops)}} {
    path_ = folder / fmt::format("{}-{}.safetensors", source.path().stem().string(), identity_[kSource]);
    if (!fs::exists(path_)) {
        require_writable(folder);
        return;
    }
    try {
        SafetensorsFile file(path_);
        const auto same = [&](const char* key, const std::string& value) {
            const auto found = file.metadata().find(key);
            return found != file.metadata().end() && found->second == value;
        };
        if (same(kSource, identity_[kSource]) && same(kLayout, identity_[kLayout]) &&
            same(kChecksum, checksum_of(file.tensors())))
            file_.emplace(std::move(file));
    } catch (const Error&) {  // broken: packed again
        file_.reset();
    }
    if (!file_) require_writable(folder);
}

std::optional<Weight> RepackCache::find(const GgufTensor& tensor) const {
    const std::optional<Tensor> found = file_ ? file_->find(tensor.name) : std::nullopt;
    if (!found || found->rank != 2) return std::nullopt;
    Weight packed(*found, tensor.block);
    packed.scheme = Scheme::kPanels;
    const bool fits = packed.out_features() == tensor.rows() && packed.in_features() == tensor.columns();
    return fits ? std::optional(packed) : std::nullopt;
}

void RepackCache::add(const GgufTensor& tensor, const Weight& packed) { added_.push_back({tensor.name, packed.codes}); }

void RepackCache::save() {
    // In the order in which the file will hold them, which is the order of the checksum.
    std::ranges::stable_sort(added_, std::ranges::greater(), [](const NamedTensor& t) { return size_of(t.tensor.dtype); });
    SafetensorsMetadata metadata = identity_;
    metadata[kChecksum] = checksum_of(added_);
    metadata[kPadding] = "";
    const int64_t header = safetensors_header_bytes(added_, metadata);
    metadata[kPadding] = std::string(static_cast<size_t>((kAlignment - header % kAlignment) % kAlignment), ' ');
    // Under a name of its own: another process may be keeping the same file's.
    const fs::path mine = fmt::format("{}.{}", path_.string(), ::getpid());
    write_safetensors(mine, added_, metadata);
    fs::rename(mine, path_);
    added_.clear();
}

}  // namespace fathom
