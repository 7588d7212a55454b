// Chosen experts of panels, each as a whole: what an expert makes of its rows stays in one thread's L2 from its first product
// to its last, and a token is quantized once for all its experts. The ops one by one send 16 bytes a row and hidden channel
// through memory and quantize every row twice; the bits are the same.
#include <algorithm>
#include <cstring>

#include "cpu/cpu_ops.h"
#include "cpu/kernels.h"
#include "cpu/quant_kernels.h"
#include "cpu/quant_matmul.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {
namespace {

constexpr int64_t kTasksPerThread = 8;      // so that the last ones end together
constexpr int64_t kLeastRows = 32;          // of a task of a larger expert: each reads all its weights
constexpr int64_t kChunkBytes = 384 << 10;  // of panels, which stay in L2 for all rows

bool in_codes(const Weight& w) { return w.scheme == Scheme::kPanels && !is_number_panels(w); }

// Rows of activations as the products want them.
struct QuantizedRows {
    int8_t* q;             // [rows, width]
    StepFactors* factors;  // [rows, width / 32]
    int64_t width;

    [[nodiscard]] static int64_t bytes(int64_t rows, int64_t width) {
        return rows * (width + width / kPanelStep * static_cast<int64_t>(sizeof(StepFactors)));
    }
    QuantizedRows(std::byte* memory, int64_t rows, int64_t columns)
        : q(reinterpret_cast<int8_t*>(memory + bytes(rows, columns) - rows * columns)),
          factors(reinterpret_cast<StepFactors*>(memory)),
          width(columns) {}

    [[nodiscard]] int64_t steps() const { return width / kPanelStep; }
    void copy_row(int64_t to, const QuantizedRows& from, int64_t row) const {
        std::memcpy(q + to * width, from.q + row * width, static_cast<size_t>(width));
        std::memcpy(factors + to * steps(), from.factors + row * steps(), static_cast<size_t>(steps()) * sizeof(StepFactors));
    }
};

// Panels [first, first + count) of w times the rows.
PanelTile tile_of(const Weight& w, const QuantizedRows& rows, int64_t count_rows, int64_t first, int64_t count, float* y,
                  int64_t y_row) {
    return {.type = w.block,
            .panels = w.codes.as<const uint8_t>() + first * w.codes.stride[0],
            .panel_bytes = w.codes.stride[0],
            .steps = rows.steps(),
            .panel_count = count,
            .q = rows.q,
            .factors = rows.factors,
            .rows = count_rows,
            .y = y,
            .y_row = y_row};
}

int64_t panels_at_once(const Weight& w) { return std::max<int64_t>(1, kChunkBytes / w.codes.stride[0]); }

struct Expert {
    const Weight &gate, &up, &down;
};

// Some rows of an expert.
struct Task {
    int64_t expert, begin, end;  // rows as they are sorted
    [[nodiscard]] int64_t rows() const { return end - begin; }
};

// The longest first.
std::vector<Task> tasks_of(std::span<const int32_t> starts, int threads) {
    const int64_t most = std::max(kLeastRows, (starts.back() + threads * kTasksPerThread - 1) / (threads * kTasksPerThread));
    std::vector<Task> tasks;
    for (size_t e = 0; e + 1 < starts.size(); ++e) {
        const int64_t rows = starts[e + 1] - starts[e], pieces = (rows + most - 1) / most;
        for (int64_t i = 0; i < pieces; ++i)
            tasks.push_back({static_cast<int64_t>(e), starts[e] + rows * i / pieces, starts[e] + rows * (i + 1) / pieces});
    }
    std::ranges::stable_sort(tasks, std::greater{}, &Task::rows);
    return tasks;
}

// A thread's memory for one task.
struct Room {
    QuantizedRows in, inner;
    float *silu, *up;  // [rows, intermediate], [rows, columns at once]
    uint8_t* unpacked;

    [[nodiscard]] static int64_t bytes(const Expert& e, int64_t rows) {
        return rows_bytes(e.gate, rows) + rows_bytes(e.down, rows) + floats(rows, e.down.in_features()) +
               floats(rows, columns_at_once(e.up)) + unpacked_bytes(e);
    }
    Room(std::byte* memory, const Expert& e, int64_t rows)
        : in(memory, rows, e.gate.in_features()),
          inner(memory += rows_bytes(e.gate, rows), rows, e.down.in_features()),
          silu(reinterpret_cast<float*>(memory += rows_bytes(e.down, rows))),
          up(reinterpret_cast<float*>(memory += floats(rows, inner.width))),
          unpacked(reinterpret_cast<uint8_t*>(memory + floats(rows, columns_at_once(e.up)))) {}

private:
    static int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }
    static int64_t rows_bytes(const Weight& w, int64_t rows) { return rounded(QuantizedRows::bytes(rows, w.in_features())); }
    static int64_t floats(int64_t rows, int64_t columns) {
        return rounded(rows * columns * static_cast<int64_t>(sizeof(float)));
    }
    static int64_t columns_at_once(const Weight& w) { return panels_at_once(w) * kPanelLanes; }
    static int64_t unpacked_bytes(const Expert& e) {
        return std::max(panel_scratch_bytes(panel_traits(e.gate.block), e.gate.in_features() / kPanelStep),
                        panel_scratch_bytes(panel_traits(e.down.block), e.down.in_features() / kPanelStep));
    }
};

