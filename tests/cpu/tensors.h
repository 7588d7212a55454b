// Owned tensors with random contents, and their bytes.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/rng.h"
#include "base/threads.h"
#include "cpu/cpu_ops.h"
#include "cpu/isa.h"

namespace fathom {

class Tensors {
public:
    explicit Tensors(uint64_t seed) : rng_(seed) {}

    Tensor empty(DType type, std::initializer_list<int64_t> dims) {
        Tensor t(nullptr, type, dims);
        memory_.push_back(std::make_unique<Buffer>(Buffer::host(std::max<int64_t>(t.bytes(), 1))));
        t.data = memory_.back()->data();
        return t;
    }
    Tensor random(std::initializer_list<int64_t> dims, double scale = 1) {
        const Tensor t = empty(DType::kF32, dims);
        for (int64_t i = 0; i < t.size(); ++i) t.as<float>()[i] = static_cast<float>(scale * rng_.normal());
        return t;
    }
    Tensor ints(const std::vector<int32_t>& values) {
        const Tensor t = empty(DType::kI32, {static_cast<int64_t>(values.size())});
        std::copy(values.begin(), values.end(), t.as<int32_t>());
        return t;
    }
    // Sequences of these lengths, each with `history` keys before its first query.
    Spans spans(const std::vector<int32_t>& lengths, int32_t history = 0) {
        std::vector<int32_t> q = {0}, k = {0};
        Spans spans;
        for (const int32_t length : lengths) {
            q.push_back(q.back() + length);
            k.push_back(k.back() + length + history);
            spans.max_q = std::max<int64_t>(spans.max_q, length);
            spans.max_k = std::max<int64_t>(spans.max_k, length + history);
        }
        spans.cu_q = ints(q);
        spans.cu_k = ints(k);
        return spans;
    }
    Rng& rng() { return rng_; }

private:
    Rng rng_;
    std::vector<std::unique_ptr<Buffer>> memory_;
};

// The bytes of a contiguous tensor.
inline std::string bytes_of(const Tensor& t) { return {t.as<char>(), static_cast<size_t>(t.bytes())}; }

// Instruction sets that this machine has.
inline std::vector<Isa> isas() {
    std::vector<Isa> all;
    for (const Isa isa : {Isa::kAvx2, Isa::kAvx512})
        if (supports(isa)) all.push_back(isa);
    return all;
}

// Runs `call` on every instruction set with one, two and three threads and expects the same bytes in `results` each time.
inline void expect_same_bytes_everywhere(const std::vector<Tensor>& results, const std::function<void(CpuOps&)>& call) {
    std::vector<std::string> first;
    for (const Isa isa : isas())
        for (const int threads : {1, 2, 3}) {
            ThreadPool pool(threads);
            CpuOps ops(pool, isa);
            for (const Tensor& t : results) ops.fill(t, 0);
            call(ops);
            for (size_t i = 0; i < results.size(); ++i) {
                if (first.size() <= i) first.push_back(bytes_of(results[i]));
                EXPECT_EQ(first[i] == bytes_of(results[i]), true)
                    << "result " << i << " on " << name_of(isa) << " with " << threads << " threads";
            }
        }
}

}  // namespace fathom
