#include "reference/reference_ops.h"

#include "reference/attention.h"
#include "reference/dispatch.h"
#include "reference/loss_optimizer.h"
#include "reference/memory.h"
#include "reference/norm_rope.h"
#include "reference/products.h"
#include "reference/routing.h"

namespace fathom {

template class ReferenceOps<double>;
template class ReferenceOps<Dual>;
template class ReferenceOps<float>;

}  // namespace fathom
