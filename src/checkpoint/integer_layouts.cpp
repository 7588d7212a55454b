#include "checkpoint/integer_layouts.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

constexpr std::array<int, 8> kAwqOrder{0, 2, 4, 6, 1, 3, 5, 7};  // column of nibble i

bool is_gptq(IntegerLayout layout) { return layout == IntegerLayout::kGptq || layout == IntegerLayout::kGptqV2; }

std::string stem_of(const std::string& name) {
    constexpr std::string_view kEnd = ".weight";
    return name.ends_with(kEnd) ? name.substr(0, name.size() - kEnd.size()) : name;
}

// Bit fields of 4 or 8 bits in 32-bit words.
uint32_t field(const Tensor& words, int64_t row, int64_t word, int64_t at, int64_t bits) {
    return words.as<const uint32_t>()[row * words.dim(1) + word] >> (at * bits) & ((1u << bits) - 1);
}

constexpr int64_t kMxfp4Columns = 32, kMxfp4Bytes = 17;  // of a block

int nibble(const uint8_t* bytes, int64_t i) { return bytes[i / 2] >> (i % 2 * 4) & 15; }

int64_t words_for(int64_t fields, int64_t bits) { return (fields * bits + 31) / 32; }

class Reader {
public:
    Reader(IntegerLayout layout, const FindTensor& find, const std::string& name, int64_t rows, int64_t columns, Arena& arena,
           std::set<std::string>& used)
        : layout_(layout),
          find_(find),
          name_(name),
          stem_(stem_of(name)),
          rows_(rows),
          columns_(columns),
          arena_(arena),
          used_(used) {}

    std::optional<Weight> read() {
        if (layout_ == IntegerLayout::kPackQuantized) return read_pack_quantized();
        if (layout_ == IntegerLayout::kIntQuantized) return read_int_quantized();
        if (layout_ == IntegerLayout::kMxfp4) return read_mxfp4();
        return read_transposed();
    }

private:
    IntegerLayout layout_;
    const FindTensor& find_;
    const std::string& name_;
    std::string stem_;
    int64_t rows_, columns_;
    Arena& arena_;
    std::set<std::string>& used_;

    std::optional<Tensor> optional(const std::string& suffix) {
        const std::string name = stem_ + suffix;
        const std::optional<Tensor> found = find_(name);
        if (found) used_.insert(name);
        return found;
    }
    Tensor required(const std::string& suffix) {
        if (const auto found = optional(suffix)) return *found;
        throw Error(ErrorKind::kInput, fmt::format("missing {}{}", stem_, suffix));
    }
    [[noreturn]] void fail(const std::string& suffix, const Tensor& found, const std::string& wanted) const {
        throw Error(ErrorKind::kInput, fmt::format("{}{} is {}, {} needs {}", stem_, suffix, found.describe(), name_, wanted));
    }
    void require_shape(const std::string& suffix, const Tensor& t, DType dtype, int64_t rows, int64_t columns) const {
        if (t.dtype != dtype || t.rank != 2 || t.dim(0) != rows || t.dim(1) != columns)
            fail(suffix, t, fmt::format("{}[{}, {}]", name_of(dtype), rows, columns));
    }

    // Columns of a group from the number of groups.
    int64_t groups_of(const std::string& suffix, const Tensor& scales, int axis, int64_t others) const {
        const bool numbers = scales.dtype == DType::kF32 || scales.dtype == DType::kF16 || scales.dtype == DType::kBF16;
        const int64_t groups = scales.rank == 2 ? scales.dim(axis) : 0;
        if (!numbers || groups < 1 || scales.dim(1 - axis) != others || columns_ % groups != 0)
            fail(suffix, scales,
                 fmt::format("F32, F16 or BF16 scales of {} rows and a number of groups that divides {}", others, columns_));
        return groups;
    }

    [[nodiscard]] Weight with(Tensor codes, Tensor scales, Tensor zeros = {}) const {
        Weight w(codes);
        w.scheme = Scheme::kGroups;
        w.scales = scales;
        w.zeros = zeros;
        return w;
    }

