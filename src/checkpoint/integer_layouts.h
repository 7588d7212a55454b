// Matrices of 4 and 8 bits in groups as Hugging Face's quantizers store them: compressed-tensors (pack-quantized,
// int-quantized, mxfp4-pack-quantized), GPTQ and AWQ. In memory they are whole numbers (Scheme::kGroups), MXFP4 is ggml's
// blocks (kBlocks). For a parameter "m.weight" [out, in]:
//
//   pack-quantized   m.weight_packed I32 [out, ceil(in bits / 32)], columns from the low bits up, code + 2^(bits - 1);
//                    m.weight_scale [out, groups]; m.weight_shape I64 [2]; with zero points m.weight_zero_point I32
//                    [ceil(out bits / 32), groups], packed along rows in the same way
//   int-quantized    m.weight I8 [out, in]; m.weight_scale [out, groups]
//   gptq, gptq_v2    m.qweight I32 [in bits / 32, out], rows from the low bits up; m.scales F16 [groups, out]; m.qzeros I32
//                    [groups, out bits / 32], gptq: zero - 1; m.g_idx I32 [in]: the group of every column
//   awq gemm         m.qweight I32 [in, out / 8]; m.qzeros I32 [groups, out / 8]; m.scales F16 [groups, out]; nibble i of a
//                    word is column 0, 2, 4, 6, 1, 3, 5, 7 of its eight
//   mxfp4-pack-...   m.weight_packed U8 [out, in / 2], E2M1, the even column in the low nibble; m.weight_scale U8 [out, in /
//   32],
//                    E8M0: 2^(byte - 127)
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "model/config.h"
#include "quant/integer_groups.h"

namespace fathom {

enum class IntegerLayout : uint8_t { kPackQuantized, kIntQuantized, kGptq, kGptqV2, kAwq, kMxfp4 };

// Of a config with q.integers().
[[nodiscard]] IntegerLayout integer_layout(const QuantizationConfig& q);
// The type that a layout's scales have: F16 for GPTQ and AWQ, else `numbers`, the type of the model.
[[nodiscard]] DType scales_dtype(IntegerLayout layout, DType numbers);

using FindTensor = std::function<std::optional<Tensor>(const std::string& name)>;

// The matrix `name` ("m.weight") of [rows, columns]: views of the file where its bytes are as kGroups wants them, else copied
// to `arena`. Columns in another order than their groups' (GPTQ's desc_act) and 8-bit codes with zero points become F32.
// Nothing when the layout has no such matrix; `used` receives the names of its tensors. Throws Error{kInput} naming a tensor
// that is missing or misshapen, or whose values are out of range.
[[nodiscard]] std::optional<Weight> read_integers(IntegerLayout layout, const FindTensor& find, const std::string& name,
                                                  int64_t rows, int64_t columns, Arena& arena, std::set<std::string>& used);

// What a file holds for a matrix of that format, of which kMxfp4 has but one.
[[nodiscard]] std::vector<TensorSpec> integer_specs(IntegerLayout layout, const std::string& name, int64_t rows,
                                                    int64_t columns, const GroupFormat& format);
// The content of one of those tensors.
struct PackedTensor {
    TensorSpec spec;
    Buffer data;

    [[nodiscard]] Tensor tensor() const;
};
[[nodiscard]] std::vector<PackedTensor> pack_integers(IntegerLayout layout, const std::string& name, const Weight& w);

// The format of a matrix in memory.
[[nodiscard]] GroupFormat group_format(const Weight& w);

}  // namespace fathom
