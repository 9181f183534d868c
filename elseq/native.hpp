// What the kernels share. They are called by ctypes; the modules beside them describe them and check their arguments.
//
// OpenMP's functions are not linked: they are those of the runtime that torch has loaded, and so are its threads.

#pragma once

#include <immintrin.h>

#include <cstdint>

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

constexpr int64_t SMALL = 1 << 20;  // multiplications that are not worth a second thread

INLINE __mmask16 first(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }

// Relative error below 2e-7; 0 below -110.
INLINE __m512 exp_of_negative(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-110), x);  // NaN stays, as the second operand
    const __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x);  // log(2), in two parts
    rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
    __m512 series = _mm512_set1_ps(1.f / 720);
    for (const float inverse : {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f})
        series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(inverse));
    return _mm512_scalef_ps(series, power);
}
