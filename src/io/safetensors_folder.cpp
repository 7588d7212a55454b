// A checkpoint folder: which files belong to it, and that they say the same as its index.
#include <fmt/format.h>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "io/safetensors.h"

namespace fathom {
namespace {

using Json = nlohmann::json;
using WeightMap = std::map<std::string, std::string>;  // tensor -> shard file name

constexpr size_t kMaxListed = 10;

[[noreturn]] void fail(const std::filesystem::path& path, std::string_view sentence) {
    throw Error(ErrorKind::kInput, fmt::format("{}: {}", path.string(), sentence));
}

std::string list_of(std::span<const std::string> items) {
    std::string text = fmt::format("{}", fmt::join(items.first(std::min(items.size(), kMaxListed)), ", "));
    if (items.size() > kMaxListed) text += fmt::format(" and {} more", items.size() - kMaxListed);
    return text;
}

WeightMap read_weight_map(const std::filesystem::path& path) {
    const std::string text = read_text(path);
    const Json index = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
        fail(path, "not an index with a weight_map: download or copy it again");
    WeightMap map;
    for (const auto& [name, shard] : index["weight_map"].items()) {
        const std::string file = shard.is_string() ? shard.get<std::string>() : "";
        // Anything but a plain name could lead out of the folder.
        if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos)
            fail(path, fmt::format("weight_map puts tensor {} into \"{}\", which is no file name of this folder", name, file));
        map[name] = file;
    }
    return map;
}

std::set<std::string> shards_of(const WeightMap& map) {
    std::set<std::string> shards;
    for (const auto& [name, shard] : map) shards.insert(shard);
    return shards;
}

void require_all_present(const std::filesystem::path& directory, const std::set<std::string>& shards) {
    std::vector<std::string> missing;
    for (const std::string& shard : shards)
        if (!std::filesystem::exists(directory / shard)) missing.push_back(shard);
    if (!missing.empty())
        fail(directory, fmt::format("{} of {} shards are missing: {}; download or copy them into this folder", missing.size(),
                                    shards.size(), list_of(missing)));
}

// Every tensor of the index must be in the shard it names, and nothing else.
void require_agreement(const std::filesystem::path& path, const WeightMap& map, std::span<const SafetensorsFile> files) {
    std::vector<std::string> defects;
    std::map<std::string, const SafetensorsFile*> by_name;
    for (const SafetensorsFile& file : files) by_name[file.path().filename().string()] = &file;
    for (const auto& [name, shard] : map)
        if (!by_name.at(shard)->find(name)) defects.push_back(fmt::format("{} is not in {}", name, shard));
    for (const auto& [shard, file] : by_name) {
        for (const NamedTensor& tensor : file->tensors()) {
            const auto found = map.find(tensor.name);
            if (found == map.end() || found->second != shard)
                defects.push_back(fmt::format("{} of {} is not in the index", tensor.name, shard));
        }
    }
    if (!defects.empty())
        fail(path, fmt::format("index and shards disagree: {}; they come from different checkpoints, copy all of one",
                               list_of(defects)));
}

}  // namespace

SafetensorsFolder::SafetensorsFolder(const std::filesystem::path& directory) {
    const std::filesystem::path single = directory / "model.safetensors", index = directory / "model.safetensors.index.json";
    if (std::filesystem::exists(single)) {
        files_.emplace_back(single);
    } else if (std::filesystem::exists(index)) {
        const WeightMap map = read_weight_map(index);
        const std::set<std::string> shards = shards_of(map);
        require_all_present(directory, shards);
        for (const std::string& shard : shards) files_.emplace_back(directory / shard);
        require_agreement(index, map, files_);
    } else {
        fail(directory, "neither model.safetensors nor model.safetensors.index.json is here: is this a model folder?");
    }
    for (const SafetensorsFile& file : files_)
        for (const NamedTensor& tensor : file.tensors()) index_.emplace(tensor.name, tensor.tensor);
}

std::optional<Tensor> SafetensorsFolder::find(std::string_view name) const {
    const auto found = index_.find(name);
    if (found == index_.end()) return std::nullopt;
    return found->second;
}

std::vector<std::string> SafetensorsFolder::names() const {
    std::vector<std::string> names;
    for (const SafetensorsFile& file : files_)
        for (const NamedTensor& tensor : file.tensors()) names.push_back(tensor.name);
    return names;
}

int64_t SafetensorsFolder::total_bytes() const {
    int64_t total = 0;
    for (const SafetensorsFile& file : files_)
        for (const NamedTensor& tensor : file.tensors()) total += tensor.tensor.bytes();
    return total;
}

}  // namespace fathom
