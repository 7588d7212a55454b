#include <fmt/format.h>
#include <array>
#include <cstring>
#include <fstream>
#include <limits>
#include <utility>

#include "base/error.h"
#include "io/gguf.h"

namespace fathom {
namespace {

constexpr uint64_t kAlignment = 32;  // GGUF's default

// Little-endian bytes of the header.
class Header {
public:
    template <class T>
    void number(T value) {
        bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
    void string(std::string_view text) {
        number<uint64_t>(text.size());
        bytes_.append(text);
    }
    [[nodiscard]] const std::string& bytes() const { return bytes_; }

private:
    std::string bytes_;
};

// Numbers of the value types: u32 4, i32 5, f32 6, bool 7, string 8, array 9, i64 11.
struct WriteValue {
    Header& out;

    void operator()(int64_t value) const {
        const bool small = value >= 0 && value <= std::numeric_limits<uint32_t>::max();
        out.number<uint32_t>(small ? 4 : 11);
        if (small)
            out.number(static_cast<uint32_t>(value));
        else
            out.number(value);
    }
    void operator()(double value) const {
        out.number<uint32_t>(6);
        out.number(static_cast<float>(value));
    }
    void operator()(bool value) const {
        out.number<uint32_t>(7);
        out.number<uint8_t>(value ? 1 : 0);
    }
    void operator()(const std::string& value) const {
        out.number<uint32_t>(8);
        out.string(value);
    }
    void operator()(const std::vector<int64_t>& values) const {
        array(5, values.size());
        for (const int64_t value : values) out.number(static_cast<int32_t>(value));
    }
    void operator()(const std::vector<double>& values) const {
        array(6, values.size());
        for (const double value : values) out.number(static_cast<float>(value));
    }
    void operator()(const std::vector<std::string>& values) const {
        array(8, values.size());
        for (const std::string& value : values) out.string(value);
    }
    void array(uint32_t type, uint64_t count) const {
        out.number<uint32_t>(9);
        out.number(type);
        out.number(count);
    }
};

uint32_t ggml_type(const GgufSpec& spec) {
    if (spec.block != BlockType::kNone) return traits_of(spec.block).ggml_type;
    check(spec.dtype == DType::kF32 || spec.dtype == DType::kF16 || spec.dtype == DType::kBF16,
          "GgufWriter: " + spec.name + " has a type that GGUF lacks");
    return spec.dtype == DType::kF32 ? 0 : spec.dtype == DType::kF16 ? 1 : 30;
}

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

int64_t GgufSpec::bytes() const {
    const BlockTraits& traits = traits_of(block);
    int64_t elements = 1;
    for (const int64_t dim : shape) elements *= dim;
    check(!shape.empty() && shape.back() % traits.elements == 0, "GgufSpec: part of a block");
    return elements / traits.elements * (block == BlockType::kNone ? size_of(dtype) : traits.bytes);
}

GgufWriter::GgufWriter(const std::filesystem::path& path, const std::vector<std::pair<std::string, GgufValue>>& metadata,
                       std::vector<GgufSpec> tensors, std::string job, int64_t keep_bytes)
    : file_(path, job),
      tensors_(std::move(tensors)),
      has_job_(!job.empty()),
      keep_bytes_(static_cast<uint64_t>(keep_bytes)) {
    Header header;
    header.number<uint32_t>(0x46554747);  // "GGUF"
    header.number<uint32_t>(3);
    header.number<uint64_t>(tensors_.size());
    header.number<uint64_t>(metadata.size());
    for (const auto& [key, value] : metadata) {
        header.string(key);
        std::visit(WriteValue{header}, value);
    }
    uint64_t offset = 0;
    for (const GgufSpec& spec : tensors_) {
        header.string(spec.name);
        header.number(static_cast<uint32_t>(spec.shape.size()));
        for (size_t i = spec.shape.size(); i-- > 0;) header.number(static_cast<uint64_t>(spec.shape[i]));
        header.number(ggml_type(spec));
        header.number(offset);
        offset += aligned(static_cast<uint64_t>(spec.bytes()));
    }
    kept_ = file_.size();
    if (kept_ == 0) {
        file_.write(header.bytes());
        pad();
        kept_ = file_.size();
        return;
    }
    // Tensors end at multiples of the alignment, and keep() is called at ends of tensors.
    uint64_t at = aligned(header.bytes().size());
    for (; at < kept_ && next_ < tensors_.size(); ++next_) at += aligned(static_cast<uint64_t>(tensors_[next_].bytes()));
    if (at != kept_)
        throw Error(ErrorKind::kInput, path.string() + ".partial does not end behind a tensor: remove it and run again");
    first_ = next_;
}

void GgufWriter::write(std::span<const std::byte> part) {
    check(next_ < tensors_.size(), "GgufWriter::write: all tensors are written");
    written_ += static_cast<int64_t>(part.size());
    const int64_t bytes = tensors_[next_].bytes();
    check(written_ <= bytes, "GgufWriter::write: more bytes than the tensor has");
    file_.write(part);
    if (written_ < bytes) return;
    pad();
    ++next_;
    written_ = 0;
    if (!has_job_ || next_ == tensors_.size() || file_.size() - kept_ < keep_bytes_) return;
    file_.keep();
    kept_ = file_.size();
}

void GgufWriter::commit() {
    check(next_ == tensors_.size(), "GgufWriter::commit: tensors are missing");
    file_.commit();
}

void GgufWriter::pad() {
    static constexpr std::array<std::byte, kAlignment> kZeros{};
    file_.write(std::span(kZeros).first(aligned(file_.size()) - file_.size()));
}

bool is_gguf(const std::filesystem::path& path) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) return false;
    std::array<char, 4> magic{};
    std::ifstream(path, std::ios::binary).read(magic.data(), magic.size());
    return std::string_view(magic.data(), magic.size()) == "GGUF";
}

}  // namespace fathom
