#include "checkpoint/gguf_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <vector>

#include "base/pages.h"
#include "checkpoint/gguf_names.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

constexpr int64_t kPartialNanCheckNumbers = 1 << 16;  // of each tensor of a large file

// Numbers as `dtype` on the host.
void store(std::byte* to, DType dtype, int64_t index, float value) {
    if (dtype == DType::kF32)
        reinterpret_cast<float*>(to)[index] = value;
    else if (dtype == DType::kF16)
        reinterpret_cast<Float16*>(to)[index] = Float16(value);
    else
        reinterpret_cast<BFloat16*>(to)[index] = BFloat16(value);
}

class GgufLoader {
public:
    GgufLoader(LoadedModel& loaded, Ops& ops, const LoadOptions& options)
        : loaded_(loaded),
          file_(loaded.gguf->view()),
          ops_(ops),
          dtype_(options.dtype),
          pack_(options.pack),
          page_experts_(options.page_experts),
          // What an earlier start kept, it had looked through.
          check_nan_(options.check_nan && !(loaded.repacked && loaded.repacked->complete())) {
        if (!dtype_ && !ops.sees_host_memory()) dtype_ = DType::kBF16;
    }

    void run() {
        const GgufTensor* keys = file_.find("blk.0.attn_k_b.weight");
        if (keys != nullptr && keys->dtype != DType::kF32 && !dtype_ && pack_) loaded_.model->split_kv_b();
        loaded_.model->visit([this](const std::string& name, Param& param) { bind(name, param); });
        if (!problems_.empty()) throw Error(ErrorKind::kInput, summary());
        if (loaded_.repacked && !loaded_.repacked->complete()) loaded_.repacked->save();
    }

private:
    LoadedModel& loaded_;
    const GgufView& file_;
    Ops& ops_;
    std::optional<DType> dtype_;
    bool pack_, page_experts_, check_nan_;
    std::set<std::string> checked_;
    std::map<std::string, Weight> packed_;  // tensors that several parameters share: one per matrix of experts
    std::vector<std::string> problems_;

    // A tensor of the file by name, looked through once: experts and heads share one.
    const GgufTensor* find(const std::string& name) {
        const GgufTensor* tensor = file_.find(name);
        if (tensor == nullptr || !check_nan_ || !checked_.insert(name).second || !has_nan(*tensor)) return tensor;
        problems_.push_back(name + " holds NaN");
        return tensor;
    }

    [[nodiscard]] bool has_nan(const GgufTensor& tensor) const {
        const int64_t columns = tensor.columns();
        const bool all = loaded_.gguf->bytes() <= kFullNanCheckBytes;
        const int64_t rows = all ? tensor.rows() : std::min(tensor.rows(), kPartialNanCheckNumbers / columns + 1);
        std::vector<float> row(static_cast<size_t>(columns));
        for (int64_t i = 0; i < rows; ++i) {
            decode_row(row.data(), tensor.matrix(), i);
            if (std::ranges::any_of(row, [](float x) { return std::isnan(x); })) return true;
        }
        return false;
    }

    void bind(const std::string& name, Param& param) {
        const auto place = gguf_place(name);
        if (!place) return problems_.push_back("no place in GGUF for " + name);
        if (name.ends_with("kv_b_proj.weight") && file_.find(place->name) == nullptr) return merge_kv_b(place->name, param);
        const GgufTensor* tensor = find(place->name);
        if (tensor == nullptr) return problems_.push_back("missing " + place->name);
        const int64_t experts = place->expert < 0 ? 1 : loaded_.config.n_routed_experts;
        const bool fits = param.is_matrix()
                              ? tensor->rows() == experts * param.rows && tensor->columns() == param.cols
                              : tensor->rows() == 1 && tensor->columns() == param.rows && tensor->block == BlockType::kNone;
        if (!fits) {
            return problems_.push_back(fmt::format(
                "{} is {}[{}], the metadata ask for {}", place->name, tensor->type_name(), fmt::join(tensor->shape, ", "),
                param.is_matrix() ? fmt::format("{} x [{}, {}]", experts, param.rows, param.cols)
                                  : fmt::format("[{}]", param.rows)));
        }
        const int64_t first = std::max<int64_t>(place->expert, 0) * param.rows;
        param.weight = weight_of(*tensor, first, param);
    }

    // Rows from `first` on as the device wants them: as they lie in the file, packed, or converted.
    Weight weight_of(const GgufTensor& tensor, int64_t first, const Param& param) {
        const bool f32_always = param.kind == ParamKind::kRouterBias;
        const DType wanted = f32_always ? DType::kF32 : dtype_.value_or(tensor.dtype);
        if (wanted != tensor.dtype || !ops_.sees_host_memory()) return converted(tensor, first, param, wanted);
        if (!param.is_matrix()) return {Tensor(tensor.data, tensor.dtype, {param.rows})};
        return packed(tensor, param).rows(first, first + param.rows);
    }

    // The whole tensor, packed when its matrices can be cut from it again. A table that is only looked up stays as it is.
    const Weight& packed(const GgufTensor& tensor, const Param& param) {
        const auto found = packed_.find(tensor.name);
        if (found != packed_.end()) return found->second;
        Weight weight = tensor.matrix();
        const bool table_only = tensor.name == "token_embd.weight" && !loaded_.config.tie_word_embeddings;
        // Absorbed attention multiplies by both halves of kv_b, by one of them along its rows.
        const bool both_ways = tensor.block == BlockType::kNone && tensor.name.ends_with("kv_b.weight");
        const bool paged = page_experts_ && tensor.name.find("_exps.") != std::string::npos;
        if (pack_ && !paged && !dtype_ && !both_ways && param.rows % Weight::kPanelRows == 0 && !table_only) {
            weight = packed_now(tensor, weight);
        }
        return packed_.emplace(tensor.name, weight).first->second;
    }

