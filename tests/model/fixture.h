// A tiny checkpoint with the answers of an independent implementation (tests/data/README.md).
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "cpu/cpu_ops.h"
#include "io/safetensors.h"

namespace fathom {

// The complete fixture where ../shared exists, else the trimmed copy.
inline std::filesystem::path fixture_folder(const std::string& name) {
    const std::filesystem::path full = std::filesystem::path(FATHOM_SHARED) / "fixtures" / name;
    if (std::filesystem::exists(full / "config.json")) return full;
    const char* const moved = std::getenv("FATHOM_TEST_DATA");  // NOLINT(concurrency-mt-unsafe): the program runs elsewhere
    for (const char* parent : {"fixtures", "", "configs_extra"}) {
        const auto folder = std::filesystem::path(moved != nullptr ? moved : FATHOM_TEST_DATA) / parent / name;
        if (std::filesystem::exists(folder / "config.json")) return folder;
    }
    return {};
}

// Folders whose golden answers include `tensor`.
inline std::vector<std::string> all_fixtures() {
    return {"v2-lite-greedy",
            "v2-group-limited",
            "v3",
            "v3-nope-lora-none",
            "v3-true-head-dims",
            "v3-fp8-blocks",
            "v1-tiny",
            "v1-tiny-freq2",
            "odd-heads",
            "one-expert",
            "all-experts",
            "tied-embeddings",
            "attention-bias",
            "mscale",
            "yarn-range",
            "rms-norm-eps",
            "moe-layer-freq-2",
            "negative-bias-groups",
            "mtp"};
}

// Float answers compared with what an op left in a tensor of f32 or f64.
inline std::vector<double> to_doubles(const Tensor& t) {
    std::vector<double> values(static_cast<size_t>(t.size()));
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] = t.dtype == DType::kF64   ? t.as<double>()[i]
                    : t.dtype == DType::kF32 ? static_cast<double>(t.as<float>()[i])
                                             : t.as<int32_t>()[i];
    }
    return values;
}

inline double max_difference(const Tensor& a, const Tensor& b) {
    const auto x = to_doubles(a), y = to_doubles(b);
    if (x.size() != y.size()) return HUGE_VAL;
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) worst = std::fmax(worst, std::isnan(x[i]) ? HUGE_VAL : std::fabs(x[i] - y[i]));
    return worst;
}

// |a - b| / |b|, Frobenius.
inline double relative_error(const Tensor& a, const Tensor& b) {
    const auto x = to_doubles(a), y = to_doubles(b);
    if (x.size() != y.size()) return HUGE_VAL;
    double difference = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) difference += (x[i] - y[i]) * (x[i] - y[i]), norm += y[i] * y[i];
    return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

// A model on a back end, ready for forward and backward.
struct ModelRun {
    std::unique_ptr<Ops> ops;
    LoadedModel loaded;
    SafetensorsFile golden;
    Arena::Grow grow = [of = ops.get()](int64_t bytes) { return of->allocate(bytes); };
    Arena scratch{"scratch", grow}, saved{"saved", grow}, state{"state", grow};
    Context cx{*ops, scratch, saved};
    std::deque<Buffer> answers;

    ModelRun(const std::string& fixture, std::unique_ptr<Ops> back_end, const LoadOptions& options)
        : ops(std::move(back_end)),
          loaded(load_model(fixture_folder(fixture), *ops, options)),
          golden(fixture_folder(fixture) / "golden.safetensors") {}

    [[nodiscard]] DeepSeek& model() { return *loaded.model; }

    // What the device holds, for reading here; as long as this run lives.
    [[nodiscard]] Tensor host(const Tensor& t) {
        Tensor copy = t;
        copy.data = answers.emplace_back(Buffer::host(t.bytes())).data();
        ops->read_back(copy.data, t);
        return copy;
    }

    // Golden input_ids [B, T], one sequence a row, the last `drop` tokens left out.
    [[nodiscard]] Batch golden_batch(AttentionForm form, bool keep, int64_t drop = 0) {
        const Tensor ids = *golden.find("input_ids");
        std::vector<SequenceChunk> chunks;
        for (int64_t i = 0; i < ids.dim(0); ++i) {
            chunks.push_back({{ids.as<int32_t>() + i * ids.dim(1), static_cast<size_t>(ids.dim(1) - drop)}, 0, form, {}});
        }
        return make_batch(cx, chunks, 0, keep);
    }
    // Token `shift` further on inside each sequence of golden input_ids, `missing` past its end.
    [[nodiscard]] Tensor tokens_ahead(int64_t shift, int32_t missing) {
        const Tensor ids = *golden.find("input_ids");
        std::vector<int32_t> values;
        for (int64_t i = 0; i < ids.dim(0); ++i) {
            for (int64_t t = 0; t < ids.dim(1); ++t) {
                values.push_back(t + shift < ids.dim(1) ? ids.as<int32_t>()[i * ids.dim(1) + t + shift] : missing);
            }
        }
        return cx.ints(values, true);
    }
    void allocate_gradients() {
        loaded.model->visit([this](const std::string&, Param& param) {
            param.grad = param.allocate(state, ops->compute_dtype());
            ops->fill(param.grad, 0);
        });
    }
};

}  // namespace fathom
