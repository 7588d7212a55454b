#include "cpu/quant_matmul.h"

#include <fmt/format.h>
#include <algorithm>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/halves.h"
#include "cpu/quant_kernels.h"
#include "cpu/quant_panel.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

constexpr int64_t kTilesPerThread = 4;
constexpr int64_t kSmallestTile = int64_t{1} << 18;  // multiply-adds that are not worth another thread: about 2 us
constexpr int64_t kTileBytes = 384 << 10;            // of panels: they stay in L2 for all rows
constexpr int64_t kDecodedFloats = int64_t{1} << 20;

const float* row_of(const Tensor& x, int64_t i) { return x.as<const float>() + i * x.stride[0]; }

// ---- panels --------------------------------------------------------------------------------------------------------------

// The quantized rows of one product's activations, in shared scratch memory.
struct QuantRows {
    int8_t* q = nullptr;
    StepFactors* factors = nullptr;
};

bool same_rows(const QuantProduct& x, const QuantProduct& y) {
    return x.a.data == y.a.data && x.a.shape == y.a.shape && x.a.stride == y.a.stride && x.w.block == y.w.block;
}

int64_t rows_bytes(const QuantProduct& p) {
    const int64_t numbers = p.a.dim(0) * p.a.dim(1);
    return numbers + numbers / kPanelStep * static_cast<int64_t>(sizeof(StepFactors));
}

// Quantizes every product's rows; successive products with the same rows share them (heads that all read one latent).
std::vector<QuantRows> quantize(std::span<const QuantProduct> products, const QuantKernels& kernels, ThreadPool& pool,
                                Scratch& scratch) {
    int64_t bytes = 0;
    for (size_t i = 0; i < products.size(); ++i)
        if (i == 0 || !same_rows(products[i - 1], products[i])) bytes += rows_bytes(products[i]);
    auto* memory = scratch.shared<std::byte>(bytes);
    std::vector<QuantRows> result(products.size());
    struct Row {
        size_t product;
        int64_t row;
    };
    std::vector<Row> rows;
    int64_t widest = 1;
    for (size_t i = 0; i < products.size(); ++i) {
        const Tensor& a = products[i].a;
        if (i > 0 && same_rows(products[i - 1], products[i])) {
            result[i] = result[i - 1];
            continue;
        }
        const int64_t numbers = a.dim(0) * a.dim(1);
        result[i].factors = reinterpret_cast<StepFactors*>(memory);
        memory += numbers / kPanelStep * static_cast<int64_t>(sizeof(StepFactors));
        result[i].q = reinterpret_cast<int8_t*>(memory);
        memory += numbers;
        widest = std::max(widest, a.dim(1));
        for (int64_t r = 0; r < a.dim(0); ++r) rows.push_back({i, r});
    }
    const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 15) / widest);  // about 5 us
    pool.parallel_for(static_cast<int64_t>(rows.size()), grain, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const auto [p, r] = rows[static_cast<size_t>(i)];
            const Tensor& a = products[p].a;
            const int64_t n = a.dim(1);
            const PanelTraits traits = panel_traits(products[p].w.block);
            kernels.quantize_row(result[p].q + r * n, result[p].factors + r * (n / kPanelStep), row_of(a, r), n, traits.zero,
                                 traits.half_groups);
        }
    });
    return result;
}

PanelTile whole_product(const QuantProduct& p, const QuantRows& rows) {
    PanelTile tile{};
    tile.type = p.w.block;
    tile.panels = p.w.codes.as<const uint8_t>();
    tile.panel_bytes = p.w.codes.stride[0];
    tile.steps = p.a.dim(1) / kPanelStep;
    tile.panel_count = p.w.codes.dim(0);
    tile.q = rows.q;
    tile.factors = rows.factors;
    tile.rows = p.a.dim(0);
    tile.y = p.c.as<float>();
    tile.y_row = p.c.stride[0];
    return tile;
}

int64_t cost_of(const PanelTile& tile) { return tile.rows * tile.panel_count * kPanelLanes * tile.steps * kPanelStep; }