    std::optional<Weight> read_pack_quantized() {
        const auto packed = optional(".weight_packed");
        if (!packed) return std::nullopt;
        const Tensor scales = required(".weight_scale");
        const int64_t groups = groups_of(".weight_scale", scales, 1, rows_);
        const bool four = packed->rank == 2 && packed->dim(1) == words_for(columns_, 4);
        require_shape(".weight_packed", *packed, DType::kI32, rows_, words_for(columns_, four ? 4 : 8));
        check_shape_tensor();
        if (const auto order = optional(".weight_g_idx")) {
            if (!in_order(".weight_g_idx", *order, groups))
                throw Error(ErrorKind::kInput,
                            fmt::format("{}.weight_g_idx puts columns into other groups than their neighbours (actorder): "
                                        "fathom reads pack-quantized weights without it",
                                        stem_));
        }
        const auto zeros = optional(".weight_zero_point");
        if (zeros) require_shape(".weight_zero_point", *zeros, DType::kI32, words_for(rows_, four ? 4 : 8), groups);
        if (columns_ % 8 != 0)
            throw Error(ErrorKind::kInput, fmt::format("{}.weight_packed: {} columns are no multiple of 8", stem_, columns_));
        if (four) {
            // Little-endian words of nibbles from the low bits up are the bytes that kGroups has.
            Tensor codes(packed->data, DType::kU8, {rows_, columns_ / 2});
            return with(codes, scales, zeros ? row_zeros(*zeros, groups) : Tensor());
        }
        const Tensor codes = arena_.allocate(DType::kI8, {rows_, columns_});
        const auto* from = packed->as<const uint8_t>();
        for (int64_t i = 0; i < codes.size(); ++i) codes.as<int8_t>()[i] = static_cast<int8_t>(from[i] ^ 0x80);
        if (!zeros) return with(codes, scales);
        return numbers([&](int64_t row, int64_t column) {
            const int64_t g = column / (columns_ / groups);
            const auto zero = static_cast<int>(field(*zeros, row / 4, g, row % 4, 8)) - 128;
            return number_at(scales, row * groups + g) * static_cast<float>(codes.as<int8_t>()[row * columns_ + column] - zero);
        });
    }

    // weight_shape repeats what weight_packed's padding hides.
    void check_shape_tensor() {
        const auto shape = optional(".weight_shape");
        if (!shape) return;
        const bool long_ints = shape->dtype == DType::kI64;
        if (shape->rank != 1 || shape->dim(0) != 2 || (!long_ints && shape->dtype != DType::kI32))
            fail(".weight_shape", *shape, "I64[2]");
        const auto at = [&](int64_t i) -> int64_t {
            return long_ints ? shape->as<const int64_t>()[i] : shape->as<const int32_t>()[i];
        };
        if (at(0) != rows_ || at(1) != columns_)
            throw Error(ErrorKind::kInput, fmt::format("{}.weight_shape says [{}, {}], the config asks for [{}, {}]", stem_,
                                                       at(0), at(1), rows_, columns_));
    }

    // Zero points packed along rows -> U8 [rows, groups].
    Tensor row_zeros(const Tensor& packed, int64_t groups) {
        const Tensor zeros = arena_.allocate(DType::kU8, {rows_, groups});
        for (int64_t i = 0; i < rows_; ++i)
            for (int64_t g = 0; g < groups; ++g)
                zeros.as<uint8_t>()[i * groups + g] = static_cast<uint8_t>(field(packed, i / 8, g, i % 8, 4));
        return zeros;
    }

    std::optional<Weight> read_int_quantized() {
        const auto codes = optional(".weight");
        if (!codes || codes->dtype != DType::kI8) return std::nullopt;
        require_shape(".weight", *codes, DType::kI8, rows_, columns_);
        const Tensor scales = required(".weight_scale");
        (void)groups_of(".weight_scale", scales, 1, rows_);
        if (const auto zeros = optional(".weight_zero_point"))
            throw Error(ErrorKind::kInput, fmt::format("{}.weight_zero_point: int-quantized weights with zero points are not "
                                                       "supported, symmetric ones are",
                                                       stem_));
        return with(*codes, scales);
    }

