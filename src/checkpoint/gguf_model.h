// A GGUF file -> a model. checkpoint.h calls this; verbs call load_model.
#pragma once

#include "checkpoint/checkpoint.h"

namespace fathom {

// As load_model, from one file. Without options.dtype quantized matrices keep their blocks, packed as the device likes them.
[[nodiscard]] LoadedModel load_gguf_model(const std::filesystem::path& file, Ops& ops, const LoadOptions& options);

}  // namespace fathom
