// Writing: one file at once, or a folder of shards as a stream.
#include <fmt/format.h>
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/error.h"
#include "io/safetensors.h"

namespace fathom {
namespace {

constexpr std::string_view kSingleName = "model.safetensors";
constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr std::string_view kJobName = ".fathom-job";

std::string json_string(std::string_view text) { return nlohmann::json(text).dump(); }

TensorSpec spec_of(const NamedTensor& named) {
    const Tensor& t = named.tensor;
    check(t.defined() && t.contiguous(), "a tensor to be written must be contiguous");
    return {named.name, t.dtype, {t.shape.begin(), t.shape.begin() + t.rank}};
}

void check_names(std::span<const TensorSpec> specs) {
    std::unordered_set<std::string_view> seen{"__metadata__"};
    for (const TensorSpec& spec : specs) check(seen.insert(spec.name).second, "tensor names must differ: " + spec.name);
}

// Length and JSON header for data in this order.
std::string header_of(std::span<const TensorSpec> specs, const SafetensorsMetadata& metadata) {
    std::vector<std::string> items;
    if (!metadata.empty()) items.push_back("\"__metadata__\":" + nlohmann::json(metadata).dump());
    int64_t at = 0;
    for (const TensorSpec& spec : specs) {
        const int64_t end = at + spec.bytes();
        items.push_back(fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", json_string(spec.name),
                                    name_of(spec.dtype), fmt::join(spec.shape, ","), at, end));
        at = end;
    }
    std::string json = fmt::format("{{{}}}", fmt::join(items, ","));
    json.resize((json.size() + 7) / 8 * 8, ' ');
    const uint64_t length = json.size();
    std::string header(sizeof length, '\0');
    std::memcpy(header.data(), &length, sizeof length);
    return header + json;
}

bool larger_element(DType a, DType b) { return size_of(a) > size_of(b); }

std::span<const std::byte> data_of(const Tensor& tensor) {
    return {tensor.as<const std::byte>(), static_cast<size_t>(tensor.bytes())};
}

std::string index_of(std::span<const TensorSpec> order, std::span<const std::string> file_of) {
    nlohmann::json weight_map = nlohmann::json::object();
    int64_t total = 0;
    for (size_t i = 0; i < order.size(); ++i) {
        weight_map[order[i].name] = file_of[i];
        total += order[i].bytes();
    }
    return nlohmann::json{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}}.dump(2) + "\n";
}

// model-00001-of-00003.safetensors
bool is_shard_name(std::string_view name) {
    constexpr std::string_view kPattern = "model-#####-of-#####.safetensors";
    return std::ranges::equal(name, kPattern, [](char c, char p) { return p == '#' ? c >= '0' && c <= '9' : c == p; });
}

[[noreturn]] void fail_io(const std::filesystem::path& path, std::string_view action, const std::error_code& code) {
    throw Error(ErrorKind::kIo, fmt::format("{}: cannot {}: {}", path.string(), action, code.message()));
}

void remove_file(const std::filesystem::path& path) {
    std::error_code code;
    std::filesystem::remove(path, code);
    if (code) fail_io(path, "remove", code);
}

}  // namespace

int64_t TensorSpec::bytes() const {
    int64_t bytes = size_of(dtype);
    for (const int64_t dim : shape) bytes *= dim;
    return bytes;
}

void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const SafetensorsMetadata& metadata) {
    std::vector<const NamedTensor*> order;
    for (const NamedTensor& tensor : tensors) order.push_back(&tensor);
    std::ranges::stable_sort(order, larger_element, [](const NamedTensor* t) { return t->tensor.dtype; });
    std::vector<TensorSpec> specs;
    for (const NamedTensor* tensor : order) specs.push_back(spec_of(*tensor));
    check_names(specs);
    AtomicFile file(path);
    file.write(header_of(specs, metadata));
    for (const NamedTensor* tensor : order) file.write(data_of(tensor->tensor));
    file.commit();
}

int64_t safetensors_header_bytes(std::span<const NamedTensor> tensors, const SafetensorsMetadata& metadata) {
    std::vector<TensorSpec> specs;
    for (const NamedTensor& tensor : tensors) specs.push_back(spec_of(tensor));
    return std::ssize(header_of(specs, metadata));
}

ShardedWriter::ShardedWriter(std::filesystem::path directory, std::span<const TensorSpec> tensors,
                             const SafetensorsMetadata& metadata, int64_t max_shard_bytes, std::string job)
    : directory_(std::move(directory)),
      metadata_(metadata),
      job_(std::move(job)),
      order_(tensors.begin(), tensors.end()) {
    check_names(order_);
    size_t begin = 0;
    int64_t bytes = 0;
    const auto close = [&](size_t end) {
        std::stable_sort(order_.begin() + static_cast<ptrdiff_t>(begin), order_.begin() + static_cast<ptrdiff_t>(end),
                         [](const TensorSpec& a, const TensorSpec& b) { return larger_element(a.dtype, b.dtype); });
        shards_.push_back({{}, end});
        begin = end;
        bytes = 0;
    };
    for (size_t i = 0; i < order_.size(); ++i) {
        const int64_t more = order_[i].bytes();
        if (i > begin && bytes + more > max_shard_bytes) close(i);
        bytes += more;
    }
    if (begin < order_.size() || shards_.empty()) close(order_.size());
    for (size_t i = 0; i < shards_.size(); ++i)
        shards_[i].final_path =
            directory_ / (shards_.size() == 1 ? std::string(kSingleName)
                                              : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards_.size()));
    std::error_code code;
    std::filesystem::create_directories(directory_, code);
    if (code) fail_io(directory_, "create the folder", code);
    if (!job_.empty()) take_up_job();
    if (next_ < order_.size() || order_.empty()) open_shard();
}

