#include "onednn.h"

namespace fathom::bench {

bool onednn_product(float*, const float*, const float*, int64_t, int64_t, int64_t) { return false; }

}  // namespace fathom::bench
