#include "tensor/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>

#include "base/progress.h"

namespace fathom {
namespace {

constexpr int64_t kAlignment = 64;
// Memory of at least this size asks for pages of 2 MiB: weights are streamed, and 4 KiB pages cost a table walk every 4 KiB.
constexpr int64_t kHugePage = int64_t{2} << 20, kHugeFrom = 4 * kHugePage;

constexpr int64_t round_up(int64_t value, int64_t step = kAlignment) { return (value + step - 1) / step * step; }

}  // namespace

Tensor::Tensor(void* memory, DType type, std::initializer_list<int64_t> dims)
    : data(memory),
      dtype(type),
      rank(static_cast<int>(dims.size())) {
    check(rank <= kMaxRank, "Tensor: more than four dimensions");
    std::ranges::copy(dims, shape.begin());
    int64_t step = 1;
    for (int i = rank - 1; i >= 0; --i) {
        stride[static_cast<size_t>(i)] = step;
        step *= shape[static_cast<size_t>(i)];
    }
}

int64_t Tensor::size() const {
    if (!defined()) return 0;
    int64_t product = 1;
    for (int i = 0; i < rank; ++i) product *= dim(i);
    return product;
}

bool Tensor::contiguous() const {
    int64_t step = 1;
    for (int i = rank - 1; i >= 0; --i) {
        if (dim(i) != 1 && stride[static_cast<size_t>(i)] != step) return false;
        step *= dim(i);
    }
    return true;
}

Tensor Tensor::view(std::initializer_list<int64_t> dims) const {
    Tensor result(data, dtype, dims);
    check(result.size() == size(), "Tensor::view: the number of elements changes");
    if (contiguous()) return result;
    // Not contiguous: [rows, cols] with a row stride may only have its columns split.
    check(rank == 2 && result.rank >= 2 && result.dim(0) == dim(0) && stride[1] == 1, "Tensor::view: strides do not allow it");
    result.stride[0] = stride[0];
    return result;
}

Tensor Tensor::slice(int axis, int64_t begin, int64_t end) const {
    check(axis >= 0 && axis < rank && 0 <= begin && begin <= end && end <= dim(axis), "Tensor::slice: out of range");
    Tensor result = *this;
    const auto a = static_cast<size_t>(axis);
    result.shape[a] = end - begin;
    if (data != nullptr) result.data = static_cast<std::byte*>(data) + begin * stride[a] * size_of(dtype);
    return result;
}

std::string Tensor::describe() const {
    if (!defined()) return "absent";
    return fmt::format("{}[{}]", name_of(dtype), fmt::join(std::span(shape).first(static_cast<size_t>(rank)), ", "));
}

int64_t Weight::in_features() const {
    switch (scheme) {
        case Scheme::kBlocks:
            return codes.dim(1) / traits_of(block).bytes * traits_of(block).elements;
        case Scheme::kPanels:
            if (block == BlockType::kNone) return codes.dim(1) / kPanelRows;
            return codes.dim(1) / traits_of(block).panel_bytes * traits_of(block).elements;
        case Scheme::kGroups:
            return codes.dtype == DType::kU8 ? 2 * codes.dim(1) : codes.dim(1);
        default:
            return codes.dim(1);
    }
}

int64_t Weight::bytes() const {
    if (scheme != Scheme::kFp8Block) return codes.bytes() + scales.bytes() + zeros.bytes();
    const int64_t first = row0 / kFp8Block, last = (row0 + codes.dim(0) + kFp8Block - 1) / kFp8Block;
    return codes.bytes() + (last - first) * scales.dim(1) * size_of(scales.dtype);
}

Weight Weight::rows(int64_t begin, int64_t end) const {
    Weight result = *this;
    const int64_t step = scheme == Scheme::kPanels ? kPanelRows : 1;
    check(begin % step == 0 && end % step == 0, "Weight::rows: panels are cut at multiples of 16");
    result.codes = codes.slice(0, begin / step, end / step);
    if (scheme == Scheme::kGroups) {
        result.scales = scales.slice(0, begin, end);
        if (zeros) result.zeros = zeros.slice(0, begin, end);
    }
    result.row0 = row0 + begin;
    return result;
}

Buffer Buffer::host(int64_t bytes) {
    const auto fail = [bytes] {
        throw Error(ErrorKind::kMemory, fmt::format("cannot allocate {} of memory: use a smaller batch, context or model",
                                                    human_bytes(static_cast<double>(bytes))));
    };
    if (bytes >= kHugeFrom) {  // the kernel gives zeroed pages, when they are first touched
        const auto size = static_cast<size_t>(round_up(bytes, kHugePage) + kHugePage);
        void* const map = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) fail();
        ::madvise(map, size, MADV_HUGEPAGE);  // a wish: where it is refused, memory works as well
        void* const memory = static_cast<std::byte*>(map) +
                             (round_up(reinterpret_cast<int64_t>(map), kHugePage) - reinterpret_cast<int64_t>(map));
        return {memory, bytes, [map, size](void*) { ::munmap(map, size); }};
    }
    const auto padded = static_cast<size_t>(round_up(std::max<int64_t>(bytes, 1)));
    void* memory = std::aligned_alloc(kAlignment, padded);
    if (memory == nullptr) fail();
    std::memset(memory, 0, padded);
    return {memory, bytes, [](void* address) { std::free(address); }};
}

Arena::Arena(std::string name, Grow grow, int64_t chunk_bytes)
    : name_(std::move(name)),
      grow_(std::move(grow)),
      chunk_bytes_(chunk_bytes) {}

Tensor Arena::allocate(DType type, std::initializer_list<int64_t> dims) {
    Tensor tensor(nullptr, type, dims);
    const int64_t bytes = round_up(std::max<int64_t>(tensor.bytes(), 1));
    while (at_.chunk < chunks_.size() && at_.offset + bytes > chunks_[at_.chunk].bytes()) at_ = {at_.chunk + 1, 0, at_.used};
    if (at_.chunk == chunks_.size()) {
        try {
            chunks_.push_back(grow_(std::max(bytes, chunk_bytes_)));
        } catch (const Error& error) {
            throw error.within(name_ + " memory");
        }
    }
    if (void* base = chunks_[at_.chunk].data(); base != nullptr) tensor.data = static_cast<std::byte*>(base) + at_.offset;
    at_.offset += bytes;
    at_.used += bytes;
    peak_ = std::max(peak_, at_.used);
    return tensor;
}

int64_t Arena::reserved() const {
    int64_t total = 0;
    for (const Buffer& chunk : chunks_) total += chunk.bytes();
    return total;
}

}  // namespace fathom
