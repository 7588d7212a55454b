#include "checkpoint/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <algorithm>
#include <cstring>
#include <set>

#include "base/file.h"
#include "base/pages.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/integer_layouts.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

constexpr int64_t kPartialNanCheckBytes = 1 << 20;
constexpr std::string_view kScaleSuffix = "_scale_inv";

// kv_b_proj is multiplied by along both of its sides; of an embedding rows are looked up.
Weight packed_plain(const std::string& name, const Param& param, Ops& ops, Arena& arena) {
    const bool stays = !param.is_matrix() || name.ends_with(kBothWays) || name == "model.embed_tokens.weight";
    if (stays || !ops.sees_host_memory()) return param.weight;
    const Weight result = ops.pack(param.weight, arena);
    if (result.codes.data != param.weight.codes.data) done_with_pages(param.weight.codes.data, param.weight.codes.bytes());
    return result;
}

// Walks the model's parameters against the files and collects every disagreement before it complains.
class Loader {
public:
    // `quantization`: what config.json says of the files, which the model to be may no longer say of itself.
    Loader(LoadedModel& loaded, Ops& ops, const LoadOptions& options, std::optional<QuantizationConfig> quantization)
        : loaded_(loaded),
          ops_(ops),
          options_(options),
          quantization_(std::move(quantization)) {}

    void run() {
        loaded_.model->visit([this](const std::string& name, Param& param) { bind(name, param); });
        for (const DeepSeek::Alias& alias : loaded_.model->aliases()) {
            used_.insert(alias.name);
            loaded_.has_copies = loaded_.has_copies || loaded_.files->find(alias.name).has_value();
        }
        for (const std::string& name : loaded_.files->names()) {
            if (!used_.contains(name) && !ignorable(name)) problems_.push_back("unexpected " + name);
        }
        if (!problems_.empty()) throw Error(ErrorKind::kInput, summary());
    }

private:
    LoadedModel& loaded_;
    Ops& ops_;
    const LoadOptions& options_;
    std::optional<QuantizationConfig> quantization_;
    std::set<std::string> used_;
    std::vector<std::string> problems_;
    Arena unpacked_{"unpacked weights", Buffer::host, int64_t{1} << 20};

    void bind(const std::string& name, Param& param) {
        if (bind_integers(name, param)) return;
        const std::optional<Tensor> found = loaded_.files->find(name);
        if (!found) return problems_.push_back("missing " + name);
        used_.insert(name);
        const Tensor expected = param.is_matrix() ? Tensor(nullptr, found->dtype, {param.rows, param.cols})
                                                  : Tensor(nullptr, found->dtype, {param.rows});
        if (found->rank != expected.rank || found->shape != expected.shape) {
            return problems_.push_back(
                fmt::format("{} is {}, the config asks for {}", name, found->describe(), expected.describe()));
        }
        Weight stored(*found);
        if (found->dtype == DType::kF8E4M3) {
            const std::optional<Tensor> scales = fp8_scales(name, param);
            if (!scales) return;
            stored = Weight(*found, *scales);
        } else if (found->dtype != DType::kF32 && found->dtype != DType::kBF16 && found->dtype != DType::kF16) {
            return problems_.push_back(fmt::format("{} is {}: weights are F32, BF16, F16 or F8_E4M3", name, found->describe()));
        }
        if (options_.check_nan && has_nan(*found)) return problems_.push_back(name + " holds NaN");
        param.weight = converted(stored, name, param);
        if (options_.pack_plain && param.weight.codes.data == stored.codes.data) param.weight = packed(name, param);
    }

    [[nodiscard]] Weight packed(const std::string& name, const Param& param) {
        return paged(name) ? param.weight : packed_plain(name, param, ops_, *loaded_.weights);
    }
    // Whether it is read from the file when it is needed.
    [[nodiscard]] bool paged(const std::string& name) const {
        return options_.page_experts && name.find(".experts.") != std::string::npos;
    }