ShardedWriter::~ShardedWriter() {
    file_.reset();
    if (job_.empty()) remove_incoming();
}

size_t ShardedWriter::shard_end(size_t index) const {
    return std::ranges::find_if(shards_, [index](const Shard& shard) { return index < shard.end; })->end;
}

std::string ShardedWriter::shard_header(size_t shard) const {
    const size_t begin = shard == 0 ? 0 : shards_[shard - 1].end;
    return header_of(std::span(order_).subspan(begin, shards_[shard].end - begin), metadata_);
}

// A shard gets its incoming name when it is complete (AtomicFile), and the last one if commit() was interrupted; that it is
// this job's shows in its header.
bool ShardedWriter::finished(size_t shard) const {
    std::filesystem::path path = incoming_path(shards_[shard]);
    if (!std::filesystem::exists(path)) path = shards_[shard].final_path;
    if (!std::filesystem::exists(path)) return false;
    const MappedFile file(path);
    const std::string header = shard_header(shard);
    const std::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    size_t size = header.size();
    for (size_t i = shard == 0 ? 0 : shards_[shard - 1].end; i < shards_[shard].end; ++i)
        size += static_cast<size_t>(order_[i].bytes());
    return bytes.size() == size && bytes.starts_with(header);
}

void ShardedWriter::take_up_job() {
    if (unfinished_job(directory_) == job_) {
        while (shard_ < shards_.size() && finished(shard_)) next_ = shards_[shard_++].end;
        first_ = next_;
        return;
    }
    std::vector<std::filesystem::path> strangers;
    for (const auto& entry : std::filesystem::directory_iterator(directory_))
        if (const std::string name = entry.path().filename().string();
            name.starts_with(".model") && name.find(".safetensors.incoming") != std::string::npos)
            strangers.push_back(entry.path());
    for (const std::filesystem::path& path : strangers) remove_file(path);
    write_text_atomically(directory_ / kJobName, job_);
}

std::filesystem::path ShardedWriter::incoming_path(const Shard& shard) const {
    return directory_ / fmt::format(".{}.incoming", shard.final_path.filename().string());
}

void ShardedWriter::open_shard() {
    file_ = std::make_unique<AtomicFile>(incoming_path(shards_[shard_]));
    file_->write(shard_header(shard_));
}

void ShardedWriter::write(const Tensor& tensor) {
    check(next_ < order_.size(), "ShardedWriter: more tensors than announced");
    const TensorSpec& spec = order_[next_];
    const TensorSpec given = spec_of({spec.name, tensor});
    check(given.dtype == spec.dtype && given.shape == spec.shape,
          fmt::format("ShardedWriter: {} is {}, which is not what was announced", spec.name, tensor.describe()));
    file_->write(data_of(tensor));
    if (++next_ < shards_[shard_].end) return;
    file_->commit();
    file_.reset();
    if (++shard_ < shards_.size()) open_shard();
}

void ShardedWriter::commit() {
    check(next_ == order_.size(), "ShardedWriter: commit before the last tensor");
    check(!committed_, "ShardedWriter: commit twice");
    committed_ = true;
    if (file_) file_->commit();  // a shard without tensors
    file_.reset();
    const std::filesystem::path index = directory_ / kIndexName, single = directory_ / kSingleName;
    std::vector<std::string> file_of;
    std::unordered_set<std::string> ours;
    for (const Shard& shard : shards_) {
        file_of.resize(shard.end, shard.final_path.filename().string());
        ours.insert(shard.final_path.filename().string());
    }
    const bool sharded = shards_.size() > 1;
    // Readers prefer model.safetensors, so until it changes hands an earlier single file stays the checkpoint. Only shards that
    // replace shards of the same name need the folder to be no checkpoint for a moment.
    if (sharded && std::ranges::any_of(shards_, [](const Shard& s) { return std::filesystem::exists(s.final_path); }))
        remove_file(index);
    for (const Shard& shard : shards_) {
        std::error_code code;
        if (!job_.empty() && !std::filesystem::exists(incoming_path(shard))) continue;  // by the commit() that was interrupted
        std::filesystem::rename(incoming_path(shard), shard.final_path, code);
        if (code) fail_io(shard.final_path, "rename into place", code);
    }
    sync_directory(directory_);
    if (sharded) {
        write_text_atomically(index, index_of(order_, file_of));
        remove_file(single);
    } else {
        remove_file(index);
    }
    std::vector<std::filesystem::path> stale;
    for (const auto& entry : std::filesystem::directory_iterator(directory_))
        if (const std::string name = entry.path().filename().string(); is_shard_name(name) && !ours.contains(name))
            stale.push_back(entry.path());
    for (const std::filesystem::path& path : stale) remove_file(path);
    if (!job_.empty()) remove_file(directory_ / kJobName);
    sync_directory(directory_);
}

void ShardedWriter::remove_incoming() {
    std::error_code ignored;
    for (const Shard& shard : shards_) std::filesystem::remove(incoming_path(shard), ignored);
}

std::optional<std::string> unfinished_job(const std::filesystem::path& directory) {
    if (!std::filesystem::exists(directory / kJobName)) return std::nullopt;
    return read_text(directory / kJobName);
}

}  // namespace fathom
