#include "app/importance.h"

#include <algorithm>
#include <unordered_map>

#include "base/interrupt.h"
#include "cpu/cpu_ops.h"

namespace fathom {
namespace {

// The CPU's ops, which also add up the squares of what every matrix is multiplied with.
class ObservingOps final : public CpuOps {
public:
    using CpuOps::CpuOps;

    void matmul(const Tensor& y, const Tensor& x, const Weight& w) override {
        observe(x, w, 0, x.dim(0));
        CpuOps::matmul(y, x, w);
    }
    void grouped_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w, const Tensor& offsets) override {
        for (size_t e = 0; e < w.size(); ++e) observe(x, w[e], offsets.as<int32_t>()[e], offsets.as<int32_t>()[e + 1]);
        CpuOps::grouped_matmul(y, x, w, offsets);
    }

    // Mean squares per column of the matrix whose codes begin at `codes`; empty: it saw no rows.
    [[nodiscard]] std::vector<float> mean_squares(const void* codes) const {
        const auto found = sums_.find(codes);
        if (found == sums_.end() || found->second.rows == 0) return {};
        std::vector<float> result;
        for (const double sum : found->second.squares)
            result.push_back(static_cast<float>(sum / static_cast<double>(found->second.rows)));
        return result;
    }

private:
    struct Sum {
        std::vector<double> squares;
        int64_t rows = 0;
    };
    std::unordered_map<const void*, Sum> sums_;

    void observe(const Tensor& x, const Weight& w, int64_t begin, int64_t end) {
        Sum& sum = sums_[w.codes.data];
        sum.squares.resize(static_cast<size_t>(x.dim(1)));
        sum.rows += end - begin;
        for (int64_t i = begin; i < end; ++i) {
            const float* row = x.as<float>() + i * x.stride[0];
            for (size_t k = 0; k < sum.squares.size(); ++k)
                sum.squares[k] += static_cast<double>(row[k]) * static_cast<double>(row[k]);
        }
    }
};

}  // namespace

Importance measure_importance(DeepSeek& model, ThreadPool& threads, std::span<const int32_t> tokens, int64_t context,
                              ProgressMode mode) {
    ObservingOps ops(threads);
    const auto grow = [&ops](int64_t bytes) { return ops.allocate(bytes); };
    Arena scratch("scratch", grow), saved("saved", grow);
    const auto total = static_cast<int64_t>(tokens.size());
    Progress progress("calibrate", total, "tokens", mode);
    for (int64_t begin = 0; begin < total; begin += context) {
        throw_if_interrupted();
        const ArenaScope scope(scratch);
        Context cx{ops, scratch, saved};
        const int64_t end = std::min(begin + context, total);
        const SequenceChunk window{
            tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), 0, AttentionForm::kExpanded, {}};
        const Tensor hidden = model.forward(cx, make_batch(cx, std::span(&window, 1), 0, false), nullptr, nullptr);
        (void)model.logits(cx, hidden.slice(0, 0, std::min<int64_t>(hidden.dim(0), 64)));  // the head's input: a sample will do
        progress.update(end);
    }
    progress.finish();
    Importance result;
    model.visit([&](const std::string& name, Param& param) {
        if (!param.is_matrix()) return;
        if (auto squares = ops.mean_squares(param.weight.codes.data); !squares.empty())
            result.emplace(name, std::move(squares));
    });
    return result;
}

}  // namespace fathom
