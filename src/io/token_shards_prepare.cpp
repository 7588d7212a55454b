#include "io/token_shards_prepare.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/rng.h"
#include "io/text_documents_index.h"
#include "io/token_shards.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kValidStream = 0x76616c6964;  // "valid": the random stream that picks validation documents

enum class Part { kAll, kTrain, kValid };

// A document of the inputs taken together.
struct SourceDocument {
    const TextDocuments* file = nullptr;
    DocumentRange range;
    int64_t source = 0;        // number of the document through all inputs
    int64_t bytes_before = 0;  // of all inputs, up to and with this document
};

// Walks the inputs in order and passes over what does not belong to the part.
class Source {
public:
    Source(std::vector<SelectedDocuments>& inputs, Part part, const PrepareOptions& options)
        : inputs_(inputs),
          part_(part),
          valid_fraction_(options.valid_fraction),
          random_{options.seed, kValidStream} {
        for (auto& input : inputs_) input.rewind();
    }

    // The next document of the part whose number is `from` or more.
    [[nodiscard]] std::optional<SourceDocument> next(int64_t from) {
        for (; input_ < inputs_.size(); bytes_ += inputs_[input_].documents().bytes(), ++input_)
            while (const auto range = inputs_[input_].next()) {
                const int64_t source = count_++;
                if (source < from || inputs_[input_].excluded(range->index) || !in_part(source)) continue;
                return SourceDocument{&inputs_[input_].documents(), *range, source, bytes_ + range->end};
            }
        return std::nullopt;
    }

private:
    std::vector<SelectedDocuments>& inputs_;
    Part part_;
    double valid_fraction_;
    Philox random_;
    size_t input_ = 0;
    int64_t count_ = 0, bytes_ = 0;

    [[nodiscard]] bool in_part(int64_t source) const {
        if (part_ == Part::kAll) return true;
        return (random_.uniform(static_cast<uint64_t>(source)) < valid_fraction_) == (part_ == Part::kValid);
    }
};

uint64_t hash_file(const std::filesystem::path& path) { return hash_bytes(MappedFile(path).bytes()); }

// Everything the shards depend on. File names are left out: a corpus may be moved between two runs.
Json settings_of(const PrepareOptions& options, Part part) {
    Json inputs = Json::array();
    for (const auto& input : options.inputs)
        inputs.push_back({{"content", hash_text(hash_file(input.file))},
                          {"lines_of_json", input.file.extension() == ".jsonl" || input.file.extension() == ".ndjson"},
                          {"index", input.index ? hash_text(hash_file(*input.index)) : ""}});
    constexpr const char* kParts[] = {"all", "train", "valid"};
    return {{"inputs", inputs},
            {"field", options.field},
            {"exclude_licence", options.exclude_licence},
            {"tokenizer", hash_text(options.tokenizer_hash)},
            {"vocab_size", options.vocab_size},
            {"bos_id", options.bos_id ? Json(*options.bos_id) : Json()},
            {"eos_id", options.eos_id},
            {"shard_tokens", options.shard_tokens},
            {"valid_fraction", options.valid_fraction},
            {"seed", options.seed},
            {"part", kParts[static_cast<int>(part)]}};
}

// Refuses a folder that was begun with other settings, else notes them down.
void claim_folder(const std::filesystem::path& folder, const Json& settings) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) throw Error{ErrorKind::kIo, fmt::format("{}: cannot make this folder: {}", folder.string(), error.message())};
    const auto path = folder / "settings.json";
    const bool begun = std::filesystem::exists(shard_path(folder, 0));  // settings alone are left by inputs that failed
    if (!begun || !std::filesystem::exists(path)) {
        if (begun)
            throw Error{ErrorKind::kUsage,
                        fmt::format("{}: holds token shards but no settings.json; choose another --out or empty the folder",
                                    folder.string())};
        return write_text_atomically(path, settings.dump(2) + "\n");
    }
    const Json before = Json::parse(read_text(path), nullptr, false);
    std::string differing;
    for (const auto& [key, value] : settings.items())
        if (!before.is_object() || before.value(key, Json()) != value) differing += (differing.empty() ? "" : ", ") + key;
    if (!differing.empty())
        throw Error{ErrorKind::kUsage,
                    fmt::format("{}: was begun with other settings or inputs (different: {}); repeat the first command to "
                                "finish it, choose another --out, or empty the folder",
                                folder.string(), differing)};
}

