// A model -> a folder with its matrices in fewer bits, in Hugging Face's layouts: what fathom quantize writes where OUT is no
// GGUF file.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/threads.h"
#include "checkpoint/gguf_save.h"
#include "checkpoint/integer_layouts.h"
#include "model/deepseek.h"

namespace fathom {

// How one parameter is stored.
struct StoredAs {
    Scheme scheme = Scheme::kPlain;  // kPlain: as it is in memory; kFp8Block; kGroups; kBlocks: MXFP4
    GroupFormat groups;
    bool f32 = false;  // kPlain: as F32

    [[nodiscard]] std::string name() const;  // "int4 g64", "fp8", "mxfp4", "plain"
    bool operator==(const StoredAs&) const = default;
};

// All parameters, and what config.json says of it.
struct FolderPlan {
    QuantizationConfig config;
    std::map<std::string, StoredAs> parameters;  // those that are not listed stay plain
    std::vector<std::string> left_alone;         // matrices whose columns are no whole groups

    [[nodiscard]] const StoredAs& of(const std::string& name) const;
};

// Whether a parameter is among those that are quantized: matrices of linear layers inside decoder layers. MTP's eh_proj joins
// two states and stays.
[[nodiscard]] bool is_quantizable(const std::string& name, const Param& param);

// Every matrix of layers but routers as `wanted`; embedding, head, norms, routers and biases stay plain. A matrix that does not
// fit `wanted` stays plain as well. `method`: compressed-tensors, gptq or awq; nothing of it is looked at for kFp8Block and
// kBlocks.
[[nodiscard]] FolderPlan plan_folder(DeepSeek& model, const StoredAs& wanted, const std::string& method);
// Writes plan.config's groups, targets and modules left alone from plan.parameters, which may differ from matrix to matrix
// (compressed-tensors only).
void describe_plan(DeepSeek& model, FolderPlan& plan);

// What the files hold for a parameter.
[[nodiscard]] std::vector<TensorSpec> specs_of_parameter(const FolderPlan& plan, const std::string& name, const Param& param);
// The same with its content, rounded to nearest; integers with the cost of errors of all columns (quant/integer_groups.h).
[[nodiscard]] std::vector<PackedTensor> round_parameter(const FolderPlan& plan, const std::string& name, const Param& param,
                                                        const GroupCost& cost, ThreadPool& pool);
// Integers that were rounded elsewhere.
[[nodiscard]] std::vector<PackedTensor> packed_parameter(const FolderPlan& plan, const std::string& name,
                                                         const Weight& integers);

// Where the numbers come from. `produce` hands over the tensors of at least that parameter, perhaps of others too; it is asked
// for parameters in the order in which they are written, each at most once.
using TensorSink = std::function<void(PackedTensor)>;
class FolderSource {
public:
    virtual ~FolderSource() = default;
    virtual void produce(const std::string& name, const TensorSink& sink) = 0;
    // A shard is complete, `name` is the parameter of the first tensor that is not written yet (empty: none is left).
    virtual void shard_finished(const std::string& /*name*/) {}
};

// Rounds every parameter to nearest, integers with errors weighted by the importance of their columns where that is given.
class RoundingSource final : public FolderSource {
public:
    RoundingSource(DeepSeek& model, const FolderPlan& plan, const Importance* importance, ThreadPool& pool);
    void produce(const std::string& name, const TensorSink& sink) override;

private:
    const FolderPlan& plan_;
    const Importance* importance_;
    ThreadPool& pool_;
    std::map<std::string, const Param*> parameters_;
};

struct FolderSaveOptions {
    std::filesystem::path tokenizer;  // as SaveOptions
    int64_t max_shard_bytes = kMaxShardBytes;
    std::string job;  // ShardedWriter's: all that the bytes depend on; empty: an interrupted save leaves nothing behind
    std::function<void(const std::string& parameter, int64_t done, int64_t total)> progress;  // in bytes
};

// config.json, tokenizer files, shards. Complete, or without its shards; a later save of the same job goes on behind the last
// complete shard. In memory: what was produced and waits for its turn, at most a shard.
void save_quantized_folder(const std::filesystem::path& directory, DeepSeek& model, const FolderPlan& plan,
                           FolderSource& source, const FolderSaveOptions& options);

}  // namespace fathom
