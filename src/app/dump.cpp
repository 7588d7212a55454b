// fathom dump: what a model computes for given ids, as tensors that other programs can compare with.
#include <fmt/format.h>
#include <algorithm>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "app/generate_model.h"
#include "app/verb.h"
#include "base/error.h"
#include "io/safetensors.h"

namespace fathom {
namespace {

struct Options {
    ModelOptions model;
    std::string input, output;
    std::vector<std::string> what{"logits"};
    std::string path = "forward";
    int64_t chunk = 16;
    bool no_cache = false;
};

// Host tensors under the names of tests/data/README.md, kept until they are written.
class Answers {
public:
    Tensor add(const std::string& name, DType dtype, std::initializer_list<int64_t> dims) {
        const Tensor tensor = memory_.allocate(dtype, dims);
        tensors_.push_back({name, tensor});
        return tensor;
    }
    void add(const std::string& name, Ops& ops, const Tensor& from, std::initializer_list<int64_t> dims) {
        const Tensor tensor = add(name, from.dtype, dims);
        ops.read_back(tensor.data, from);
    }
    void write(const std::string& path) const { write_safetensors(path, tensors_, {{"format", "pt"}}); }
    [[nodiscard]] std::span<const NamedTensor> tensors() const { return tensors_; }

private:
    Arena memory_{"answers"};
    std::vector<NamedTensor> tensors_;
};

class Dump {
public:
    Dump(const Options& options, const Globals& globals)
        : options_(options),
          what_(options.what.begin(), options.what.end()),
          model_(options.model, globals, OpenModel::Text::kNo),
          scratch_("scratch", [this](int64_t bytes) { return model_.ops().allocate(bytes); }),
          saved_("saved", [this](int64_t bytes) { return model_.ops().allocate(bytes); }),
          cx_{model_.ops(), scratch_, saved_, options.model.held_as(), globals.deterministic} {
        read_ids();
        const bool absorbed = options.path == "absorbed" || options.path == "decode" || globals.deterministic;
        form_ = absorbed && model_.config().mla() ? AttentionForm::kAbsorbed : AttentionForm::kExpanded;
    }

    void run() {
        if (options_.path == "forward" || options_.path == "absorbed") {
            whole_sequences();
        } else {
            through_cache(options_.path == "decode" ? 1 : options_.chunk);
        }
        if (what_.contains("grads")) gradients();
        answers_.write(options_.output);
    }
    [[nodiscard]] std::span<const NamedTensor> tensors() const { return answers_.tensors(); }

private:
    const Options& options_;
    std::set<std::string> what_;
    OpenModel model_;
    Arena scratch_, saved_;
    Context cx_;
    AttentionForm form_ = AttentionForm::kExpanded;
    std::vector<int32_t> ids_;
    int64_t sequences_ = 0, length_ = 0;
    Answers answers_;

    void read_ids() {
        const SafetensorsFile file(options_.input);
        const auto ids = file.find("input_ids");
        if (!ids || ids->rank != 2 || (ids->dtype != DType::kI32 && ids->dtype != DType::kI64) || ids->size() == 0) {
            throw Error(ErrorKind::kInput, fmt::format("{}: expected a tensor input_ids [sequences, length] of I32 or I64{}",
                                                       options_.input, ids ? ", found " + ids->describe() : ""));
        }
        sequences_ = ids->dim(0), length_ = ids->dim(1);
        const int64_t vocab = model_.config().vocab_size;
        for (int64_t i = 0; i < ids->size(); ++i) {
            const int64_t id = ids->dtype == DType::kI32 ? ids->as<const int32_t>()[i] : ids->as<const int64_t>()[i];
            if (id < 0 || id >= vocab) {
                throw Error(ErrorKind::kInput, fmt::format("{}: input_ids holds {}, the model's vocabulary has ids 0 to {}",
                                                           options_.input, id, vocab - 1));
            }
            ids_.push_back(static_cast<int32_t>(id));
        }
        if (length_ == 1 && what_.contains("grads"))
            throw Error(ErrorKind::kInput, fmt::format("{}: gradients need sequences of at least two tokens", options_.input));
        if (length_ <= model_.config().max_position_embeddings) return;
        throw Error(ErrorKind::kInput, fmt::format("{}: sequences of {} tokens, the model reads at most {} "
                                                   "(max_position_embeddings)",
                                                   options_.input, length_, model_.config().max_position_embeddings));
    }