std::vector<PanelTile> plan(std::span<const PanelTile> products, int threads) {
    int64_t total = 0;
    for (const PanelTile& p : products) total += cost_of(p);
    const int64_t cost = std::max(total / (threads * kTilesPerThread), kSmallestTile);
    std::vector<PanelTile> tiles;
    for (const PanelTile& p : products) {
        const int64_t per_panel = std::max<int64_t>(1, cost_of(p) / std::max<int64_t>(p.panel_count, 1));
        int64_t count = std::clamp<int64_t>(cost / per_panel, 1, p.panel_count);
        if (p.rows > 1) count = std::min(count, std::max<int64_t>(1, kTileBytes / p.panel_bytes));
        for (int64_t at = 0; at < p.panel_count; at += count) {
            PanelTile tile = p;
            tile.panels += at * p.panel_bytes;
            tile.panel_count = std::min(count, p.panel_count - at);
            tile.y += at * kPanelLanes;
            tiles.push_back(tile);
        }
    }
    std::ranges::stable_sort(tiles, std::greater{}, cost_of);
    return tiles;
}

void multiply_panels(std::span<const QuantProduct> products, ThreadPool& pool, Isa isa, Scratch& scratch) {
    const QuantKernels& kernels = quant_kernels_of(isa);
    const std::vector<QuantRows> rows = quantize(products, kernels, pool, scratch);
    std::vector<PanelTile> whole;
    for (size_t i = 0; i < products.size(); ++i) whole.push_back(whole_product(products[i], rows[i]));
    const std::vector<PanelTile> tiles = plan(whole, pool.size());
    int64_t bytes = 0;
    for (const PanelTile& p : whole) bytes = std::max(bytes, panel_scratch_bytes(panel_traits(p.type), p.steps));
    pool.parallel_for(static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end, int thread) {
        auto* const unpacked = scratch.of_thread<uint8_t>(thread, bytes);
        for (int64_t i = begin; i < end; ++i) kernels.multiply(tiles[static_cast<size_t>(i)], unpacked);
    });
}

// ---- decoded -------------------------------------------------------------------------------------------------------------

// All rows of a panel, `stride` floats apart.
void decode_whole_panel(float* y, int64_t stride, const Weight& w, int64_t panel, const QuantKernels& kernels) {
    if (is_number_panels(w)) {
        for (int64_t r = 0; r < kPanelLanes; ++r) decode_number_lane(y + r * stride, w, panel, r);
        return;
    }
    kernels.decode(y, stride, w.block, w.codes.as<const uint8_t>() + panel * w.codes.stride[0], w.in_features() / kPanelStep);
}

// Rows [begin, end) to `to` [end - begin, in]. kPanels: begin is a multiple of 16.
void decode_rows(float* to, const Weight& w, int64_t begin, int64_t end, ThreadPool& pool, const QuantKernels& kernels) {
    const int64_t in = w.in_features();
    if (w.scheme == Scheme::kPanels) {
        const int64_t panels = (end - begin + kPanelLanes - 1) / kPanelLanes;
        return pool.parallel_for(panels, 1, [&](int64_t first, int64_t last, int) {
            for (int64_t p = first; p < last; ++p)
                decode_whole_panel(to + p * kPanelLanes * in, in, w, begin / kPanelLanes + p, kernels);
        });
    }
    pool.parallel_for(end - begin, 4, [&](int64_t first, int64_t last, int) {
        for (int64_t r = first; r < last; ++r) decode_weight_row(to + r * in, w, begin + r);
    });
}

// `decoded` [out, in] as panels of columns for products by the transpose.
GemmMatrix in_pairs(void* to, const float* decoded, int64_t out, int64_t in, ThreadPool& pool) {
    GemmMatrix b{to, DType::kBF16, out * kPanelLanes, true};
    b.panels = true;
    pool.parallel_for(in / kPanelLanes, 1, [&](int64_t first, int64_t last, int) {
        for (int64_t p = first; p < last; ++p)
            pack_pairs_avx512(static_cast<BFloat16*>(to) + p * b.stride, decoded + p * kPanelLanes, in, out);
    });
    return b;
}

