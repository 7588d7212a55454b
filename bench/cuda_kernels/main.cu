// hopper_bench SECTION...: checks and times the Hopper kernels. Sections: gemm-check gemm-time fp8-check fp8-time
// fp8-promotion mla-check mla-time attention-check attention-time. Exit code 1 when a check fails.
#include <exception>
#include <functional>
#include <map>

#include "bench.cuh"

int main(int argc, char** argv) {
    using namespace fathom::hopper;
    const std::map<std::string, std::function<void()>> sections = {{"gemm-check", check_gemm},
                                                                   {"gemm-time", time_gemm},
                                                                   {"fp8-check", check_fp8},
                                                                   {"fp8-time", time_fp8},
                                                                   {"fp8-promotion", check_promotion},
                                                                   {"mla-check", check_mla},
                                                                   {"mla-time", time_mla},
                                                                   {"attention-check", check_attention},
                                                                   {"attention-time", time_attention}};
    try {
        for (int i = 1; i < argc; ++i) {
            const auto found = sections.find(argv[i]);
            if (found == sections.end()) {
                std::fprintf(stderr, "hopper_bench: no section %s\n", argv[i]);
                return 2;
            }
            found->second();
        }
    } catch (const std::exception& e) {
        std::fprintf(stderr, "hopper_bench: %s\n", e.what());
        return 1;
    }
    return failures == 0 ? 0 : 1;
}
