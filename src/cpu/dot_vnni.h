// Dot of Lanes8 with vpdpbusd of 256 bits. AVX-VNNI and AVX512-VNNI encode that one operation differently, so the file that is
// compiled for either says which intrinsic: Instruction::dpbusd(sum, codes, row).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace fathom {
namespace {

template <class Instruction>
struct DotVnni {
    static __m256i codes(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
    static __m256i row(const int8_t* from) {
        int32_t four;
        std::memcpy(&four, from, sizeof four);
        return _mm256_set1_epi32(four);
    }
    static __m256i add(__m256i sum, __m256i codes, __m256i row) { return Instruction::dpbusd(sum, codes, row); }
};

}  // namespace
}  // namespace fathom