    // Whole numbers in groups, where config.json speaks of them and the files have them for this matrix. A plain tensor of the
    // name goes first: it is a module left alone.
    bool bind_integers(const std::string& name, Param& param) {
        const auto& q = quantization_;
        if (!q || !q->integers() || !param.is_matrix()) return false;
        if (const auto plain = loaded_.files->find(name); plain && plain->dtype != DType::kI8) return false;
        const FindTensor find = [this](const std::string& wanted) { return loaded_.files->find(wanted); };
        try {
            const auto read = [&](Arena& arena) {
                return read_integers(integer_layout(*q), find, name, param.rows, param.cols, arena, used_);
            };
            const auto stored = read(integers_arena());
            if (!stored) return false;
            if (options_.check_nan && stored->scales && any_nan(stored->scales))
                problems_.push_back("the scales of " + name + " hold NaN");
            else
                param.weight = integers_for_device(*stored, name, param);
            // Not packed after all: where it lasts.
            if (param.weight.codes.data == stored->codes.data && &integers_arena() == &unpacked_)
                param.weight = *read(*loaded_.weights);
        } catch (const Error& error) {
            problems_.emplace_back(error.what());
        }
        return true;
    }

    // Where a layout is unpacked to: memory that need not last where the numbers go elsewhere, on the CPU into panels.
    [[nodiscard]] Arena& integers_arena() {
        if (ops_.sees_host_memory() && !options_.dtype && !options_.pack) return *loaded_.weights;
        unpacked_.clear();
        return unpacked_;
    }

    [[nodiscard]] Weight integers_for_device(const Weight& stored, const std::string& name, const Param& param) {
        if (options_.dtype) return in_numbers(stored, param, *options_.dtype);
        if (!ops_.sees_host_memory()) return on_device(stored, name, param);
        // Into heads: as it is, unless heads are whole panels.
        const auto& c = loaded_.config;
        const bool whole = c.qk_nope_head_dim % Weight::kPanelRows == 0 && c.v_head_dim % Weight::kPanelRows == 0;
        const bool cut = name.ends_with(kBothWays) && !whole;
        if (stored.scheme == Scheme::kGroups && paged(name)) return stored;  // mapped codes can be let go, panels cannot
        return options_.pack && !cut ? ops_.pack(stored, *loaded_.weights) : stored;
    }

    std::optional<Tensor> fp8_scales(const std::string& name, const Param& param) {
        const auto scales = loaded_.files->find(name + std::string(kScaleSuffix));
        used_.insert(name + std::string(kScaleSuffix));
        const auto blocks = [](int64_t size) { return (size + kFp8Block - 1) / kFp8Block; };
        if (scales && param.is_matrix() && scales->dtype == DType::kF32 && scales->rank == 2 &&
            scales->dim(0) == blocks(param.rows) && scales->dim(1) == blocks(param.cols)) {
            if (!options_.check_nan || !has_nan(*scales)) return scales;
            problems_.push_back(name + std::string(kScaleSuffix) + " holds NaN");
            return std::nullopt;
        }
        problems_.push_back(fmt::format("{} is FP8 and needs {}{} as F32[{}, {}]", name, name, kScaleSuffix, blocks(param.rows),
                                        blocks(param.cols)));
        return std::nullopt;
    }

    [[nodiscard]] bool has_nan(const Tensor& tensor) const {
        if (loaded_.files->total_bytes() <= kFullNanCheckBytes) return any_nan(tensor);
        Tensor head(tensor.data, tensor.dtype, {std::min(tensor.size(), kPartialNanCheckBytes / size_of(tensor.dtype))});
        return any_nan(head);
    }

    // The type the user asked for; the router's bias is f32 always.
    [[nodiscard]] Weight converted(const Weight& stored, const std::string& name, const Param& param) {
        const DType wanted = param.kind == ParamKind::kRouterBias ? DType::kF32 : options_.dtype.value_or(stored.codes.dtype);
        if (wanted == stored.codes.dtype && stored.scheme != Scheme::kPlain && !ops_.sees_host_memory())
            return on_device(stored, name, param);
        if (wanted == stored.codes.dtype) return visible(stored);
        if (stored.scheme == Scheme::kFp8Block) return in_numbers(stored, param, wanted);
        const Tensor result = param.allocate(*loaded_.weights, wanted);
        const ArenaScope scope(*loaded_.weights);
        ops_.copy(result, visible(stored.codes));
        return {result};
    }

