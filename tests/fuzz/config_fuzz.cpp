// Any text as a config.json: an Error, or a config whose numbers can be computed and which survives being written.
#include <cmath>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "model/config.h"
#include "model/parameter_count.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        fathom::ModelConfig config = fathom::ModelConfig::parse({reinterpret_cast<const char*>(data), size});
        fathom::check(config.qk_head_dim() > 0 && std::isfinite(config.softmax_scale()), "head sizes and scale are usable");
        fathom::check(fathom::count_parameters(config).total() > 0, "the parameter count does not overflow");
        config.num_hidden_layers = 1;
        config.rope_scaling.reset();
        fathom::check(fathom::ModelConfig::parse(config.to_json()).num_hidden_layers == 1, "a change is written");
    } catch (const fathom::Error&) {  // a refusal
    }
    return 0;
}
