// A model's description, wherever it is written down.
#pragma once

#include <filesystem>
#include <optional>

#include "model/config.h"
#include "train/config.h"

namespace fathom {

struct ConfigFile {
    ModelConfig model;
    std::optional<TrainConfig> training;  // when it came from a training configuration
};

// A model folder, a config.json, or a training configuration (.toml). Throws what their readers throw.
[[nodiscard]] ConfigFile read_config_file(const std::filesystem::path& path);

}  // namespace fathom
