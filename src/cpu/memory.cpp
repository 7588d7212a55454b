// Copies, sums and row movements: all bound by memory, a few elements of arithmetic per load.
#include <algorithm>
#include <array>
#include <cstring>

#include "cpu/convert.h"
#include "cpu/cpu_ops.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"
#include "tensor/blocks_nearest.h"

namespace fathom {
namespace {

// A tensor of rank <= 4 as rows of its last dimension.
struct RowsOf {
    explicit RowsOf(const Tensor& t) : tensor(t) {
        for (int i = 0; i < 4; ++i) {
            const int from = i - (4 - t.rank);
            dims[static_cast<size_t>(i)] = from < 0 ? 1 : t.dim(from);
            strides[static_cast<size_t>(i)] = from < 0 ? 0 : t.stride[static_cast<size_t>(from)];
        }
    }
    [[nodiscard]] int64_t count() const { return dims[0] * dims[1] * dims[2]; }
    [[nodiscard]] int64_t length() const { return dims[3]; }
    [[nodiscard]] int64_t step() const { return strides[3]; }
    [[nodiscard]] std::byte* at(int64_t i) const {
        const int64_t i2 = i % dims[2], i1 = i / dims[2] % dims[1], i0 = i / dims[2] / dims[1];
        return tensor.as<std::byte>() + (i0 * strides[0] + i1 * strides[1] + i2 * strides[2]) * size_of(tensor.dtype);
    }

    const Tensor& tensor;
    std::array<int64_t, 4> dims{}, strides{};
};

constexpr int64_t kRowsPerPartial = 64;  // sums over rows are taken in blocks of this many, then over blocks in order

}  // namespace

Buffer CpuOps::allocate(int64_t bytes) { return Buffer::host(bytes); }

void CpuOps::write(const Tensor& device, const void* host) {
    check(device.contiguous(), "write: the tensor must be contiguous");
    if (device.size() > 0) std::memcpy(device.data, host, static_cast<size_t>(device.bytes()));
}

void CpuOps::read_back(void* host, const Tensor& device) {
    check(device.contiguous(), "read_back: the tensor must be contiguous");
    if (device.size() > 0) std::memcpy(host, device.data, static_cast<size_t>(device.bytes()));
}

void CpuOps::fill(const Tensor& y, double value) {
    const RowsOf to(y);
    if (y.contiguous() && value == 0) {
        const int64_t bytes = y.bytes();
        return pool_.parallel_for(bytes, int64_t{1} << 20, [&](int64_t begin, int64_t end, int) {
            std::memset(y.as<std::byte>() + begin, 0, static_cast<size_t>(end - begin));
        });
    }
    pool_.parallel_for(to.count(), rows_per_task(to.length()), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i)
            convert_row(kernels_, to.at(i), y.dtype, to.step(), &value, DType::kF64, 0, to.length());
    });
}

void CpuOps::copy(const Tensor& y, const Tensor& x) {
    const RowsOf to(y), from(x);
    if (y.rank != x.rank || to.dims != from.dims) check(false, "copy: y is " + y.describe() + ", x is " + x.describe());
    pool_.parallel_for(to.count(), rows_per_task(to.length()), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i)
            convert_row(kernels_, to.at(i), y.dtype, to.step(), from.at(i), x.dtype, from.step(), to.length());
    });
}

void CpuOps::add(const Tensor& y, const Tensor& a, const Tensor& b) {
    check_tensor("add", "y", y, DType::kF32, {kAny, kAny});
    const int64_t n = y.dim(0), d = y.dim(1);
    check_tensor("add", "a", a, DType::kF32, {n, d});
    check_tensor("add", "b", b, DType::kF32, {n, d});
    pool_.parallel_for(n, rows_per_task(d), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) kernels_.add(row(y, i), row(a, i), row(b, i), d);
    });
}

void CpuOps::add_bias(const Tensor& y, const Tensor& bias) {
    check_tensor("add_bias", "y", y, DType::kF32, {kAny, kAny});
    const int64_t n = y.dim(0), d = y.dim(1);
    check_tensor("add_bias", "bias", bias, {d});
    const float* b = widened(bias, scratch_.shared<float>(d), kernels_);
    pool_.parallel_for(n, rows_per_task(d), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) kernels_.add(row(y, i), row(y, i), b, d);
    });
}

void CpuOps::add_bias_backward(const Tensor& dbias, const Tensor& dy) {
    check_tensor("add_bias_backward", "dy", dy, DType::kF32, {kAny, kAny});
    const int64_t n = dy.dim(0), d = dy.dim(1), blocks = (n + kRowsPerPartial - 1) / kRowsPerPartial;
    check_tensor("add_bias_backward", "dbias", dbias, DType::kF32, {d});
    float* partial = scratch_.shared<float>(blocks * d);
    pool_.parallel_for(blocks, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t block = begin; block < end; ++block) {
            float* sum = partial + block * d;
            std::memset(sum, 0, static_cast<size_t>(d) * sizeof(float));
            for (int64_t i = block * kRowsPerPartial; i < std::min(n, (block + 1) * kRowsPerPartial); ++i)
                kernels_.add(sum, sum, row(dy, i), d);
        }
    });
    for (int64_t block = 0; block < blocks; ++block) kernels_.add(dbias.as<float>(), dbias.as<float>(), partial + block * d, d);
}