void multiply_decoded(const QuantProduct& product, QuantForm form, ThreadPool& pool, Isa isa, Scratch& scratch) {
    const int64_t out = product.w.out_features(), in = product.w.in_features();
    const int64_t chunk = std::max<int64_t>(1, kDecodedFloats / in / kPanelLanes) * kPanelLanes;
    const bool pairs =
        has_pairs(isa) && form == QuantForm::kDgrad && product.w.scheme == Scheme::kPanels && in % kPanelLanes == 0;
    for (int64_t begin = 0; begin < out; begin += chunk) {
        const int64_t end = std::min(begin + chunk, out), numbers = (end - begin) * in;
        float* decoded = scratch.shared<float>(pairs ? numbers + numbers / 2 : numbers);
        decode_rows(decoded, product.w, begin, end, pool, quant_kernels_of(isa));
        GemmProduct p;
        p.b = {decoded, DType::kF32, in, form == QuantForm::kForward};
        p.m = product.a.dim(0);
        p.a_row = product.a.stride[0];
        p.c_row = product.c.stride[0];
        if (form == QuantForm::kForward) {
            p.n = end - begin, p.k = in;
            p.a = product.a.as<const float>(), p.c = product.c.as<float>() + begin;
        } else {  // a chain over out, continued from chunk to chunk
            if (pairs) p.b = in_pairs(decoded + numbers, decoded, end - begin, in, pool);
            p.n = in, p.k = end - begin;
            p.a = product.a.as<const float>() + begin, p.c = product.c.as<float>();
            p.accumulate = begin > 0;
        }
        run_gemm({{p}}, pool, isa, scratch);
    }
}

// ---- halves --------------------------------------------------------------------------------------------------------------

// By the transpose: chains run along the rows of the weight.
bool in_halves(const QuantProduct& p, QuantForm form, Isa isa) {
    return isa == Isa::kAvx512Fp16 && form == QuantForm::kDgrad && p.w.scheme == Scheme::kPanels &&
           p.w.in_features() % kHalfColumns == 0;
}

// One product's operands as HalfTile wants them.
struct HalfOperands {
    int64_t blocks;
    Float16 *a, *b;
    float *a_factors, *b_factors;
    bool own_a;  // not those of the product before
};

std::vector<HalfOperands> half_operands(std::span<const QuantProduct> products, Scratch& scratch) {
    std::vector<HalfOperands> result;
    std::byte* memory = nullptr;
    for (const bool measuring : {true, false}) {
        int64_t used = 0;
        const auto take = [&]<class T>(int64_t count, T*& to) {
            to = measuring ? nullptr : reinterpret_cast<T*>(memory + used);
            used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        };
        result.clear();
        for (size_t i = 0; i < products.size(); ++i) {
            const QuantProduct& p = products[i];
            HalfOperands own{};
            own.blocks = (p.w.out_features() + kHalfChain - 1) / kHalfChain;
            own.own_a = i == 0 || !same_rows(products[i - 1], p);
            if (!own.own_a) {
                own.a = result[i - 1].a, own.a_factors = result[i - 1].a_factors;
            } else {
                take(own.blocks * p.a.dim(0) * kHalfChain, own.a);
                take(own.blocks * p.a.dim(0), own.a_factors);
            }
            take(own.blocks * kHalfChain * p.w.in_features(), own.b);
            take(own.blocks, own.b_factors);
            result.push_back(own);
        }
        if (measuring) memory = scratch.shared<std::byte>(used);
    }
    return result;
}

// Blocks [begin, end) of 64 rows of `w`.
void pack_half_blocks(const HalfOperands& to, const Weight& w, int64_t begin, int64_t end, float* decoded,
                      const QuantKernels& kernels) {
    const int64_t in = w.in_features(), panels = kHalfChain / kPanelLanes;
    for (int64_t block = begin; block < end; ++block) {
        const int64_t count = std::min(panels, w.codes.dim(0) - block * panels);
        for (int64_t p = 0; p < count; ++p)
            decode_whole_panel(decoded + p * kPanelLanes * in, in, w, block * panels + p, kernels);
        pack_half_block_avx512(to.b + block * kHalfChain * in, to.b_factors + block, decoded, count * kPanelLanes * in);
    }
}