    // Codes as they are, but of matrices that are not only multiplied by along their columns: those are numbers of the
    // activations' type.
    [[nodiscard]] Weight on_device(const Weight& stored, const std::string& name, const Param& param) {
        const bool codes = stored.scheme != Scheme::kPlain && stored.scheme != Scheme::kBlocks && !name.ends_with(kBothWays) &&
                           name != "model.embed_tokens.weight";
        return codes ? visible(stored) : in_numbers(stored, param, ops_.compute_dtype());
    }

    // What lies in the map of a file, where the ops can see it.
    [[nodiscard]] Tensor visible(const Tensor& mapped) { return visible(mapped, *loaded_.weights); }
    [[nodiscard]] Tensor visible(const Tensor& mapped, Arena& arena) {
        if (ops_.sees_host_memory() || !mapped) return mapped;
        const Tensor device = mapped.rank == 1 ? arena.allocate(mapped.dtype, {mapped.dim(0)})
                                               : arena.allocate(mapped.dtype, {mapped.dim(0), mapped.dim(1)});
        ops_.write(device, mapped.data);
        return device;
    }
    [[nodiscard]] Weight visible(const Weight& mapped) {
        Weight weight = mapped;
        weight.codes = visible(mapped.codes);
        weight.scales = visible(mapped.scales, *loaded_.scales);
        weight.zeros = visible(mapped.zeros, *loaded_.zeros);
        return weight;
    }

    // What the scheme multiplies out to, row by row.
    [[nodiscard]] Weight in_numbers(const Weight& stored, const Param& param, DType wanted) {
        const Tensor result = param.allocate(*loaded_.weights, wanted);
        Buffer row_buffer = Buffer::host(param.cols * 4);
        const Tensor row(row_buffer.data(), DType::kF32, {param.cols});
        for (int64_t i = 0; i < param.rows; ++i) {
            decode_row(row.as<float>(), stored, i);
            const ArenaScope scope(*loaded_.weights);
            ops_.copy(result.slice(0, i, i + 1).view({param.cols}), visible(row));
        }
        return {result};
    }

    // Old files carry rotary buffers, some a second copy of tied embeddings; MTP layers are there even when nobody wants them.
    [[nodiscard]] bool ignorable(const std::string& name) const {
        if (name.ends_with("rotary_emb.inv_freq")) return true;
        if (name == "lm_head.weight")
            return loaded_.config.tie_word_embeddings && same_bytes(name, "model.embed_tokens.weight");
        constexpr std::string_view kLayers = "model.layers.";
        if (!name.starts_with(kLayers) || loaded_.config.num_nextn_predict_layers > 0) return false;
        const int64_t layer = std::atoll(name.c_str() + kLayers.size());
        return layer >= loaded_.config.num_hidden_layers &&
               loaded_.files->find(fmt::format("{}{}.eh_proj.weight", kLayers, layer));
    }

    [[nodiscard]] bool same_bytes(const std::string& a, const std::string& b) const {
        const std::optional<Tensor> x = loaded_.files->find(a), y = loaded_.files->find(b);
        return x && y && x->dtype == y->dtype && x->shape == y->shape &&
               std::memcmp(x->data, y->data, static_cast<size_t>(x->bytes())) == 0;
    }

    [[nodiscard]] std::string summary() const {
        constexpr size_t kShown = 12;
        const auto shown = std::span(problems_).first(std::min(kShown, problems_.size()));
        return fmt::format(
            "the weights do not fit config.json ({} problem{}):\n  {}{}\nCheck that the files are complete and belong "
            "together.",
            problems_.size(), problems_.size() == 1 ? "" : "s", fmt::join(shown, "\n  "),
            problems_.size() > kShown ? fmt::format("\n  and {} more", problems_.size() - kShown) : "");
    }
};

bool has_mtp_tensors(const SafetensorsFolder& files, const ModelConfig& config) {
    const std::string prefix = fmt::format("model.layers.{}.", config.num_hidden_layers);
    const auto names = files.names();
    return std::ranges::any_of(names, [&](const std::string& name) { return name.starts_with(prefix); });
}

