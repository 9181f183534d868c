// Vectors of AVX2 with FMA, all but the products of bytes. avx2.hpp and avx_vnni.hpp include this.

#pragma once

constexpr int64_t LANES = 8;
constexpr int REGISTERS = 2;  // vectors that a tile of six rows has in each: 12 of 16 registers accumulate

using Numbers = __m256;
struct Integers {
    __m256i x;
};
using Mask = __m256i;  // all bits of a lane, or none

INLINE bool has_vectors() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

// The first `count` lanes.
INLINE Mask first(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(std::clamp<int64_t>(count, 0, LANES)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE uint32_t bits(Mask mask) { return _mm256_movemask_ps(_mm256_castsi256_ps(mask)); }

INLINE Numbers all(float x) { return _mm256_set1_ps(x); }
INLINE Numbers load(const float *from) { return _mm256_loadu_ps(from); }
INLINE Numbers load(const float *from, Mask mask) { return _mm256_maskload_ps(from, mask); }
INLINE Numbers load(const uint16_t *from) {  // bfloat16
    const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(loaded), 16));
}
INLINE Numbers load(const uint16_t *from, Mask mask) {
    alignas(16) uint16_t copy[LANES] = {};
    std::memcpy(copy, from, __builtin_popcount(bits(mask)) * sizeof *from);
    return load(copy);
}
INLINE void store(float *to, Numbers x) { _mm256_storeu_ps(to, x); }
INLINE void store(float *to, Numbers x, Mask mask) {
    if (bits(mask) == 0xff) return store(to, x);  // a masked store takes many cycles on AMD's processors
    _mm256_maskstore_ps(to, mask, x);
}

INLINE Numbers fmadd(Numbers a, Numbers b, Numbers c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Numbers fnmadd(Numbers a, Numbers b, Numbers c) { return _mm256_fnmadd_ps(a, b, c); }
// Where one of them is NaN, b.
INLINE Numbers max(Numbers a, Numbers b) { return _mm256_max_ps(a, b); }
INLINE Numbers min(Numbers a, Numbers b) { return _mm256_min_ps(a, b); }
INLINE Numbers magnitude(Numbers x) { return _mm256_andnot_ps(all(-0.f), x); }
INLINE Numbers to_nearest(Numbers x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// In two steps, as the exponent alone can be below that of a number.
INLINE Numbers times_power_of_two(Numbers x, Numbers power) {
    const auto of = [](__m256i exponent) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
    };
    const __m256i exponent = _mm256_cvtps_epi32(power), half = _mm256_srai_epi32(exponent, 1);
    return x * of(half) * of(_mm256_sub_epi32(exponent, half));
}

// a in the lanes of the mask, b in the others.
INLINE Numbers select(Mask mask, Numbers a, Numbers b) { return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask)); }
INLINE Mask above(Numbers a, Numbers b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
INLINE Mask at_least(Numbers a, Numbers b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
INLINE Mask equal(Numbers a, Numbers b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
INLINE Mask is_nan(Numbers x) { return _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)); }
INLINE Mask not_zero(const uint8_t *bytes, Mask mask) {
    int64_t eight = 0;
    std::memcpy(&eight, bytes, __builtin_popcount(bits(mask)));
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(eight));
    return _mm256_cmpgt_epi32(wide, _mm256_setzero_si256());
}

INLINE __m128 four_sums(const Numbers (&x)[4]) {
    const __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    return _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
}
INLINE float sum_of(Numbers x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_hadd_ps(four, four);
    return _mm_cvtss_f32(_mm_hadd_ps(four, four));
}
INLINE float largest_of(Numbers x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
INLINE float smallest_of(Numbers x) { return -largest_of(-x); }

INLINE Integers integers(Numbers x) { return {_mm256_castps_si256(x)}; }  // the same bits
INLINE Integers max(Integers a, Integers b) { return {_mm256_max_epi32(a.x, b.x)}; }
INLINE Integers add(Integers a, Integers b) { return {_mm256_add_epi32(a.x, b.x)}; }
INLINE int32_t largest_of(Integers x) {
    int32_t eight[LANES];
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(eight), x.x);
    return *std::max_element(eight, eight + LANES);
}
INLINE Integers load(const int32_t *from) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))}; }
INLINE Numbers as_numbers(Integers x) { return _mm256_cvtepi32_ps(x.x); }
INLINE void store_low_bytes(uint8_t *to, Integers x, int64_t count) {
    const __m256i of_lanes = _mm256_set1_epi32(0x0c080400);
    const __m256i fours = _mm256_shuffle_epi8(x.x, of_lanes);
    const int64_t eight = _mm_cvtsi128_si64(_mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1)));
    if (count >= LANES) std::memcpy(to, &eight, LANES);  // of a known size: one instruction
    else std::memcpy(to, &eight, count);
}

// Entries of a table of 32, by the low five bits of each index.
INLINE Numbers look_up(const float *table, Integers index) {
    const auto eight = [&](int start) { return _mm256_permutevar8x32_ps(load(table + start), index.x); };
    const Mask third = _mm256_slli_epi32(index.x, 28), fourth = _mm256_slli_epi32(index.x, 27);  // the bit is the sign
    return select(fourth, select(third, eight(24), eight(16)), select(third, eight(8), eight(0)));
}

// Writes the lanes of some bits one after the other, and the number of each lane from `place` on. Both have room for them.
INLINE void compress(Numbers x, uint32_t lanes, int32_t place, float *numbers, int32_t *places) {
    float eight[LANES];
    store(eight, x);
    for (; lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        *numbers++ = eight[lane];
        *places++ = place + lane;
    }
}
