// Attention with head sizes 192 and 128: against plain kernels in f64 over random documents; then the rates.
#include "bench.cuh"
#include "cuda/hopper_attention.h"

namespace fathom::hopper {

namespace {

constexpr int kKey = 192, kValue = 128, kNope = 128, kRope = 64;

// Everything a case needs; k, v lie in one fused row as the model has them, the rotary part apart.
struct Problem {
    std::vector<int32_t> cu_q{0}, cu_k{0};
    int64_t n, m, heads;
    Device d_q{65536}, d_k{65536};
    Device q, kv, k_rope, o, lse, workspace;
    Problem(const std::vector<int>& queries, const std::vector<int>& keys, int64_t heads_, uint64_t seed)
        : n(sum(queries)),
          m(sum(keys)),
          heads(heads_),
          q(n * heads * kKey * 2),
          kv(m * heads * 256 * 2),
          k_rope(m * kRope * 2),
          o(n * heads * kValue * 2),
          lse(n * heads * 4),
          workspace(attention_workspace_bytes(static_cast<int64_t>(keys.size()))) {
        for (size_t i = 0; i < keys.size(); ++i) {
            cu_q.push_back(cu_q.back() + queries[i]);
            cu_k.push_back(cu_k.back() + keys[i]);
        }
        to_device(d_q.pointer, cu_q.data(), cu_q.size() * 4);
        to_device(d_k.pointer, cu_k.data(), cu_k.size() * 4);
        fill_random(q.as<bf16>(), n * heads * kKey, seed);
        fill_random(kv.as<bf16>(), m * heads * 256, seed + 1);
        fill_random(k_rope.as<bf16>(), m * kRope, seed + 2);
    }
    static int64_t sum(const std::vector<int>& v) {
        int64_t total = 0;
        for (int x : v) total += x;
        return total;
    }
    [[nodiscard]] Attention arguments() const {
        Attention a;
        a.q = {q.pointer, heads * kKey, kKey};
        a.k = {kv.pointer, heads * 256, 256};
        a.v = {kv.as<bf16>() + kNope, heads * 256, 256};
        a.k_shared = k_rope.pointer;
        a.k_shared_row = kRope;
        a.o = {o.pointer, heads * kValue, kValue};
        a.lse = lse.as<float>();
        a.cu_q = d_q.as<int32_t>();
        a.cu_k = d_k.as<int32_t>();
        a.workspace = workspace.pointer;
        a.n = n;
        a.m = m;
        a.heads = heads;
        a.sequences = static_cast<int64_t>(cu_q.size()) - 1;
        a.scale = 1 / std::sqrt(192.0);
        return a;
    }
};

__device__ double value_of(const HeadTensor& t, int64_t row, int64_t head, int c) {
    return static_cast<double>(static_cast<float>(static_cast<const bf16*>(t.data)[row * t.row + head * t.head + c]));
}
__device__ double score(const Attention& a, int64_t i, int64_t j, int64_t head) {
    double sum = 0;
    for (int c = 0; c < kNope; ++c) sum += value_of(a.q, i, head, c) * value_of(a.k, j, head, c);
    for (int c = 0; c < kRope; ++c)
        sum += value_of(a.q, i, head, kNope + c) *
               static_cast<double>(static_cast<float>(static_cast<const bf16*>(a.k_shared)[j * a.k_shared_row + c]));
    return sum * a.scale;
}

// One block of 128 threads per query and head.
__global__ void reference_forward(float* o, float* lse, Attention a) {
    extern __shared__ double p[];
    const int64_t i = blockIdx.x, head = blockIdx.y;
    int sequence = 0;
    while (a.cu_q[sequence + 1] <= i) ++sequence;
    const int first = a.cu_k[sequence];
    const int visible = a.cu_k[sequence + 1] - first - static_cast<int>(a.cu_q[sequence + 1] - 1 - i);
    for (int j = static_cast<int>(threadIdx.x); j < visible; j += static_cast<int>(blockDim.x))
        p[j] = score(a, i, first + j, head);
    __syncthreads();
    double top = -1e300, total = 0;
    for (int j = 0; j < visible; ++j) top = fmax(top, p[j]);
    for (int j = 0; j < visible; ++j) total += exp(p[j] - top);
    if (threadIdx.x == 0) lse[i * a.heads + head] = static_cast<float>(top + log(total));
    double sum = 0;
    for (int j = 0; j < visible; ++j) sum += exp(p[j] - top) * value_of(a.v, first + j, head, static_cast<int>(threadIdx.x));
    o[(i * a.heads + head) * kValue + threadIdx.x] = static_cast<float>(sum / total);
}

__device__ double dot_values(const HeadTensor& a, int64_t i, const HeadTensor& b, int64_t j, int64_t head) {
    double sum = 0;
    for (int c = 0; c < kValue; ++c) sum += value_of(a, i, head, c) * value_of(b, j, head, c);
    return sum;
}
__device__ double key_of(const Attention& a, int64_t j, int64_t head, int c) {
    return c < kNope
               ? value_of(a.k, j, head, c)
               : static_cast<double>(static_cast<float>(static_cast<const bf16*>(a.k_shared)[j * a.k_shared_row + c - kNope]));
}

// One block of 192 threads per query (kKeys false) or key and head: first P and dS of its row (column), then the sums over it.
template <bool kKeys>
__global__ void reference_backward(float* dq, float* dk, float* dv, Attention a, AttentionGradients g) {
    extern __shared__ double p[];
    const int64_t own = blockIdx.x, head = blockIdx.y;
    const int32_t* cu = kKeys ? a.cu_k : a.cu_q;
    int sequence = 0;
    while (cu[sequence + 1] <= own) ++sequence;
    const int first_q = a.cu_q[sequence], queries = a.cu_q[sequence + 1] - first_q;
    const int first_k = a.cu_k[sequence], keys = a.cu_k[sequence + 1] - first_k, offset = keys - queries;
    const int count = kKeys ? queries : keys;
    double* ds = p + count;
    const int c = static_cast<int>(threadIdx.x);
    for (int x = c; x < count; x += static_cast<int>(blockDim.x)) {
        const int64_t i = kKeys ? first_q + x : own, j = kKeys ? own : first_k + x;
        const bool visible = j - first_k <= i - first_q + offset;
        p[x] = visible ? exp(score(a, i, j, head) - static_cast<double>(a.lse[i * a.heads + head])) : 0;
        ds[x] = visible ? p[x] * (dot_values(g.dout, i, a.v, j, head) - dot_values(g.dout, i, a.o, i, head)) * a.scale : 0;
    }
    __syncthreads();
    double sum = 0, value = 0;
    for (int x = 0; x < count; ++x) {
        sum += ds[x] * (kKeys ? value_of(a.q, first_q + x, head, c) : key_of(a, first_k + x, head, c));
        if (kKeys && c < kValue) value += p[x] * value_of(g.dout, first_q + x, head, c);
    }
    (kKeys ? dk : dq)[(own * a.heads + head) * kKey + c] = static_cast<float>(sum);
    if (kKeys && c < kValue) dv[(own * a.heads + head) * kValue + c] = static_cast<float>(value);
}

// [m, heads, 192] -> the first 128 channels beside each other, and the sum over heads of the others.
__global__ void split_key_gradient(float* nope, float* rope, const float* dk, int64_t m, int heads) {
    const int64_t j = blockIdx.x;
    for (int h = 0; h < heads; ++h) nope[(j * heads + h) * kNope + threadIdx.x] = dk[(j * heads + h) * kKey + threadIdx.x];
    if (threadIdx.x >= kRope) return;
    float sum = 0;
    for (int h = 0; h < heads; ++h) sum += dk[(j * heads + h) * kKey + kNope + threadIdx.x];
    rope[j * kRope + threadIdx.x] = sum;
}

// dq, dk, dk_shared and dv of a problem, contiguous.
struct Gradients {
    Device dout, dq, dk, dv, dk_rope, workspace;
    int64_t heads;
    Gradients(const Problem& p, const Attention& a)
        : dout(p.n * p.heads * kValue * 2),
          dq(p.n * p.heads * kKey * 2),
          dk(p.m * p.heads * kNope * 2),
          dv(p.m * p.heads * kValue * 2),
          dk_rope(p.m * kRope * 2),
          workspace(attention_backward_workspace_bytes(a)),
          heads(p.heads) {
        fill_random(dout.as<bf16>(), p.n * heads * kValue, 23);
        for (const Device* d : {&dq, &dk, &dv, &dk_rope, &workspace}) d->poison();
    }
    [[nodiscard]] AttentionGradients arguments() const {
        AttentionGradients g;
        g.dout = {dout.pointer, heads * kValue, kValue};
        g.dq = {dq.pointer, heads * kKey, kKey};
        g.dk = {dk.pointer, heads * kNope, kNope};
        g.dv = {dv.pointer, heads * kValue, kValue};
        g.dk_shared = dk_rope.pointer;
        g.dk_shared_row = kRope;
        g.workspace = workspace.pointer;
        return g;
    }
};

void check_backward(const std::string& name, int heads, const std::vector<int>& queries, const std::vector<int>& keys) {
    const Problem problem(queries, keys, heads, 29);
    const Attention a = problem.arguments();
    attention_forward(a, nullptr);
    const Gradients first(problem, a), second(problem, a);
    attention_backward(a, first.arguments(), nullptr);
    attention_backward(a, second.arguments(), nullptr);
    const size_t n = problem.n * heads, m = problem.m * heads;
    const Device dq(n * kKey * 4), dk(m * kKey * 4), dv(m * kValue * 4), nope(m * kNope * 4), rope(problem.m * kRope * 4);
    const int shared = 16 * std::max(*std::max_element(keys.begin(), keys.end()), 1);
    reference_backward<false><<<dim3(static_cast<unsigned>(problem.n), heads), kKey, shared>>>(
        dq.as<float>(), dk.as<float>(), dv.as<float>(), a, first.arguments());
    reference_backward<true><<<dim3(static_cast<unsigned>(problem.m), heads), kKey, shared>>>(
        dq.as<float>(), dk.as<float>(), dv.as<float>(), a, first.arguments());
    split_key_gradient<<<static_cast<unsigned>(problem.m), kNope>>>(nope.as<float>(), rope.as<float>(), dk.as<float>(),
                                                                    problem.m, heads);
    require(cudaDeviceSynchronize(), "attention backward");
    const auto report = [&](const char* what, const Device& got, const Device& again, const Device& reference, size_t count) {
        verdict(std::string("attention ") + what + " " + name, compare<bf16>(got.pointer, reference.pointer, count), 8e-3,
                same_bytes(got.pointer, again.pointer, got.bytes));
    };
    report("dq   ", first.dq, second.dq, dq, n * kKey);
    report("dk   ", first.dk, second.dk, nope, m * kNope);
    report("dk_sh", first.dk_rope, second.dk_rope, rope, problem.m * kRope);
    report("dv   ", first.dv, second.dv, dv, m * kValue);
}

void check_case(const std::string& name, int heads, const std::vector<int>& queries, const std::vector<int>& keys) {
    const Problem problem(queries, keys, heads, 17);
    Attention a = problem.arguments();
    const size_t rows = problem.n * heads;
    const Device o2(rows * kValue * 2), lse2(rows * 4), ref_o(rows * kValue * 4), ref_lse(rows * 4);
    for (const Device* d : {&problem.o, &problem.lse, &o2, &lse2, &ref_o, &ref_lse, &problem.workspace}) d->poison();
    attention_forward(a, nullptr);
    a.o.data = o2.pointer;
    a.lse = lse2.as<float>();
    attention_forward(a, nullptr);
    const int shared = 8 * *std::max_element(keys.begin(), keys.end()) + 8;
    reference_forward<<<dim3(static_cast<unsigned>(problem.n), heads), 128, shared>>>(ref_o.as<float>(), ref_lse.as<float>(),
                                                                                      a);
    require(cudaDeviceSynchronize(), "attention");
    verdict("attention o   " + name, compare<bf16>(problem.o.pointer, ref_o.pointer, rows * kValue), 4e-3,
            same_bytes(problem.o.pointer, o2.pointer, rows * kValue * 2));
    verdict("attention lse " + name, compare<float>(problem.lse.pointer, ref_lse.pointer, rows), 1e-5,
            same_bytes(problem.lse.pointer, lse2.pointer, rows * 4));
    check_backward(name, heads, queries, keys);
}

void time_case(int batch, int length, int heads) {
    const Problem problem(std::vector<int>(batch, length), std::vector<int>(batch, length), heads, 5);
    const Attention a = problem.arguments();
    const double ms = median_ms([&] { attention_forward(a, nullptr); });
    const double flops = static_cast<double>(batch) * heads * length * length * (kKey + kValue);  // half of the square
    std::printf("TIME attention forward %2d x %5d, %d heads: %8.1f us %6.1f TFLOP/s, limit 779, ratio %.3f\n", batch, length,
                heads, ms * 1e3, flops / ms / 1e9, flops / ms / 1e9 / 779);
    const Gradients gradients(problem, a);
    const AttentionGradients g = gradients.arguments();
    const double back = median_ms([&] { attention_backward(a, g, nullptr); });
    std::printf("TIME attention backward %2d x %5d, %d heads: %8.1f us %6.1f TFLOP/s (2.5 x forward), limit 779, ratio %.3f\n",
                batch, length, heads, back * 1e3, 2.5 * flops / back / 1e9, 2.5 * flops / back / 1e9 / 779);
    std::fflush(stdout);
}

}  // namespace

void check_attention() {
    std::vector<int32_t> lengths;  // more sequences and heads than a warp has lanes, in all levels of the order of blocks
    for (int i = 0; i < 70; ++i) lengths.push_back(i % 9 == 8 ? 1100 - 10 * i : 1 + i * 37 % 260);
    check_case("1 x 1", 1, {1}, {1});
    check_case("1 x 128", 2, {128}, {128});
    check_case("1 x 1000", 2, {1000}, {1000});
    check_case("documents", 3, {5, 300, 1, 129, 128, 640}, {5, 300, 1, 129, 128, 640});
    check_case("70 documents", 35, lengths, lengths);
    check_case("chunks behind a prefix", 2, {64, 200, 1}, {500, 200, 777});
}

void time_attention() {
    time_case(8, 2048, 16);
    time_case(4, 4096, 16);
    time_case(1, 16384, 16);
    time_case(64, 256, 16);
}

}  // namespace fathom::hopper
