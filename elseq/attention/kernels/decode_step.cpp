// Attention of a decoding step. decode_step.py describes the function and checks its arguments.

#include "decode_step.hpp"

#include <type_traits>

#include "../../native.hpp"

namespace {

constexpr int64_t MOST = 6;  // queries of a tile
constexpr int64_t TILE = REGISTERS * LANES;  // numbers of each that accumulate in registers
constexpr int64_t CACHED = 1 << 19;  // bytes of values that several queries read

struct Step {
    const float *query;
    float *out;  // [queries, heads, width]
    int64_t query_row, query_head, queries, heads, kv_heads, width;
    Shared shared;
    Own own;
};

template <class T>
INLINE void fetch(const T *from, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / sizeof(T)) _mm_prefetch(from + i, _MM_HINT_T0);
}

// The lanes of J vectors that are among `count` numbers: of type `Mask`, or `Whole` where all are.
template <class M, int J>
INLINE void lanes(int64_t count, M (&there)[J]) {
    if constexpr (!std::is_same_v<M, Whole>)
        UNROLL for (int j = 0; j < J; j++) there[j] = first(count - LANES * j);
}

// Scores of R queries and `TILE` positions, whose keys stand beside each other; those from `count` on mean nothing.
// `next` is read soon.
template <int R, class M, class T>
INLINE void score_tile(const float *const *query, const T *keys, int64_t stride, int64_t width, const uint8_t *mask,
                       int64_t count, float *scores, int64_t row, const T *next, int64_t next_stride) {
    Numbers sum[R][REGISTERS];
    M there[REGISTERS];
    lanes(count, there);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < REGISTERS; j++) sum[r][j] = all(0);
    for (int64_t k = 0; k < width; k++) {
        Numbers key[REGISTERS];
        UNROLL for (int j = 0; j < REGISTERS; j++) key[j] = load(keys + k * stride + LANES * j, there[j]);
        // The ends of cache lines: where these are not those of tiles, the line of the beginning is there already.
        fetch(next + k * next_stride + std::min<int64_t>(64 / sizeof(T), TILE) - 1, TILE);
        UNROLL for (int r = 0; r < R; r++) {
            const Numbers number = all(query[r][k]);
            UNROLL for (int j = 0; j < REGISTERS; j++) sum[r][j] = fmadd(number, key[j], sum[r][j]);
        }
    }
    UNROLL for (int j = 0; j < REGISTERS; j++) {
        const Mask hidden = mask ? not_zero(mask + LANES * j, first(count - LANES * j)) : first(0);
        UNROLL for (int r = 0; r < R; r++)
            store(scores + r * row + LANES * j, select(hidden, all(-INFINITE), sum[r][j]));
    }
}