void multiply_in_halves(std::span<const QuantProduct> products, ThreadPool& pool, Scratch& scratch) {
    const QuantKernels& kernels = quant_kernels_of(Isa::kAvx512Fp16);
    constexpr int64_t kRows = 192;  // of a tile
    const std::vector<HalfOperands> operands = half_operands(products, scratch);
    std::vector<HalfTile> tiles;
    for (size_t i = 0; i < products.size(); ++i) {
        const QuantProduct& p = products[i];
        const HalfOperands& at = operands[i];
        const int64_t m = p.a.dim(0), k = p.a.dim(1), in = p.w.in_features();
        if (at.own_a)
            pool.parallel_for(m, 16, [&](int64_t begin, int64_t end, int) {
                for (int64_t r = begin; r < end; ++r)
                    pack_half_row_avx512(at.a + r * kHalfChain, at.a_factors + r, m, row_of(p.a, r), k);
            });
        pool.parallel_for(at.blocks, 1, [&](int64_t begin, int64_t end, int thread) {
            pack_half_blocks(at, p.w, begin, end, scratch.of_thread<float>(thread, kHalfChain * in), kernels);
        });
        for (int64_t r = 0; r < m; r += kRows)
            tiles.push_back({p.c.as<float>() + r * p.c.stride[0], p.c.stride[0], at.a + r * kHalfChain, at.a_factors + r, m,
                             at.b, at.b_factors, std::min(kRows, m - r), in, k});
    }
    pool.parallel_for(static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) multiply_halves_avx512(tiles[static_cast<size_t>(i)]);
    });
}

}  // namespace

const QuantKernels& quant_kernels_of(Isa isa) {
    if (isa == Isa::kAmx) return quant_kernels_amx();
    if (has_avx512(isa) && __builtin_cpu_supports("avx512vnni")) return quant_kernels_vnni_avx512(fetching_ahead_pays());
    return isa == Isa::kAvxVnni ? quant_kernels_vnni_avx2() : quant_kernels_avx2();
}

void decode_weight_row(float* y, const Weight& w, int64_t row) {
    if (w.scheme != Scheme::kPanels) return decode_row(y, w, row);
    const int64_t panel = row / kPanelLanes, lane = row % kPanelLanes;
    if (is_number_panels(w)) return decode_number_lane(y, w, panel, lane);
    decode_panel(y, 0, w.block, w.codes.as<const uint8_t>() + panel * w.codes.stride[0], w.in_features() / kPanelStep, lane,
                 lane + 1);
}

void multiply_quantized(std::span<const QuantProduct> products, QuantForm form, ThreadPool& pool, Isa isa, Scratch& scratch) {
    std::vector<QuantProduct> panels, halves;
    for (const QuantProduct& product : products) {
        if (product.a.dim(0) == 0) continue;
        if (form == QuantForm::kForward && product.w.scheme == Scheme::kPanels)
            panels.push_back(product);
        else if (in_halves(product, form, isa))
            halves.push_back(product);
        else
            multiply_decoded(product, form, pool, isa, scratch);
    }
    if (!panels.empty()) multiply_panels(panels, pool, isa, scratch);
    if (!halves.empty()) multiply_in_halves(halves, pool, scratch);
}

void pack_weight(const Tensor& to, const Weight& w, ThreadPool& pool) {
    pool.parallel_for(to.dim(0), 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t panel = begin; panel < end; ++panel) {
            if (to.dtype == DType::kU8)
                pack_panel(to.as<uint8_t>() + panel * to.stride[0], w, panel);
            else
                pack_number_panel(to.as<uint16_t>() + panel * to.stride[0], w, panel);
        }
    });
}

}  // namespace fathom
