// Softmax and weighted sum over the k largest scores.

#pragma once

#include "attend.hpp"

namespace {

constexpr int64_t CACHED = 1 << 19;  // bytes of values that several queries read

// How many positions of a sentence the mask leaves. Were the others counted, a text could get other last bits in another batch.
int64_t seen(const Shared &shared, const uint8_t *mask) {
    return mask ? std::count(mask, mask + shared.positions, 0) : shared.positions;
}

// How many of some numbers are at least as large as this.
int64_t count_from(const float *x, int64_t count, float least) {
    const Numbers bound = all(least);
    int64_t found = 0, i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        UNROLL for (int j = 0; j < 4; j++) found += __builtin_popcount(bits(at_least(load(x + i + LANES * j), bound)));
    for (; i < count; i += LANES) {
        const Mask there = first(count - i);
        found += __builtin_popcount(bits(there & at_least(load(x + i, there), bound)));
    }
    return found;
}

// Integers in the order of the floating-point numbers.
int32_t as_key(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 31 & 0x7fffffff);
}
float as_number(int32_t key) {
    key ^= key >> 31 & 0x7fffffff;
    float x;
    std::memcpy(&x, &key, sizeof x);
    return x;
}

// Moves the k largest of more than k numbers to the front, in their order, and tells their places. Of equal ones the first
// are taken. False: one is not a number, and nothing was moved.
bool select_largest(float *x, int64_t count, int64_t k, int32_t *places) {
    Numbers most = all(-INFINITE), least = all(INFINITE);
    Mask no_number = first(0);
    for (int64_t i = 0; i < count; i += LANES) {
        const Mask there = first(count - i);
        const Numbers numbers = load(x + i, there);
        no_number |= is_nan(numbers);
        most = max(most, select(there, numbers, all(-INFINITE)));
        least = min(least, select(there, numbers, all(INFINITE)));
    }
    if (bits(no_number)) return false;
    // The k-th largest is from `low` on and below `high`: its bits are found in 32 passes at most.
    int64_t low = as_key(smallest_of(least)), high = int64_t(as_key(largest_of(most))) + 1;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2, found = count_from(x, count, as_number(middle));
        (found >= k ? low : high) = middle;
        if (found == k) break;
    }
    const Numbers bound = all(as_number(low));
    int64_t larger = 0;
    for (int64_t i = 0; i < count; i += LANES) {
        const Mask there = first(count - i);
        larger += __builtin_popcount(bits(there & above(load(x + i, there), bound)));
    }
    int64_t same = k - larger, taken = 0;
    for (int64_t i = 0; i < count && taken < k; i += LANES) {
        const Mask there = first(count - i);
        const Numbers numbers = load(x + i, there);
        uint32_t tied = bits(there & equal(numbers, bound));
        while (__builtin_popcount(tied) > same) tied &= ~(1u << (31 - __builtin_clz(tied)));
        same -= __builtin_popcount(tied);
        const uint32_t chosen = tied | bits(there & above(numbers, bound));
        if (!chosen) continue;
        compress(numbers, chosen, i, x + taken, places + taken);
        taken += __builtin_popcount(chosen);
    }
    return true;
}

// Leaves of the scores of a query the softmax of the k largest, or NaN where there is none, and tells their places.
void choose(float *scores, int64_t positions, int64_t k, int32_t *places) {
    if (select_largest(scores, positions, k, places)) {
        const float share = 1 / exponentials(scores, k, maximum(scores, k));
        for (int64_t i = 0; i < k; i++) scores[i] *= share;
    } else {
        std::fill_n(scores, k, std::numeric_limits<float>::quiet_NaN());
        for (int64_t i = 0; i < k; i++) places[i] = i;
    }
}

// Adds to each row of the result the values, weighted, that it has chosen among the positions from `begin` to `end`: `at(s)`
// those of position begin + s, of type T. All rows go through the positions together, in blocks that stay in the cache.
template <class T, class At>
void add_chosen(const float *weights, int64_t row, const int32_t *places, int64_t k, int64_t rows, int64_t begin, int64_t end,
                const At &at, int64_t width, float *out) {
    const int64_t block = std::max<int64_t>(1, CACHED / (width * sizeof(T)));
    for (int64_t start = begin; start < end; start += block) {
        for (int64_t r = 0; r < rows; r++) {
            const int32_t *chosen = places + r * k;
            const int32_t *from = std::lower_bound(chosen, chosen + k, start);
            const int32_t *to = std::lower_bound(from, chosen + k, std::min(start + block, end));
            const auto value = [&](int64_t s) INLINED { return at(from[s] - begin); };
            const float *weight = weights + r * row + (from - chosen);
            int64_t column = 0;
            for (; width - column > 4 * LANES; column += 8 * LANES)
                accumulate<1, 8>(weight, 0, to - from, value, column, width, out + r * width, 0);
            if (column < width) accumulate<1, 4>(weight, 0, to - from, value, column, width, out + r * width, 0);
        }
    }
}

}  // namespace
