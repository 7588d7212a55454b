// Any bytes as a GGUF file: an Error, or tensors that lie within the bytes and can be read, and perhaps a configuration and a
// tokenizer.
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "checkpoint/gguf_names.h"
#include "io/gguf_tokenizer.h"
#include "io/tokenizer.h"
#include "tensor/weight_row.h"

namespace {

template <class Read>
void attempt(const Read& read) {
    try {
        read();
    } catch (const fathom::Error&) {  // a refusal
    }
}

void read_all(const fathom::GgufView& view) {
    for (const fathom::GgufTensor& tensor : view.tensors()) {
        fathom::check(view.find(tensor.name) != nullptr, "a listed tensor is found");
        std::vector<float> row(static_cast<size_t>(tensor.columns()));
        for (int64_t i = 0; i < tensor.rows(); ++i) fathom::decode_row(row.data(), tensor.matrix(), i);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    attempt([&] {
        const fathom::GgufView view(std::as_bytes(std::span(data, size)));
        read_all(view);
        attempt([&] { (void)fathom::config_of_gguf(view); });
        attempt([&] {
            const fathom::TokenizerFiles files = fathom::tokenizer_files_of_gguf(view);
            (void)fathom::Tokenizer::from_json(files.tokenizer_json, files.tokenizer_config);
        });
    });
    return 0;
}
