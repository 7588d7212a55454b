// Views on memory, what owns the memory, and weights with their storage scheme.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tensor/blocks.h"
#include "tensor/dtype.h"

namespace fathom {

// A view: pointer, dtype, up to four dimensions, strides in elements. Never owns. A default tensor is "absent" (rank -1), which
// is not the same as an empty one (a dimension of 0) nor as one without data (what the planning back end sees).
struct Tensor {
    static constexpr int kMaxRank = 4;

    void* data = nullptr;
    DType dtype = DType::kF32;
    int rank = -1;
    std::array<int64_t, kMaxRank> shape{};
    std::array<int64_t, kMaxRank> stride{};

    Tensor() = default;
    // Contiguous, row-major.
    Tensor(void* memory, DType type, std::initializer_list<int64_t> dims);

    [[nodiscard]] bool defined() const { return rank >= 0; }
    [[nodiscard]] explicit operator bool() const { return defined(); }
    [[nodiscard]] int64_t dim(int i) const { return shape[static_cast<size_t>(i < 0 ? rank + i : i)]; }
    [[nodiscard]] int64_t size() const;
    [[nodiscard]] int64_t bytes() const { return size() * size_of(dtype); }
    [[nodiscard]] bool contiguous() const;

    // The same elements under another shape; the tensor must be contiguous unless only the last dimension is split or kept.
    [[nodiscard]] Tensor view(std::initializer_list<int64_t> dims) const;
    // Rows [begin, end) of dimension `axis`.
    [[nodiscard]] Tensor slice(int axis, int64_t begin, int64_t end) const;

    template <class T>
    [[nodiscard]] T* as() const {
        return static_cast<T*>(data);
    }
    [[nodiscard]] std::string describe() const;  // "F32[4, 96, 512]"
};

// How a weight's codes become numbers.
enum class Scheme : uint8_t {
    kPlain,     // the dtype of `codes` says it all
    kFp8Block,  // e4m3 codes times one f32 scale per 128x128 block (partial blocks at the edges)
    kBlocks,    // rows of a GGUF block type (tensor/blocks.h), scales inside
    kGroups,    // scale (code - zero), one scale and zero per group of in / groups columns
    kPanels,    // a layout of one back end, made by Ops::pack
};

// A matrix [out, in] as it is stored, a cache's pages among them. Only products, pack, the cache's ops and the codecs look at
// the scheme.
struct Weight {
    Tensor codes;  // kPlain, kFp8Block: [out, in]; kBlocks: U8 [out, bytes of a row]; kPanels: U8 [out / 16, bytes of 16 rows],
                   // with block kNone BF16 or F16 [out / 16, 16 in]; kGroups: I8 [out, in], or U8 [out, in / 2] with the even
                   // column in the low nibble
    Tensor scales;  // kFp8Block: [ceil(out/128), ceil(in/128)] f32; kGroups: [out, groups] f32, f16 or bf16; else absent
    Tensor zeros;   // kGroups: [out, groups] U8, or absent: 8 for nibbles, 0 for I8
    Scheme scheme = Scheme::kPlain;
    BlockType block = BlockType::kNone;  // kBlocks, kPanels
    int64_t row0 = 0;  // row of the stored matrix at which this view begins: places it in the scale grid of kFp8Block

    Weight() = default;
    Weight(Tensor plain) : codes(plain) {}  // NOLINT(google-explicit-constructor): a plain tensor is a weight
    Weight(Tensor fp8, Tensor block_scales) : codes(fp8), scales(block_scales), scheme(Scheme::kFp8Block) {}
    Weight(Tensor rows, BlockType type) : codes(rows), scheme(Scheme::kBlocks), block(type) {}

    // Rows of kPanels stand side by side in sixteens.
    static constexpr int64_t kPanelRows = 16;

    [[nodiscard]] int64_t out_features() const { return codes.dim(0) * (scheme == Scheme::kPanels ? kPanelRows : 1); }
    [[nodiscard]] int64_t in_features() const;
    // Bytes of codes, scales and zeros, the grid of scales as far as this view's rows reach.
    [[nodiscard]] int64_t bytes() const;
    [[nodiscard]] Weight rows(int64_t begin, int64_t end) const;  // kPanels: multiples of 16
};

inline constexpr int64_t kFp8Block = 128;

// Memory with an owner. `release` says how it goes back (free, cudaFree, munmap).
class Buffer {
public:
    Buffer() = default;
    Buffer(void* data, int64_t bytes, std::function<void(void*)> release) : data_(data, std::move(release)), bytes_(bytes) {}
    // Host memory, 64-byte aligned, zeroed. Throws Error{kMemory}.
    [[nodiscard]] static Buffer host(int64_t bytes);

    [[nodiscard]] void* data() const { return data_.get(); }
    [[nodiscard]] int64_t bytes() const { return bytes_; }

private:
    std::unique_ptr<void, std::function<void(void*)>> data_;
    int64_t bytes_ = 0;
};

// A bump allocator over memory that it asks for in large chunks from `grow`. mark/release gives back everything allocated
// since. Chunks are kept for the next round, so a loop of equal steps allocates nothing after its first.
class Arena {
public:
    using Grow = std::function<Buffer(int64_t bytes)>;
    struct Mark {
        size_t chunk = 0;
        int64_t offset = 0;
        int64_t used = 0;
    };

    explicit Arena(std::string name, Grow grow = Buffer::host, int64_t chunk_bytes = int64_t{64} << 20);

    // Uninitialised memory, 64-byte aligned.
    [[nodiscard]] Tensor allocate(DType type, std::initializer_list<int64_t> dims);
    [[nodiscard]] Mark mark() const { return at_; }
    void release(const Mark& mark) { at_ = mark; }
    void clear() { at_ = {}; }
    [[nodiscard]] int64_t used() const { return at_.used; }
    [[nodiscard]] int64_t peak() const { return peak_; }
    [[nodiscard]] int64_t reserved() const;

private:
    std::string name_;
    Grow grow_;
    int64_t chunk_bytes_;
    std::vector<Buffer> chunks_;
    Mark at_;
    int64_t peak_ = 0;
};

// Releases an arena to where it stood: scratch memory of one scope.
class ArenaScope {
public:
    explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
    ~ArenaScope() { arena_.release(mark_); }
    ArenaScope(const ArenaScope&) = delete;
    ArenaScope& operator=(const ArenaScope&) = delete;

private:
    Arena& arena_;
    Arena::Mark mark_;
};

}  // namespace fathom
