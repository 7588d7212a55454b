// How a cache holds the rows of its states.
#pragma once

#include <array>
#include <optional>
#include <string_view>

#include "nn/context.h"

namespace fathom {

// f32, bf16, f16, fp8 (e4m3), int8 (Q8_0 blocks) or int4 (Q4_0 blocks).
[[nodiscard]] std::optional<CacheType> cache_type_from_name(std::string_view name);
[[nodiscard]] std::string_view name_of(const CacheType& type);
inline constexpr std::array kCacheTypeNames{"f32", "bf16", "f16", "fp8", "int8", "int4"};
// Throws Error{kUsage} where the device cannot.
void check_cache_type(const Ops& ops, const CacheType& type);

// Rows of `type` in memory at `data`: [dims..., width] of a dtype, or U8 [dims..., bytes of a row] of a block type. Widths that
// are no multiple of a block's numbers are rounded up.
[[nodiscard]] Weight cache_rows(void* data, const CacheType& type, std::initializer_list<int64_t> dims, int64_t width);
[[nodiscard]] int64_t cache_row_bytes(const CacheType& type, int64_t width);

// Where the trainer must see what the sampler's cache holds (Context::deterministic): x [n, width] as if written to the cache
// and read back.
void round_as_cached(Context& cx, const Tensor& x);

}  // namespace fathom
