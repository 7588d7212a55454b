#include "app/bench_onednn.h"

#include <dlfcn.h>
#include <cstdlib>

#include "base/error.h"

namespace fathom {

OneDnn::OneDnn(int threads) {
    // Its threads must sleep between products, not spin through our measurements; read when the library is opened.
    ::setenv("OMP_WAIT_POLICY", "passive", 0);
    for (const char* name : {"libdnnl.so.3", "libdnnl.so.2"}) {
        if (void* const library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL); library != nullptr) {
            library_ = {library, [](void* handle) { ::dlclose(handle); }};
            break;
        }
    }
    if (library_ == nullptr) return;
    sgemm_ = reinterpret_cast<Sgemm>(::dlsym(library_.get(), "dnnl_sgemm"));
    if (void* const set = ::dlsym(library_.get(), "omp_set_num_threads"); set != nullptr) {
        reinterpret_cast<void (*)(int)>(set)(threads);
    }
}

void OneDnn::product(float* c, const float* a, const float* b, int64_t m, int64_t n, int64_t k) const {
    check(available() && sgemm_('N', 'T', m, n, k, 1, a, k, b, k, 0, c, n) == 0, "OneDnn::product");
}

}  // namespace fathom
