#include "cpu/quant_amx.h"

namespace fathom {
namespace {

constexpr int64_t kFewRows = 12;  // vpdpbusd needs no unpacked panels for them, and gives the same bits

void multiply(const PanelTile& tile, uint8_t* scratch) {
    if (tile.rows <= kFewRows || !AmxQuant<AmxTiles>::multiplies(tile.type))
        return quant_kernels_vnni_avx512().multiply(tile, scratch);
    AmxQuant<AmxTiles>::multiply(tile, scratch);
}

}  // namespace

const QuantKernels& quant_kernels_amx() {
    static const QuantKernels kKernels{quant_kernels_vnni_avx512().quantize_row, multiply, decode_all_rows_avx512};
    return kKernels;
}

}  // namespace fathom
