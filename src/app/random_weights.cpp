#include "app/random_weights.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "base/rng.h"
#include "checkpoint/quantized_folder.h"

namespace fathom {
namespace {

constexpr int64_t kTable = int64_t{1} << 20;  // numbers that weights are cut from
constexpr double kStd = 0.02;

// make(i) for kTable numbers, twice.
template <class T, class Make>
std::vector<T> table_of(Make&& make) {
    std::vector<T> table(2 * kTable);
    for (int64_t i = 0; i < kTable; ++i) table[static_cast<size_t>(i)] = table[static_cast<size_t>(i + kTable)] = make(i);
    return table;
}

// How the matrices of linear layers are stored; absent: as all others.
struct Coding {
    Scheme scheme = Scheme::kGroups;
    int64_t bits = 8;
    double std_of_codes = 1;
};
std::optional<Coding> coding_of(const std::string& type) {
    if (type == "fp8") return Coding{Scheme::kFp8Block, 8, 32};
    if (type == "int8") return Coding{Scheme::kGroups, 8, 73.9};  // of even numbers from -128 to 127
    if (type == "int4") return Coding{Scheme::kGroups, 4, 4.6};
    return std::nullopt;
}

class Drawing {
public:
    Drawing(LoadedModel& loaded, const std::string& type, Ops& ops)
        : loaded_(loaded),
          ops_(ops),
          dtype_(type == "f32" ? DType::kF32 : DType::kBF16),
          coding_(coding_of(type)) {
        if (dtype_ == DType::kF32)
            f32_ = table_of<float>([this](int64_t i) { return number(i); });
        else
            bf16_ = table_of<BFloat16>([this](int64_t i) { return BFloat16(number(i)); });
        if (!coding_) return;
        const auto scale = static_cast<float>(coding_->std_of_codes / kStd);
        codes_ = table_of<uint8_t>([&](int64_t i) {
            if (coding_->scheme == Scheme::kFp8Block) return Float8E4M3(number(i) * scale).bits;
            return static_cast<uint8_t>(philox_.uniform(static_cast<uint64_t>(i)) * 256);
        });
    }

    void run() {
        reserve_memory();
        loaded_.model->visit([&](const std::string& name, Param& param) {
            if (coding_ && coded(name, param))
                param.weight = coding_->scheme == Scheme::kFp8Block ? fp8_blocks(param) : groups(param);
            else
                param.weight = plain(param);
        });
    }

private:
    LoadedModel& loaded_;
    Ops& ops_;
    DType dtype_;
    std::optional<Coding> coding_;
    Philox philox_{1, 0};
    std::vector<float> f32_;
    std::vector<BFloat16> bf16_;
    std::vector<uint8_t> codes_;
    Rng places_{2};

    [[nodiscard]] float number(int64_t i) const { return static_cast<float>(kStd * philox_.normal(static_cast<uint64_t>(i))); }

    // The largest of 128, 64 and 32 that divides the columns; 0: none.
    [[nodiscard]] static int64_t group_of(const Param& param) {
        for (const int64_t group : {128, 64, 32})
            if (param.cols % group == 0) return group;
        return 0;
    }
    [[nodiscard]] bool coded(const std::string& name, const Param& param) const {
        return is_quantizable(name, param) && !name.ends_with(kBothWays) &&
               (coding_->scheme == Scheme::kFp8Block || group_of(param) > 0);
    }

    // On a device in one piece, as a model that was loaded.
    void reserve_memory() {
        constexpr int64_t kUsual = int64_t{64} << 20, kAlignment = 64;
        int64_t bytes = 0, scales = 0;
        loaded_.model->visit([&](const std::string& name, Param& param) {
            const bool in_codes = coding_ && coded(name, param);
            bytes += kAlignment + (in_codes ? param.size() * coding_->bits / 8
                                            : param.size() * size_of(param.trained() ? dtype_ : DType::kF32));
            if (in_codes) scales += kAlignment + param.size() / 16;
        });
        const bool host = ops_.sees_host_memory();
        const Arena::Grow grow = [&ops = ops_](int64_t size) { return ops.allocate(size); };  // outlives this
        loaded_.weights = std::make_unique<Arena>("weights", grow, host ? kUsual : bytes);
        loaded_.scales = std::make_unique<Arena>("scales", grow, host ? kUsual : std::max(scales, kAlignment));
    }

    [[nodiscard]] Weight plain(const Param& param) {
        const DType type = param.trained() ? dtype_ : DType::kF32;
        const Tensor value = param.allocate(*loaded_.weights, type);
        if (!param.is_matrix()) {
            ops_.fill(value, param.kind == ParamKind::kNorm ? 1 : 0);
        } else if (type == DType::kF32) {
            fill(value, f32_);
        } else {
            fill(value, bf16_);
        }
        return {value};
    }

    [[nodiscard]] Weight fp8_blocks(const Param& param) {
        const auto blocks = [](int64_t size) { return (size + kFp8Block - 1) / kFp8Block; };
        const Weight w(loaded_.weights->allocate(DType::kF8E4M3, {param.rows, param.cols}),
                       loaded_.scales->allocate(DType::kF32, {blocks(param.rows), blocks(param.cols)}));
        return filled(w);
    }

    [[nodiscard]] Weight groups(const Param& param) {
        Weight w;
        w.scheme = Scheme::kGroups;
        w.codes = coding_->bits == 4 ? loaded_.weights->allocate(DType::kU8, {param.rows, param.cols / 2})
                                     : loaded_.weights->allocate(DType::kI8, {param.rows, param.cols});
        w.scales = loaded_.scales->allocate(DType::kBF16, {param.rows, param.cols / group_of(param)});
        return filled(w);
    }

    [[nodiscard]] Weight filled(const Weight& w) {
        fill(w.codes, codes_);
        ops_.fill(w.scales, kStd / coding_->std_of_codes);
        return w;
    }

    // By rows, a stretch of the table at a time, each from another place.
    template <class T>
    void fill(const Tensor& matrix, const std::vector<T>& table) {
        const int64_t step = std::max<int64_t>(1, kTable / matrix.dim(1));
        for (int64_t row = 0; row < matrix.dim(0); row += step)
            ops_.write(matrix.slice(0, row, std::min(row + step, matrix.dim(0))), &table[places_.below(kTable)]);
    }
};

}  // namespace

void draw_weights(LoadedModel& loaded, const std::string& type, Ops& ops) { Drawing(loaded, type, ops).run(); }

}  // namespace fathom