    [[nodiscard]] std::span<const int32_t> tokens(int64_t sequence, int64_t begin, int64_t end) const {
        return std::span(ids_).subspan(static_cast<size_t>(sequence * length_ + begin), static_cast<size_t>(end - begin));
    }

    [[nodiscard]] Batch whole_batch(bool keep) {
        std::vector<SequenceChunk> chunks;
        for (int64_t i = 0; i < sequences_; ++i) chunks.push_back({tokens(i, 0, length_), 0, form_, {}});
        return make_batch(cx_, chunks, 0, keep);
    }

    void whole_sequences() {
        const ArenaScope scratch(scratch_), saved(saved_);
        Batch batch = whole_batch(false);
        std::vector<Routing> routing(static_cast<size_t>(model_.config().num_hidden_layers));
        std::vector<Tensor> states;
        if (what_.contains("router")) batch.record = &routing;
        const Tensor hidden = model_.model().forward(cx_, batch, nullptr, nullptr, &states);
        if (what_.contains("logits")) {
            answers_.add("logits", cx_.ops, model_.model().logits(cx_, hidden),
                         {sequences_, length_, model_.config().vocab_size});
        }
        for (size_t l = 0; what_.contains("hidden") && l < states.size(); ++l) {
            answers_.add(fmt::format("hidden.{}", l), cx_.ops, states[l].slice(0, 0, length_), {length_, states[l].dim(1)});
        }
        for (size_t l = 0; l < routing.size(); ++l) {
            if (routing[l].indices.defined()) sorted_routing(fmt::format("router.{}", l), routing[l]);
        }
    }

    // Indices ascending, weights in that order: what implementations agree on.
    void sorted_routing(const std::string& name, const Routing& routing) {
        const int64_t n = routing.indices.dim(0), k = routing.indices.dim(1);
        std::vector<int32_t> indices(static_cast<size_t>(n * k)), order(static_cast<size_t>(k));
        std::vector<float> weights(indices.size());
        cx_.ops.read_back(indices.data(), routing.indices);
        cx_.ops.read_back(weights.data(), routing.weights);
        auto* sorted_indices = answers_.add(name + ".indices", DType::kI32, {n, k}).as<int32_t>();
        auto* sorted_weights = answers_.add(name + ".weights", DType::kF32, {n, k}).as<float>();
        for (int64_t i = 0; i < n; ++i) {
            std::iota(order.begin(), order.end(), static_cast<int32_t>(i * k));
            std::ranges::sort(order, {}, [&](int32_t j) { return indices[static_cast<size_t>(j)]; });
            for (const int32_t j : order) {
                *sorted_indices++ = indices[static_cast<size_t>(j)];
                *sorted_weights++ = weights[static_cast<size_t>(j)];
            }
        }
    }

    // Logits through the paged cache, `step` tokens of every sequence at a time.
    void through_cache(int64_t step) {
        const int64_t vocab = model_.config().vocab_size, page = 16;
        PagedCache cache(cx_.ops, model_.model().cache_states(), sequences_ * (length_ + page), page, cx_.cache_type);
        std::vector<CachedSequence> cached;
        for (int64_t i = 0; i < sequences_; ++i) cached.emplace_back(cache);
        auto* logits = answers_.add("logits", DType::kF32, {sequences_, length_, vocab}).as<float>();
        for (int64_t begin = 0; begin < length_; begin += step) {
            const ArenaScope scratch(scratch_), saved(saved_);
            const int64_t end = std::min(begin + step, length_);
            std::vector<SequenceChunk> chunks;
            for (int64_t i = 0; i < sequences_; ++i) {
                CachedSequence& sequence = cached[static_cast<size_t>(i)];
                check(sequence.reserve(end - begin), "dump: the cache is too small");
                chunks.push_back({tokens(i, begin, end), begin, form_, sequence.block_table()});
                sequence.commit(tokens(i, begin, end));
            }
            const Tensor hidden = model_.model().forward(cx_, make_batch(cx_, chunks, page, false), &cache.view(), nullptr);
            const Tensor rows = model_.model().logits(cx_, hidden);
            for (int64_t i = 0; i < sequences_; ++i) {
                cx_.ops.read_back(logits + (i * length_ + begin) * vocab,
                                  rows.slice(0, i * (end - begin), (i + 1) * (end - begin)));
            }
        }
    }

