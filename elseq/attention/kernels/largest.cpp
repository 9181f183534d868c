// Softmax and weighted sum over the k largest scores. largest.py describes the function and checks its arguments.

#include "attend.hpp"

namespace {

constexpr int64_t CACHED = 1 << 19;  // bytes of values that several queries read

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

// The places of the k largest of more than k numbers, ascending, and these numbers. Of equal ones the first are taken.
// False: one is not a number.
bool select_largest(const float *x, int64_t count, int64_t k, int32_t *places, float *largest) {
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
        compress(numbers, chosen, i, largest + taken, places + taken);
        taken += __builtin_popcount(chosen);
    }
    return true;
}

// For each row of scores the places of the k largest, ascending, and their softmax; NaN where there is no such.
void choose(const float *scores, int64_t positions, int64_t k, int32_t *places, float *weights) {
    if (select_largest(scores, positions, k, places, weights)) {
        const float share = 1 / exponentials(weights, k, maximum(weights, k));
        for (int64_t i = 0; i < k; i++) weights[i] *= share;
    } else {
        std::fill_n(weights, k, std::numeric_limits<float>::quiet_NaN());
        for (int64_t i = 0; i < k; i++) places[i] = i;
    }
}

// Adds up J vectors of columns of the chosen values of all rows of a set. All rows go through the positions together, in blocks
// that stay in the cache.
template <int J, class T>
void add_chosen(const float *weights, const int32_t *places, int64_t rows, int64_t positions, int64_t k, const T *values,
                int64_t stride, int64_t column, int64_t width, float *out) {
    const int64_t block = CACHED / (LANES * J * sizeof(T));
    static thread_local std::vector<int64_t> next;
    next.assign(rows, 0);
    for (int64_t r = 0; r < rows; r++) std::fill_n(out + r * width + column, std::min<int64_t>(LANES * J, width - column), 0.f);
    for (int64_t end = block; end < positions + block; end += block) {
        for (int64_t r = 0; r < rows; r++) {
            const int32_t *chosen = places + r * k;
            const int64_t begin = next[r];
            while (next[r] < k && chosen[next[r]] < end) next[r]++;
            accumulate<1, J>(weights + r * k + begin, 0, next[r] - begin,
                      [&](int64_t s) { return values + chosen[begin + s] * stride; }, column, width, out + r * width, 0);
        }
    }
}

}  // namespace

extern "C" {

// Scores [sequences, heads, rows, positions], weights and places [sequences, heads, rows, k] for what is found on the way,
// out [sequences, heads, rows, width]; values of float32 or bfloat16.
void elseq_attend_to_largest(const float *scores, const void *values, float *weights, int32_t *places, float *out,
                             int64_t sequences, int64_t heads, int64_t rows, int64_t positions, int64_t k, int64_t width,
                             int64_t value_sequence, int64_t value_head, int64_t value_position, int bfloat16, int threads) {
    const int64_t sets = sequences * heads;
    if (sets * rows * positions < SMALL / 8) threads = 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < sets * rows; i++)
        choose(scores + i * positions, positions, k, places + i * k, weights + i * k);
    const bool narrow = width <= 4 * LANES;
    const int64_t columns = (narrow ? 4 : 8) * LANES, parts = (width + columns - 1) / columns;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < sets * parts; i++) {
        const int64_t set = i / parts, start = set / heads * value_sequence + set % heads * value_head;
        const auto add = [&](const auto *from) {
            const auto call = narrow ? add_chosen<4, std::decay_t<decltype(*from)>> : add_chosen<8, std::decay_t<decltype(*from)>>;
            call(weights + set * rows * k, places + set * rows * k, rows, positions, k, from + start, value_position,
                 i % parts * columns, width, out + set * rows * width);
        };
        if (bfloat16) add(static_cast<const uint16_t *>(values));
        else add(static_cast<const float *>(values));
    }
}

}