void check_kind(const ModelConfig& config, const LoadOptions& options, const std::filesystem::path& directory) {
    const HeadKind kind = config.num_labels > 0 ? HeadKind::kLabels : HeadKind::kVocabulary;
    if (options.head == HeadKind::kAny || options.head == kind) return;
    throw Error(
        ErrorKind::kInput,
        fmt::format("{}: {}", directory.string(),
                    kind == HeadKind::kVocabulary
                        ? "is a language model, which scores nothing: train a reward model from it by fathom reward train"
                        : "is a reward model, which writes nothing: use it by fathom reward score, or in fathom grpo"));
}

// What a save writes for one name.
struct SavedTensor {
    TensorSpec spec;
    Tensor tensor;       // or, where a layout packs several tensors from one matrix,
    std::string matrix;  // the parameter whose part it is
    Weight weight;
};

TensorSpec spec_of(const std::string& name, const Tensor& tensor) {
    return {name, tensor.dtype, {tensor.shape.begin(), tensor.shape.begin() + tensor.rank}};
}

std::vector<SavedTensor> tensors_to_save(DeepSeek& model, bool with_copies) {
    std::vector<SavedTensor> result;
    const auto& q = model.config().quantization_config;
    const auto add = [&](const std::string& name, const Weight& weight) {
        if (weight.scheme == Scheme::kGroups || weight.scheme == Scheme::kBlocks) {
            check(q && q->integers(), name + " has codes that config.json knows nothing of");
            for (TensorSpec& spec :
                 integer_specs(integer_layout(*q), name, weight.out_features(), weight.in_features(), group_format(weight)))
                result.push_back({std::move(spec), {}, name, weight});
            return;
        }
        result.push_back({spec_of(name, weight.codes), weight.codes, {}, {}});
        if (weight.scheme != Scheme::kFp8Block) return;
        const std::string scale_name = name + std::string(kScaleSuffix);
        result.push_back({spec_of(scale_name, weight.scales), weight.scales, {}, {}});
    };
    std::vector<std::pair<std::string, Weight>> copies;
    const std::vector<DeepSeek::Alias> aliases = with_copies ? model.aliases() : std::vector<DeepSeek::Alias>();
    model.visit([&](const std::string& name, Param& param) {
        add(name, param.weight);
        for (const DeepSeek::Alias& alias : aliases) {
            if (alias.of == name) copies.emplace_back(alias.name, param.weight);
        }
    });
    for (const auto& [name, weight] : copies) add(name, weight);
    return result;
}

// Bytes that a parameter's codes or numbers take on a device.
int64_t device_bytes(const std::string& name, const Param& param, const LoadedModel& loaded, const Ops& ops,
                     const LoadOptions& options) {
    const std::optional<Tensor> found = loaded.files->find(name);
    const auto& q = loaded.config.quantization_config;
    const bool codes = !found || found->dtype == DType::kI8 || found->dtype == DType::kF8E4M3;
    if (options.dtype) return param.size() * size_of(*options.dtype);
    const bool mxfp4 = q && q->integers() && integer_layout(*q) == IntegerLayout::kMxfp4;
    if (codes && (mxfp4 || name.ends_with(kBothWays))) return param.size() * size_of(ops.compute_dtype());
    if (found) return param.size() * size_of(found->dtype);
    int64_t bits = 0;  // none: the loader will say what is missing
    if (q && q->integers())
        for (const IntegerGroups& group : q->groups) bits = std::max(bits, group.bits);
    return param.size() * bits / 8;
}

// Arenas whose chunks, on a device, have room for all weights, one after the other, so that experts are at equal distances and
// one product does for neighbours; and for the largest matrix once more, for what is converted. In host memory most weights
// stay in the map.
void make_arenas(LoadedModel& loaded, Ops& ops, const LoadOptions& options) {
    constexpr int64_t kUsual = int64_t{64} << 20, kAlignment = 64;
    constexpr int64_t kScaleShare = 2048;  // FP8: 4 bytes of scales for 16384 of codes, and edges
    int64_t sum = 0, largest = 0;
    if (!ops.sees_host_memory()) {
        loaded.model->visit([&](const std::string& name, Param& param) {
            const int64_t bytes = device_bytes(name, param, loaded, ops, options);
            sum += bytes + kAlignment;
            largest = std::max(largest, bytes);
        });
    }
    const auto arena = [&ops](const char* name, int64_t chunk) {
        return std::make_unique<Arena>(
            name, [&ops](int64_t bytes) { return ops.allocate(bytes); }, chunk);
    };
    loaded.weights = arena("weights", std::max(kUsual, sum + largest));
    loaded.scales = arena("scales", std::max(kUsual, sum / kScaleShare));
    loaded.zeros = arena("zero points", kUsual);
}

}  // namespace

