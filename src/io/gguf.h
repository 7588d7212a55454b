// GGUF, ggml's file format: metadata and tensors in one file, read through a memory map and written atomically.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/file.h"
#include "tensor/tensor.h"

namespace fathom {

// One metadata value. Integers of all widths are int64_t, both floats double; arrays of booleans are arrays of integers.
using GgufValue =
    std::variant<int64_t, double, bool, std::string, std::vector<int64_t>, std::vector<double>, std::vector<std::string>>;

// A tensor of the file. Its data is read-only.
struct GgufTensor {
    std::string name;
    std::vector<int64_t> shape;          // row-major, that is ggml's order reversed: a row is contiguous
    DType dtype = DType::kF32;           // kF32, kF16, kBF16, or kU8 for the bytes of blocks
    BlockType block = BlockType::kNone;  // what the bytes are
    std::byte* data = nullptr;
    int64_t bytes = 0;

    [[nodiscard]] int64_t columns() const { return shape.back(); }
    [[nodiscard]] int64_t rows() const;                // product of the other dimensions
    [[nodiscard]] std::string_view type_name() const;  // "BF16", "Q4_K"
    [[nodiscard]] Weight matrix() const;               // [rows(), columns()]
};

// A checked file. Nothing in the bytes is trusted: any defect is Error{kInput} naming key or tensor.
class GgufView {
public:
    GgufView() = default;
    // `bytes` must outlive the view. Checks magic, version (2 or 3), counts, strings, types, shapes (rank <= 4), alignment, and
    // that tensors lie inside the file and do not overlap.
    explicit GgufView(std::span<const std::byte> bytes);

    [[nodiscard]] std::span<const GgufTensor> tensors() const { return tensors_; }
    [[nodiscard]] const GgufTensor* find(std::string_view name) const;  // nullptr: not there
    [[nodiscard]] const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }

    // The value of a key as the wanted type (an integer also as a double); nothing when the key is absent, Error{kInput}
    // naming the key when it has another type.
    [[nodiscard]] std::optional<int64_t> integer(std::string_view key) const;
    [[nodiscard]] std::optional<double> number(std::string_view key) const;
    [[nodiscard]] std::optional<bool> boolean(std::string_view key) const;
    [[nodiscard]] std::optional<std::string> text(std::string_view key) const;
    [[nodiscard]] const std::vector<std::string>* texts(std::string_view key) const;
    [[nodiscard]] const std::vector<int64_t>* integers(std::string_view key) const;

private:
    std::vector<GgufTensor> tensors_;
    std::unordered_map<std::string_view, size_t> index_;  // names borrowed from tensors_
    std::map<std::string, GgufValue, std::less<>> metadata_;
};

// A memory-mapped file; errors name it.
class GgufFile {
public:
    explicit GgufFile(const std::filesystem::path& path);
    [[nodiscard]] const GgufView& view() const { return view_; }
    [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }
    [[nodiscard]] int64_t bytes() const { return static_cast<int64_t>(file_.bytes().size()); }
    [[nodiscard]] std::span<const std::byte> content() const { return file_.bytes(); }

private:
    MappedFile file_;
    GgufView view_;
};

// Whether `path` is a file that begins with GGUF's magic.
[[nodiscard]] bool is_gguf(const std::filesystem::path& path);

// What a GgufWriter is told before the data comes.
struct GgufSpec {
    std::string name;
    std::vector<int64_t> shape;  // row-major
    DType dtype = DType::kF32;   // kU8: blocks of `block`
    BlockType block = BlockType::kNone;

    [[nodiscard]] int64_t bytes() const;
};

inline constexpr int64_t kGgufKeepBytes = int64_t{256} << 20;

// Streams a file (version 3): metadata and the list of tensors first, then each tensor's data in the given order. Complete or
// not at all. Integers are written as u32 where they fit and are not negative, else as i64; arrays of integers as i32.
//
// With a `job` (a text that says all that the bytes depend on) whole tensors stay behind when the process ends, after each
// `keep_bytes` of them, and a writer of the same job goes on after them: with tensor first().
class GgufWriter {
public:
    GgufWriter(const std::filesystem::path& path, const std::vector<std::pair<std::string, GgufValue>>& metadata,
               std::vector<GgufSpec> tensors, std::string job = "", int64_t keep_bytes = kGgufKeepBytes);
    [[nodiscard]] std::span<const GgufSpec> order() const { return tensors_; }
    // Index into order() of the tensor that the first write() must bring: 0 unless a job goes on.
    [[nodiscard]] size_t first() const { return first_; }
    void write(std::span<const std::byte> part);  // of the next tensor of order(): the bytes after those written so far
    void commit();

private:
    AtomicFile file_;
    std::vector<GgufSpec> tensors_;
    size_t first_ = 0, next_ = 0;
    int64_t written_ = 0;  // of tensor next_
    bool has_job_;
    uint64_t keep_bytes_, kept_ = 0;
    void pad();
};

}  // namespace fathom
