// Vectors of AVX-512 with VNNI. native.hpp includes this.

#pragma once

constexpr int64_t LANES = 16;
constexpr int REGISTERS = 4;  // vectors that a tile of six rows has in each: 24 of 32 registers accumulate

using Numbers = __m512;
using Integers = __m512i;
using Mask = __mmask16;

INLINE bool is_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

// The first `count` lanes.
INLINE Mask first(int64_t count) { return count >= LANES ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }
INLINE uint32_t bits(Mask mask) { return mask; }

INLINE Numbers all(float x) { return _mm512_set1_ps(x); }
INLINE Numbers load(const float *from) { return _mm512_loadu_ps(from); }
INLINE Numbers load(const float *from, Mask mask) { return _mm512_maskz_loadu_ps(mask, from); }
INLINE Numbers of_bfloat16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
INLINE Numbers load(const uint16_t *from) {  // bfloat16
    return of_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}
INLINE Numbers load(const uint16_t *from, Mask mask) { return of_bfloat16(_mm256_maskz_loadu_epi16(mask, from)); }
INLINE void store(float *to, Numbers x) { _mm512_storeu_ps(to, x); }
INLINE void store(float *to, Numbers x, Mask mask) { _mm512_mask_storeu_ps(to, mask, x); }

INLINE Numbers fmadd(Numbers a, Numbers b, Numbers c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Numbers fnmadd(Numbers a, Numbers b, Numbers c) { return _mm512_fnmadd_ps(a, b, c); }
// Where one of them is NaN, b.
INLINE Numbers max(Numbers a, Numbers b) { return _mm512_max_ps(a, b); }
INLINE Numbers min(Numbers a, Numbers b) { return _mm512_min_ps(a, b); }
INLINE Numbers magnitude(Numbers x) { return _mm512_abs_ps(x); }
INLINE Numbers to_nearest(Numbers x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
INLINE Numbers times_power_of_two(Numbers x, Numbers power) { return _mm512_scalef_ps(x, power); }

// a in the lanes of the mask, b in the others.
INLINE Numbers select(Mask mask, Numbers a, Numbers b) { return _mm512_mask_mov_ps(b, mask, a); }
INLINE Mask above(Numbers a, Numbers b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
INLINE Mask at_least(Numbers a, Numbers b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
INLINE Mask equal(Numbers a, Numbers b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE Mask is_nan(Numbers x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
INLINE Mask not_zero(const uint8_t *bytes, Mask mask) {
    const __m128i loaded = _mm_maskz_loadu_epi8(mask, bytes);
    return _mm_test_epi8_mask(loaded, loaded);
}

INLINE float sum_of(Numbers x) { return _mm512_reduce_add_ps(x); }
INLINE float largest_of(Numbers x) { return _mm512_reduce_max_ps(x); }
INLINE float smallest_of(Numbers x) { return _mm512_reduce_min_ps(x); }
INLINE __m128 four_sums(const Numbers (&x)[4]) {
    const Numbers first = _mm512_unpacklo_ps(x[0], x[1]) + _mm512_unpackhi_ps(x[0], x[1]);
    const Numbers second = _mm512_unpacklo_ps(x[2], x[3]) + _mm512_unpackhi_ps(x[2], x[3]);
    const __m512d two = _mm512_castps_pd(first), others = _mm512_castps_pd(second);
    const Numbers four =
        _mm512_castpd_ps(_mm512_unpacklo_pd(two, others)) + _mm512_castpd_ps(_mm512_unpackhi_pd(two, others));
    const __m256 eight = _mm512_castps512_ps256(four) + _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(four), 1));
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}

INLINE Integers integers(Numbers x) { return _mm512_castps_si512(x); }  // the same bits
INLINE Integers max(Integers a, Integers b) { return _mm512_max_epi32(a, b); }
INLINE Integers add(Integers a, Integers b) { return _mm512_add_epi32(a, b); }
INLINE int32_t largest_of(Integers x) { return _mm512_reduce_max_epi32(x); }
INLINE Integers load(const int32_t *from) { return _mm512_loadu_si512(from); }
INLINE Numbers as_numbers(Integers x) { return _mm512_cvtepi32_ps(x); }
INLINE void store_low_bytes(uint8_t *to, Integers x, int64_t count) { _mm512_mask_cvtepi32_storeu_epi8(to, first(count), x); }

// Entries of a table of 32, by the low five bits of each index.
INLINE Numbers look_up(const float *table, Integers index) {
    return _mm512_permutex2var_ps(load(table), index, load(table + LANES));
}

// Writes the lanes of some bits one after the other, and the number of each lane from `place` on. Both have room for them.
// To compress into memory at once takes a hundred cycles on some processors.
INLINE void compress(Numbers x, uint32_t lanes, int32_t place, float *numbers, int32_t *places) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 there = (1u << __builtin_popcount(lanes)) - 1;
    const __m512i from_place = _mm512_add_epi32(lane, _mm512_set1_epi32(place));
    _mm512_mask_storeu_epi32(places, there, _mm512_maskz_compress_epi32(lanes, from_place));
    _mm512_mask_storeu_ps(numbers, there, _mm512_maskz_compress_ps(lanes, x));
}

// Products of four uint8 with four int8, added up: a `Group` are the four of a row.
using Group = int32_t;
constexpr int64_t COLUMNS_OF_A_SUM = LANES;

INLINE __m512i no_sum() { return _mm512_setzero_si512(); }
INLINE __m512i load_weights(const int8_t *from) { return _mm512_loadu_si512(from); }
INLINE __m512i repeated(const Group *from) { return _mm512_set1_epi32(*from); }
INLINE __m512i add_products(__m512i sum, __m512i row, __m512i columns) { return _mm512_dpbusd_epi32(sum, row, columns); }
INLINE Integers total(const __m512i *sums) { return sums[0]; }
// Groups from their bytes, which they are already.
INLINE const Group *as_groups(const uint8_t *bytes, int64_t, std::vector<Group> &) {
    return reinterpret_cast<const Group *>(bytes);
}
