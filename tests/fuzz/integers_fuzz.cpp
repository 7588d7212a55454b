// Any bytes as matrices in the integer layouts of Hugging Face's quantizers: an Error, or a weight whose numbers can all be
// computed and which is packed again. Input: layout, rows / 8, columns / 8, then a safetensors file with tensors m.*.
#include <cstdint>
#include <set>
#include <vector>

#include "base/error.h"
#include "checkpoint/integer_layouts.h"
#include "tensor/weight_row.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace fathom;
    if (size < 3) return 0;
    const auto layout = static_cast<IntegerLayout>(data[0] % 5);
    const int64_t rows = 8 * (data[1] % 8) + 8, columns = 8 * (data[2] % 16) + 8;
    try {
        const SafetensorsView view(std::as_bytes(std::span(data + 3, size - 3)));
        const FindTensor find = [&view](const std::string& name) { return view.find(name); };
        Arena arena("fuzz", Buffer::host, 1 << 16);
        std::set<std::string> used;
        const auto w = read_integers(layout, find, "m.weight", rows, columns, arena, used);
        if (!w) return 0;
        std::vector<float> row(static_cast<size_t>(columns));
        for (int64_t i = 0; i < rows; ++i) decode_row(row.data(), *w, i);
        if (w->scheme == Scheme::kGroups) check(!pack_integers(layout, "m.weight", *w).empty(), "what was read can be packed");
    } catch (const Error&) {  // a refusal
    }
    return 0;
}
