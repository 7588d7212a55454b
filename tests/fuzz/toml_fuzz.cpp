// Any text as a training configuration: an Error, or a configuration whose effective text means the same.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "train/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    try {
        const fathom::TrainConfig config = fathom::TrainConfig::parse(text, {}, "/nonexistent");
        fathom::check(fathom::TrainConfig::parse(config.text, {}, "/elsewhere").text == config.text, "the text is complete");
        for (const int64_t step : {int64_t{0}, config.training.steps / 2, config.training.steps - 1}) {
            const double factor = fathom::schedule_factor(config.lr_scheduler, step, config.training.steps);
            fathom::check(factor >= 0 && factor <= 1, "a factor on the peak");
        }
    } catch (const fathom::Error&) {  // a refusal
    }
    try {  // the first line as an override
        const std::vector<std::string> overrides{std::string(text.substr(0, text.find('\n')))};
        (void)fathom::TrainConfig::parse("", overrides, "/nonexistent");
    } catch (const fathom::Error&) {
    }
    return 0;
}
