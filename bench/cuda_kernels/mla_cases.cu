// Absorbed MLA attention: against a plain kernel over random lengths and scattered pages; then the rates of decoding.
#include <numeric>

#include "bench.cuh"
#include "cuda/hopper_mla.h"

namespace fathom::hopper {

namespace {

constexpr int kLatent = 512, kKey = 576, kPage = 64;

// One block of 128 threads per query token and head.
__global__ void reference_latent(float* u, float* lse, LatentAttention a) {
    extern __shared__ double scores[];
    const int row = static_cast<int>(blockIdx.x), token = row / static_cast<int>(a.heads);
    int sequence = 0;
    while (a.cu_q[sequence + 1] <= token) ++sequence;
    const int keys = a.cu_k[sequence + 1] - a.cu_k[sequence];
    const int visible = keys - (a.cu_q[sequence + 1] - 1 - token);
    if (keys == 0) return;
    const bf16* q = static_cast<const bf16*>(a.q) + int64_t{row} * kKey;
    const auto latent = [&](int j) {
        const int64_t page = a.block_table[sequence * a.max_blocks + j / kPage];
        return static_cast<const bf16*>(a.pages) + (page * kPage + j % kPage) * kKey;
    };
    for (int j = static_cast<int>(threadIdx.x); j < visible; j += static_cast<int>(blockDim.x)) {
        double sum = 0;
        for (int c = 0; c < kKey; ++c) sum += static_cast<double>(static_cast<float>(q[c]) * static_cast<float>(latent(j)[c]));
        scores[j] = sum * a.scale;
    }
    __syncthreads();
    double top = -1e300, total = 0;
    for (int j = 0; j < visible; ++j) top = fmax(top, scores[j]);
    for (int j = 0; j < visible; ++j) total += exp(scores[j] - top);
    if (threadIdx.x == 0) lse[row] = static_cast<float>(top + log(total));
    __syncthreads();
    for (int j = static_cast<int>(threadIdx.x); j < visible; j += static_cast<int>(blockDim.x))
        scores[j] = exp(scores[j] - top) / total;
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x); c < kLatent; c += static_cast<int>(blockDim.x)) {
        double sum = 0;
        for (int j = 0; j < visible; ++j) sum += scores[j] * static_cast<double>(static_cast<float>(latent(j)[c]));
        u[int64_t{row} * kLatent + c] = static_cast<float>(sum);
    }
}

// Sequences of the given lengths with `max_q` (or fewer) query tokens each, their pages scattered over the cache.
struct Cache {
    std::vector<int32_t> cu_q{0}, cu_k{0}, table;
    int64_t max_blocks = 0, page_count = 0;
    Device d_q{4096 * 4}, d_k{4096 * 4};
    std::unique_ptr<Device> d_table, pages;
    Cache(const std::vector<int>& queries, const std::vector<int>& keys, uint64_t seed) {
        for (size_t i = 0; i < keys.size(); ++i) {
            cu_q.push_back(cu_q.back() + queries[i]);
            cu_k.push_back(cu_k.back() + keys[i]);
            max_blocks = std::max<int64_t>(max_blocks, (keys[i] + kPage - 1) / kPage);
            page_count += (keys[i] + kPage - 1) / kPage;
        }
        page_count += 1;
        std::vector<int32_t> order(page_count);
        std::iota(order.begin(), order.end(), 0);
        std::mt19937 random(static_cast<unsigned>(seed));
        std::shuffle(order.begin(), order.end(), random);
        table.assign(keys.size() * max_blocks, -1);
        int64_t next = 0;
        for (size_t i = 0; i < keys.size(); ++i)
            for (int b = 0; b < (keys[i] + kPage - 1) / kPage; ++b) table[i * max_blocks + b] = order[next++];
        to_device(d_q.pointer, cu_q.data(), cu_q.size() * 4);
        to_device(d_k.pointer, cu_k.data(), cu_k.size() * 4);
        d_table = std::make_unique<Device>(table.size() * 4);
        to_device(d_table->pointer, table.data(), table.size() * 4);
        pages = std::make_unique<Device>(page_count * kPage * kKey * 2);
        fill_random(pages->as<bf16>(), page_count * kPage * kKey, seed + 1);
        for (size_t i = 0; i < keys.size(); ++i)  // behind a sequence's end a page may hold anything
            if (keys[i] % kPage != 0) {
                const int64_t row = int64_t{table[i * max_blocks + keys[i] / kPage]} * kPage + keys[i] % kPage;
                require(cudaMemset(pages->as<bf16>() + row * kKey, 0xff, (kPage - keys[i] % kPage) * kKey * 2), "cudaMemset");
            }
    }
    [[nodiscard]] LatentAttention arguments(int64_t heads, int64_t max_q) const {
        LatentAttention a;
        a.pages = pages->pointer;
        a.block_table = d_table->as<int32_t>();
        a.cu_q = d_q.as<int32_t>();
        a.cu_k = d_k.as<int32_t>();
        a.tokens = cu_q.back();
        a.heads = heads;
        a.sequences = static_cast<int64_t>(cu_k.size()) - 1;
        a.page_count = page_count;
        a.max_blocks = max_blocks;
        a.max_q = max_q;
        a.scale = 1 / std::sqrt(192.0);
        return a;
    }
};