// room.inner = silu(gate x) up x of the rows in room.in.
void multiply_gate_and_up(const Expert& e, const Room& room, int64_t rows, const QuantKernels& products,
                          const Kernels& kernels) {
    const int64_t all = e.gate.codes.dim(0), step = panels_at_once(e.gate), width = room.inner.width;
    for (int64_t first = 0; first < all; first += step) {
        const int64_t count = std::min(step, all - first), columns = count * kPanelLanes;
        float* const silu = room.silu + first * kPanelLanes;
        products.multiply(tile_of(e.gate, room.in, rows, first, count, silu, width), room.unpacked);
        products.multiply(tile_of(e.up, room.in, rows, first, count, room.up, columns), room.unpacked);
        for (int64_t r = 0; r < rows; ++r) kernels.swiglu(silu + r * width, silu + r * width, room.up + r * columns, columns);
    }
    const PanelTraits traits = panel_traits(e.down.block);
    for (int64_t r = 0; r < rows; ++r)
        products.quantize_row(room.inner.q + r * width, room.inner.factors + r * room.inner.steps(), room.silu + r * width,
                              width, traits.zero, traits.half_groups);
}

void multiply_down(const Expert& e, const Room& room, int64_t rows, const QuantKernels& products, float* y, int64_t y_row) {
    const int64_t all = e.down.codes.dim(0), step = panels_at_once(e.down);
    for (int64_t first = 0; first < all; first += step)
        products.multiply(tile_of(e.down, room.inner, rows, first, std::min(step, all - first), y + first * kPanelLanes, y_row),
                          room.unpacked);
}

}  // namespace

bool CpuOps::takes_experts(const Weight& gate, const Weight& up, const Weight& down, const Tensor& offsets) const {
    if (!in_codes(gate) || !in_codes(up) || !in_codes(down) || gate.block != up.block) return false;
    const std::span starts(offsets.as<const int32_t>(), static_cast<size_t>(offsets.dim(0)));
    int64_t groups = 0;
    for (size_t e = 0; e + 1 < starts.size(); ++e) groups += starts[e] != starts[e + 1] ? 1 : 0;
    return groups >= kTasksPerThread * pool_.size();
}

void CpuOps::experts(const Tensor& y, const Tensor& x, const Tensor& source, std::span<const Weight> gates,
                     std::span<const Weight> ups, std::span<const Weight> downs, const Tensor& offsets) {
    const int64_t m = y.dim(0), n = x.dim(0), hidden = x.dim(1);
    check_tensor("experts", "y", y, DType::kF32, {kAny, hidden});
    check_tensor("experts", "source", source, DType::kI32, {m});
    check_tensor("experts", "offsets", offsets, DType::kI32, {static_cast<int64_t>(gates.size()) + 1});
    const std::span starts(offsets.as<const int32_t>(), gates.size() + 1);
    const std::vector<Task> tasks = tasks_of(starts, pool_.size());
    if (tasks.empty()) return;
    const QuantKernels& products = quant_kernels_of(isa_);
    const QuantizedRows tokens(scratch_.shared<std::byte>(QuantizedRows::bytes(n, hidden)), n, hidden);
    const PanelTraits traits = panel_traits(gates[0].block);
    pool_.parallel_for(n, rows_per_task(hidden), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i)
            products.quantize_row(tokens.q + i * hidden, tokens.factors + i * tokens.steps(), row(x, i), hidden, traits.zero,
                                  traits.half_groups);
    });
    const int64_t bytes = Room::bytes({gates[0], ups[0], downs[0]}, tasks[0].rows());
    const auto* const rows = source.as<const int32_t>();
    pool_.parallel_for(static_cast<int64_t>(tasks.size()), 1, [&](int64_t first, int64_t last, int thread) {
        auto* const memory = scratch_.of_thread<std::byte>(thread, bytes);
        for (int64_t i = first; i < last; ++i) {
            const Task& task = tasks[static_cast<size_t>(i)];
            const auto place = static_cast<size_t>(task.expert);
            const Expert expert{gates[place], ups[place], downs[place]};
            const Room room(memory, expert, task.rows());
            for (int64_t r = task.begin; r < task.end; ++r) room.in.copy_row(r - task.begin, tokens, rows[r]);
            multiply_gate_and_up(expert, room, task.rows(), products, kernels_);
            multiply_down(expert, room, task.rows(), products, row(y, task.begin), y.stride[0]);
        }
    });
}

}  // namespace fathom
