// Templates behind kernels.h, instantiated in kernels_avx2.cpp and kernels_avx512.cpp with V = Avx2 and Avx512.
// No function of the standard library here: its inline functions would be compiled with this file's instructions and shared
// with files that must run without them.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd_math.h"

namespace fathom {

template <class V>
struct RowKernels {
    static constexpr int64_t kLanes = 16;

    // step(i, count): elements [i, i + count), count = 16 but in the last step.
    template <class Step>
    static void each(int64_t n, const Step& step) {
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) step(i, Whole{});
        if (i < n) step(i, Part{n - i});
    }
    struct Whole {
        template <class T>
        V load(const T* p) const {
            return V::load(p);
        }
        template <class T>
        void store(V x, T* p) const {
            x.store(p);
        }
    };
    struct Part {
        int64_t count;
        template <class T>
        V load(const T* p) const {
            return V::load(p, count);
        }
        template <class T>
        void store(V x, T* p) const {
            x.store(p, count);
        }
        // Lanes beyond the end get `value`.
        V fill(V x, float value) const {
            alignas(64) float lanes[kLanes];
            x.store(lanes);
            for (int64_t i = count; i < kLanes; ++i) lanes[i] = value;
            return V::load(lanes);
        }
    };

    template <class T>
    static void convert(float* y, const T* x, int64_t n) {
        each(n, [=](int64_t i, auto part) { part.store(part.load(x + i), y + i); });
    }
    static void widen(float* y, const void* x, DType type, int64_t n) {
        if (type == DType::kBF16) return convert(y, static_cast<const BFloat16*>(x), n);
        if (type == DType::kF16) return convert(y, static_cast<const Float16*>(x), n);
        if (type == DType::kF8E4M3) return convert(y, static_cast<const Float8E4M3*>(x), n);
        convert(y, static_cast<const float*>(x), n);
    }
    static void widen_blocks(float* y, const void* blocks, BlockType type, int64_t n) {
        const auto* x = static_cast<const uint8_t*>(blocks);
        for (int64_t i = 0; i < n; i += kCacheBlock, x += cache_block_bytes(type)) {
            const V scale = V::all_half(x);
            V codes[2];
            if (type == BlockType::kQ80) {
                for (int64_t j = 0; j < 2; ++j) codes[j] = V::load(reinterpret_cast<const int8_t*>(x + 2 + j * kLanes));
            } else {
                V::load_nibbles(x + 2, codes);
                for (V& code : codes) code = code - V::all(8);
            }
            for (int64_t j = 0; j < 2 && i + j * kLanes < n; ++j) {
                const int64_t left = n - i - j * kLanes;
                (scale * codes[j]).store(y + i + j * kLanes, left < kLanes ? left : kLanes);
            }
        }
    }
    template <class T>
    static void convert_back(T* y, const float* x, int64_t n) {
        each(n, [=](int64_t i, auto part) { part.store(part.load(x + i), y + i); });
    }
    static void narrow(void* y, DType type, const float* x, int64_t n) {
        if (type == DType::kBF16) return convert_back(static_cast<BFloat16*>(y), x, n);
        if (type == DType::kF16) return convert_back(static_cast<Float16*>(y), x, n);
        convert_back(static_cast<float*>(y), x, n);
    }

    static void add(float* y, const float* a, const float* b, int64_t n) {
        each(n, [=](int64_t i, auto part) { part.store(part.load(a + i) + part.load(b + i), y + i); });
    }
    static void scale(float* y, const float* x, float factor, int64_t n) {
        each(n, [=](int64_t i, auto part) { part.store(V::all(factor) * part.load(x + i), y + i); });
    }
    static void weighted_sum(float* y, const float* const* rows, const float* weights, int64_t count, int64_t n) {
        each(n, [=](int64_t i, auto part) {
            V sum = V::zero();
            for (int64_t k = 0; k < count; ++k)
                sum = V::fma(V::all(weights == nullptr ? 1.0f : weights[k]), part.load(rows[k] + i), sum);
            part.store(sum, y + i);
        });
    }
    static float dot(const float* a, const float* b, int64_t n) {
        V sum = V::zero();
        each(n, [&](int64_t i, auto part) { sum = V::fma(part.load(a + i), part.load(b + i), sum); });
        return sum.sum();
    }
    static double square_sum(const float* x, int64_t n) {
        typename V::SquareSum sum;
        each(n, [&](int64_t i, auto part) { sum.add(part.load(x + i)); });
        double lanes[kLanes];
        sum.store(lanes);
        for (int width = 8; width > 0; width /= 2)
            for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
        return lanes[0];
    }

