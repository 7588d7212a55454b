#include "app/config_file.h"

#include "base/error.h"
#include "base/file.h"

namespace fathom {

ConfigFile read_config_file(const std::filesystem::path& path) {
    if (std::filesystem::is_directory(path)) return {ModelConfig::load(path), std::nullopt};
    if (path.extension() == ".toml") {
        const TrainConfig training = TrainConfig::load(path, {});
        return {training.model.config, training};
    }
    try {
        return {ModelConfig::parse(read_text(path)), std::nullopt};
    } catch (const Error& error) {
        if (error.kind() == ErrorKind::kIo) throw;  // names the file already
        throw error.within(path.string());
    }
}

}  // namespace fathom
