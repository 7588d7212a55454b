#include "checkpoint/gguf_save.h"

#include <fmt/format.h>
#include <algorithm>
#include <cstring>
#include <span>
#include <unordered_map>

#include "base/error.h"
#include "checkpoint/gguf_names.h"
#include "io/gguf.h"
#include "io/gguf_tokenizer.h"
#include "quant/encode.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

// general.file_type of llama.h, by the name of the type that most tensors have.
int64_t file_type(const GgufType& type) {
    constexpr std::pair<std::string_view, int64_t> kTypes[] = {
        {"F32", 0},   {"F16", 1},   {"Q4_0", 2},  {"Q4_1", 3},  {"Q8_0", 7},    {"Q5_0", 8},    {"Q5_1", 9},  {"Q2_K", 10},
        {"Q3_K", 12}, {"Q4_K", 15}, {"Q5_K", 17}, {"Q6_K", 18}, {"IQ4_NL", 25}, {"IQ4_XS", 30}, {"BF16", 32}, {"MXFP4", 38}};
    for (const auto& [name, number] : kTypes)
        if (name == type.name()) return number;
    return 0;
}

// How a tensor's rows come about from parameters.
enum class Rows : uint8_t { kWhole, kKeys, kValues };  // kKeys, kValues: halves of kv_b_proj, the keys transposed per head

struct Planned {
    GgufSpec spec;
    Rows rows = Rows::kWhole;
    std::vector<std::pair<std::string, const Param*>> parts;  // one, or all experts in order
};

class GgufSaver {
public:
    GgufSaver(DeepSeek& model, const GgufSaveOptions& options, ThreadPool& pool)
        : model_(model),
          options_(options),
          pool_(pool) {}

    void save(const std::filesystem::path& file) {
        plan();
        std::vector<GgufSpec> specs;
        int64_t total = 0, done = 0;
        for (const Planned& planned : tensors_) {
            specs.push_back(planned.spec);
            total += planned.spec.bytes();
        }
        GgufWriter writer(file, metadata(), specs, options_.job, options_.keep_bytes);
        for (const Planned& planned : tensors_) {
            if (&planned >= &tensors_[0] + writer.first())
                for (const auto& [name, param] : planned.parts) write(writer, planned, name, *param);
            done += planned.spec.bytes();
            if (options_.progress) options_.progress(planned.spec.name, type_of(planned.spec), done, total);
        }
        writer.commit();
    }

private:
    DeepSeek& model_;
    const GgufSaveOptions& options_;
    ThreadPool& pool_;
    std::vector<Planned> tensors_;
    std::unordered_map<std::string, size_t> index_;
    std::vector<float> numbers_;
    std::vector<std::byte> bytes_;

    static GgufType type_of(const GgufSpec& spec) { return {spec.dtype, spec.block}; }

    [[nodiscard]] std::vector<std::pair<std::string, GgufValue>> metadata() const {
        auto result = gguf_metadata(model_.config(), options_.name);
        result.emplace_back("general.file_type", file_type(options_.type.value_or(GgufType{DType::kBF16})));
        if (options_.tokenizer_of != nullptr) {
            for (const auto& [key, value] : options_.tokenizer_of->metadata())
                if (key.starts_with("tokenizer.")) result.emplace_back(key, value);
        }
        if (options_.tokenizer.empty()) return result;
        for (auto& entry : gguf_tokenizer_metadata(options_.tokenizer, model_.config().vocab_size))
            result.push_back(std::move(entry));
        return result;
    }

    void plan() {
        model_.visit([&](const std::string& name, Param& param) {
            const auto place = gguf_place(name);
            if (!place) throw Error(ErrorKind::kInput, fmt::format("GGUF has no place for {}", name));
            const auto& c = model_.config();
            if (name.ends_with("kv_b_proj.weight") && !options_.merged_kv_b) {
                const std::string stem = place->name.substr(0, place->name.rfind("kv_b"));
                add({stem + "k_b.weight", {c.num_attention_heads, c.kv_lora_rank, c.qk_nope_head_dim}}, place->name,
                    Rows::kKeys, name, param);
                add({stem + "v_b.weight", {c.num_attention_heads, c.v_head_dim, c.kv_lora_rank}}, place->name, Rows::kValues,
                    name, param);
                return;
            }
            GgufSpec spec{place->name, {param.rows}};
            if (param.is_matrix()) spec.shape.push_back(param.cols);
            if (place->expert >= 0) spec.shape.insert(spec.shape.begin(), c.n_routed_experts);
            add(std::move(spec), place->name, Rows::kWhole, name, param);
        });
    }

    // `key`: the name under which options_.types may know the tensor.
    void add(GgufSpec spec, const std::string& key, Rows rows, const std::string& name, const Param& param) {
        const auto [at, fresh] = index_.emplace(spec.name, tensors_.size());
        if (!fresh) {
            tensors_[at->second].parts.emplace_back(name, &param);
            return;
        }
        if (spec.shape.size() > 1) {
            const Weight& w = param.weight;
            GgufType wanted{w.scheme == Scheme::kPlain ? w.codes.dtype : DType::kBF16};
            // Transposed, the keys' blocks would be rounded anew.
            if (w.scheme == Scheme::kBlocks && rows != Rows::kKeys) wanted = {DType::kU8, w.block};
            if (options_.type) wanted = *options_.type;
            if (const auto found = options_.types.find(key); found != options_.types.end()) wanted = found->second;
            const GgufType type = gguf_type_for(spec.name, spec.shape.back(), wanted);
            spec.dtype = type.dtype;
            spec.block = type.block;
        }
        tensors_.push_back({std::move(spec), rows, {{name, &param}}});
    }

