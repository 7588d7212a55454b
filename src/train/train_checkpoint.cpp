#include "train/train_checkpoint.h"

#include <fmt/format.h>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/file.h"
#include "checkpoint/checkpoint.h"

namespace fathom {
namespace {

constexpr std::string_view kPrefix = "step-", kPartial = ".partial";

struct NamedState {
    std::string name;
    Tensor tensor;
};

// Master only where it is not the parameter itself.
std::vector<NamedState> optimizer_tensors(Optimizer& optimizer) {
    std::vector<NamedState> result;
    for (const Optimizer::State& state : optimizer.states()) {
        if (!state.param->trained()) continue;
        if (state.master.data != state.param->weight.codes.data) result.push_back({"master." + state.name, state.master});
        result.push_back({"m." + state.name, state.m});
        result.push_back({"v." + state.name, state.v});
    }
    return result;
}

void save_optimizer(const std::filesystem::path& folder, Ops& ops, Optimizer& optimizer) {
    const std::vector<NamedState> tensors = optimizer_tensors(optimizer);
    std::vector<TensorSpec> specs;
    for (const auto& [name, t] : tensors) specs.push_back({name, t.dtype, {t.shape.begin(), t.shape.begin() + t.rank}});
    ShardedWriter writer(folder, specs, {});
    for (const TensorSpec& spec : writer.order()) {  // by type
        Tensor staged = std::ranges::find(tensors, spec.name, &NamedState::name)->tensor;
        const Buffer host = Buffer::host(staged.bytes());
        ops.read_back(host.data(), staged);
        staged.data = host.data();
        writer.write(staged);
    }
    writer.commit();
}

void restore_tensor(Ops& ops, const SafetensorsFolder& files, const std::string& name, const Tensor& destination) {
    const auto found = files.find(name);
    if (!found || found->dtype != destination.dtype || found->shape != destination.shape) {
        throw Error(
            ErrorKind::kInput,
            fmt::format(
                "{} is {}, the run needs {}: the checkpoint belongs to another model, training.dtype or optimizer.moments",
                name, found ? found->describe() : "missing", destination.describe()));
    }
    ops.write(destination, found->data);
}

void remove_old(const std::filesystem::path& folder, int64_t keep) {
    const auto checkpoints = training_checkpoints(folder);
    for (size_t i = 0; i + static_cast<size_t>(keep) < checkpoints.size(); ++i) {
        std::filesystem::path leaving = checkpoints[i];
        leaving += kPartial;  // killed in between, it is not taken for a checkpoint
        std::filesystem::rename(checkpoints[i], leaving);
        std::filesystem::remove_all(leaving);
    }
}

// A folder in the way of a new checkpoint has no trainer.json (else the run would have gone on from it): it is kept, under
// another name.
void set_aside(const std::filesystem::path& path) {
    if (!std::filesystem::exists(path)) return;
    std::filesystem::path aside = path;
    for (int i = 1; std::filesystem::exists(aside); ++i) aside = fmt::format("{}.incomplete-{}", path.string(), i);
    std::filesystem::rename(path, aside);
}

}  // namespace

void save_training_checkpoint(const std::filesystem::path& folder, DeepSeek& model, Ops& ops, Optimizer& optimizer,
                              const TrainerState& state, const CheckpointOptions& options) {
    if (!optimizer.weights_finite()) {
        throw Error(ErrorKind::kInput, fmt::format("step {}: weights are no longer finite numbers; nothing was saved. Lower "
                                                   "optimizer.lr or lengthen lr_scheduler.warmup_steps",
                                                   state.step));
    }
    const std::filesystem::path final_path = folder / fmt::format("{}{:08}", kPrefix, state.step);
    std::filesystem::path partial = final_path;
    partial += kPartial;
    std::error_code ignored;
    try {
        std::filesystem::create_directories(partial);
        save_model(partial, model, ops, {.tokenizer = options.tokenizer});
        save_optimizer(partial / "optimizer", ops, optimizer);
        if (options.write_more) options.write_more(partial);
        const nlohmann::ordered_json position{
            {"step", state.step}, {"tokens", state.tokens}, {"epoch", state.loader.epoch}, {"position", state.loader.position}};
        write_text_atomically(partial / "trainer.json", position.dump(2) + "\n");
        sync_directory(partial);
        set_aside(final_path);
        std::filesystem::rename(partial, final_path);
        sync_directory(folder);
        remove_old(folder, options.keep);
    } catch (const std::filesystem::filesystem_error& error) {
        std::filesystem::remove_all(partial, ignored);
        throw Error(ErrorKind::kIo,
                    fmt::format("{}: cannot save the checkpoint: {}", final_path.string(), error.code().message()));
    } catch (const Error& error) {
        std::filesystem::remove_all(partial, ignored);
        throw error.within("cannot save the checkpoint, earlier ones are untouched");
    }
}

TrainerState load_training_checkpoint(const std::filesystem::path& checkpoint, DeepSeek& model, Ops& ops,
                                      Optimizer& optimizer) {
    try {
        const SafetensorsFolder weights(checkpoint), moments(checkpoint / "optimizer");
        model.visit([&](const std::string& name, Param& param) { restore_tensor(ops, weights, name, param.weight.codes); });
        for (const auto& [name, tensor] : optimizer_tensors(optimizer)) restore_tensor(ops, moments, name, tensor);
        const auto position = nlohmann::json::parse(read_text(checkpoint / "trainer.json"));
        return {position.at("step").get<int64_t>(),
                position.at("tokens").get<int64_t>(),
                {position.at("epoch").get<int64_t>(), position.at("position").get<int64_t>()}};
    } catch (const nlohmann::json::exception& error) {
        throw Error(ErrorKind::kInput, fmt::format("{}: trainer.json is damaged: {}", checkpoint.string(), error.what()));
    } catch (const Error& error) {
        throw error.within(checkpoint.string());
    }
}

void remove_partial_checkpoints(const std::filesystem::path& folder) {
    std::vector<std::filesystem::path> partial;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        const std::string name = entry.path().filename().string();
        if (name.starts_with(kPrefix) && name.ends_with(kPartial)) partial.push_back(entry.path());
    }
    for (const auto& path : partial) std::filesystem::remove_all(path);
}

std::vector<std::filesystem::path> training_checkpoints(const std::filesystem::path& folder) {
    std::vector<std::filesystem::path> result;
    if (!std::filesystem::is_directory(folder)) return result;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        const std::string name = entry.path().filename().string();
        if (name.starts_with(kPrefix) && !name.ends_with(kPartial) && std::filesystem::exists(entry.path() / "trainer.json")) {
            result.push_back(entry.path());
        }
    }
    std::ranges::sort(result);
    return result;
}

}  // namespace fathom