    // Of the mean cross-entropy of every token but each sequence's first.
    void gradients() {
        Arena memory("gradients", [this](int64_t bytes) { return model_.ops().allocate(bytes); });
        model_.model().visit([&](const std::string&, Param& param) {
            param.grad = param.allocate(memory, cx_.ops.precise_dtype());
            cx_.ops.fill(param.grad, 0);
        });
        std::vector<int32_t> targets(ids_.size(), -1);
        for (size_t i = 0; i + 1 < ids_.size(); ++i) {
            if ((static_cast<int64_t>(i) + 1) % length_ != 0) targets[i] = ids_[i + 1];
        }
        const auto count = static_cast<double>(sequences_ * (length_ - 1));
        const int64_t n = sequences_ * length_;
        DeepSeek::Saved saved;
        const Tensor hidden = model_.model().forward(cx_, whole_batch(true), nullptr, &saved);
        const Tensor loss = cx_.empty_precise({n}, true), dhidden = cx_.empty({n, hidden.dim(1)}, true);
        model_.model().head().loss_and_gradient(cx_, loss, dhidden, hidden, cx_.ints(targets, true), 1 / count);
        model_.model().backward(cx_, dhidden, saved);
        std::vector<float> rows(static_cast<size_t>(n));
        cx_.ops.read_back(rows.data(), loss);
        *answers_.add("loss", DType::kF32, {1}).as<float>() =
            static_cast<float>(std::accumulate(rows.begin(), rows.end(), 0.0) / count);
        model_.model().visit([&](const std::string& name, Param& param) {
            if (!param.trained()) return;
            const Tensor& g = param.grad;
            const Tensor host = g.rank == 2 ? answers_.add("grad." + name, g.dtype, {g.dim(0), g.dim(1)})
                                            : answers_.add("grad." + name, g.dtype, {g.dim(0)});
            cx_.ops.read_back(host.data, g);
        });
    }
};

void dump(const Options& options, const Globals& globals) {
    const std::set<std::string> known{"logits", "hidden", "router", "grads"};
    for (const std::string& what : options.what) {
        if (known.contains(what)) continue;
        throw Error(ErrorKind::kUsage, fmt::format("--what {}: expected logits, hidden, router or grads", what));
    }
    const bool cached = options.path == "prefill" || options.path == "decode";
    if (cached && options.what != std::vector<std::string>{"logits"}) {
        throw Error(ErrorKind::kUsage, fmt::format("--path {} gives logits only", options.path));
    }
    if (cached && options.no_cache) {
        throw Error(ErrorKind::kUsage, fmt::format("--path {} goes through the cache: leave out --no-cache", options.path));
    }
    Dump work(options, globals);
    work.run();
    if (!globals.quiet) fmt::print(stderr, "{}: {} tensors\n", options.output, work.tensors().size());
}

}  // namespace

void add_dump(CLI::App& app, Globals& globals) {
    CLI::App* verb = app.add_subcommand("dump", "write logits, hidden states, routing and gradients for given token ids");
    verb->footer(
        "Examples:\n"
        "  fathom dump MODEL --input-ids ids.safetensors --out answers.safetensors\n"
        "  fathom dump MODEL --input-ids ids.safetensors --out all.safetensors \\\n"
        "      --what logits,hidden,router,grads --dtype f32");
    auto options = std::make_shared<Options>();
    options->model.forward_only = false;
    options->model.declare(*verb);
    verb->add_option("--input-ids", options->input, "a safetensors file with input_ids [sequences, length]")
        ->required()
        ->type_name("FILE");
    verb->add_option("--out", options->output, "the safetensors file to write")->required()->type_name("FILE");
    verb->add_option("--what", options->what, "logits, hidden, router, grads: some of them, separated by commas")
        ->type_name("LIST")
        ->delimiter(',');
    verb->add_option("--path", options->path,
                     "how logits are computed: forward (whole sequences), absorbed (the same, attending to latents), prefill "
                     "(through the cache in chunks) or decode (through the cache, token by token)")
        ->type_name("PATH")
        ->check(CLI::IsMember({"forward", "absorbed", "prefill", "decode"}));
    verb->add_option("--prefill-chunk", options->chunk, "tokens at a time for --path prefill")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
    verb->add_flag("--no-cache", options->no_cache, "insist on a path without a cache, which forward and absorbed are");
    verb->callback([options, &globals] { dump(*options, globals); });
}

}  // namespace fathom
