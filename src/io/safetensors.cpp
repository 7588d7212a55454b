// Reading one file. Layout: u64 header length, JSON header {name: {dtype, shape, data_offsets}}, data; all little-endian.
#include "io/safetensors.h"

#include <fmt/format.h>
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_set>

#include "base/error.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the official reader's limit
constexpr int kMaxDepth = 8;                       // of nesting; a header has three levels
constexpr std::string_view kAgain = "download or copy the file again";

struct Entry {
    std::string name;
    DType dtype{};
    std::vector<int64_t> shape;
    uint64_t begin = 0, end = 0;  // bytes, from the start of the data
};

[[noreturn]] void fail(std::string sentence) { throw Error(ErrorKind::kInput, std::move(sentence)); }

[[noreturn]] void fail(const Entry& entry, std::string_view defect) {
    fail(fmt::format("tensor {}: {}; {}", entry.name, defect, kAgain));
}

std::string_view header_text(std::span<const std::byte> bytes) {
    if (bytes.size() < kLengthBytes) fail(fmt::format("{} bytes are too few for a safetensors file; {}", bytes.size(), kAgain));
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    if (length > kMaxHeaderBytes) fail(fmt::format("a header of {} bytes: this is no safetensors file", length));
    if (length > bytes.size() - kLengthBytes)
        fail(fmt::format("the header should have {} bytes, but the file ends after {}: it is truncated; {}", length,
                         bytes.size() - kLengthBytes, kAgain));
    return {reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length};
}

// A first pass over the header for what the DOM cannot tell: of equal keys it keeps the last. (Its own callbacks could, but
// make parsing quadratic in the number of tensors.)
class HeaderGuard : public nlohmann::json_sax<Json> {
public:
    bool key(string_t& name) override {
        if (depth_ == 1 && !names_.insert(name).second) fail(fmt::format("tensor {}: listed twice; {}", name, kAgain));
        if (depth_ == 2 && !fields_.insert(name).second) fail(fmt::format("the header repeats the key {}; {}", name, kAgain));
        return true;
    }
    bool start_object(size_t) override {
        if (depth_ == 1) fields_.clear();
        return enter();
    }
    bool start_array(size_t) override { return enter(); }
    bool end_object() override { return leave(); }
    bool end_array() override { return leave(); }
    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(number_integer_t) override { return true; }
    bool number_unsigned(number_unsigned_t) override { return true; }
    bool number_float(number_float_t, const string_t&) override { return true; }
    bool string(string_t&) override { return true; }
    bool binary(binary_t&) override { return true; }
    bool parse_error(size_t, const std::string&, const Json::exception& e) override {
        fail(fmt::format("the header is not valid JSON ({}); {}", e.what(), kAgain));
    }

private:
    bool enter() {
        if (++depth_ > kMaxDepth) fail(fmt::format("the header is nested too deeply; {}", kAgain));
        return true;
    }
    bool leave() {
        --depth_;
        return true;
    }

    std::unordered_set<std::string> names_, fields_;
    int depth_ = 0;
};

Json parse_header(std::string_view text) {
    HeaderGuard guard;
    Json::sax_parse(text, &guard);
    Json header = Json::parse(text);
    if (!header.is_object()) fail(fmt::format("the header is not a JSON object; {}", kAgain));
    return header;
}

SafetensorsMetadata parse_metadata(const Json& object) {
    if (!object.is_object()) fail(fmt::format("__metadata__ is not an object; {}", kAgain));
    SafetensorsMetadata metadata;
    for (const auto& [key, value] : object.items()) {
        if (!value.is_string()) fail(fmt::format("__metadata__.{} is not a string; {}", key, kAgain));
        metadata[key] = value.get<std::string>();
    }
    return metadata;
}

const Json& field(const Entry& entry, const Json& object, const char* key) {
    const auto found = object.find(key);
    if (found == object.end()) fail(entry, fmt::format("it has no {}", key));
    return *found;
}

// Throws unless shape, dtype and offsets agree.
void check_size(const Entry& entry) {
    int64_t bytes = size_of(entry.dtype);
    for (const int64_t dim : entry.shape)  // a 0 must not hide an overflow from the strides
        if (__builtin_mul_overflow(bytes, std::max<int64_t>(dim, 1), &bytes)) fail(entry, "its shape is absurdly large");
    if (std::ranges::find(entry.shape, 0) != entry.shape.end()) bytes = 0;
    if (entry.end < entry.begin || entry.end - entry.begin != static_cast<uint64_t>(bytes))
        fail(entry, fmt::format("data_offsets [{}, {}] do not hold the {} bytes of {}[{}]", entry.begin, entry.end, bytes,
                                name_of(entry.dtype), fmt::join(entry.shape, ", ")));
}

Entry parse_entry(const std::string& name, const Json& object) {
    Entry entry;
    entry.name = name;
    if (!object.is_object()) fail(entry, "its description is not an object");
    const Json &dtype = field(entry, object, "dtype"), &shape = field(entry, object, "shape"),
               &offsets = field(entry, object, "data_offsets");
    if (!dtype.is_string()) fail(entry, "its dtype is not a string");
    const auto known = dtype_from_name(dtype.get_ref<const std::string&>());
    if (!known)
        fail(fmt::format("tensor {}: dtype {} is not supported; convert it to F32, BF16, F16 or F8_E4M3 first", name,
                         dtype.get_ref<const std::string&>()));
    entry.dtype = *known;
    if (!shape.is_array()) fail(entry, "its shape is not a list");
    if (shape.size() > Tensor::kMaxRank)
        fail(fmt::format("tensor {}: {} dimensions, but at most {} are supported", name, shape.size(), Tensor::kMaxRank));
    for (const Json& dim : shape) {
        if (!dim.is_number_unsigned() || dim.get<uint64_t>() > uint64_t{INT64_MAX})
            fail(entry, "its shape is not a list of sizes");
        entry.shape.push_back(dim.get<int64_t>());
    }
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned())
        fail(entry, "data_offsets are not two byte positions");
    entry.begin = offsets[0].get<uint64_t>();
    entry.end = offsets[1].get<uint64_t>();
    check_size(entry);
    return entry;
}

