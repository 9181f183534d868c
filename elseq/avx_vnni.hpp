// AVX2 with FMA, and AVX-VNNI for the products of bytes. native.hpp includes this.

#pragma once

#include "avx2_vectors.hpp"

INLINE bool is_supported() { return has_vectors() && __builtin_cpu_supports("avxvnni"); }

// Products of four uint8 with four int8, added up: a `Group` are the four of a row.
using Group = int32_t;
constexpr int64_t COLUMNS_OF_A_SUM = LANES;

INLINE __m256i no_sum() { return _mm256_setzero_si256(); }
INLINE __m256i load_weights(const int8_t *from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)); }
INLINE __m256i repeated(const Group *from) { return _mm256_set1_epi32(*from); }
INLINE __m256i add_products(__m256i sum, __m256i row, __m256i columns) { return _mm256_dpbusd_avx_epi32(sum, row, columns); }
INLINE Integers total(const __m256i *sums) { return {sums[0]}; }
// Groups from their bytes, which they are already.
INLINE const Group *as_groups(const uint8_t *bytes, int64_t, std::vector<Group> &) {
    return reinterpret_cast<const Group *>(bytes);
}
