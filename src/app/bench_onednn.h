// oneDNN's matrix product, the yardstick of ours: opened at run time, when the machine has the library.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace fathom {

class OneDnn {
public:
    explicit OneDnn(int threads);

    [[nodiscard]] bool available() const { return sgemm_ != nullptr; }
    // C = A B^T in f32: c [m, n], a [m, k], b [n, k].
    void product(float* c, const float* a, const float* b, int64_t m, int64_t n, int64_t k) const;

private:
    // dnnl_sgemm, the same in versions 2 and 3: row-major C = alpha op(A) op(B) + beta C; 0 = success.
    using Sgemm = int (*)(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*, int64_t, float,
                          float*, int64_t);
    std::unique_ptr<void, std::function<void(void*)>> library_;
    Sgemm sgemm_ = nullptr;
};

}  // namespace fathom
