// Attention of a decoding step by AVX-512. decode_step.py describes the function and checks its arguments.

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "../../native.hpp"

// Positions of sentences, each read by all of its hypotheses. Strides count numbers.
struct Shared {
    const void *keys, *values;           // float32 or bfloat16
    const uint8_t *mask;                 // [sequences, positions], not 0: not attended to; or null
    int64_t key[3], value[3], mask_row;  // strides: of a sequence, a head, a number of a key (a value: a position)
    int64_t sequences, positions, bfloat16;
};

// Positions of hypotheses: n has position s in row rows[n, s], and from `listed` on in row n.
struct Own {
    const void *keys, *values;           // float32 or bfloat16
    const int64_t *rows;
    int64_t key[3], value[3], rows_row;  // strides: of a row, a head, a position
    int64_t listed, positions, bfloat16;
};

namespace {

constexpr int64_t MOST = 6;  // queries of a tile: 24 of 32 registers accumulate
constexpr int64_t CACHED = 1 << 19;  // bytes of values that several queries read

struct Step {
    const float *query;
    float *out;  // [queries, heads, width]
    int64_t query_row, query_head, queries, heads, kv_heads, width;
    Shared shared;
    Own own;
};

INLINE __m512 load(const float *from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
INLINE __m512 load(const uint16_t *from, __mmask16 mask) {
    const __m256i half = _mm256_maskz_loadu_epi16(mask, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

template <class T>
INLINE void fetch(const T *from, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / sizeof(T)) _mm_prefetch(from + i, _MM_HINT_T0);
}

// Scores of R queries and 64 positions, whose keys stand beside each other. `next` is read soon.
template <int R, class T>
void score(const float *const *query, const T *keys, int64_t stride, int64_t width, const uint8_t *mask, int64_t count,
           float *scores, int64_t row, const T *next, int64_t next_stride) {
    __m512 sum[R][4];
    __mmask16 there[4];
    UNROLL for (int j = 0; j < 4; j++) there[j] = first(count - 16 * j);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < 4; j++) sum[r][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < width; k++) {
        __m512 key[4];
        UNROLL for (int j = 0; j < 4; j++) key[j] = load(keys + k * stride + 16 * j, there[j]);
        fetch(next + k * next_stride, 64);
        UNROLL for (int r = 0; r < R; r++) {
            const __m512 number = _mm512_set1_ps(query[r][k]);
            UNROLL for (int j = 0; j < 4; j++) sum[r][j] = _mm512_fmadd_ps(number, key[j], sum[r][j]);
        }
    }
    UNROLL for (int j = 0; j < 4; j++) {
        __mmask16 hidden = 0;
        if (mask) {
            const __m128i bytes = _mm_maskz_loadu_epi8(there[j], mask + 16 * j);
            hidden = _mm_test_epi8_mask(bytes, bytes);
        }
        const __m512 none = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
        UNROLL for (int r = 0; r < R; r++)
            _mm512_mask_storeu_ps(scores + r * row + 16 * j, there[j], _mm512_mask_mov_ps(sum[r][j], hidden, none));
    }
}

// Adds to R rows of the result: weighted sums of 16 J numbers of the values, `at(s)` those of position s.
template <int R, int J, class At>
INLINE void add(const float *weights, int64_t row, int64_t positions, const At &at, int64_t column, int64_t width,
                float *out, int64_t out_row) {
    __m512 sum[R][J];
    __mmask16 there[J];
    UNROLL for (int j = 0; j < J; j++) there[j] = first(width - column - 16 * j);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < J; j++) sum[r][j] = load(out + r * out_row + column + 16 * j, there[j]);
    for (int64_t s = 0; s < positions; s++) {
        __m512 value[J];
        UNROLL for (int j = 0; j < J; j++) value[j] = load(at(s) + column + 16 * j, there[j]);
        UNROLL for (int r = 0; r < R; r++) {
            const __m512 weight = _mm512_set1_ps(weights[r * row + s]);
            UNROLL for (int j = 0; j < J; j++) sum[r][j] = _mm512_fmadd_ps(weight, value[j], sum[r][j]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < J; j++)
            _mm512_mask_storeu_ps(out + r * out_row + column + 16 * j, there[j], sum[r][j]);
}

template <int R, class At>
void mix(const float *weights, int64_t row, int64_t positions, const At &at, int64_t width, float *out) {
    int64_t column = 0;
    for (; column + 64 <= width; column += 64) add<R, 4>(weights, row, positions, at, column, width, out, width);
    for (; column < width; column += 16) add<R, 1>(weights, row, positions, at, column, width, out, width);
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
    __m512 sum[4];
    UNROLL for (int i = 0; i < 4; i++) sum[i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < width; k += 16) {
        const __mmask16 there = first(width - k);
        const __m512 numbers = load(query + k, there);
        UNROLL for (int i = 0; i < 4; i++) sum[i] = _mm512_fmadd_ps(numbers, load(keys[i] + k, there), sum[i]);
    }
    __m128 part[4];
    UNROLL for (int i = 0; i < 4; i++) {
        const __m256 half = _mm256_add_ps(
            _mm512_castps512_ps256(sum[i]),
            _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(sum[i]), 1)));
        part[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
    return _mm_hadd_ps(_mm_hadd_ps(part[0], part[1]), _mm_hadd_ps(part[2], part[3]));
}

// Writes exp(x - largest) and returns their sum.
float exponentials(float *x, int64_t count) {
    __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity()), sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += 16)
        most = _mm512_mask_max_ps(most, first(count - i), most, load(x + i, first(count - i)));
    const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 there = first(count - i);
        const __m512 value = exp_of_negative(_mm512_sub_ps(load(x + i, there), largest));
        _mm512_mask_storeu_ps(x + i, there, value);
        sum = _mm512_mask_add_ps(sum, there, sum, value);
    }
    return _mm512_reduce_add_ps(sum);
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

template <class T, class U>
void block(const Queries &of, int64_t begin, int64_t end, std::vector<float> &memory) {
    const Step &p = of.step;
    const Shared &shared = p.shared;
    const Own &own = p.own;
    const int64_t count = end - begin, positions = shared.positions + own.positions, width = p.width;
    const int64_t row = (positions + 15) / 16 * 16;
    memory.resize(std::max<int64_t>(memory.size(), MOST * (row + width)));
    float *scores = memory.data(), *out = scores + MOST * row;
    const float *query[MOST];
    for (int64_t i = 0; i < count; i++)
        query[i] = p.query + of.row(begin + i) * p.query_row + of.head(begin + i) * p.query_head;

    const T *keys = static_cast<const T *>(shared.keys) + of.sequence * shared.key[0] + of.kv_head * shared.key[1];
    const T *values = static_cast<const T *>(shared.values) + of.sequence * shared.value[0] + of.kv_head * shared.value[1];
    const U *own_keys = static_cast<const U *>(own.keys), *own_values = static_cast<const U *>(own.values);
    const uint8_t *mask = shared.mask ? shared.mask + of.sequence * shared.mask_row : nullptr;
    for (int64_t s = 0; s < shared.positions; s += 64) {
        const bool last = s + 64 >= shared.positions;
        with(count, [&](auto rows) {
            score<rows()>(query, keys + s, shared.key[2], width, mask ? mask + s : nullptr, shared.positions - s,
                          scores + s, row, last ? values : keys + s + 64, last ? shared.value[2] : shared.key[2]);
        });
    }
    const auto place = [&](int64_t n, int64_t s, const int64_t (&stride)[3]) {
        return (s < own.listed ? own.rows[n * own.rows_row + s] : n) * stride[0] + of.kv_head * stride[1] + s * stride[2];
    };
    for (int64_t i = 0; own.positions && i < count; i++) {
        const int64_t n = of.row(begin + i);
        float *to = scores + i * row + shared.positions;
        for (int64_t s = 0; s < own.positions; s += 4) {
            const U *four[4];
            UNROLL for (int j = 0; j < 4; j++) {
                const int64_t position = std::min(s + j, own.positions - 1);
                four[j] = own_keys + place(n, position, own.key);
                fetch(own_values + place(n, position, own.value), std::min<int64_t>(width, 64));
            }
            const __mmask8 there = first(own.positions - s) & 15;
            _mm_mask_storeu_ps(to + s, there, products(query[i], four, width));
        }
    }

    float sum[MOST];
    for (int64_t i = 0; i < count; i++) sum[i] = exponentials(scores + i * row, positions);
    std::fill_n(out, count * width, 0.f);
    with(count, [&](auto rows) {
        const auto at = [&](int64_t s) { return values + s * shared.value[2]; };
        mix<rows()>(scores, row, shared.positions, at, width, out);
    });
    for (int64_t i = 0, same; own.positions && i < count; i += same) {
        const int64_t n = of.row(begin + i);
        for (same = 1; i + same < count && of.row(begin + i + same) == n; same++) continue;
        with(same, [&](auto rows) {
            const auto at = [&](int64_t s) { return own_values + place(n, s, own.value); };
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
    const __m512 bound = _mm512_set1_ps(least);
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 there = first(count - i);
        found += __builtin_popcount(_mm512_mask_cmp_ps_mask(there, load(x + i, there), bound, _CMP_GE_OQ));
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
    __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity()), least = _mm512_sub_ps(_mm512_setzero_ps(), most);
    __mmask16 no_number = 0;
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 there = first(count - i);
        const __m512 numbers = load(x + i, there);
        no_number |= _mm512_mask_cmp_ps_mask(there, numbers, numbers, _CMP_UNORD_Q);
        most = _mm512_mask_max_ps(most, there, most, numbers);
        least = _mm512_mask_min_ps(least, there, least, numbers);
    }
    if (no_number) return false;
    // The k-th largest is from `low` on and below `high`: its bits are found in 32 passes at most.
    int64_t low = as_key(_mm512_reduce_min_ps(least)), high = int64_t(as_key(_mm512_reduce_max_ps(most))) + 1;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2, found = count_from(x, count, as_number(middle));
        (found >= k ? low : high) = middle;
        if (found == k) break;
    }
    const __m512 bound = _mm512_set1_ps(as_number(low));
    int64_t above = 0;
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 there = first(count - i);
        above += __builtin_popcount(_mm512_mask_cmp_ps_mask(there, load(x + i, there), bound, _CMP_GT_OQ));
    }
    int64_t equal = k - above, taken = 0;
    __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = 0; i < count && taken < k; i += 16, place = _mm512_add_epi32(place, _mm512_set1_epi32(16))) {
        const __mmask16 there = first(count - i);
        const __m512 numbers = load(x + i, there);
        __mmask16 chosen = _mm512_mask_cmp_ps_mask(there, numbers, bound, _CMP_GT_OQ);
        __mmask16 same = _mm512_mask_cmp_ps_mask(there, numbers, bound, _CMP_EQ_OQ);
        while (__builtin_popcount(same) > equal) same &= ~(1 << (31 - __builtin_clz(same)));
        equal -= __builtin_popcount(same);
        chosen |= same;
        _mm512_mask_compressstoreu_epi32(places + taken, chosen, place);
        _mm512_mask_compressstoreu_ps(largest + taken, chosen, numbers);
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

// Adds up 16 J columns of the chosen values of all rows of a set. All rows go through the positions together, in blocks
// that stay in the cache.
template <int J, class T>
void add_chosen(const float *weights, const int32_t *places, int64_t rows, int64_t positions, int64_t k, const T *values,
                int64_t stride, int64_t column, int64_t width, float *out) {
    const int64_t block = CACHED / (16 * J * sizeof(T));
    static thread_local std::vector<int64_t> next;
    next.assign(rows, 0);
    for (int64_t r = 0; r < rows; r++) std::fill_n(out + r * width + column, std::min<int64_t>(16 * J, width - column), 0.f);
    for (int64_t end = block; end < positions + block; end += block) {
        for (int64_t r = 0; r < rows; r++) {
            const int32_t *chosen = places + r * k;
            const int64_t begin = next[r];
            while (next[r] < k && chosen[next[r]] < end) next[r]++;
            add<1, J>(weights + r * k + begin, 0, next[r] - begin,
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
    const int64_t columns = width <= 64 ? 64 : 128, parts = (width + columns - 1) / columns;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < sets * parts; i++) {
        const int64_t set = i / parts, start = set / heads * value_sequence + set % heads * value_head;
        const auto add = [&](const auto *from) {
            const auto call = columns == 64 ? add_chosen<4, std::decay_t<decltype(*from)>> : add_chosen<8, std::decay_t<decltype(*from)>>;
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
