// Reading GGUF. Layout, little-endian: "GGUF", u32 version, u64 tensors, u64 keys; per key: string, u32 type, value; per
// tensor: string, u32 rank, u64 dimensions (fastest first), u32 type, u64 offset; padding; data.
#include "io/gguf.h"

#include <fmt/format.h>
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/error.h"

namespace fathom {
namespace {

constexpr std::string_view kAgain = "download or copy the file again";
constexpr uint64_t kMaxKeyBytes = 65535;  // the specification's limit
constexpr int64_t kDefaultAlignment = 32, kMaxAlignment = int64_t{1} << 20;
constexpr uint64_t kShortestKey = 8 + 4 + 1, kShortestTensor = 8 + 4 + 8 + 4 + 8;  // bytes

enum ValueType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

[[noreturn]] void fail(std::string sentence) { throw Error(ErrorKind::kInput, std::move(sentence)); }

// The bytes not yet read.
class Reader {
public:
    explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

    template <class T>
    T number() {
        if (left() < sizeof(T)) fail(fmt::format("the file ends in its header, after {} bytes; {}", bytes_.size(), kAgain));
        T value;
        std::memcpy(&value, bytes_.data() + at_, sizeof value);
        at_ += sizeof value;
        return value;
    }
    std::string string(uint64_t limit = std::numeric_limits<uint64_t>::max()) {
        const auto length = number<uint64_t>();
        if (length > left() || length > limit)
            fail(fmt::format("a text of {} bytes at byte {} of the header; {}", length, at_, kAgain));
        std::string value(reinterpret_cast<const char*>(bytes_.data() + at_), length);
        at_ += length;
        return value;
    }
    [[nodiscard]] size_t left() const { return bytes_.size() - at_; }
    [[nodiscard]] size_t at() const { return at_; }

private:
    std::span<const std::byte> bytes_;
    size_t at_ = 0;
};

size_t least_bytes(uint32_t type) {
    switch (type) {
        case kU8:
        case kI8:
        case kBool:
            return 1;
        case kU16:
        case kI16:
            return 2;
        case kU64:
        case kI64:
        case kF64:
        case kString:
            return 8;
        default:
            return 4;
    }
}

int64_t read_integer(Reader& in, uint32_t type, const std::string& key) {
    switch (type) {
        case kU8:
        case kBool:
            return in.number<uint8_t>();
        case kI8:
            return in.number<int8_t>();
        case kU16:
            return in.number<uint16_t>();
        case kI16:
            return in.number<int16_t>();
        case kU32:
            return in.number<uint32_t>();
        case kI32:
            return in.number<int32_t>();
        case kI64:
            return in.number<int64_t>();
        default: {
            const auto value = in.number<uint64_t>();
            if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
                fail(fmt::format("key {}: {} is too large", key, value));
            return static_cast<int64_t>(value);
        }
    }
}

double read_float(Reader& in, uint32_t type) {
    return type == kF32 ? static_cast<double>(in.number<float>()) : in.number<double>();
}

GgufValue read_array(Reader& in, const std::string& key) {
    const auto type = in.number<uint32_t>();
    const auto count = in.number<uint64_t>();
    if (type > kF64 || type == kArray)
        fail(fmt::format("key {}: an array of {}, which no model file has; {}", key,
                         type == kArray ? "arrays" : "an unknown type", kAgain));
    if (count > in.left() / least_bytes(type))
        fail(fmt::format("key {}: {} elements are more than the file can hold; {}", key, count, kAgain));
    if (type == kString) {
        std::vector<std::string> values;
        values.reserve(count);
        for (uint64_t i = 0; i < count; ++i) values.push_back(in.string());
        return values;
    }
    if (type == kF32 || type == kF64) {
        std::vector<double> values(count);
        for (double& value : values) value = read_float(in, type);
        return values;
    }
    std::vector<int64_t> values(count);
    for (int64_t& value : values) value = read_integer(in, type, key);
    return values;
}

GgufValue read_value(Reader& in, const std::string& key) {
    const auto type = in.number<uint32_t>();
    switch (type) {
        case kF32:
        case kF64:
            return read_float(in, type);
        case kBool:
            return in.number<uint8_t>() != 0;
        case kString:
            return in.string();
        case kArray:
            return read_array(in, key);
        default:
            if (type > kF64) fail(fmt::format("key {}: a value of the unknown type {}; {}", key, type, kAgain));
            return read_integer(in, type, key);
    }
}

// Names of types that files may have and that this program does not compute with.
std::string unsupported_name(uint32_t type) {
    constexpr std::pair<uint32_t, std::string_view> kNames[] = {
        {9, "Q8_1"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"},
        {21, "IQ3_S"}, {22, "IQ2_S"}, {24, "I8"},      {25, "I16"},    {26, "I32"},     {27, "I64"},
        {28, "F64"},   {29, "IQ1_M"}, {34, "TQ1_0"},   {35, "TQ2_0"},  {40, "NVFP4"}};
    for (const auto& [number, name] : kNames)
        if (number == type) return std::string(name);
    return fmt::format("number {}", type);
}

void set_type(GgufTensor& tensor, uint32_t type) {
    if (const auto block = block_type_of_ggml(type)) {
        tensor.dtype = DType::kU8;
        tensor.block = *block;
    } else if (type == 0 || type == 1 || type == 30) {
        tensor.dtype = type == 0 ? DType::kF32 : type == 1 ? DType::kF16 : DType::kBF16;
    } else {
        fail(fmt::format(
            "tensor {}: its type {} is not supported; use a file in F32, F16, BF16, Q8_0, Q4_0 to Q5_1, Q2_K to Q6_K, "
            "IQ4_NL, IQ4_XS or MXFP4",
            tensor.name, unsupported_name(type)));
    }
}

GgufTensor read_tensor(Reader& in, uint64_t& offset) {
    GgufTensor tensor;
    tensor.name = in.string(kMaxKeyBytes);
    const auto rank = in.number<uint32_t>();
    if (rank == 0 || rank > 4)
        fail(fmt::format("tensor {}: {} dimensions, where 1 to 4 are possible; {}", tensor.name, rank, kAgain));
    uint64_t elements = 1;
    for (uint32_t i = 0; i < rank; ++i) {
        const auto dim = in.number<uint64_t>();
        if (dim == 0 || dim > (uint64_t{1} << 40) || elements > (uint64_t{1} << 48) / dim)
            fail(fmt::format("tensor {}: an impossible dimension of {}; {}", tensor.name, dim, kAgain));
        elements *= dim;
        tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(dim));
    }
    set_type(tensor, in.number<uint32_t>());
    offset = in.number<uint64_t>();
    const BlockTraits& traits = traits_of(tensor.block);
    if (tensor.columns() % traits.elements != 0)
        fail(fmt::format("tensor {}: rows of {} numbers cannot be {} blocks of {}", tensor.name, tensor.columns(), traits.name,
                         traits.elements));
    const int64_t per_element = tensor.block == BlockType::kNone ? size_of(tensor.dtype) : traits.bytes;
    tensor.bytes = static_cast<int64_t>(elements) / traits.elements * per_element;
    return tensor;
}

// Sets the data pointers; tensors must lie inside `data`, aligned and apart.
void place(std::vector<GgufTensor>& tensors, const std::vector<uint64_t>& offsets, std::span<const std::byte> data,
           int64_t alignment) {
    std::vector<size_t> order(tensors.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::sort(order, {}, [&](size_t i) { return offsets[i]; });
    uint64_t end = 0;
    std::string_view before = "the header";
    for (const size_t i : order) {
        GgufTensor& tensor = tensors[i];
        const auto bytes = static_cast<uint64_t>(tensor.bytes);
        if (offsets[i] % static_cast<uint64_t>(alignment) != 0)
            fail(fmt::format("tensor {}: its offset {} is not a multiple of {}; {}", tensor.name, offsets[i], alignment,
                             kAgain));
        if (offsets[i] > data.size() || bytes > data.size() - offsets[i])
            fail(fmt::format("tensor {}: bytes {} to {} of the data, which has {}: the file is truncated; {}", tensor.name,
                             offsets[i], offsets[i] + bytes, data.size(), kAgain));
        if (offsets[i] < end) fail(fmt::format("tensor {}: overlaps {}; {}", tensor.name, before, kAgain));
        tensor.data = const_cast<std::byte*>(data.data()) + offsets[i];  // a Tensor has no read-only form
        end = offsets[i] + bytes;
        before = tensor.name;
    }
}

template <class T>
const T* typed(const GgufView& view, std::string_view key, std::string_view type) {
    const auto found = view.metadata().find(key);
    if (found == view.metadata().end()) return nullptr;
    const T* value = std::get_if<T>(&found->second);
    if (value == nullptr) fail(fmt::format("key {}: not {}; {}", key, type, kAgain));
    return value;
}

template <class T>
std::optional<T> copied(const T* value) {
    return value == nullptr ? std::nullopt : std::optional(*value);
}

}  // namespace

int64_t GgufTensor::rows() const {
    int64_t product = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) product *= shape[i];
    return product;
}

std::string_view GgufTensor::type_name() const { return block == BlockType::kNone ? name_of(dtype) : traits_of(block).name; }

Weight GgufTensor::matrix() const {
    if (block == BlockType::kNone) return {Tensor(data, dtype, {rows(), columns()})};
    return {Tensor(data, dtype, {rows(), columns() / traits_of(block).elements * traits_of(block).bytes}), block};
}

GgufView::GgufView(std::span<const std::byte> bytes) {
    Reader in(bytes);
    if (bytes.size() < 4 || std::memcmp(bytes.data(), "GGUF", 4) != 0)
        fail("it does not begin with GGUF: this is no GGUF file");
    (void)in.number<uint32_t>();
    const auto version = in.number<uint32_t>();
    if (version != 2 && version != 3) fail(fmt::format("version {}; supported are 2 and 3, little-endian", version));
    const auto tensors = in.number<uint64_t>(), keys = in.number<uint64_t>();
    if (keys > in.left() / kShortestKey || tensors > in.left() / kShortestTensor)
        fail(fmt::format("{} tensors and {} keys are more than the file can hold; {}", tensors, keys, kAgain));
    for (uint64_t i = 0; i < keys; ++i) {
        std::string key = in.string(kMaxKeyBytes);
        GgufValue value = read_value(in, key);
        if (!metadata_.emplace(key, std::move(value)).second) fail(fmt::format("key {}: there twice; {}", key, kAgain));
    }
    std::vector<uint64_t> offsets(tensors);
    for (uint64_t& offset : offsets) tensors_.push_back(read_tensor(in, offset));
    const int64_t alignment = integer("general.alignment").value_or(kDefaultAlignment);
    if (alignment < 8 || alignment > kMaxAlignment || !std::has_single_bit(static_cast<uint64_t>(alignment)))
        fail(fmt::format("key general.alignment: {} is not a power of two from 8 on; {}", alignment, kAgain));
    const auto step = static_cast<size_t>(alignment), begin = (in.at() + step - 1) / step * step;
    place(tensors_, offsets, bytes.subspan(std::min(begin, bytes.size())), alignment);
    for (size_t i = 0; i < tensors_.size(); ++i)
        if (!index_.emplace(tensors_[i].name, i).second)
            fail(fmt::format("tensor {}: there twice; {}", tensors_[i].name, kAgain));
}

const GgufTensor* GgufView::find(std::string_view name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &tensors_[found->second];
}

std::optional<int64_t> GgufView::integer(std::string_view key) const {
    return copied(typed<int64_t>(*this, key, "a whole number"));
}
std::optional<bool> GgufView::boolean(std::string_view key) const { return copied(typed<bool>(*this, key, "true or false")); }
std::optional<std::string> GgufView::text(std::string_view key) const {
    return copied(typed<std::string>(*this, key, "a text"));
}

std::optional<double> GgufView::number(std::string_view key) const {
    const auto found = metadata_.find(key);
    if (found != metadata_.end() && std::holds_alternative<int64_t>(found->second))
        return static_cast<double>(std::get<int64_t>(found->second));
    return copied(typed<double>(*this, key, "a number"));
}

const std::vector<std::string>* GgufView::texts(std::string_view key) const {
    return typed<std::vector<std::string>>(*this, key, "a list of texts");
}
const std::vector<int64_t>* GgufView::integers(std::string_view key) const {
    return typed<std::vector<int64_t>>(*this, key, "a list of whole numbers");
}

GgufFile::GgufFile(const std::filesystem::path& path) : file_(path) {
    try {
        view_ = GgufView(file_.bytes());
    } catch (const Error& error) {
        throw error.within(path.string());
    }
}

}  // namespace fathom
