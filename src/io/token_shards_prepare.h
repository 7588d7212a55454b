// Text files -> token shards: parallel over documents, resumable, the same bytes whatever the threads and interruptions.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "base/threads.h"
#include "io/text_documents.h"

namespace fathom {

struct TextInput {
    std::filesystem::path file;
    std::optional<std::filesystem::path> index;  // which documents to leave out: text_documents_index.h
};

struct PrepareOptions {
    std::vector<TextInput> inputs;
    std::string field = "text";   // of JSON Lines
    std::string exclude_licence;  // pattern; with it every input needs an index, or says with nullopt that it has none
    uint64_t tokenizer_hash = 0;  // whatever changes when ids do
    int64_t vocab_size = 0;
    std::optional<int32_t> bos_id;   // in front of each document
    int32_t eos_id = 0;              // behind each document
    int64_t shard_tokens = 1 << 25;  // a shard ends with the document that reaches this
    double valid_fraction = 0;       // of the documents; > 0 writes two data sets, out/train and out/valid
    uint64_t seed = 0;               // of the choice of those documents
    int64_t group_bytes = 8 << 20;   // text held in memory and shared out to the threads at a time
    std::filesystem::path out;
};

struct PrepareSummary {
    std::filesystem::path folder;
    int64_t documents = 0, tokens = 0, text_bytes = 0, shards = 0;
    int64_t excluded = 0;        // documents the licence pattern left out
    int64_t resumed_shards = 0;  // found finished
};

// Ids of a text, without BOS and EOS. Called by several threads at a time.
using Encode = std::function<std::vector<int32_t>(std::string_view)>;

// Writes settings.json first, shards as they fill, manifest.json last. Started again with the same settings and inputs
// (compared by content, not by name or time) it goes on behind the last whole shard; with others it throws Error{kUsage} naming
// what differs. Throws Error{kInput} when there is no text at all, Error{kInterrupted} on Ctrl-C, with finished shards kept.
[[nodiscard]] std::vector<PrepareSummary> prepare_tokens(const PrepareOptions& options, const Encode& encode,
                                                         ThreadPool& threads, ProgressMode progress);

// The documents of `input` that its index does not rule out; both prepare_tokens and `fathom data select` read through it.
class SelectedDocuments {
public:
    SelectedDocuments(const TextInput& input, const std::string& field, const std::string& exclude_licence);

    [[nodiscard]] const TextDocuments& documents() const { return documents_; }
    [[nodiscard]] std::optional<DocumentRange> next() { return documents_.next(); }  // excluded ones too
    void rewind() { documents_.rewind(); }
    [[nodiscard]] bool excluded(int64_t index) const { return !excluded_.empty() && excluded_[static_cast<size_t>(index)]; }
    [[nodiscard]] int64_t excluded_count() const;

private:
    TextDocuments documents_;
    std::vector<bool> excluded_;  // empty: none
};

}  // namespace fathom
