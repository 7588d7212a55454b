// The library that the matrix products are compared with.
#pragma once

#include <cstdint>

namespace fathom::bench {

// C = A B^T, [m, k] x [n, k], on as many threads as OpenMP grants; false when the program was built without oneDNN.
[[nodiscard]] bool onednn_product(float* c, const float* a, const float* b, int64_t m, int64_t n, int64_t k);

}  // namespace fathom::bench
