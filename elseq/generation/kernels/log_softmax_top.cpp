// The largest log-probabilities. log_softmax_top.py describes the function and checks its arguments.

#include <cmath>

#include "../../native.hpp"

namespace {

// In descending order, before what is smaller; `count` are there.
INLINE void insert(float value, int64_t index, float *values, int64_t *indices, int64_t count) {
    for (; count > 0 && values[count - 1] < value; count--) {
        values[count] = values[count - 1];
        indices[count] = indices[count - 1];
    }
    values[count] = value;
    indices[count] = index;
}

void largest(const float *x, int64_t width, float *values, int64_t *indices, int64_t count) {
    for (int64_t i = 0; i < count; i++) insert(x[i], i, values, indices, i);
    constexpr int64_t STEP = 4 * LANES;
    for (int64_t i = count; i < width; i += STEP) {
        const Numbers least = all(values[count - 1]);
        Mask larger = first(0);
        UNROLL for (int j = 0; j < 4; j++) {
            const Mask there = first(width - i - LANES * j);
            larger |= there & above(load(x + i + LANES * j, there), least);
        }
        if (bits(larger))
            for (int64_t k = i; k < std::min(width, i + STEP); k++)
                if (x[k] > values[count - 1]) insert(x[k], k, values, indices, count - 1);
    }
}

// Of exp(x - largest); NaN where there is one, or an infinite largest.
double sum_of_exp(const float *x, int64_t width, float largest) {
    double sum = 0;
    for (int64_t start = 0; start < width; start += 2048) {  // in parts, for the sake of precision
        Numbers part = all(0);
        for (int64_t i = start; i < std::min(width, start + 2048); i += LANES) {
            const Mask there = first(width - i);
            const Numbers value = load(x + i, there) - all(largest);
            part += select(there, exp_of_negative(value), all(0));
        }
        sum += sum_of(part);
    }
    return sum;
}

}  // namespace

extern "C" {

void elseq_log_softmax_top(const float *logits, float *values, int64_t *indices, int64_t rows, int64_t width,
                           int64_t count, int threads) {
    if (rows * width < SMALL / 8) threads = 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        float *best = values + row * count;
        largest(logits + row * width, width, best, indices + row * count, count);
        const float top = best[0], first = -std::log(sum_of_exp(logits + row * width, width, top));
        for (int64_t i = 0; i < count; i++) best[i] = best[i] - top + first;
    }
}
}
