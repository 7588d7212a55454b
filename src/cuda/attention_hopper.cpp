// Attention of the instruction set as the Hopper kernels want it.
#include "cuda/attention.h"
#include "cuda/hopper_attention.h"
#include "cuda/hopper_launch.h"
#include "cuda/hopper_mla.h"

namespace fathom::cuda {
namespace {

constexpr int64_t kKeyWidth = 192, kSharedWidth = 64, kValueWidth = 128;

hopper::HeadTensor heads_of(const HeadRows& x) { return {x.data, x.row, x.head}; }

bool aligned(const HeadRows& x) {
    return x.data == nullptr ||
           (x.type == DType::kBF16 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.row % 8 == 0 && x.head % 8 == 0);
}

hopper::Attention attention_of(const AttentionProblem& p, const AttentionSizes& sizes) {
    hopper::Attention a;
    a.q = heads_of(p.q);
    a.k = heads_of(p.k);
    a.k_shared = p.k_shared.data;
    a.k_shared_row = p.k_shared.row;
    a.v = heads_of(p.v);
    a.o = heads_of(p.o);
    a.lse = p.lse;
    a.cu_q = p.cu_q;
    a.cu_k = p.cu_k;
    a.n = sizes.n;
    a.m = sizes.m;
    a.heads = sizes.heads;
    a.sequences = sizes.sequences;
    a.scale = static_cast<double>(p.scale);
    return a;
}

}  // namespace

bool suits_hopper(const AttentionProblem& p, const AttentionSizes& sizes) {
    for (const HeadRows* x : {&p.q, &p.o, &p.k, &p.k_shared, &p.v, &p.dout, &p.dq, &p.dk, &p.dv})
        if (!aligned(*x)) return false;
    const int64_t shared = p.k_shared.data != nullptr ? kSharedWidth : 0;
    return p.q.width == kKeyWidth && p.k.width + shared == kKeyWidth && p.k_shared.width == shared &&
           p.v.width == kValueWidth && p.block_table == nullptr && p.lanes_per_row == 1 && p.lse_row == sizes.heads &&
           sizes.m > 0 && hopper::available();
}

void run_hopper_attention(Lane& lane, const AttentionProblem& p, const AttentionSizes& sizes) {
    hopper::Attention a = attention_of(p, sizes);
    a.multiprocessors = lane.multiprocessors;
    const int64_t bytes = hopper::attention_workspace_bytes(sizes.sequences);
    lane.workspace.begin(bytes);
    a.workspace = lane.workspace.take<std::byte>(bytes);
    hopper::attention_forward(a, lane.stream);
}

void run_hopper_attention_backward(cudaStream_t stream, Workspace& workspace, const AttentionProblem& p,
                                   const AttentionSizes& sizes, const Tensor& dk_shared) {
    const hopper::Attention a = attention_of(p, sizes);
    hopper::AttentionGradients g;
    g.dout = heads_of(p.dout);
    g.dq = heads_of(p.dq);
    g.dk = heads_of(p.dk);
    g.dv = heads_of(p.dv);
    if (dk_shared) {
        g.dk_shared = dk_shared.data;
        g.dk_shared_row = dk_shared.stride[0];
    }
    const int64_t bytes = hopper::attention_backward_workspace_bytes(a);
    workspace.begin(bytes);
    g.workspace = workspace.take<std::byte>(bytes);
    hopper::attention_backward(a, g, stream);
}

bool suits_hopper_latent(const Tensor& u, const Tensor& lse, const Tensor& q, const Tensor& latents, const Spans& spans) {
    constexpr int64_t kLatent = 512, kKey = 576, kPage = 64;
    if (!spans.block_table || spans.max_q < 1 || u.dim(2) != kLatent || q.dim(2) != kKey || latents.dim(1) != kPage)
        return false;
    for (const Tensor* x : {&u, &q, &latents})
        if (x->dtype != DType::kBF16 || !x->contiguous() || reinterpret_cast<uintptr_t>(x->data) % 16 != 0) return false;
    return lse.contiguous() && spans.block_table.contiguous() && latents.dim(0) > 0 && hopper::available();
}

void run_hopper_latent(Lane& lane, const Tensor& u, const Tensor& lse, const Tensor& q, const Tensor& latents,
                       const Spans& spans, double scale) {
    hopper::LatentAttention a;
    a.multiprocessors = lane.multiprocessors;
    a.q = q.data;
    a.pages = latents.data;
    a.block_table = spans.block_table.as<int32_t>();
    a.cu_q = spans.cu_q.as<int32_t>();
    a.cu_k = spans.cu_k.as<int32_t>();
    a.u = u.data;
    a.lse = lse.as<float>();
    a.tokens = q.dim(0);
    a.heads = q.dim(1);
    a.sequences = spans.cu_q.dim(0) - 1;
    a.page_count = latents.dim(0);
    a.max_blocks = spans.block_table.dim(1);
    a.max_q = spans.max_q;
    a.scale = scale;
    const int64_t bytes = hopper::latent_workspace_bytes(a.sequences, a.max_q, a.heads);
    lane.workspace.begin(bytes);
    a.workspace = lane.workspace.take<std::byte>(bytes);
    hopper::latent_attention(a, lane.stream);
}

}  // namespace fathom::cuda