void check_case(const std::string& name, int heads, int max_q, const std::vector<int>& queries, const std::vector<int>& keys) {
    const Cache cache(queries, keys, 7);
    LatentAttention a = cache.arguments(heads, max_q);
    const size_t rows = a.tokens * heads;
    const Device q(rows * kKey * 2), u(rows * kLatent * 2), lse(rows * 4), u2(rows * kLatent * 2), lse2(rows * 4);
    const Device ref_u(rows * kLatent * 4), ref_lse(rows * 4), workspace(latent_workspace_bytes(a.sequences, max_q, heads));
    fill_random(q.as<bf16>(), rows * kKey, 3, 0.6F);
    for (const Device* d : {&u, &lse, &u2, &lse2, &ref_u, &ref_lse, &workspace}) d->poison();
    a.q = q.pointer;
    a.workspace = workspace.pointer;
    a.u = u.pointer;
    a.lse = lse.as<float>();
    latent_attention(a, nullptr);
    a.u = u2.pointer;
    a.lse = lse2.as<float>();
    latent_attention(a, nullptr);
    const int shared = 8 * *std::max_element(keys.begin(), keys.end()) + 8;
    allow_shared_memory(reinterpret_cast<const void*>(reference_latent), shared);
    reference_latent<<<static_cast<unsigned>(rows), 128, shared>>>(ref_u.as<float>(), ref_lse.as<float>(), a);
    require(cudaDeviceSynchronize(), "latent attention");
    verdict("mla u   " + name, compare<bf16>(u.pointer, ref_u.pointer, rows * kLatent), 4e-3,
            same_bytes(u.pointer, u2.pointer, rows * kLatent * 2));
    verdict("mla lse " + name, compare<float>(lse.pointer, ref_lse.pointer, rows), 1e-5,
            same_bytes(lse.pointer, lse2.pointer, rows * 4));
}

void time_case(int heads, int batch, int keys) {
    const std::vector<int> queries(batch, 1), lengths(batch, keys);
    const double bytes = static_cast<double>(batch) * keys * kKey * 2;
    const int copies = static_cast<int>(std::clamp(3e8 / bytes, 1.0, 64.0));  // several caches: more than L2 holds
    std::vector<std::unique_ptr<Cache>> caches;
    for (int i = 0; i < copies; ++i) caches.push_back(std::make_unique<Cache>(queries, lengths, 11 + i));
    const size_t rows = static_cast<size_t>(batch) * heads;
    const Device q(rows * kKey * 2), u(rows * kLatent * 2), lse(rows * 4), workspace(latent_workspace_bytes(batch, 1, heads));
    fill_random(q.as<bf16>(), rows * kKey, 3, 0.6F);
    cudaStream_t stream{};
    require(cudaStreamCreate(&stream), "cudaStreamCreate");
    const auto launch_all = [&] {
        for (const auto& cache : caches) {
            LatentAttention a = cache->arguments(heads, 1);
            a.q = q.pointer;
            a.workspace = workspace.pointer;
            a.u = u.pointer;
            a.lse = lse.as<float>();
            latent_attention(a, stream);
        }
    };
    launch_all();
    require(cudaStreamSynchronize(stream), "latent attention");
    cudaGraph_t graph{};
    cudaGraphExec_t executable{};
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    launch_all();
    require(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    require(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    cudaStreamSynchronize(nullptr);
    const double ms = median_ms([&] { cudaGraphLaunch(executable, nullptr); }) / copies;
    const double flops = 2.0 * batch * heads * static_cast<double>(keys) * (kKey + kLatent);
    const double moved = bytes + static_cast<double>(rows) * (kKey + kLatent) * 2;
    const double floor_ms = std::max(flops / 779e9, moved / 2976e6);
    std::printf("TIME mla %3d heads, batch %3d x %5d: %8.1f us %7.1f GB/s %6.1f TFLOP/s, limit %7.1f us, ratio %.3f\n", heads,
                batch, keys, ms * 1e3, moved / ms / 1e6, flops / ms / 1e9, floor_ms * 1e3, floor_ms / ms);
    std::fflush(stdout);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
}

}  // namespace

void check_mla() {
    check_case("16 heads, 1 x 1", 16, 1, {1}, {1});
    check_case("16 heads, 1 x 4096", 16, 1, {1}, {4096});
    check_case("16 heads, ragged", 16, 1, {1, 1, 1, 1, 1, 1}, {65, 1, 0, 640, 2000, 64});
    check_case("16 heads, new tokens 1..4", 16, 4, {4, 1, 3, 2}, {4, 700, 1030, 129});
    check_case("128 heads, ragged", 128, 1, {1, 1, 1}, {3000, 64, 129});
    check_case("128 heads, new tokens 1..2", 128, 2, {2, 1}, {900, 65});
    check_case("8 heads, 40 sequences", 8, 1, std::vector<int>(40, 1), [] {
        std::vector<int> keys;
        std::mt19937 random(5);
        for (int i = 0; i < 40; ++i) keys.push_back(static_cast<int>(random() % 600));
        return keys;
    }());
}

void time_mla() {
    time_case(16, 128, 8192);
    time_case(128, 128, 8192);
    time_case(16, 1, 32768);
    time_case(16, 1, 4096);
    time_case(16, 1, 512);
    time_case(16, 128, 512);
}

}  // namespace fathom::hopper
