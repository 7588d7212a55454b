#include "ops/sampling.h"

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"

namespace fathom {

void SamplingParams::validate() const {
    const auto require = [](bool valid, const char* name, double value, const char* range) {
        if (!valid) throw Error(ErrorKind::kUsage, fmt::format("{} is {}: it must be {}", name, value, range));
    };
    require(temperature >= 0 && temperature <= 100, "temperature", temperature, "between 0 and 100");
    require(top_p > 0 && top_p <= 1, "top_p", top_p, "above 0 and at most 1");
    require(top_k >= 0, "top_k", static_cast<double>(top_k), "0 (all) or more");
    require(min_p >= 0 && min_p <= 1, "min_p", min_p, "between 0 and 1");
    require(repetition_penalty > 0 && repetition_penalty <= 100, "repetition_penalty", repetition_penalty,
            "above 0, at most 100");
    require(std::abs(frequency_penalty) <= 100, "frequency_penalty", frequency_penalty, "between -100 and 100");
    require(std::abs(presence_penalty) <= 100, "presence_penalty", presence_penalty, "between -100 and 100");
}

}  // namespace fathom