    static void rms_norm(float* y, const float* x, const float* w, float r, int64_t n) {
        each(n, [=](int64_t i, auto part) { part.store(part.load(w + i) * (V::all(r) * part.load(x + i)), y + i); });
    }
    static void rms_norm_backward(float* dx, float* dw, const float* dy, const float* x, const float* w, float r, int64_t n) {
        V sum = V::zero();
        each(n, [&](int64_t i, auto part) { sum = V::fma(part.load(dy + i) * part.load(w + i), part.load(x + i), sum); });
        const V shift = V::all(-(sum.sum() / static_cast<float>(n)) * r * r * r);
        each(n, [=](int64_t i, auto part) {
            const V x_i = part.load(x + i), dy_i = part.load(dy + i), scaled = V::all(r) * dy_i;
            part.store(V::fma(scaled, x_i, part.load(dw + i)), dw + i);
            part.store(V::fma(shift, x_i, scaled * part.load(w + i)), dx + i);
        });
    }

    static float largest(const float* x, int64_t n) {
        V top = V::all(-__builtin_inff());
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) top = V::max(V::load(x + i), top);
        if (i < n) top = V::max(Part{n - i}.fill(V::load(x + i, n - i), -__builtin_inff()), top);
        return top.largest();
    }
    static float sum_exp(const float* x, float shift, int64_t n) {
        V sum = V::zero();
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) sum = sum + exp(V::load(x + i) - V::all(shift));
        if (i < n) sum = sum + Part{n - i}.fill(exp(V::load(x + i, n - i) - V::all(shift)), 0.0f);
        return sum.sum();
    }
    static void exp_scaled(float* y, const float* x, float shift, float factor, int64_t n) {
        each(n, [=](int64_t i, auto part) { part.store(V::all(factor) * exp(part.load(x + i) - V::all(shift)), y + i); });
    }
    static void sigmoid(float* y, const float* x, int64_t n) {
        each(n, [=](int64_t i, auto part) { part.store(fathom::sigmoid(part.load(x + i)), y + i); });
    }

    static void swiglu(float* y, const float* gate, const float* up, int64_t n) {
        each(n, [=](int64_t i, auto part) {
            const V g = part.load(gate + i);
            part.store(g * fathom::sigmoid(g) * part.load(up + i), y + i);
        });
    }
    // silu'(g) = s + g s (1 - s), s = sigmoid(g).
    static void swiglu_backward(float* dgate, float* dup, const float* dy, const float* gate, const float* up, int64_t n) {
        each(n, [=](int64_t i, auto part) {
            const V g = part.load(gate + i), u = part.load(up + i), d = part.load(dy + i), s = fathom::sigmoid(g);
            const V silu = g * s;
            part.store(d * u * V::fma(silu, V::all(1.0f) - s, s), dgate + i);
            part.store(d * silu, dup + i);
        });
    }

    static void adamw(float* master, float* m, float* v, const float* grad, const AdamWFactors& f, int64_t n) {
        each(n, [=, &f](int64_t i, auto part) {
            const V g = V::all(f.grad_scale) * part.load(grad + i);
            const V m_i = V::fma(V::all(f.one_minus_beta1), g, V::all(f.beta1) * part.load(m + i));
            const V v_i = V::fma(V::all(f.one_minus_beta2) * g, g, V::all(f.beta2) * part.load(v + i));
            const V root = V::sqrt(v_i * V::all(f.second_unbias)) + V::all(f.epsilon);
            part.store(V::all(f.decay) * part.load(master + i) - V::all(f.step_size) * m_i / root, master + i);
            part.store(m_i, m + i);
            part.store(v_i, v + i);
        });
    }

    static constexpr Kernels table() {
        return {.widen = widen,
                .widen_blocks = widen_blocks,
                .narrow = narrow,
                .add = add,
                .scale = scale,
                .weighted_sum = weighted_sum,
                .dot = dot,
                .square_sum = square_sum,
                .rms_norm = rms_norm,
                .rms_norm_backward = rms_norm_backward,
                .largest = largest,
                .sum_exp = sum_exp,
                .exp_scaled = exp_scaled,
                .sigmoid = sigmoid,
                .swiglu = swiglu,
                .swiglu_backward = swiglu_backward,
                .adamw = adamw};
    }
};

}  // namespace fathom
