#include "app/importance.h"

#include <algorithm>
#include <map>

#include "app/calibrating_ops.h"
#include "base/interrupt.h"

namespace fathom {
namespace {

struct Sum {
    std::vector<double> squares;
    int64_t rows = 0;

    void add(const Tensor& x) {
        squares.resize(static_cast<size_t>(x.dim(1)));
        rows += x.dim(0);
        for (int64_t i = 0; i < x.dim(0); ++i) {
            const float* row = x.as<float>() + i * x.stride[0];
            for (size_t k = 0; k < squares.size(); ++k) squares[k] += static_cast<double>(row[k]) * static_cast<double>(row[k]);
        }
    }
};

}  // namespace

Importance measure_importance(DeepSeek& model, ThreadPool& threads, std::span<const int32_t> tokens, int64_t context,
                              ProgressMode mode) {
    std::map<std::string, Sum> sums;
    CalibratingOps ops(threads, model, [&sums](const ObservedMatrix& matrix, const Tensor& x) {
        sums[matrix.name].add(x);
        return Tensor();
    });
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
    for (const auto& [name, sum] : sums) {
        if (sum.rows == 0) continue;
        for (const double square : sum.squares)
            result[name].push_back(static_cast<float>(square / static_cast<double>(sum.rows)));
    }
    return result;
}

}  // namespace fathom