// Throws unless the entries, in order, cover [0, size) without gaps or overlaps.
void check_coverage(std::span<const Entry> entries, uint64_t size) {
    uint64_t at = 0;
    for (const Entry& entry : entries) {
        if (entry.end > size)
            fail(entry,
                 fmt::format("it ends at byte {} of data, but the file holds only {}: it is truncated", entry.end, size));
        if (entry.begin < at) fail(entry, "its data overlaps that of another tensor");
        if (entry.begin > at) fail(entry, fmt::format("{} bytes before its data belong to no tensor", entry.begin - at));
        at = entry.end;
    }
    if (at != size) fail(fmt::format("{} bytes at the end belong to no tensor; {}", size - at, kAgain));
}

Tensor contiguous(void* data, const Entry& entry) {
    Tensor tensor;
    tensor.data = data;
    tensor.dtype = entry.dtype;
    tensor.rank = static_cast<int>(entry.shape.size());
    int64_t stride = 1;
    for (size_t i = entry.shape.size(); i-- > 0; stride *= std::max<int64_t>(entry.shape[i], 1)) {
        tensor.shape[i] = entry.shape[i];
        tensor.stride[i] = stride;
    }
    return tensor;
}

// One 64-bit word per step: a lane holds a NaN when its bits without the sign exceed those of infinity (or, in e4m3, of 448).
bool any_lane_above(const std::byte* data, int64_t bytes, uint64_t lane_max, uint64_t lane_sign, uint64_t lanes) {
    const uint64_t magnitude = ~(lane_sign * lanes), carry = (lane_sign - 1 - lane_max) * lanes;
    uint64_t found = 0, word = 0;
    int64_t i = 0;
    for (; i + 8 <= bytes; i += 8) {
        std::memcpy(&word, data + i, 8);
        found |= (word & magnitude) + carry;
    }
    word = 0;
    if (i < bytes) std::memcpy(&word, data + i, static_cast<size_t>(bytes - i));
    found |= (word & magnitude) + carry;
    return (found & ~magnitude) != 0;
}

}  // namespace

SafetensorsView::SafetensorsView(std::span<const std::byte> bytes) {
    const std::string_view text = header_text(bytes);
    const std::span<const std::byte> data = bytes.subspan(kLengthBytes + text.size());
    const Json header = parse_header(text);
    std::vector<Entry> entries;
    for (const auto& [name, object] : header.items()) {
        if (name == "__metadata__")
            metadata_ = parse_metadata(object);
        else
            entries.push_back(parse_entry(name, object));
    }
    std::ranges::sort(entries, {}, [](const Entry& e) { return std::tie(e.begin, e.end, e.name); });
    check_coverage(entries, data.size());

    tensors_.reserve(entries.size());
    for (Entry& entry : entries) {
        // Tensor has no const twin; nothing in this project writes to a tensor that came from a file.
        void* address = const_cast<std::byte*>(data.data() + entry.begin);
        if (reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(size_of(entry.dtype)) != 0) {
            realigned_.push_back(Buffer::host(static_cast<int64_t>(entry.end - entry.begin)));
            if (entry.end > entry.begin) std::memcpy(realigned_.back().data(), address, entry.end - entry.begin);
            address = realigned_.back().data();
        }
        tensors_.push_back({std::move(entry.name), contiguous(address, entry)});
    }
    for (size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

std::optional<Tensor> SafetensorsView::find(std::string_view name) const {
    const auto found = index_.find(name);
    if (found == index_.end()) return std::nullopt;
    return tensors_[found->second].tensor;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
    try {
        view_ = SafetensorsView(file_.bytes());
    } catch (const Error& e) {
        throw e.within(path.string());
    }
}

bool any_nan(const Tensor& tensor) {
    check(tensor.contiguous(), "any_nan needs a contiguous tensor");
    const auto above = [&tensor](uint64_t lane_max, uint64_t lane_sign, uint64_t lanes) {
        constexpr int64_t kBlock = 1 << 20;  // stop at the first block with a NaN
        for (int64_t at = 0; at < tensor.bytes(); at += kBlock)
            if (any_lane_above(tensor.as<std::byte>() + at, std::min(kBlock, tensor.bytes() - at), lane_max, lane_sign, lanes))
                return true;
        return false;
    };
    switch (tensor.dtype) {
        case DType::kF64:
            return above(0x7ff0'0000'0000'0000, uint64_t{1} << 63, 1);
        case DType::kF32:
            return above(0x7f80'0000, 0x8000'0000, 0x0000'0001'0000'0001);
        case DType::kBF16:
            return above(0x7f80, 0x8000, 0x0001'0001'0001'0001);
        case DType::kF16:
            return above(0x7c00, 0x8000, 0x0001'0001'0001'0001);
        case DType::kF8E4M3:
            return above(0x7e, 0x80, 0x0101'0101'0101'0101);
        default:
            return false;
    }
}

}  // namespace fathom
