#include "nn/cache_type.h"

#include <fmt/format.h>
#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

namespace fathom {
namespace {

const std::array<CacheType, kCacheTypeNames.size()> kTypes{
    DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3, CacheType(BlockType::kQ80), CacheType(BlockType::kQ40)};

}  // namespace

std::optional<CacheType> cache_type_from_name(std::string_view name) {
    const auto found = std::ranges::find(kCacheTypeNames, name);
    if (found == kCacheTypeNames.end()) return std::nullopt;
    return kTypes[static_cast<size_t>(found - kCacheTypeNames.begin())];
}

std::string_view name_of(const CacheType& type) {
    const auto found = std::ranges::find(kTypes, type);
    return found == kTypes.end() ? "of another type" : kCacheTypeNames[static_cast<size_t>(found - kTypes.begin())];
}

void check_cache_type(const Ops& ops, const CacheType& type) {
    if (ops.caches(type.dtype, type.block)) return;
    throw Error(
        ErrorKind::kUsage,
        fmt::format("a cache of type {}: this device has none, give another --cache-type (bf16 everywhere)", name_of(type)));
}

int64_t cache_row_bytes(const CacheType& type, int64_t width) {
    if (type.block == BlockType::kNone) return width * size_of(type.dtype);
    const BlockTraits& traits = traits_of(type.block);
    return (width + traits.elements - 1) / traits.elements * traits.bytes;
}

Weight cache_rows(void* data, const CacheType& type, std::initializer_list<int64_t> dims, int64_t width) {
    check(dims.size() == 1 || dims.size() == 2, "cache_rows: rows, or pages of rows");
    const bool plain = type.block == BlockType::kNone;
    const int64_t first = *dims.begin(), last = plain ? width : cache_row_bytes(type, width);
    const DType dtype = plain ? type.dtype : DType::kU8;
    const Tensor codes =
        dims.size() == 1 ? Tensor(data, dtype, {first, last}) : Tensor(data, dtype, {first, dims.begin()[1], last});
    return plain ? Weight(codes) : Weight(codes, type.block);
}

void round_as_cached(Context& cx, const Tensor& x) {
    if (!cx.deterministic || cx.cache_type == CacheType(cx.ops.compute_dtype())) return;
    const int64_t n = x.dim(0), width = x.dim(1);
    const Tensor memory = cx.scratch.allocate(DType::kU8, {n * cache_row_bytes(cx.cache_type, width)});
    const Weight rounded = cache_rows(memory.data, cx.cache_type, {n}, width);
    if (rounded.scheme == Scheme::kPlain) {
        cx.ops.copy(rounded.codes, x);
        cx.ops.copy(x, rounded.codes);
        return;
    }
    std::vector<int32_t> rows(static_cast<size_t>(n));
    std::iota(rows.begin(), rows.end(), 0);
    const Tensor all = cx.ints(rows);
    cx.ops.scatter_weight_rows(rounded, x, all);
    cx.ops.gather_weight_rows(x, rounded, all);
}

}  // namespace fathom
