// config.json's quantization_config.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "model/config.h"

namespace fathom {

// Reads the value of the key. Throws Error{kInput} naming what is missing, of the wrong type or means something that the
// weights do not show (integers that are no integers, sparse ones).
[[nodiscard]] QuantizationConfig read_quantization(const nlohmann::ordered_json& value);
// The complete object in the spelling of the method's own writer.
[[nodiscard]] nlohmann::ordered_json write_quantization(const QuantizationConfig& config);

}  // namespace fathom
