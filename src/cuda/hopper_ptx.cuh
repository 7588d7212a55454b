// The Hopper instructions that CUDA C++ has no words for: mbarriers, the bulk tensor copy engine (TMA), warpgroup matrix
// products (wgmma). Every wrapper is one instruction; sm_90a only. Addresses in shared memory are 32-bit (smem_address).
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace fathom::hopper {

constexpr int kWarp = 32;
constexpr int kWarpgroup = 128;

__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }

// True in exactly one lane of a converged warp. The compiler then knows that one thread runs what follows, and issues copies
// without a loop over lanes.
__device__ __forceinline__ bool elect_one() {
    uint32_t elected = 0;
    asm volatile(
        "{ .reg .pred p;\n"
        "elect.sync _|p, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(elected));
    return elected != 0;
}

// ---- mbarrier ------------------------------------------------------------------------------------------------------------
__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copy engine and to the other blocks of the cluster.
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {  // arrives, and awaits `bytes` of copies
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives at the barrier that lies at the same address in block `rank` of the cluster. Orders no ordinary accesses of other
// blocks (with .release.cluster it would cost a fence of the whole GPU each time: products ran at 455 TFLOP/s): for buffers
// that only wgmma reads and TMA writes.
__device__ __forceinline__ void barrier_arrive_cluster(uint32_t barrier, uint32_t rank) {
    asm volatile(
        "{ .reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote]; }" ::"r"(barrier),
        "r"(rank)
        : "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t done = 0;
    while (done == 0)
        asm volatile(
            "{ .reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p; }"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
}

// Position in a ring of kStages buffers; the parity of its barriers flips each time round.
template <int kStages>
struct Ring {
    int stage = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// ---- barriers among threads ------------------------------------------------------------------------------------------------
__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank = 0;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Ordinary stores to shared memory before it are seen by wgmma and TMA after it (and a barrier, where threads differ).
__device__ __forceinline__ void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Launches of launch_early (hopper_launch.h): the next kernel may begin while this one ends; it waits for this one's results.
__device__ __forceinline__ void wait_for_earlier_launch() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// Called late: blocks that wait take room on the multiprocessors from kernels of another stream.
__device__ __forceinline__ void allow_next_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

template <int kRegisters>
__device__ __forceinline__ void shrink_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void grow_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- TMA -------------------------------------------------------------------------------------------------------------------
__device__ __forceinline__ void tma_prefetch(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(map)) : "memory");
}
__device__ __forceinline__ void tma_load(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
        "l"(reinterpret_cast<uint64_t>(map)), "r"(barrier), "r"(x), "r"(y), "r"(z)
        : "memory");
}
// Brings a box from memory into L2.
__device__ __forceinline__ void tma_prefetch_box(const CUtensorMap* map, int x, int y, int z) {
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(reinterpret_cast<uint64_t>(map)),
                 "r"(x), "r"(y), "r"(z)
                 : "memory");
}
// Plain bytes, a multiple of 16 at addresses that are.
__device__ __forceinline__ void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
                 "r"(bytes), "r"(barrier)
                 : "memory");
}
// The same box into every block of `mask`, at the same address; each block's own barrier counts it.
__device__ __forceinline__ void tma_load_multicast(uint32_t to, const CUtensorMap* map, uint32_t barrier, uint16_t mask, int x,
                                                   int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(to),
        "l"(reinterpret_cast<uint64_t>(map)), "r"(barrier), "h"(mask), "r"(x), "r"(y), "r"(z)
        : "memory");
}

// ---- wgmma -----------------------------------------------------------------------------------------------------------------
// Where the elements of an operand that follow each other in memory lie: along the summed index, or along the rows (columns).
enum class Major : int { kK = 0, kMN = 1 };

// Matrix descriptor of a tile in 128-byte swizzled boxes (64 bf16 wide, 1024-byte aligned). kK: 8-row groups follow each other.
// kMN: 8 steps of k are 1024 bytes; `box_bytes` from one 64-wide box to the next.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t box_bytes = 16) {
    return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (static_cast<uint64_t>(box_bytes >> 4) << 16) |
           static_cast<uint64_t>((address & 0x3ffff) >> 4);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// The compiler must not move reads or writes of these registers across this point.
template <typename T, int kCount>
__device__ __forceinline__ void pin_registers(T (&d)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        if constexpr (sizeof(T) == 4 && T(0.5F) != T(0))
            asm volatile("" : "+f"(d[i])::"memory");
        else
            asm volatile("" : "+r"(d[i])::"memory");
    }
}

// Indexed loops: over a range the compiler left an array of 96 in memory.
template <int kCount>
__device__ __forceinline__ void clear_registers(float (&d)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) d[i] = 0;
}
template <int kCount>
__device__ __forceinline__ void scale_registers(float (&d)[kCount], float factor) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) d[i] *= factor;
}

