// Any bytes as a safetensors file: an Error, or tensors that lie within the bytes and can be read.
#include <cstdint>

#include "base/error.h"
#include "io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        const fathom::SafetensorsView view(std::as_bytes(std::span(data, size)));
        for (const fathom::NamedTensor& tensor : view.tensors()) {
            fathom::check(view.find(tensor.name).has_value(), "a listed tensor is found");
            (void)fathom::any_nan(tensor.tensor);  // reads every byte
        }
    } catch (const fathom::Error&) {  // a refusal
    }
    return 0;
}