// One data set on its way from documents to shards.
class Preparation {
public:
    Preparation(std::vector<SelectedDocuments>& inputs, Part part, const PrepareOptions& options, std::filesystem::path folder)
        : options_(options),
          settings_(settings_of(options, part)),
          source_(inputs, part, options) {
        summary_.folder = std::move(folder);
        const std::string text = settings_.dump();
        settings_hash_ = hash_bytes(std::as_bytes(std::span(text)));
        for (const auto& input : inputs) {
            total_bytes_ += input.documents().bytes();
            summary_.excluded += input.excluded_count();
        }
        claim_folder(summary_.folder, settings_);
    }

    [[nodiscard]] PrepareSummary run(const Encode& encode, ThreadPool& threads, ProgressMode mode) {
        resume();
        Progress progress("tokenize " + summary_.folder.filename().string(), total_bytes_, "B", mode);
        TokenShardWriter shard = begin_shard();
        while (take_group()) {
            throw_if_interrupted();
            threads.parallel_for(std::ssize(group_), 1, [&](int64_t begin, int64_t end, int) {
                for (int64_t i = begin; i < end; ++i) tokenize(static_cast<size_t>(i), encode);
            });
            for (size_t i = 0; i < group_.size(); ++i) {
                if (ids_[i].empty()) continue;
                shard.add(ids_[i], text_bytes_[i]);
                if (shard.tokens() < options_.shard_tokens) continue;
                end_shard(shard, group_[i].source + 1);
                shard = begin_shard();
            }
            progress.update(group_.back().bytes_before,
                            human_count(static_cast<double>(summary_.tokens + shard.tokens())) + " tokens");
        }
        if (shard.documents() > 0) end_shard(shard, from_);
        if (summary_.shards == 0)
            throw Error{ErrorKind::kInput,
                        fmt::format("{}: no text to tokenize: the {} input file{} hold{} no document for it{}",
                                    summary_.folder.string(), options_.inputs.size(), options_.inputs.size() == 1 ? "" : "s",
                                    options_.inputs.size() == 1 ? "s" : "",
                                    summary_.excluded > 0 ? " beside those the licence pattern leaves out" : "")};
        write_manifest();
        progress.update(total_bytes_);
        progress.finish(human_count(static_cast<double>(summary_.tokens)) + " tokens");
        return summary_;
    }

private:
    const PrepareOptions& options_;
    Json settings_, shard_list_ = Json::array();
    uint64_t settings_hash_ = 0;
    Source source_;
    PrepareSummary summary_;
    int64_t total_bytes_ = 0;
    int64_t from_ = 0;         // documents before this one are done with
    int64_t shard_begin_ = 0;  // where the open shard begins
    std::vector<SourceDocument> group_;
    std::vector<std::vector<int32_t>> ids_;
    std::vector<int64_t> text_bytes_;

    // Counts the whole shards at the beginning of the folder; what is cut, harmed or missing is made again.
    void resume() {
        while (std::filesystem::exists(shard_path(summary_.folder, summary_.shards))) {
            try {
                const TokenShard shard(shard_path(summary_.folder, summary_.shards));
                if (shard.header().settings_hash != settings_hash_ || shard.header().source_begin != shard_begin_) break;
                count(shard);
            } catch (const Error&) {
                break;
            }
        }
        summary_.resumed_shards = summary_.shards;
        from_ = shard_begin_;
    }