    // ggml's blocks: the scale, then 16 bytes of which byte j holds columns j and j + 16.
    std::optional<Weight> read_mxfp4() {
        constexpr int64_t kColumns = kMxfp4Columns;
        const auto packed = optional(".weight_packed");
        if (!packed) return std::nullopt;
        const Tensor scales = required(".weight_scale");
        if (columns_ % kColumns != 0)
            throw Error(ErrorKind::kInput, fmt::format("{}.weight_packed: {} columns are no multiple of 32", stem_, columns_));
        require_shape(".weight_packed", *packed, DType::kU8, rows_, columns_ / 2);
        require_shape(".weight_scale", scales, DType::kU8, rows_, columns_ / kColumns);
        const auto *scale = scales.as<const uint8_t>(), *from = packed->as<const uint8_t>();
        if (std::find(scale, scale + scales.size(), 255) != scale + scales.size())
            throw Error(ErrorKind::kInput, fmt::format("{}.weight_scale holds NaN (the byte 255)", stem_));
        const Tensor blocks = arena_.allocate(DType::kU8, {rows_, columns_ / kColumns * kMxfp4Bytes});
        auto* to = blocks.as<uint8_t>();
        for (int64_t b = 0; b < scales.size(); ++b, from += kColumns / 2) {
            *to++ = scale[b];
            for (int64_t j = 0; j < 16; ++j)
                *to++ = static_cast<uint8_t>(nibble(from, j) | nibble(from, j + kColumns / 2) << 4);
        }
        return Weight(blocks, BlockType::kMxfp4);
    }

    // GPTQ and AWQ hold the transpose.
    std::optional<Weight> read_transposed() {
        const auto packed = optional(".qweight");
        if (!packed) return std::nullopt;
        const Tensor scales = required(".scales"), qzeros = required(".qzeros");
        const int64_t groups = groups_of(".scales", scales, 0, rows_);
        const bool awq = layout_ == IntegerLayout::kAwq;
        const int64_t bits = awq || (packed->rank == 2 && packed->dim(0) == words_for(columns_, 4)) ? 4 : 8;
        if (columns_ % 8 != 0 || rows_ * bits % 32 != 0)
            throw Error(ErrorKind::kInput,
                        fmt::format("{}.qweight: [{}, {}] are no whole 32-bit words", stem_, rows_, columns_));
        if (awq)
            require_shape(".qweight", *packed, DType::kI32, columns_, rows_ / 8);
        else
            require_shape(".qweight", *packed, DType::kI32, words_for(columns_, bits), rows_);
        require_shape(".qzeros", qzeros, DType::kI32, groups, rows_ * bits / 32);
        const auto order = awq ? std::nullopt : optional(".g_idx");
        const bool ordered = !order || in_order(".g_idx", *order, groups);
        const Tensor zeros = transposed_zeros(qzeros, groups, bits);
        const auto code_at = [&](int64_t row, int64_t column) {
            if (!awq) return field(*packed, column * bits / 32, row, column % (32 / bits), bits);
            return field(*packed, column, row / 8, std::ranges::find(kAwqOrder, row % 8) - kAwqOrder.begin(), 4);
        };
        const uint8_t middle = bits == 4 ? 8 : 128;
        const auto* zero = zeros.as<const uint8_t>();
        const bool symmetric = std::all_of(zero, zero + zeros.size(), [middle](uint8_t z) { return z == middle; });
        if (!ordered || (bits == 8 && !symmetric)) {
            return numbers([&](int64_t row, int64_t column) {
                const int64_t g = order ? order->as<const int32_t>()[column] : column / (columns_ / groups);
                return number_at(scales, g * rows_ + row) *
                       static_cast<float>(static_cast<int>(code_at(row, column)) - zero[row * groups + g]);
            });
        }
        const Tensor turned = arena_.allocate(scales.dtype, {rows_, groups});
        for (int64_t i = 0; i < rows_; ++i)
            for (int64_t g = 0; g < groups; ++g) copy_element(turned, i * groups + g, scales, g * rows_ + i);
        if (bits == 8) {
            const Tensor codes = arena_.allocate(DType::kI8, {rows_, columns_});
            for (int64_t i = 0; i < rows_; ++i)
                for (int64_t k = 0; k < columns_; ++k)
                    codes.as<int8_t>()[i * columns_ + k] = static_cast<int8_t>(static_cast<int>(code_at(i, k)) - 128);
            return with(codes, turned);
        }
        const Tensor codes = arena_.allocate(DType::kU8, {rows_, columns_ / 2});
        for (int64_t i = 0; i < rows_; ++i)
            for (int64_t k = 0; k < columns_; k += 2)
                codes.as<uint8_t>()[(i * columns_ + k) / 2] = static_cast<uint8_t>(code_at(i, k) | code_at(i, k + 1) << 4);
        return with(codes, turned, symmetric ? Tensor() : zeros);
    }

