// What the kernels share. They are called by ctypes; the modules beside them describe them and check their arguments.
//
// They are compiled for three sets of instructions, AVX-512 with VNNI, AVX2 with FMA and AVX-VNNI, and AVX2 with FMA. The
// vectors of `LANES` numbers of all have the same functions.
//
// OpenMP's functions are not linked: they are those of the runtime that torch has loaded, and so are its threads.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#define INLINED __attribute__((always_inline))
#define INLINE inline INLINED
#define UNROLL _Pragma("GCC unroll 16")

#if defined ELSEQ_AVX512
#include "avx512.hpp"
#elif defined ELSEQ_AVX_VNNI
#include "avx_vnni.hpp"
#else
#include "avx2.hpp"
#endif

// Instead of a mask, where all lanes are there.
struct Whole {};
INLINE Numbers load(const float *from, Whole) { return load(from); }
INLINE Numbers load(const uint16_t *from, Whole) { return load(from); }
INLINE void store(float *to, Numbers x, Whole) { store(to, x); }

constexpr int64_t SMALL = 1 << 20;  // multiplications that are not worth a second thread
constexpr float INFINITE = std::numeric_limits<float>::infinity();

// Relative error below 2.4e-7; 0 below -110.
INLINE Numbers exp_of_negative(Numbers x) {
    x = max(all(-110.f), x);  // NaN stays, as the second operand
    const Numbers power = to_nearest(x * all(1.44269504f));
    Numbers rest = fnmadd(power, all(0.693359375f), x);  // log(2), in two parts
    rest = fnmadd(power, all(-2.12194440e-4f), rest);
    Numbers series = all(1.f / 720);
    for (const float inverse : {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) series = fmadd(series, rest, all(inverse));
    return times_power_of_two(series, power);
}
