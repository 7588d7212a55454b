// AWQ and GPTQ: what fathom quantize writes when it has seen a text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "checkpoint/quantized_folder.h"

namespace fathom {

enum class CalibratedMethod : uint8_t { kAwq, kGptq };

struct CalibrationOptions {
    CalibratedMethod method = CalibratedMethod::kGptq;
    std::span<const int32_t> tokens;
    int64_t context = 512;        // tokens of a window, each from its own beginning
    std::filesystem::path state;  // file that keeps what a resumed job needs; empty: nothing is kept
    std::string job;              // that the state belongs to
    ProgressMode progress = ProgressMode::kQuiet;
};

// The layers of a model, quantized one after the other, each on the inputs that the quantized layers before it give. All
// windows go through a layer at once; of the layer each matrix is quantized when its input is known, and computes its output
// with what it has become. Experts see the tokens that are routed to them; one that saw fewer than kFewestTokens is rounded to
// nearest.
//
// AWQ: the scales that columns get are taken off what stands before the matrix: a norm's weights, the rows of up_proj before
// down_proj, the value rows of kv_b_proj before o_proj. The router, which reads the same norm, is scaled as well and stored as
// F32. GPTQ: 1 % damping, columns with the largest inputs first, ranges of groups by the error of the output.
//
// MTP modules, which the text's next tokens would have to be fed to, are rounded to nearest.
class CalibratedSource final : public FolderSource {
public:
    static constexpr int64_t kFewestTokens = 64;

    // Where plan's parameters are not integers, they are rounded as RoundingSource does. AWQ sets plan.parameters of routers
    // to F32 before the folder's tensors are announced (prepare_plan).
    CalibratedSource(DeepSeek& model, const FolderPlan& plan, const CalibrationOptions& options, ThreadPool& pool);
    ~CalibratedSource() override;
    static void prepare_plan(DeepSeek& model, CalibratedMethod method, FolderPlan& plan);

    void produce(const std::string& name, const TensorSink& sink) override;
    void shard_finished(const std::string& name) override;
    // Matrices that were rounded to nearest because too few tokens came to them.
    [[nodiscard]] std::vector<std::string> rounded() const;

private:
    class Layers;
    std::unique_ptr<Layers> layers_;
};

}  // namespace fathom