bool has_mtp_modules(const LoadedModel& loaded) {
    if (loaded.gguf)
        return loaded.gguf->view().find(fmt::format("blk.{}.nextn.eh_proj.weight", loaded.config.num_hidden_layers)) != nullptr;
    return has_mtp_tensors(*loaded.files, loaded.config);
}

LoadedModel load_model(const std::filesystem::path& directory, Ops& ops, const LoadOptions& options) {
    if (is_gguf(directory)) {
        if (!ops.sees_host_memory()) {
            throw Error(ErrorKind::kDevice,
                        fmt::format("{}: a GGUF file computes on the CPU: add --device cpu, or convert it to a "
                                    "folder (fathom convert)",
                                    directory.string()));
        }
        return load_gguf_model(directory, ops, options);
    }
    LoadedModel loaded;
    loaded.config = ModelConfig::load(directory);
    check_kind(loaded.config, options, directory);
    loaded.files = std::make_unique<SafetensorsFolder>(directory);
    if (!options.with_mtp || !has_mtp_tensors(*loaded.files, loaded.config)) loaded.config.num_nextn_predict_layers = 0;
    std::optional<QuantizationConfig> quantization = loaded.config.quantization_config;
    if (options.dtype) {  // what a save will write
        loaded.config.torch_dtype = *options.dtype == DType::kF32 ? "float32" : "bfloat16";
        loaded.config.quantization_config.reset();
    }
    loaded.model = std::make_unique<DeepSeek>(loaded.config);
    make_arenas(loaded, ops, options);
    try {
        Loader(loaded, ops, options, std::move(quantization)).run();
    } catch (const Error& error) {
        throw error.within(directory.string());
    }
    return loaded;
}

void pack_plain(LoadedModel& loaded, Ops& ops) {
    loaded.model->visit(
        [&](const std::string& name, Param& param) { param.weight = packed_plain(name, param, ops, *loaded.weights); });
}

void save_model(const std::filesystem::path& directory, DeepSeek& model, Ops& ops, const SaveOptions& options) {
    const std::vector<SavedTensor> tensors = tensors_to_save(model, options.with_copies);
    std::vector<TensorSpec> specs;
    std::unordered_map<std::string, const SavedTensor*> by_name;
    for (const SavedTensor& saved : tensors) {
        specs.push_back(saved.spec);
        by_name.emplace(saved.spec.name, &saved);
    }
    ShardedWriter writer(directory, specs, {{"format", "pt"}}, options.max_shard_bytes);
    std::unordered_map<std::string, PackedTensor> packed;  // until their turn comes
    for (const TensorSpec& spec : writer.order()) {
        const SavedTensor& saved = *by_name.at(spec.name);
        if (!saved.matrix.empty()) {
            if (!packed.contains(spec.name)) {
                const IntegerLayout layout = integer_layout(*model.config().quantization_config);
                for (PackedTensor& part : pack_integers(layout, saved.matrix, saved.weight))
                    packed.insert_or_assign(part.spec.name, std::move(part));
            }
            writer.write(packed.at(spec.name).tensor());
            packed.erase(spec.name);
            continue;
        }
        Buffer host = Buffer::host(saved.tensor.bytes());
        ops.read_back(host.data(), saved.tensor);
        Tensor staged = saved.tensor;
        staged.data = host.data();
        writer.write(staged);
    }
    writer.commit();
    write_text_atomically(directory / "config.json", model.config().to_json());
    copy_tokenizer(options.tokenizer, directory);
}

void copy_tokenizer(const std::filesystem::path& from, const std::filesystem::path& to) {
    if (from.empty()) return;
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "tiktoken.model", "generation_config.json"}) {
        if (std::filesystem::exists(from / name)) write_text_atomically(to / name, read_text(from / name));
    }
}

}  // namespace fathom