    void count(const TokenShard& shard) {
        const ShardHeader& header = shard.header();
        shard_list_.push_back({{"file", shard_path("", summary_.shards).string()},
                               {"documents", header.documents},
                               {"tokens", header.tokens},
                               {"checksum", hash_text(shard.checksum())}});
        ++summary_.shards;
        summary_.documents += header.documents;
        summary_.tokens += header.tokens;
        summary_.text_bytes += header.text_bytes;
        shard_begin_ = header.source_end;
    }

    [[nodiscard]] TokenShardWriter begin_shard() const {
        ShardHeader header;
        header.vocab_size = options_.vocab_size;
        header.settings_hash = settings_hash_;
        header.source_begin = shard_begin_;
        return TokenShardWriter(header);
    }

    void end_shard(const TokenShardWriter& shard, int64_t source_end) {
        const auto path = shard_path(summary_.folder, summary_.shards);
        shard.write(path, source_end);
        count(TokenShard(path));
    }

    // Fills group_ with the next documents; false at the end.
    [[nodiscard]] bool take_group() {
        group_.clear();
        int64_t bytes = 0;
        while (bytes < options_.group_bytes) {
            const auto document = source_.next(from_);
            if (!document) break;
            from_ = document->source + 1;
            bytes += document->range.end - document->range.begin;
            group_.push_back(*document);
        }
        ids_.resize(group_.size());
        text_bytes_.resize(group_.size());
        return !group_.empty();
    }

    // (BOS) text EOS; nothing for an empty text.
    void tokenize(size_t i, const Encode& encode) {
        const std::string text = group_[i].file->text(group_[i].range);
        auto& ids = ids_[i];
        ids.clear();
        text_bytes_[i] = std::ssize(text);
        if (text.empty()) return;
        if (options_.bos_id) ids.push_back(*options_.bos_id);
        const auto body = encode(text);
        ids.insert(ids.end(), body.begin(), body.end());
        ids.push_back(options_.eos_id);
    }

    void write_manifest() const {
        const Json manifest{{"version", kTokenShardVersion},
                            {"vocab_size", options_.vocab_size},
                            {"bos_id", settings_.at("bos_id")},
                            {"eos_id", options_.eos_id},
                            {"documents", summary_.documents},
                            {"tokens", summary_.tokens},
                            {"text_bytes", summary_.text_bytes},
                            {"shards", shard_list_},
                            {"settings", settings_},
                            {"settings_hash", hash_text(settings_hash_)}};
        write_text_atomically(manifest_path(summary_.folder), manifest.dump(2) + "\n");
    }
};

void check_options(const PrepareOptions& options) {
    check(!options.inputs.empty(), "an input");
    check(options.shard_tokens > 0 && options.valid_fraction >= 0 && options.valid_fraction < 1, "options in range");
    const auto known = [&](int32_t id) { return id >= 0 && id < options.vocab_size; };
    check(known(options.eos_id) && (!options.bos_id || known(*options.bos_id)), "BOS and EOS inside the vocabulary");
}

}  // namespace

SelectedDocuments::SelectedDocuments(const TextInput& input, const std::string& field, const std::string& exclude_licence)
    : documents_(input.file, field) {
    if (input.index && !exclude_licence.empty())
        excluded_ = documents_excluded_by_licence(documents_, *input.index, exclude_licence);
}

int64_t SelectedDocuments::excluded_count() const { return std::count(excluded_.begin(), excluded_.end(), true); }

std::vector<PrepareSummary> prepare_tokens(const PrepareOptions& options, const Encode& encode, ThreadPool& threads,
                                           ProgressMode progress) {
    check_options(options);
    std::vector<SelectedDocuments> inputs;
    for (const auto& input : options.inputs) inputs.emplace_back(input, options.field, options.exclude_licence);
    const auto prepare = [&](Part part, const std::filesystem::path& folder) {
        return Preparation(inputs, part, options, folder).run(encode, threads, progress);
    };
    if (options.valid_fraction == 0) return {prepare(Part::kAll, options.out)};
    return {prepare(Part::kTrain, options.out / "train"), prepare(Part::kValid, options.out / "valid")};
}

}  // namespace fathom