    // From an earlier start where it was kept.
    Weight packed_now(const GgufTensor& tensor, const Weight& stored) {
        RepackCache* cache = loaded_.repacked.get();
        if (cache != nullptr && cache->complete()) {
            if (const auto kept = cache->find(tensor)) return *kept;
        }
        const Weight result = ops_.pack(stored, *loaded_.weights);
        if (result.codes.data == stored.codes.data) return result;
        done_with_pages(tensor.data, tensor.bytes);
        if (cache != nullptr && !cache->complete()) cache->add(tensor, result);
        return result;
    }

    Weight converted(const GgufTensor& tensor, int64_t first, const Param& param, DType wanted) {
        const DType dtype = wanted == DType::kU8 ? DType::kBF16 : wanted;
        const Tensor result = param.allocate(*loaded_.weights, dtype);
        const int64_t columns = tensor.columns(), rows = param.is_matrix() ? param.rows : 1;
        const Buffer host = Buffer::host(result.bytes());
        std::vector<float> row(static_cast<size_t>(columns));
        const Weight whole = tensor.matrix();
        for (int64_t i = 0; i < rows; ++i) {
            decode_row(row.data(), whole, first + i);
            for (int64_t j = 0; j < columns; ++j)
                store(static_cast<std::byte*>(host.data()), dtype, i * columns + j, row[static_cast<size_t>(j)]);
        }
        ops_.write(result, host.data());
        return {result};
    }

    // kv_b_proj [h (d_n + d_v), c_kv] from k_b, per head [c_kv, d_n], and v_b, per head [d_v, c_kv].
    void merge_kv_b(std::string name, Param& param) {
        const auto& c = loaded_.config;
        const int64_t h = c.num_attention_heads, d_n = c.qk_nope_head_dim, d_v = c.v_head_dim, rank = c.kv_lora_rank;
        const std::string stem = name.substr(0, name.size() - std::string_view("kv_b.weight").size());
        const GgufTensor *k = find(stem + "k_b.weight"), *v = find(stem + "v_b.weight");
        if (k == nullptr || v == nullptr)
            return problems_.push_back(fmt::format("missing {} (or {}k_b and {}v_b)", name, stem, stem));
        if (k->rows() != h * rank || k->columns() != d_n || v->rows() != h * d_v || v->columns() != rank)
            return problems_.push_back(
                fmt::format("{}k_b and {}v_b do not have the shapes that the metadata ask for", stem, stem));
        const DType dtype = dtype_.value_or(k->block == BlockType::kNone ? k->dtype : DType::kBF16);
        const Tensor result = param.allocate(*loaded_.weights, dtype);
        const Buffer host = Buffer::host(result.bytes());
        auto* to = static_cast<std::byte*>(host.data());
        std::vector<float> row(static_cast<size_t>(std::max(rank, d_n)));
        const Weight keys = k->matrix(), values = v->matrix();
        for (int64_t j = 0; j < h; ++j) {
            for (int64_t i = 0; i < rank; ++i) {
                decode_row(row.data(), keys, j * rank + i);
                for (int64_t d = 0; d < d_n; ++d)
                    store(to, dtype, (j * (d_n + d_v) + d) * rank + i, row[static_cast<size_t>(d)]);
            }
            for (int64_t d = 0; d < d_v; ++d) {
                decode_row(row.data(), values, j * d_v + d);
                for (int64_t i = 0; i < rank; ++i)
                    store(to, dtype, (j * (d_n + d_v) + d_n + d) * rank + i, row[static_cast<size_t>(i)]);
            }
        }
        ops_.write(result, host.data());
        param.weight = result;
    }

    [[nodiscard]] std::string summary() const {
        constexpr size_t kShown = 12;
        const auto shown = std::span(problems_).first(std::min(kShown, problems_.size()));
        return fmt::format("the tensors do not fit the metadata ({} problem{}):\n  {}{}", problems_.size(),
                           problems_.size() == 1 ? "" : "s", fmt::join(shown, "\n  "),
                           problems_.size() > kShown ? fmt::format("\n  and {} more", problems_.size() - kShown) : "");
    }
};

}  // namespace

LoadedModel load_gguf_model(const std::filesystem::path& file, Ops& ops, const LoadOptions& options) {
    LoadedModel loaded;
    loaded.gguf = std::make_unique<GgufFile>(file);
    try {
        loaded.config = config_of_gguf(loaded.gguf->view());
        if (!options.with_mtp) loaded.config.num_nextn_predict_layers = 0;
        if (options.dtype) loaded.config.torch_dtype = *options.dtype == DType::kF32 ? "float32" : "bfloat16";
        loaded.weights = std::make_unique<Arena>("weights", [&ops](int64_t bytes) { return ops.allocate(bytes); });
        loaded.model = std::make_unique<DeepSeek>(loaded.config);
        const bool packs = options.pack && !options.dtype && !options.page_experts && ops.sees_host_memory();
        if (packs && !options.repack_cache.empty())
            loaded.repacked = std::make_unique<RepackCache>(options.repack_cache, *loaded.gguf, ops);
        GgufLoader(loaded, ops, options).run();
    } catch (const Error& error) {
        throw error.within(file.string());
    }
    return loaded;
}

}  // namespace fathom