template <int R, class T>
__attribute__((noinline)) void score(const float *const *query, const T *keys, int64_t stride, int64_t width,
                                     const uint8_t *mask, int64_t count, float *scores, int64_t row, const T *next,
                                     int64_t next_stride) {
    if (count >= TILE) score_tile<R, Whole>(query, keys, stride, width, mask, count, scores, row, next, next_stride);
    else score_tile<R, Mask>(query, keys, stride, width, mask, count, scores, row, next, next_stride);
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

template <int R, class At>
__attribute__((noinline)) void mix(const float *weights, int64_t row, int64_t positions, const At &at, int64_t width, float *out) {
    constexpr int J = REGISTERS == 2 && R <= 2 ? 8 / R : REGISTERS;  // sums that do not wait for each other
    int64_t column = 0;
    for (; column + J * LANES <= width; column += J * LANES)
        accumulate<R, J>(weights, row, positions, at, column, width, out, width);
    for (; column < width; column += LANES) accumulate<R, 1>(weights, row, positions, at, column, width, out, width);
}

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

// Products of a query with four keys.
template <class T>
INLINE __m128 products(const float *query, const T *const (&keys)[4], int64_t width) {
    Numbers sum[4];
    UNROLL for (int i = 0; i < 4; i++) sum[i] = all(0);
    for (int64_t k = 0; k < width; k += LANES) {
        const Mask there = first(width - k);
        const Numbers numbers = load(query + k, there);
        UNROLL for (int i = 0; i < 4; i++) sum[i] = fmadd(numbers, load(keys[i] + k, there), sum[i]);
    }
    __m128 part[4];
    UNROLL for (int i = 0; i < 4; i++) {
        const __m256 eight = eight_sums(sum[i]);
        part[i] = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    }
    return _mm_hadd_ps(_mm_hadd_ps(part[0], part[1]), _mm_hadd_ps(part[2], part[3]));
}

// Writes exp(x - largest) and returns their sum.
float exponentials(float *x, int64_t count) {
    Numbers most = all(-INFINITE), sum = all(0);
    for (int64_t i = 0; i < count; i += LANES) {
        const Mask there = first(count - i);
        most = max(most, select(there, load(x + i, there), all(-INFINITE)));
    }
    const Numbers largest = all(largest_of(most));
    for (int64_t i = 0; i < count; i += LANES) {
        const Mask there = first(count - i);
        const Numbers value = select(there, exp_of_negative(load(x + i, there) - largest), all(0));
        store(x + i, value, there);
        sum += value;
    }
    return sum_of(sum);
}

// Query q of a sentence belongs to one of its hypotheses and to one of the heads that share the key/value head.
struct Queries {
    const Step &step;
    int64_t sequence, kv_head;
    int64_t ratio() const { return step.heads / step.kv_heads; }
    int64_t per_sequence() const { return step.queries / step.shared.sequences; }
    int64_t row(int64_t q) const { return sequence * per_sequence() + q / ratio(); }
    int64_t head(int64_t q) const { return kv_head * ratio() + q % ratio(); }
};

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

template <class T, class U>
void block(const Queries &of, int64_t begin, int64_t end, std::vector<float> &memory) {
    const Step &p = of.step;
    const Shared &shared = p.shared;
    const Own &own = p.own;
    const int64_t count = end - begin, positions = shared.positions + own.positions, width = p.width;
    // Whole vectors are written: scores of positions behind the sentence's, and up to three behind all.
    const int64_t row = std::max((shared.positions + TILE - 1) / TILE * TILE, (positions + 3 + LANES - 1) / LANES * LANES);
    memory.resize(std::max<int64_t>(memory.size(), MOST * (row + width)));
    float *scores = memory.data(), *out = scores + MOST * row;
    const float *query[MOST];
    for (int64_t i = 0; i < count; i++)
        query[i] = p.query + of.row(begin + i) * p.query_row + of.head(begin + i) * p.query_head;

    const T *keys = static_cast<const T *>(shared.keys) + of.sequence * shared.key[0] + of.kv_head * shared.key[1];
    const T *values = static_cast<const T *>(shared.values) + of.sequence * shared.value[0] + of.kv_head * shared.value[1];
    const U *own_keys = static_cast<const U *>(own.keys), *own_values = static_cast<const U *>(own.values);
    const uint8_t *mask = shared.mask ? shared.mask + of.sequence * shared.mask_row : nullptr;
    for (int64_t s = 0; s < shared.positions; s += TILE) {
        const bool last = s + TILE >= shared.positions;
        with(count, [&](auto rows) {
            score<rows()>(query, keys + s, shared.key[2], width, mask ? mask + s : nullptr, shared.positions - s,
                          scores + s, row, last ? values : keys + s + TILE, last ? shared.value[2] : shared.key[2]);
        });
    }
    for (int64_t i = 0; own.positions && i < count; i++) {
        const int64_t n = of.row(begin + i);
        const OfHypothesis<U> key{own_keys, own.key, own, n, of.kv_head}, value{own_values, own.value, own, n, of.kv_head};
        float *to = scores + i * row + shared.positions;
        for (int64_t s = 0; s < own.positions; s += 4) {
            const U *four[4];
            UNROLL for (int j = 0; j < 4; j++) {
                const int64_t position = std::min(s + j, own.positions - 1);
                four[j] = key(position);
                fetch(value(position), std::min<int64_t>(width, 64));
            }
            _mm_storeu_ps(to + s, products(query[i], four, width));
        }
    }

    float sum[MOST];
    for (int64_t i = 0; i < count; i++) sum[i] = exponentials(scores + i * row, positions);
    std::fill_n(out, count * width, 0.f);
    with(count, [&](auto rows) {
        mix<rows()>(scores, row, shared.positions, OfSentence<T>{values, shared.value[2]}, width, out);
    });
    for (int64_t i = 0, same; own.positions && i < count; i += same) {
        const int64_t n = of.row(begin + i);
        for (same = 1; i + same < count && of.row(begin + i + same) == n; same++) continue;
        with(same, [&](auto rows) {
            const OfHypothesis<U> at{own_values, own.value, own, n, of.kv_head};
            mix<rows()>(scores + i * row + shared.positions, row, own.positions, at, width, out + i * width);
        });
    }
    for (int64_t i = 0; i < count; i++) {
        float *to = p.out + (of.row(begin + i) * p.heads + of.head(begin + i)) * width;
        for (int64_t k = 0; k < width; k++) to[k] = out[i * width + k] / sum[i];
    }
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
        const float share = 1 / exponentials(weights, k);
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

void elseq_decode_step(const float *query, float *out, int64_t query_row, int64_t query_head, int64_t queries,
                       int64_t heads, int64_t kv_heads, int64_t width, const Shared *shared, const Own *own, int threads) {
    const Step step{query, out, query_row, query_head, queries, heads, kv_heads, width, *shared, *own};
    if (!queries || !heads) return;
    const int64_t each = Queries{step, 0, 0}.per_sequence() * heads / kv_heads;
    const int64_t blocks = (each + MOST - 1) / MOST, count = shared->sequences * kv_heads * blocks;
    if (2 * queries * heads * width * (shared->positions + own->positions) < SMALL / 8) threads = 1;
    const int64_t chunk = std::clamp<int64_t>(count / (8 * threads), 1, 8);
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        static thread_local std::vector<float> memory;
        const Queries of{step, i / blocks / kv_heads, i / blocks % kv_heads};
        const int64_t begin = each * (i % blocks) / blocks, end = each * (i % blocks + 1) / blocks;
        if (shared->bfloat16 && own->bfloat16) block<uint16_t, uint16_t>(of, begin, end, memory);
        else if (shared->bfloat16) block<uint16_t, float>(of, begin, end, memory);
        else if (own->bfloat16) block<float, uint16_t>(of, begin, end, memory);
        else block<float, float>(of, begin, end, memory);
    }
}
}