// Operand lists: %0 ... of 16, 32, 48, 64, 80, 88, 96 and 128 accumulator registers.
#define FATHOM_R8(a, b, c, d, e, f, g, h) "%" #a ", %" #b ", %" #c ", %" #d ", %" #e ", %" #f ", %" #g ", %" #h
#define FATHOM_R16 FATHOM_R8(0, 1, 2, 3, 4, 5, 6, 7) ", " FATHOM_R8(8, 9, 10, 11, 12, 13, 14, 15)
#define FATHOM_R32                                                                                                             \
    FATHOM_R8(0, 1, 2, 3, 4, 5, 6, 7)                                                                                          \
    ", " FATHOM_R8(8, 9, 10, 11, 12, 13, 14, 15) ", " FATHOM_R8(16, 17, 18, 19, 20, 21, 22, 23) ", " FATHOM_R8(24, 25, 26, 27, \
                                                                                                               28, 29, 30, 31)
#define FATHOM_R48 FATHOM_R32 ", " FATHOM_R8(32, 33, 34, 35, 36, 37, 38, 39) ", " FATHOM_R8(40, 41, 42, 43, 44, 45, 46, 47)
#define FATHOM_R64                                                                                                           \
    FATHOM_R32 ", " FATHOM_R8(32, 33, 34, 35, 36, 37, 38, 39) ", " FATHOM_R8(40, 41, 42, 43, 44, 45, 46, 47) ", " FATHOM_R8( \
        48, 49, 50, 51, 52, 53, 54, 55) ", " FATHOM_R8(56, 57, 58, 59, 60, 61, 62, 63)
#define FATHOM_R80 FATHOM_R64 ", " FATHOM_R8(64, 65, 66, 67, 68, 69, 70, 71) ", " FATHOM_R8(72, 73, 74, 75, 76, 77, 78, 79)
#define FATHOM_R88 FATHOM_R80 ", " FATHOM_R8(80, 81, 82, 83, 84, 85, 86, 87)
#define FATHOM_R96                                                                                                           \
    FATHOM_R64 ", " FATHOM_R8(64, 65, 66, 67, 68, 69, 70, 71) ", " FATHOM_R8(72, 73, 74, 75, 76, 77, 78, 79) ", " FATHOM_R8( \
        80, 81, 82, 83, 84, 85, 86, 87) ", " FATHOM_R8(88, 89, 90, 91, 92, 93, 94, 95)
#define FATHOM_R128                                                                               \
    FATHOM_R96 ", " FATHOM_R8(96, 97, 98, 99, 100, 101, 102, 103) ", " FATHOM_R8(                 \
        104, 105, 106, 107, 108, 109, 110, 111) ", " FATHOM_R8(112, 113, 114, 115, 116, 117, 118, \
                                                               119) ", " FATHOM_R8(120, 121, 122, 123, 124, 125, 126, 127)
#define FATHOM_A8(d, i)                                                                                                     \
    "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]), "+f"(d[(i) + 4]), "+f"(d[(i) + 5]), "+f"(d[(i) + 6]), \
        "+f"(d[(i) + 7])
#define FATHOM_A16(d, i) FATHOM_A8(d, i), FATHOM_A8(d, (i) + 8)
#define FATHOM_A32(d, i) FATHOM_A16(d, i), FATHOM_A16(d, (i) + 16)
#define FATHOM_A48(d, i) FATHOM_A32(d, i), FATHOM_A16(d, (i) + 32)
#define FATHOM_A64(d, i) FATHOM_A32(d, i), FATHOM_A32(d, (i) + 32)
#define FATHOM_A80(d, i) FATHOM_A64(d, i), FATHOM_A16(d, (i) + 64)
#define FATHOM_A88(d, i) FATHOM_A80(d, i), FATHOM_A8(d, (i) + 80)
#define FATHOM_A96(d, i) FATHOM_A64(d, i), FATHOM_A32(d, (i) + 64)
#define FATHOM_A128(d, i) FATHOM_A64(d, i), FATHOM_A64(d, (i) + 64)
// Both operands in shared memory (type: bf16 with majors, or e4m3), or the first in four registers.
#define FATHOM_WGMMA_SS(shape, list, acc, da, db, dp, tail, ...)                                         \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, " dp                                                    \
                 ", 0;\n"                                                                                \
                 "wgmma.mma_async.sync.aligned." shape " {" list "}, " da ", " db ", p, 1, 1" tail "; }" \
                 : acc                                                                                   \
                 : __VA_ARGS__)