    // One parameter's rows, encoded and appended.
    void write(GgufWriter& writer, const Planned& planned, const std::string& name, const Param& param) {
        const int64_t columns = planned.spec.shape.back();
        const int64_t rows = planned.spec.bytes() / static_cast<int64_t>(planned.parts.size()) / row_bytes(planned.spec);
        const Weight& w = param.weight;
        if (w.scheme == Scheme::kBlocks && w.block == planned.spec.block && planned.rows == Rows::kWhole &&
            !options_.importance)
            return writer.write({w.codes.as<const std::byte>(), static_cast<size_t>(w.codes.bytes())});
        numbers_.resize(static_cast<size_t>(rows * columns));
        read(planned, param);
        const float* importance = nullptr;
        if (options_.importance != nullptr && planned.rows != Rows::kKeys) {
            const auto found = options_.importance->find(name);
            if (found != options_.importance->end() && std::ssize(found->second) == columns) importance = found->second.data();
        }
        bytes_.resize(static_cast<size_t>(rows * row_bytes(planned.spec)));
        pool_.parallel_for(rows, std::max<int64_t>(1, 4096 / columns), [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i)
                encode_row(planned.spec, numbers_.data() + i * columns, columns, bytes_.data() + i * row_bytes(planned.spec),
                           importance);
        });
        writer.write(bytes_);
    }

    static int64_t row_bytes(const GgufSpec& spec) {
        const BlockTraits& traits = traits_of(spec.block);
        return spec.block == BlockType::kNone ? spec.shape.back() * size_of(spec.dtype)
                                              : spec.shape.back() / traits.elements * traits.bytes;
    }

    // numbers_ = the tensor's rows that come from this parameter.
    void read(const Planned& planned, const Param& param) {
        const auto& c = model_.config();
        const int64_t h = c.num_attention_heads, d_n = c.qk_nope_head_dim, d_v = c.v_head_dim, rank = c.kv_lora_rank;
        if (planned.rows == Rows::kWhole) {
            const int64_t rows = param.is_matrix() ? param.rows : 1, columns = planned.spec.shape.back();
            return pool_.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
                for (int64_t i = begin; i < end; ++i) decode_row(numbers_.data() + i * columns, param.weight, i);
            });
        }
        const bool keys = planned.rows == Rows::kKeys;
        std::vector<float> row(static_cast<size_t>(rank));
        for (int64_t j = 0; j < h; ++j) {
            for (int64_t d = 0; d < (keys ? d_n : d_v); ++d) {
                decode_row(row.data(), param.weight, j * (d_n + d_v) + (keys ? d : d_n + d));
                if (!keys) {
                    std::ranges::copy(row, numbers_.begin() + (j * d_v + d) * rank);
                    continue;
                }
                for (int64_t i = 0; i < rank; ++i)
                    numbers_[static_cast<size_t>((j * rank + i) * d_n + d)] = row[static_cast<size_t>(i)];
            }
        }
    }

    static void encode_row(const GgufSpec& spec, const float* x, int64_t n, std::byte* to, const float* importance) {
        if (spec.block != BlockType::kNone) return encode_blocks(spec.block, x, to, n, importance);
        if (spec.dtype == DType::kF32) {
            std::memcpy(to, x, static_cast<size_t>(n) * sizeof(float));
            return;
        }
        for (int64_t i = 0; i < n; ++i) {
            if (spec.dtype == DType::kBF16)
                reinterpret_cast<BFloat16*>(to)[i] = BFloat16(x[i]);
            else
                reinterpret_cast<Float16*>(to)[i] = Float16(x[i]);
        }
    }
};

}  // namespace

std::string GgufType::name() const { return std::string(block == BlockType::kNone ? name_of(dtype) : traits_of(block).name); }

GgufType gguf_type_for(const std::string& gguf_name, int64_t columns, const GgufType& wanted) {
    if (gguf_name.ends_with("ffn_gate_inp.weight")) return {DType::kF32};
    if (wanted.block == BlockType::kNone) return wanted;
    const auto blocks = [](BlockType type) { return GgufType{DType::kU8, type}; };
    if (columns % 32 != 0) return {DType::kF16};
    const bool whole = columns % traits_of(wanted.block).elements == 0;
    switch (wanted.block) {
        case BlockType::kQ2K:
        case BlockType::kQ3K:
        case BlockType::kIq4Xs:
            if (!whole) return blocks(BlockType::kIq4Nl);
            [[fallthrough]];
        case BlockType::kQ4K:
            if (!whole) return blocks(BlockType::kQ50);
            [[fallthrough]];
        case BlockType::kQ5K:
            if (!whole) return blocks(BlockType::kQ51);
            return blocks(gguf_name == "output.weight" ? BlockType::kQ6K : wanted.block);
        case BlockType::kQ6K:
            return blocks(whole ? BlockType::kQ6K : BlockType::kQ80);
        default:
            return wanted;
    }
}

void save_gguf(const std::filesystem::path& file, DeepSeek& model, const GgufSaveOptions& options, ThreadPool& pool) {
    try {
        GgufSaver(model, options, pool).save(file);
    } catch (const Error& error) {
        throw error.within(file.string());
    }
}

}  // namespace fathom
