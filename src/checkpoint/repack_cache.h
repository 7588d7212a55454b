// Packed weights of a GGUF file, kept on disk so that the next start need not pack them again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "io/safetensors.h"
#include "ops/ops.h"

namespace fathom {

// One safetensors file per GGUF file in `folder`, named after it and a hash of what it is: size, time of change and samples of
// its content. Metadata hold the hash, a fingerprint of the device's layouts (small matrices of every type, packed) and
// checksums; a file that disagrees in any of these, or is broken in any way, counts as absent and is replaced by save().
class RepackCache {
public:
    RepackCache(const std::filesystem::path& folder, const GgufFile& source, Ops& ops);

    // Whether find() has everything that an earlier start added.
    [[nodiscard]] bool complete() const { return file_.has_value(); }
    // What a tensor is packed to; its codes point into the map of the kept file. Nothing if it was not kept in that shape.
    [[nodiscard]] std::optional<Weight> find(const GgufTensor& tensor) const;
    // Remembers a packed tensor for save(); its memory must live until then.
    void add(const GgufTensor& tensor, const Weight& packed);
    // Writes what was added, complete or not at all. Throws Error{kIo}.
    void save();
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }

private:
    std::filesystem::path path_;
    SafetensorsMetadata identity_;
    std::optional<SafetensorsFile> file_;
    std::vector<NamedTensor> added_;
};

}  // namespace fathom