// d[64, kN] (+)= a[64, 16] b[16, kN], bf16, one warpgroup; d[4 j + i] of a thread: row 16 warp + lane / 4 + 8 (i / 2), column
// 8 j + 2 (lane % 4) + i % 2.
template <int kN, Major kMajorA, Major kMajorB>
__device__ __forceinline__ void wgmma_bf16(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate) {
    constexpr int kTransA = static_cast<int>(kMajorA), kTransB = static_cast<int>(kMajorB);
    if constexpr (kN == 32)
        FATHOM_WGMMA_SS("m64n32k16.f32.bf16.bf16", FATHOM_R16, FATHOM_A16(d, 0), "%16", "%17", "%18", ", %19, %20", "l"(a),
                        "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB));
    else if constexpr (kN == 64)
        FATHOM_WGMMA_SS("m64n64k16.f32.bf16.bf16", FATHOM_R32, FATHOM_A32(d, 0), "%32", "%33", "%34", ", %35, %36", "l"(a),
                        "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB));
    else if constexpr (kN == 96)
        FATHOM_WGMMA_SS("m64n96k16.f32.bf16.bf16", FATHOM_R48, FATHOM_A48(d, 0), "%48", "%49", "%50", ", %51, %52", "l"(a),
                        "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB));
    else if constexpr (kN == 128)
        FATHOM_WGMMA_SS("m64n128k16.f32.bf16.bf16", FATHOM_R64, FATHOM_A64(d, 0), "%64", "%65", "%66", ", %67, %68", "l"(a),
                        "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB));
    else if constexpr (kN == 160)
        FATHOM_WGMMA_SS("m64n160k16.f32.bf16.bf16", FATHOM_R80, FATHOM_A80(d, 0), "%80", "%81", "%82", ", %83, %84", "l"(a),
                        "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB));
    else if constexpr (kN == 176)
        FATHOM_WGMMA_SS("m64n176k16.f32.bf16.bf16", FATHOM_R88, FATHOM_A88(d, 0), "%88", "%89", "%90", ", %91, %92", "l"(a),
                        "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB));
    else if constexpr (kN == 192)
        FATHOM_WGMMA_SS("m64n192k16.f32.bf16.bf16", FATHOM_R96, FATHOM_A96(d, 0), "%96", "%97", "%98", ", %99, %100", "l"(a),
                        "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB));
    else if constexpr (kN == 256)
        FATHOM_WGMMA_SS("m64n256k16.f32.bf16.bf16", FATHOM_R128, FATHOM_A128(d, 0), "%128", "%129", "%130", ", %131, %132",
                        "l"(a), "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB));
    else
        static_assert(kN == 64, "no such instruction here");
}
// The same with a[64, 16] in registers: the accumulator's layout of 16 columns, packed in pairs.
template <int kN, Major kMajorB>
__device__ __forceinline__ void wgmma_bf16(float (&d)[kN / 2], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b,
                                           int accumulate) {
    constexpr int kTransB = static_cast<int>(kMajorB);
    if constexpr (kN == 64)
        FATHOM_WGMMA_SS("m64n64k16.f32.bf16.bf16", FATHOM_R32, FATHOM_A32(d, 0), "{%32, %33, %34, %35}", "%36", "%37", ", %38",
                        "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(accumulate), "n"(kTransB));
    else if constexpr (kN == 128)
        FATHOM_WGMMA_SS("m64n128k16.f32.bf16.bf16", FATHOM_R64, FATHOM_A64(d, 0), "{%64, %65, %66, %67}", "%68", "%69", ", %70",
                        "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(accumulate), "n"(kTransB));
    else if constexpr (kN == 192)
        FATHOM_WGMMA_SS("m64n192k16.f32.bf16.bf16", FATHOM_R96, FATHOM_A96(d, 0), "{%96, %97, %98, %99}", "%100", "%101",
                        ", %102", "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(accumulate), "n"(kTransB));
    else if constexpr (kN == 256)
        FATHOM_WGMMA_SS("m64n256k16.f32.bf16.bf16", FATHOM_R128, FATHOM_A128(d, 0), "{%128, %129, %130, %131}", "%132", "%133",
                        ", %134", "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(accumulate), "n"(kTransB));
    else
        static_assert(kN == 64, "no such instruction here");
}
// d[64, 128] (+)= a[64, 32] b[32, 128], both e4m3, along k in 128-byte rows.
__device__ __forceinline__ void wgmma_e4m3(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
    FATHOM_WGMMA_SS("m64n128k32.f32.e4m3.e4m3", FATHOM_R64, FATHOM_A64(d, 0), "%64", "%65", "%66", "", "l"(a), "l"(b),
                    "r"(accumulate));
}

// ---- registers <-> shared memory -------------------------------------------------------------------------------------------
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}
// Four 8 x 8 matrices of bf16; lane 8 i + r holds the address of row r of matrix i.
__device__ __forceinline__ void store_matrices(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}
__device__ __forceinline__ void load_matrices(uint32_t address, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ uint4 load_shared16(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}
__device__ __forceinline__ void store_shared16(uint32_t address, uint4 v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// to[0] += x, to[1] += y, without waiting; `to` is a multiple of 8 bytes.
__device__ __forceinline__ void add_in_memory(float* to, float x, float y) {
    asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(x), "f"(y) : "memory");
}

}  // namespace fathom::hopper