    // qzeros -> U8 [rows, groups].
    Tensor transposed_zeros(const Tensor& qzeros, int64_t groups, int64_t bits) {
        const Tensor zeros = arena_.allocate(DType::kU8, {rows_, groups});
        const int64_t per_word = 32 / bits;
        const uint32_t one = layout_ == IntegerLayout::kGptq ? 1 : 0, mask = (1u << bits) - 1;
        for (int64_t i = 0; i < rows_; ++i) {
            const int64_t at =
                layout_ == IntegerLayout::kAwq ? std::ranges::find(kAwqOrder, i % per_word) - kAwqOrder.begin() : i % per_word;
            for (int64_t g = 0; g < groups; ++g)
                zeros.as<uint8_t>()[i * groups + g] =
                    static_cast<uint8_t>((field(qzeros, g, i / per_word, at, bits) + one) & mask);
        }
        return zeros;
    }

    // Whether columns stand in the order of their groups; throws where a group does not exist.
    [[nodiscard]] bool in_order(const std::string& suffix, const Tensor& order, int64_t groups) const {
        if (order.dtype != DType::kI32 || order.rank != 1 || order.dim(0) != columns_)
            fail(suffix, order, fmt::format("I32[{}]", columns_));
        bool ordered = true;
        for (int64_t k = 0; k < columns_; ++k) {
            const int32_t g = order.as<const int32_t>()[k];
            if (g < 0 || g >= groups)
                throw Error(ErrorKind::kInput,
                            fmt::format("{}{} puts column {} into group {} of {}", stem_, suffix, k, g, groups));
            ordered = ordered && g == k / (columns_ / groups);
        }
        return ordered;
    }

    template <class At>
    Weight numbers(const At& at) {
        const Tensor result = arena_.allocate(DType::kF32, {rows_, columns_});
        for (int64_t i = 0; i < rows_; ++i)
            for (int64_t k = 0; k < columns_; ++k) result.as<float>()[i * columns_ + k] = at(i, k);
        return {result};
    }

    static void copy_element(const Tensor& to, int64_t i, const Tensor& from, int64_t j) {
        const auto size = static_cast<size_t>(size_of(to.dtype));
        std::memcpy(to.as<std::byte>() + static_cast<size_t>(i) * size,
                    from.as<const std::byte>() + static_cast<size_t>(j) * size, size);
    }
};

// ---- writing -------------------------------------------------------------------------------------------------------------

// Codes as unsigned fields.
uint32_t code_of(const Weight& w, int64_t row, int64_t column) {
    if (w.codes.dtype == DType::kI8)
        return static_cast<uint8_t>(w.codes.as<const int8_t>()[row * w.codes.stride[0] + column]) ^ 0x80u;
    return w.codes.as<const uint8_t>()[row * w.codes.stride[0] + column / 2] >> (column % 2 * 4) & 15u;
}

uint32_t zero_of(const Weight& w, int64_t row, int64_t group) {
    if (w.zeros) return w.zeros.as<const uint8_t>()[row * w.zeros.stride[0] + group];
    return w.codes.dtype == DType::kI8 ? 128 : 8;
}

void add_field(const Tensor& words, int64_t row, int64_t word, int64_t at, int64_t bits, uint32_t value) {
    words.as<uint32_t>()[row * words.dim(1) + word] |= value << (at * bits);
}

struct Packer {
    IntegerLayout layout;
    const Weight& w;
    int64_t rows = w.out_features(), columns = w.in_features(), groups = w.scales.dim(1),
            bits = w.codes.dtype == DType::kI8 ? 8 : 4;

