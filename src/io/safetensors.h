// Safetensors: one file of named tensors, read through a memory map and written atomically, and Hugging Face's folder of
// shards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/file.h"
#include "tensor/tensor.h"

namespace fathom {

// String pairs in the header's "__metadata__".
using SafetensorsMetadata = std::map<std::string, std::string>;

struct NamedTensor {
    std::string name;
    Tensor tensor;
};

// A checked table of contents plus views on bytes owned by somebody else. Nothing in the bytes is trusted: a defect of any kind
// is Error{kInput} naming the tensor. Tensors come in the order of their data.
class SafetensorsView {
public:
    SafetensorsView() = default;
    // `bytes` must outlive the view. Checks header length, JSON, dtypes, shapes (rank <= 4), sizes, and that the data offsets
    // cover the buffer to its end without gaps or overlaps. A tensor that is not aligned to its element (no official writer
    // makes one) is copied, so that every data pointer may be read as its type.
    explicit SafetensorsView(std::span<const std::byte> bytes);

    [[nodiscard]] std::span<const NamedTensor> tensors() const { return tensors_; }
    [[nodiscard]] const SafetensorsMetadata& metadata() const { return metadata_; }
    // The tensor of that name; its data is read-only, whatever its pointer says.
    [[nodiscard]] std::optional<Tensor> find(std::string_view name) const;

private:
    std::vector<NamedTensor> tensors_;
    std::unordered_map<std::string_view, size_t> index_;  // into tensors_, whose names it borrows
    SafetensorsMetadata metadata_;
    std::vector<Buffer> realigned_;
};

// A memory-mapped file. Tensors point into the map and live as long as this object (moving it keeps them valid).
class SafetensorsFile {
public:
    // Throws Error{kIo} when it cannot be opened, Error{kInput} when its content is wrong; both name the file.
    explicit SafetensorsFile(const std::filesystem::path& path);

    [[nodiscard]] std::span<const NamedTensor> tensors() const { return view_.tensors(); }
    [[nodiscard]] const SafetensorsMetadata& metadata() const { return view_.metadata(); }
    [[nodiscard]] std::optional<Tensor> find(std::string_view name) const { return view_.find(name); }
    [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }

private:
    MappedFile file_;
    SafetensorsView view_;
};

// A checkpoint folder: model.safetensors, or model.safetensors.index.json with its shards.
class SafetensorsFolder {
public:
    // Throws Error: nothing to load, shards missing (all of them named), or index and shards that disagree.
    explicit SafetensorsFolder(const std::filesystem::path& directory);

    [[nodiscard]] std::optional<Tensor> find(std::string_view name) const;
    // All names, shard by shard in file order.
    [[nodiscard]] std::vector<std::string> names() const;
    [[nodiscard]] std::span<const SafetensorsFile> files() const { return files_; }
    [[nodiscard]] int64_t total_bytes() const;  // of tensor data

private:
    std::vector<SafetensorsFile> files_;
    std::unordered_map<std::string_view, Tensor> index_;  // names borrowed from files_
};

// Writes one file, complete or not at all. As the official writer does, tensors of larger elements come first (otherwise in the
// given order) and the header is padded with spaces to a multiple of 8, so that every tensor is aligned. Tensors must be
// contiguous host memory under different names. Throws Error{kIo}.
void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const SafetensorsMetadata& metadata = {});

// Bytes in front of the data of such a file, for tensors in order of falling element size.
[[nodiscard]] int64_t safetensors_header_bytes(std::span<const NamedTensor> tensors, const SafetensorsMetadata& metadata);

// What a ShardedWriter is told before the data comes.
struct TensorSpec {
    std::string name;
    DType dtype = DType::kF32;
    std::vector<int64_t> shape;

    [[nodiscard]] int64_t bytes() const;
};

inline constexpr int64_t kMaxShardBytes = 5'000'000'000;  // Hugging Face's "5GB"

// Hugging Face's layout, streamed: holds no tensor, only the plan of who goes where.
//   ShardedWriter writer(folder, specs, {{"format", "pt"}});
//   for (const TensorSpec& spec : writer.order()) writer.write(tensor_named(spec.name));
//   writer.commit();
// An earlier checkpoint in the folder stays whole until commit(), and without commit() nothing is left behind. A crash inside
// commit() leaves the old checkpoint, the new one, or (several shards over several shards) a folder that refuses to load, never
// a mixture.
//
// With a `job` (a text that says all that the bytes depend on) the shards finished so far stay behind instead, hidden, and a
// writer of the same job goes on after them: its first() tensor to write is the first of the unfinished shard. A writer of
// another job throws them away.
class ShardedWriter {
public:
    // Shards hold at most `max_shard_bytes` of data, except a single larger tensor; one shard is named model.safetensors,
    // without an index. Creates the folder. Throws Error{kIo}.
    ShardedWriter(std::filesystem::path directory, std::span<const TensorSpec> tensors, const SafetensorsMetadata& metadata,
                  int64_t max_shard_bytes = kMaxShardBytes, std::string job = "");
    ~ShardedWriter();
    ShardedWriter(const ShardedWriter&) = delete;
    ShardedWriter& operator=(const ShardedWriter&) = delete;

    // The order in which write() wants the tensors: the given order cut into shards, in each the larger elements first.
    [[nodiscard]] std::span<const TensorSpec> order() const { return order_; }
    // Index into order() of the tensor that the first write() must bring: 0 unless a job goes on.
    [[nodiscard]] size_t first() const { return first_; }
    // Index into order() after the last tensor of the shard that holds tensor `index`.
    [[nodiscard]] size_t shard_end(size_t index) const;
    // The next tensor of order(): contiguous host memory of its dtype and shape.
    void write(const Tensor& tensor);
    // After the last tensor: renames the shards into place, writes the index last, and removes shards of an earlier checkpoint.
    void commit();

private:
    struct Shard {
        std::filesystem::path final_path;
        size_t end = 0;  // index into order_ after its last tensor
    };
    [[nodiscard]] std::filesystem::path incoming_path(const Shard& shard) const;
    void open_shard();
    [[nodiscard]] std::string shard_header(size_t shard) const;
    [[nodiscard]] bool finished(size_t shard) const;
    void take_up_job();
    void remove_incoming();

    std::filesystem::path directory_;
    SafetensorsMetadata metadata_;
    std::string job_;
    std::vector<TensorSpec> order_;
    std::vector<Shard> shards_;
    size_t first_ = 0;
    size_t next_ = 0;   // tensor of order_ to be written
    size_t shard_ = 0;  // its shard
    std::unique_ptr<AtomicFile> file_;
    bool committed_ = false;
};

// The job that a folder's unfinished shards belong to; nothing when there are none.
[[nodiscard]] std::optional<std::string> unfinished_job(const std::filesystem::path& directory);

// Whether any element is NaN. Integers and booleans have none. The tensor must be contiguous host memory.
[[nodiscard]] bool any_nan(const Tensor& tensor);

}  // namespace fathom
