#include "train/metrics.h"

#include <fmt/format.h>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string_view>
#include <type_traits>

#include "base/error.h"
#include "base/file.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

// The scalar fields by name, once for writing, reading and plotting.
template <class Metrics, class Visit>
void for_each_scalar(Metrics& m, Visit&& visit) {
    visit("loss", m.loss);
    visit("val_loss", m.val_loss);
    visit("mtp_loss", m.mtp_loss);
    visit("balance_loss", m.balance_loss);
    visit("lr", m.lr);
    visit("grad_norm", m.grad_norm);
    visit("tokens_per_second", m.tokens_per_second);
    visit("elapsed", m.elapsed);
}

template <class Metrics, class Visit>
void for_each_list(Metrics& m, Visit&& visit) {
    visit("max_vio", m.max_vio);
    visit("load_std", m.load_std);
    visit("dead_experts", m.dead_experts);
}

double number_or_nan(const Json& value) {
    return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

StepMetrics from_json(const Json& object) {
    StepMetrics m;
    m.step = object.at("step").get<int64_t>();
    m.tokens = object.value("tokens", int64_t{0});
    for_each_scalar(m, [&](const char* name, std::optional<double>& value) {
        if (object.contains(name)) value = number_or_nan(object[name]);
    });
    for_each_list(m, [&]<class T>(const char* name, std::vector<T>& list) {
        if (!object.contains(name)) return;
        for (const Json& value : object[name]) {
            if constexpr (std::is_floating_point_v<T>)
                list.push_back(number_or_nan(value));
            else
                list.push_back(value.get<T>());
        }
    });
    if (object.contains("moe_layers")) object["moe_layers"].get_to(m.moe_layers);
    if (object.contains("expert_load")) object["expert_load"].get_to(m.expert_load);
    for (const auto& [name, value] : object.items()) {
        bool known = name == "step" || name == "tokens";
        for_each_scalar(m, [&](const char* scalar, const std::optional<double>&) { known |= name == scalar; });
        if (!known && (value.is_number() || value.is_null())) m.more.emplace_back(name, number_or_nan(value));
    }
    return m;
}

// Calls visit(line, number, end) for every complete line; `end` is the offset after its line break.
template <class Visit>
void for_each_line(std::string_view text, Visit&& visit) {
    int64_t number = 1;
    for (size_t begin = 0, end; (end = text.find('\n', begin)) != text.npos; begin = end + 1, ++number) {
        visit(text.substr(begin, end - begin), number, end + 1);
    }
}

StepMetrics parse_line(const std::filesystem::path& path, std::string_view line, int64_t number) {
    try {
        return from_json(Json::parse(line));
    } catch (const nlohmann::json::exception& error) {
        throw Error(ErrorKind::kInput, fmt::format("{}:{}: not a line of metrics ({})", path.string(), number, error.what()));
    }
}

}  // namespace

std::string to_json(const StepMetrics& metrics) {
    Json object{{"step", metrics.step}, {"tokens", metrics.tokens}};
    for_each_scalar(metrics, [&](const char* name, const std::optional<double>& value) {
        if (value) object[name] = *value;
    });
    for (const auto& [name, value] : metrics.more) object[name] = value;
    if (!metrics.moe_layers.empty()) object["moe_layers"] = metrics.moe_layers;
    for_each_list(metrics, [&](const char* name, const auto& list) {
        if (!list.empty()) object[name] = list;
    });
    if (!metrics.expert_load.empty()) object["expert_load"] = metrics.expert_load;
    return object.dump();
}

std::vector<std::pair<std::string, double>> scalars(const StepMetrics& metrics) {
    std::vector<std::pair<std::string, double>> result{{"tokens", static_cast<double>(metrics.tokens)}};
    for_each_scalar(metrics, [&](const char* name, const std::optional<double>& value) {
        if (value) result.emplace_back(name, *value);
    });
    result.insert(result.end(), metrics.more.begin(), metrics.more.end());
    for_each_list(metrics, [&](const std::string& name, const auto& list) {
        if (list.empty()) return;
        for (size_t i = 0; i < list.size(); ++i) {
            result.emplace_back(fmt::format("{}/layer_{}", name, layer_number(metrics, i)), static_cast<double>(list[i]));
        }
        const double sum = std::accumulate(list.begin(), list.end(), 0.0);
        result.emplace_back(name + "/mean", sum / static_cast<double>(list.size()));
        result.emplace_back(name + "/max", static_cast<double>(*std::ranges::max_element(list)));
    });
    return result;
}

int64_t layer_number(const StepMetrics& metrics, size_t i) {
    return i < metrics.moe_layers.size() ? metrics.moe_layers[i] : static_cast<int64_t>(i);
}

std::vector<StepMetrics> read_metrics(const std::filesystem::path& path) {
    std::vector<StepMetrics> result;
    for_each_line(read_text(path),
                  [&](std::string_view line, int64_t number, size_t) { result.push_back(parse_line(path, line, number)); });
    return result;
}

MetricsWriter::MetricsWriter(const std::filesystem::path& path, int64_t last_step) : path_(path) {
    if (last_step > 0 && std::filesystem::exists(path)) {
        size_t keep = 0;
        for_each_line(read_text(path), [&](std::string_view line, int64_t number, size_t end) {
            if (parse_line(path, line, number).step <= last_step) keep = end;
        });
        std::filesystem::resize_file(path, keep);
    }
    file_.reset(std::fopen(path.c_str(), last_step > 0 ? "ae" : "we"));
    if (!file_) throw Error(ErrorKind::kIo, fmt::format("{}: cannot write: {}", path.string(), std::strerror(errno)));
}

void MetricsWriter::append(const StepMetrics& metrics) {
    const std::string line = to_json(metrics) + "\n";
    if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() || std::fflush(file_.get()) != 0) {
        throw Error(ErrorKind::kIo, fmt::format("{}: cannot write: {}", path_.string(), std::strerror(errno)));
    }
}

}  // namespace fathom
