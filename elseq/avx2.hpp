// AVX2 with FMA. native.hpp includes this.

#pragma once

#include "avx2_vectors.hpp"

INLINE bool is_supported() { return has_vectors(); }

// Products of four uint8 with four int8, added up: a `Group` are the four of a row.
// AVX2 multiplies bytes without overflow only as int16, which it adds up in pairs.
using Group = int64_t;
constexpr int64_t COLUMNS_OF_A_SUM = LANES / 2;

INLINE __m256i no_sum() { return _mm256_setzero_si256(); }
INLINE __m256i load_weights(const int8_t *from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}
INLINE __m256i repeated(const Group *from) { return _mm256_set1_epi64x(*from); }
INLINE __m256i add_products(__m256i sum, __m256i row, __m256i columns) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(row, columns));
}
INLINE Integers total(const __m256i *sums) { return {_mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[0], sums[1]), 0xd8)}; }
// Groups from their bytes, in this memory.
INLINE const Group *as_groups(const uint8_t *bytes, int64_t count, std::vector<Group> &memory) {
    memory.resize(std::max<int64_t>(memory.size(), count));
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes + 4 * i));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(memory.data() + i), _mm256_cvtepu8_epi16(sixteen));
    }
    for (; i < count; i++) {
        int32_t four;
        std::memcpy(&four, bytes + 4 * i, 4);
        memory[i] = _mm_cvtsi128_si64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
    }
    return memory.data();
}
