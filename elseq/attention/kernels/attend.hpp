// What the kernels of attention share.

#pragma once

#include <type_traits>

#include "../../native.hpp"
#include "decode_step.hpp"

namespace {

constexpr int64_t MOST = 6;  // queries of a tile
constexpr int64_t TILE = REGISTERS * LANES;  // numbers of each that accumulate in registers

// Calls with the number of rows as a constant.
template <class Call>
INLINE void with(int64_t rows, const Call &call) {
    switch (rows) {
        case 1: return call(std::integral_constant<int, 1>());
        case 2: return call(std::integral_constant<int, 2>());
        case 3: return call(std::integral_constant<int, 3>());
        case 4: return call(std::integral_constant<int, 4>());
        case 5: return call(std::integral_constant<int, 5>());
        case 6: return call(std::integral_constant<int, 6>());
    }
}

// The lanes of J vectors that are among `count` numbers: of type `Mask`, or `Whole` where all are.
template <class M, int J>
INLINE void lanes(int64_t count, M (&there)[J]) {
    if constexpr (!std::is_same_v<M, Whole>)
        UNROLL for (int j = 0; j < J; j++) there[j] = first(count - LANES * j);
}

// Products of R queries with four keys, whose numbers are adjacent: four of each row of scores.
template <int R, class T>
INLINE void products(const float *const *query, const T *const (&keys)[4], int64_t width, float *scores, int64_t row) {
    Numbers sum[R][4];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < 4; j++) sum[r][j] = all(0);
    const auto add = [&](int64_t k, auto there) INLINED {
        Numbers key[4];
        UNROLL for (int j = 0; j < 4; j++) key[j] = load(keys[j] + k, there);
        UNROLL for (int r = 0; r < R; r++) {
            const Numbers numbers = load(query[r] + k, there);
            UNROLL for (int j = 0; j < 4; j++) sum[r][j] = fmadd(numbers, key[j], sum[r][j]);
        }
    };
    int64_t k = 0;
    for (; k + LANES <= width; k += LANES) add(k, Whole());
    if (k < width) add(k, first(width - k));
    UNROLL for (int r = 0; r < R; r++) _mm_storeu_ps(scores + r * row, four_sums(sum[r]));
}

// Adds to R rows of the result: weighted sums of J vectors of the values, `at(s)` those of position s.
template <int R, int J, class M, class At>
INLINE void accumulate_lanes(const float *weights, int64_t row, int64_t positions, const At &at, int64_t column,
                             int64_t width, float *out, int64_t out_row) {
    Numbers sum[R][J];
    M there[J];
    lanes(width - column, there);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < J; j++) sum[r][j] = load(out + r * out_row + column + LANES * j, there[j]);
    for (int64_t s = 0; s < positions; s++) {
        Numbers value[J];
        UNROLL for (int j = 0; j < J; j++) value[j] = load(at(s) + column + LANES * j, there[j]);
        UNROLL for (int r = 0; r < R; r++) {
            const Numbers weight = all(weights[r * row + s]);
            UNROLL for (int j = 0; j < J; j++) sum[r][j] = fmadd(weight, value[j], sum[r][j]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < J; j++) store(out + r * out_row + column + LANES * j, sum[r][j], there[j]);
}

template <int R, int J, class At>
INLINE void accumulate(const float *weights, int64_t row, int64_t positions, const At &at, int64_t column, int64_t width,
                       float *out, int64_t out_row) {
    if (width - column >= J * LANES) accumulate_lanes<R, J, Whole>(weights, row, positions, at, column, width, out, out_row);
    else accumulate_lanes<R, J, Mask>(weights, row, positions, at, column, width, out, out_row);
}

// The largest of some numbers; those that are none do not count.
INLINE float maximum(const float *x, int64_t count) {
    Numbers most = all(-INFINITE);
    for (int64_t i = 0; i < count; i += LANES) {
        const Mask there = first(count - i);
        most = max(most, select(there, load(x + i, there), all(-INFINITE)));
    }
    return largest_of(most);
}

// Writes exp(x - largest) and returns their sum.
INLINE float exponentials(float *x, int64_t count, float largest) {
    Numbers sum = all(0);
    for (int64_t i = 0; i < count; i += LANES) {
        const Mask there = first(count - i);
        const Numbers value = select(there, exp_of_negative(load(x + i, there) - all(largest)), all(0));
        store(x + i, value, there);
        sum += value;
    }
    return sum_of(sum);
}

// Where the numbers of position s are: of a sentence, and of hypothesis n.
template <class T>
struct OfSentence {
    const T *first;
    int64_t stride;
    const T *operator()(int64_t s) const { return first + s * stride; }
};
template <class T>
struct OfHypothesis {
    const T *first;
    const int64_t (&stride)[3];
    const Own &own;
    int64_t n, kv_head;
    const T *operator()(int64_t s) const {
        const int64_t row = s < own.listed ? own.rows[n * own.rows_row + s] : n;
        return first + row * stride[0] + kv_head * stride[1] + s * stride[2];
    }
};

}  // namespace
