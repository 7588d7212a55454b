#include "base/pages.h"

#include <sys/mman.h>

namespace fathom {
namespace {

constexpr uintptr_t kPage = 4096;

void advise(uintptr_t first, uintptr_t last, int advice) {
    if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, advice);
}

}  // namespace

void want_pages(const void* data, int64_t bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + static_cast<uintptr_t>(bytes);
    advise(begin / kPage * kPage, (end + kPage - 1) / kPage * kPage, MADV_WILLNEED);
}

void done_with_pages(const void* data, int64_t bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + static_cast<uintptr_t>(bytes);
    advise((begin + kPage - 1) / kPage * kPage, end / kPage * kPage, MADV_DONTNEED);
}

}  // namespace fathom