    void fill(const Tensor& to, std::string_view suffix) const {
        if (suffix == "weight_shape") {
            to.as<int64_t>()[0] = rows;
            to.as<int64_t>()[1] = columns;
        } else if (suffix == "g_idx") {
            for (int64_t k = 0; k < columns; ++k) to.as<int32_t>()[k] = static_cast<int32_t>(k / (columns / groups));
        } else if (suffix == "scales" || suffix == "weight_scale") {
            fill_scales(to, suffix == "scales");
        } else if (suffix == "qzeros" || suffix == "weight_zero_point") {
            fill_zeros(to);
        } else {
            fill_codes(to);
        }
    }

private:
    void fill_scales(const Tensor& to, bool transposed) const {
        const auto size = static_cast<size_t>(size_of(to.dtype));
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t g = 0; g < groups; ++g)
                std::memcpy(to.as<std::byte>() + static_cast<size_t>(transposed ? g * rows + i : i * groups + g) * size,
                            w.scales.as<const std::byte>() + static_cast<size_t>(i * w.scales.stride[0] + g) * size, size);
    }

    void fill_zeros(const Tensor& to) const {
        const int64_t per_word = 32 / bits;
        const uint32_t mask = (1u << bits) - 1;
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t g = 0; g < groups; ++g) {
                const uint32_t zero = zero_of(w, i, g);
                if (layout == IntegerLayout::kPackQuantized)
                    add_field(to, i / per_word, g, i % per_word, bits, zero);
                else if (layout == IntegerLayout::kAwq)
                    add_field(to, g, i / 8, std::ranges::find(kAwqOrder, i % 8) - kAwqOrder.begin(), 4, zero);
                else
                    add_field(to, g, i / per_word, i % per_word, bits,
                              (zero - (layout == IntegerLayout::kGptq ? 1 : 0)) & mask);
            }
        }
    }

    void fill_codes(const Tensor& to) const {
        const int64_t per_word = 32 / bits;
        for (int64_t i = 0; i < rows; ++i) {
            if (layout == IntegerLayout::kIntQuantized) {
                std::memcpy(to.as<int8_t>() + i * columns, w.codes.as<const int8_t>() + i * w.codes.stride[0],
                            static_cast<size_t>(columns));
                continue;
            }
            for (int64_t k = 0; k < columns; ++k) {
                const uint32_t code = code_of(w, i, k);
                if (layout == IntegerLayout::kPackQuantized)
                    add_field(to, i, k / per_word, k % per_word, bits, code);
                else if (layout == IntegerLayout::kAwq)
                    add_field(to, k, i / 8, std::ranges::find(kAwqOrder, i % 8) - kAwqOrder.begin(), 4, code);
                else
                    add_field(to, k / per_word, i, k % per_word, bits, code);
            }
        }
    }
};

void fill_mxfp4(const Tensor& to, const Weight& w, bool scales) {
    const auto* from = w.codes.as<const uint8_t>();
    auto* bytes = to.as<uint8_t>();
    for (const auto* end = from + w.codes.bytes(); from != end; from += kMxfp4Bytes) {
        if (scales) {
            *bytes++ = from[0];
            continue;
        }
        // Column k is the low nibble of byte k, or the high one of byte k - 16.
        const auto code = [from](int64_t k) { return from[1 + k % 16] >> (k / 16 * 4) & 15; };
        for (int64_t k = 0; k < kMxfp4Columns; k += 2) *bytes++ = static_cast<uint8_t>(code(k) | code(k + 1) << 4);
    }
}

}  // namespace

IntegerLayout integer_layout(const QuantizationConfig& q) {
    if (q.quant_method == "awq") return IntegerLayout::kAwq;
    if (q.quant_method == "gptq") return q.format == "gptq_v2" ? IntegerLayout::kGptqV2 : IntegerLayout::kGptq;
    check(q.quant_method == "compressed-tensors", "integer_layout: a method without whole numbers");
    if (q.format == "mxfp4-pack-quantized") return IntegerLayout::kMxfp4;
    return q.format == "int-quantized" ? IntegerLayout::kIntQuantized : IntegerLayout::kPackQuantized;
}