void CpuOps::sum_heads(const Tensor& y, const Tensor& x) {
    check_tensor("sum_heads", "x", x, DType::kF32, {kAny, kAny, kAny});
    const int64_t n = x.dim(0), h = x.dim(1), d = x.dim(2);
    check_tensor("sum_heads", "y", y, DType::kF32, {n, d});
    pool_.parallel_for(n, rows_per_task(h * d), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            std::memset(row(y, i), 0, static_cast<size_t>(d) * sizeof(float));
            for (int64_t j = 0; j < h; ++j) kernels_.add(row(y, i), row(y, i), row(x, i, j), d);
        }
    });
}

void CpuOps::gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
    check_tensor("gather_rows", "y", y, {kAny, kAny});
    const int64_t n = y.dim(0), d = y.dim(1);
    check_tensor("gather_rows", "x", x, {kAny, d});
    check_tensor("gather_rows", "rows", rows, DType::kI32, {n});
    const auto* at = rows.as<int32_t>();
    pool_.parallel_for(n, rows_per_task(d), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            check(at[i] >= 0 && at[i] < x.dim(0), "gather_rows: a row index is out of range");
            convert_row(kernels_, row_bytes(y, i), y.dtype, 1, row_bytes(x, at[i]), x.dtype, 1, d);
        }
    });
}

// Rows may repeat, so threads split the columns: each element of dx then has one owner and one order.
void CpuOps::gather_rows_backward(const Tensor& dx, const Tensor& dy, const Tensor& rows) {
    check_tensor("gather_rows_backward", "dy", dy, DType::kF32, {kAny, kAny});
    const int64_t n = dy.dim(0), d = dy.dim(1);
    check_tensor("gather_rows_backward", "dx", dx, DType::kF32, {kAny, d});
    check_tensor("gather_rows_backward", "rows", rows, DType::kI32, {n});
    const auto* to = rows.as<int32_t>();
    for (int64_t i = 0; i < n; ++i) check(to[i] >= 0 && to[i] < dx.dim(0), "gather_rows_backward: a row index is out of range");
    const int64_t width = std::max<int64_t>(64, (d + pool_.size() - 1) / pool_.size());
    pool_.parallel_for(d, width, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = 0; i < n; ++i) {
            float* sum = row(dx, to[i]) + begin;
            kernels_.add(sum, sum, row(dy, i) + begin, end - begin);
        }
    });
}

bool CpuOps::caches(DType dtype, BlockType block) const {
    if (block != BlockType::kNone) return block == BlockType::kQ80 || block == BlockType::kQ40;
    return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF8E4M3;
}

void CpuOps::scatter_weight_rows(const Weight& y, const Tensor& x, const Tensor& rows) {
    constexpr auto kOp = "scatter_weight_rows";
    if (y.scheme == Scheme::kPlain) return scatter_rows(y.codes, x, rows);
    check(y.scheme == Scheme::kBlocks && caches(y.codes.dtype, y.block),
          "scatter_weight_rows: rows of a type that is none of a cache");
    check_tensor(kOp, "x", x, DType::kF32, {kAny, kAny});
    const int64_t n = x.dim(0), d = x.dim(1), blocks = (d + kCacheBlock - 1) / kCacheBlock;
    check_tensor(kOp, "y", y.codes, DType::kU8, {kAny, blocks * cache_block_bytes(y.block)});
    check_tensor(kOp, "rows", rows, DType::kI32, {n});
    const auto* to = rows.as<int32_t>();
    pool_.parallel_for(n, rows_per_task(8 * d), [&](int64_t begin, int64_t end, int) {
        float last[kCacheBlock];
        const int64_t whole = d / kCacheBlock * kCacheBlock;
        for (int64_t i = begin; i < end; ++i) {
            check(to[i] >= 0 && to[i] < y.codes.dim(0), "scatter_weight_rows: a row index is out of range");
            std::byte* at = row_bytes(y.codes, to[i]);
            encode_nearest(y.block, row(x, i), at, whole);
            if (whole == d) continue;
            std::fill(std::copy(row(x, i) + whole, row(x, i) + d, last), last + kCacheBlock, 0.0f);
            encode_nearest(y.block, last, at + whole / kCacheBlock * cache_block_bytes(y.block), kCacheBlock);
        }
    });
}

void CpuOps::scatter_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
    check_tensor("scatter_rows", "x", x, {kAny, kAny});
    const int64_t n = x.dim(0), d = x.dim(1);
    check_tensor("scatter_rows", "y", y, {kAny, d});
    check_tensor("scatter_rows", "rows", rows, DType::kI32, {n});
    const auto* to = rows.as<int32_t>();
    pool_.parallel_for(n, rows_per_task(d), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            check(to[i] >= 0 && to[i] < y.dim(0), "scatter_rows: a row index is out of range");
            convert_row(kernels_, row_bytes(y, to[i]), y.dtype, 1, row_bytes(x, i), x.dtype, 1, d);
        }
    });
}

}  // namespace fathom
