// A random order (Fisher and Yates): a function of the generator's state alone.
#pragma once

#include <utility>
#include <vector>

#include "base/rng.h"

namespace fathom {

template <class T>
void shuffle(std::vector<T>& values, Rng& rng) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[rng.below(i)]);
}

}  // namespace fathom