DType scales_dtype(IntegerLayout layout, DType numbers) {
    return is_gptq(layout) || layout == IntegerLayout::kAwq ? DType::kF16 : numbers;
}

std::optional<Weight> read_integers(IntegerLayout layout, const FindTensor& find, const std::string& name, int64_t rows,
                                    int64_t columns, Arena& arena, std::set<std::string>& used) {
    return Reader(layout, find, name, rows, columns, arena, used).read();
}

std::vector<TensorSpec> integer_specs(IntegerLayout layout, const std::string& name, int64_t rows, int64_t columns,
                                      const GroupFormat& format) {
    const std::string stem = stem_of(name);
    const int64_t groups = format.groups_of(columns), bits = format.bits;
    switch (layout) {
        case IntegerLayout::kIntQuantized:
            return {{stem + ".weight", DType::kI8, {rows, columns}}, {stem + ".weight_scale", format.scales, {rows, groups}}};
        case IntegerLayout::kMxfp4:
            return {{stem + ".weight_packed", DType::kU8, {rows, columns / 2}},
                    {stem + ".weight_scale", DType::kU8, {rows, columns / kMxfp4Columns}}};
        case IntegerLayout::kPackQuantized: {
            std::vector<TensorSpec> specs{{stem + ".weight_packed", DType::kI32, {rows, words_for(columns, bits)}},
                                          {stem + ".weight_scale", format.scales, {rows, groups}},
                                          {stem + ".weight_shape", DType::kI64, {2}}};
            if (bits == 4 && !format.symmetric)
                specs.push_back({stem + ".weight_zero_point", DType::kI32, {words_for(rows, bits), groups}});
            return specs;
        }
        case IntegerLayout::kAwq:
            return {{stem + ".qweight", DType::kI32, {columns, rows / 8}},
                    {stem + ".qzeros", DType::kI32, {groups, rows / 8}},
                    {stem + ".scales", format.scales, {groups, rows}}};
        default:
            return {{stem + ".qweight", DType::kI32, {words_for(columns, bits), rows}},
                    {stem + ".qzeros", DType::kI32, {groups, words_for(rows, bits)}},
                    {stem + ".scales", format.scales, {groups, rows}},
                    {stem + ".g_idx", DType::kI32, {columns}}};
    }
}

Tensor PackedTensor::tensor() const {
    const auto& s = spec.shape;
    return s.size() == 1 ? Tensor(data.data(), spec.dtype, {s[0]}) : Tensor(data.data(), spec.dtype, {s[0], s[1]});
}

std::vector<PackedTensor> pack_integers(IntegerLayout layout, const std::string& name, const Weight& w) {
    std::vector<PackedTensor> result;
    if (layout == IntegerLayout::kMxfp4) {
        check(w.scheme == Scheme::kBlocks && w.block == BlockType::kMxfp4, "pack_integers: not MXFP4");
        for (TensorSpec& spec : integer_specs(layout, name, w.out_features(), w.in_features(), {})) {
            const bool scales = spec.name.ends_with("scale");
            const int64_t bytes = spec.bytes();
            result.push_back({std::move(spec), Buffer::host(bytes)});
            fill_mxfp4(result.back().tensor(), w, scales);
        }
        return result;
    }
    check(w.scheme == Scheme::kGroups, "pack_integers: not whole numbers in groups");
    const Packer packer{layout, w};
    for (TensorSpec& spec : integer_specs(layout, name, w.out_features(), w.in_features(), group_format(w))) {
        const int64_t bytes = spec.bytes();
        result.push_back({std::move(spec), Buffer::host(bytes)});
        packer.fill(result.back().tensor(), result.back().spec.name.substr(result.back().spec.name.rfind('.') + 1));
    }
    return result;
}

GroupFormat group_format(const Weight& w) {
    if (w.scheme == Scheme::kBlocks) return {4, kMxfp4Columns, true};
    const int64_t groups = w.scales.dim(1), columns = w.in_features();
    return {w.codes.dtype == DType::kI8 ? 8 : 4, groups == 1 ? 0 : columns / groups, !w.zeros, w.scales.dtype};
}

}  // namespace fathom
