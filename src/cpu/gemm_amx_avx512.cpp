#include "cpu/gemm_amx.h"

namespace fathom {

void gemm_tile_amx(const GemmTile& tile, float* scratch) { AmxGemm<AmxTiles>::multiply_tile(tile, scratch); }

}  // namespace fathom
