// Causal attention, forward and backward, of packed sequences (documents) with head sizes 192 (keys) and 128 (values) on
// Hopper's tensor cores (sm_90a): MLA in its expanded form, for training and prefill.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fathom::hopper {

// bf16 tensors [rows, heads, width], width contiguous; `row` and `head` are distances in elements, multiples of 8.
struct HeadTensor {
    void* data = nullptr;
    int64_t row = 0, head = 0;
};

// Sequence i owns query rows [cu_q[i], cu_q[i + 1]) and key rows [cu_k[i], cu_k[i + 1]); its last query is aligned with its
// last key and each query sees its own key and all earlier ones (at least one: queries <= keys).
struct Attention {
    HeadTensor q;                    // [n, heads, 192]
    HeadTensor k;                    // [m, heads, 128], or [m, heads, 192] without k_shared
    const void* k_shared = nullptr;  // [m, 64]: the rotary channels, one for all heads
    int64_t k_shared_row = 0;
    HeadTensor v;                   // [m, heads, 128]
    HeadTensor o;                   // [n, heads, 128]
    float* lse = nullptr;           // [n, heads]: log sum exp of the scaled scores
    const int32_t* cu_q = nullptr;  // [sequences + 1]
    const int32_t* cu_k = nullptr;
    void* workspace = nullptr;  // attention_workspace_bytes(...)
    int64_t n = 0, m = 0, heads = 0, sequences = 0;
    double scale = 0;
    int multiprocessors = 0;  // that the forward may take; 0: all
};

[[nodiscard]] int64_t attention_workspace_bytes(int64_t sequences);
// o = softmax(scale q key^T) v per head. Lengths are read on the device; no host synchronisation; a row's bits do not depend on
// the rows around it; repeats byte for byte.
void attention_forward(const Attention& a, cudaStream_t stream);

// The gradients of attention_forward from dout, its inputs and its results; all bf16, written (not accumulated). dk_shared is
// the sum over heads (absent where k_shared is; dk is then 192 wide). Own workspace. Three products are computed twice instead
// of adding to dq from several blocks, so nothing depends on their order: repeats byte for byte.
struct AttentionGradients {
    HeadTensor dout;            // [n, heads, 128]
    HeadTensor dq;              // [n, heads, 192]
    HeadTensor dk;              // [m, heads, 128 or 192]
    HeadTensor dv;              // [m, heads, 128]
    void* dk_shared = nullptr;  // [m, 64]
    int64_t dk_shared_row = 0;
    void* workspace = nullptr;  // attention_backward_workspace_bytes(...)
};
[[nodiscard]] int64_t attention_backward_workspace_bytes(const Attention& a);
void attention_backward(const Attention& a, const AttentionGradients& g, cudaStream_t stream);

}  // namespace fathom::hopper
