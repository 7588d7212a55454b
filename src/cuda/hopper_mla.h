// Absorbed MLA attention over the paged latent cache on Hopper's tensor cores (sm_90a): decoding, and short runs of new tokens.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fathom::hopper {

// Latents are 512 channels (key and value) followed by 64 rotary channels (key only); pages hold 64 tokens.
struct LatentAttention {
    const void* q = nullptr;               // [tokens, heads, 576] bf16
    const void* pages = nullptr;           // [page_count, 64, 576] bf16
    const int32_t* block_table = nullptr;  // [sequences, max_blocks]: token j of a sequence is row j % 64 of page [j / 64]
    const int32_t* cu_q = nullptr;         // [sequences + 1]: query tokens of sequence i are [cu_q[i], cu_q[i + 1])
    const int32_t* cu_k = nullptr;  // [sequences + 1]: sequence i has cu_k[i + 1] - cu_k[i] latents; the last query sees all,
                                    // each earlier one sees one less. A sequence without latents is skipped.
    void* u = nullptr;              // [tokens, heads, 512] bf16
    float* lse = nullptr;           // [tokens, heads]: log sum exp of the scaled scores
    void* workspace = nullptr;      // latent_workspace_bytes(...)
    int64_t tokens = 0, heads = 0, sequences = 0, page_count = 0, max_blocks = 0,
            max_q = 0;  // max_q: query tokens of a sequence
    double scale = 0;
    int multiprocessors = 0;  // that it may take; 0: all. How sequences are split depends on it
};

[[nodiscard]] int64_t latent_workspace_bytes(int64_t sequences, int64_t max_q, int64_t heads);
// u = softmax(scale q k^T) k[:512] per query and head. Two launches, no host synchronisation, all lengths read on the device,
// so it can be captured in a graph. Repeats byte for byte; how a sequence is split depends on the lengths of all of them.
void latent_attention(const LatentAttention& a, cudaStream_t stream);

}  // namespace fathom::hopper
