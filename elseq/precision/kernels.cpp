// int8 linear layers and log-probabilities by AVX-512. kernels.py describes the functions and checks their arguments.

#include <algorithm>
#include <cmath>
#include <limits>

#include "../native.hpp"

namespace {

constexpr int64_t TILE_ROWS = 6, TILE_COLUMNS = 64;  // 24 of 32 registers accumulate
constexpr int64_t CACHED = 512 << 10;                // bytes of x that stay in the second-level cache beside the weights

enum Activation { NONE, RELU, GELU };

struct Product {
    const int32_t *x;  // [rows, groups]: four values of a row in each
    const float *row_scale;
    const int8_t *tiles;  // [columns / 64, groups, 64, 4]
    const int32_t *offset;
    const float *column_scale, *bias, *residual, *gelu;
    float *out;
    int64_t rows, columns, groups;
    int activation;
};

// relu(x) minus |x| P(X > |x|), a cubic in each of 32 intervals; `table` is [4, 32], the highest power first.
INLINE __m512 gelu(__m512 x, const float *table) {
    const __m512 magic = _mm512_set1_ps(12582912);  // 1.5 * 2^23: what is added to it is rounded, in its low bits
    const __m512 place = _mm512_min_ps(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(5.75f)), _mm512_set1_ps(31));
    const __m512 rounded = _mm512_add_ps(place, magic);
    const __m512i index = _mm512_castps_si512(rounded);
    const __m512 rest = _mm512_sub_ps(place, _mm512_sub_ps(rounded, magic));
    const auto coefficient = [&](int power) {
        return _mm512_permutex2var_ps(_mm512_loadu_ps(table + 32 * power), index, _mm512_loadu_ps(table + 32 * power + 16));
    };
    __m512 tail = coefficient(0);
    UNROLL for (int power = 1; power < 4; power++) tail = _mm512_fmadd_ps(tail, rest, coefficient(power));
    return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), x), tail);  // max: NaN stays, as the second operand
}

template <int R, int ACTIVATION>
INLINE void finish(const Product &p, const __m512i (&sum)[R][4], int64_t row, int64_t column) {
    UNROLL for (int j = 0; j < 4; j++) {
        const int64_t start = column + 16 * j;
        const __mmask16 mask = first(p.columns - start);
        const __m512 scale = _mm512_maskz_loadu_ps(mask, p.column_scale + start);
        const __m512 bias = p.bias ? _mm512_maskz_loadu_ps(mask, p.bias + start) : _mm512_setzero_ps();
        UNROLL for (int r = 0; r < R; r++) {
            const int64_t place = (row + r) * p.columns + start;
            __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][j]), _mm512_set1_ps(p.row_scale[row + r]));
            y = _mm512_fmadd_ps(y, scale, bias);
            if (ACTIVATION == RELU) y = _mm512_max_ps(_mm512_setzero_ps(), y);
            if (ACTIVATION == GELU) y = gelu(y, p.gelu);
            if (p.residual) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, p.residual + place));
            _mm512_mask_storeu_ps(p.out + place, mask, y);
        }
    }
}

// R rows by 64 columns. FETCH: cache lines of the next weights that each step asks for.
template <int R, int FETCH>
void tile(const Product &p, int64_t row, int64_t panel, const int8_t *next) {
    const int32_t *x = p.x + row * p.groups;
    const int8_t *w = p.tiles + panel * p.groups * 4 * TILE_COLUMNS;
    __m512i sum[R][4];
    if (p.rows * p.columns > CACHED)  // the memory of the result is far away as well
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int j = 0; j < 4; j++)
                _mm_prefetch(p.out + (row + r) * p.columns + panel * TILE_COLUMNS + 16 * j, _MM_HINT_T0);
    UNROLL for (int j = 0; j < 4; j++) {
        const __m512i offset = _mm512_loadu_si512(p.offset + panel * TILE_COLUMNS + 16 * j);
        UNROLL for (int r = 0; r < R; r++) sum[r][j] = offset;
    }
    for (int64_t group = 0; group < p.groups; group++, w += 256) {
        UNROLL for (int i = 0; i < FETCH; i++) _mm_prefetch(next + 64 * (FETCH * group + i), _MM_HINT_T1);
        __m512i weight[4];
        UNROLL for (int j = 0; j < 4; j++) weight[j] = _mm512_loadu_si512(w + 64 * j);
        UNROLL for (int r = 0; r < R; r++) {
            const __m512i value = _mm512_set1_epi32(x[r * p.groups + group]);
            UNROLL for (int j = 0; j < 4; j++) sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], value, weight[j]);
        }
    }
    const int64_t column = panel * TILE_COLUMNS;
    if (p.activation == NONE) finish<R, NONE>(p, sum, row, column);
    if (p.activation == RELU) finish<R, RELU>(p, sum, row, column);
    if (p.activation == GELU) finish<R, GELU>(p, sum, row, column);
}

template <int FETCH>
void tile_of(int rows, const Product &p, int64_t row, int64_t panel, const int8_t *next) {
    switch (rows) {
        case 1: return tile<1, FETCH>(p, row, panel, next);
        case 2: return tile<2, FETCH>(p, row, panel, next);
        case 3: return tile<3, FETCH>(p, row, panel, next);
        case 4: return tile<4, FETCH>(p, row, panel, next);
        case 5: return tile<5, FETCH>(p, row, panel, next);
        case 6: return tile<6, FETCH>(p, row, panel, next);
    }
}

// All rows of a block by 64 columns, in tiles of almost equal heights; the next weights come from memory meanwhile.
void panel_of(const Product &p, int64_t begin, int64_t end, int64_t panel) {
    const int64_t count = (end - begin + TILE_ROWS - 1) / TILE_ROWS, lines = 64 * p.groups;
    const int8_t *next = p.tiles + (panel + 1) * 4 * lines;
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = begin + (end - begin) * i / count;
        const int rows = begin + (end - begin) * (i + 1) / count - row;
        if (count < 4 && i == 0) tile_of<4>(rows, p, row, panel, next);
        else if (count >= 4 && i < 4) tile_of<1>(rows, p, row, panel, next + i * lines);
        else tile_of<0>(rows, p, row, panel, next);
    }
}

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
    for (int64_t i = count; i < width; i += 64) {
        const __m512 least = _mm512_set1_ps(values[count - 1]);
        __mmask16 above[4];
        UNROLL for (int j = 0; j < 4; j++) {
            const __mmask16 mask = first(width - i - 16 * j);
            above[j] = _mm512_mask_cmp_ps_mask(mask, _mm512_maskz_loadu_ps(mask, x + i + 16 * j), least, _CMP_GT_OQ);
        }
        if (above[0] | above[1] | above[2] | above[3])
            for (int64_t k = i; k < std::min(width, i + 64); k++)
                if (x[k] > values[count - 1]) insert(x[k], k, values, indices, count - 1);
    }
}

// Of exp(x - largest); NaN where there is one, or an infinite largest.
double sum_of_exp(const float *x, int64_t width, float largest) {
    double sum = 0;
    for (int64_t start = 0; start < width; start += 2048) {  // in parts, for the sake of precision
        __m512 part = _mm512_setzero_ps();
        for (int64_t i = start; i < std::min(width, start + 2048); i += 16) {
            const __mmask16 mask = first(width - i);
            const __m512 value = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_set1_ps(largest));
            part = _mm512_mask_add_ps(part, mask, part, exp_of_negative(value));
        }
        sum += _mm512_reduce_add_ps(part);
    }
    return sum;
}

}  // namespace

extern "C" {

// The number of the interface where the processor runs it, else 0; native.py has the same number. It changes with any
// argument or structure that crosses the boundary.
int elseq_available() {
    constexpr int interface = 3;
    return interface * (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni"));
}

void elseq_quantize_rows(const float *x, uint8_t *quantized, float *scale, int64_t rows, int64_t width, int threads) {
    const int64_t padded = (width + 3) / 4 * 4;
    if (rows * width < SMALL / 8) threads = 1;
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * width;
        uint8_t *to = quantized + row * padded;
        __m512i largest = _mm512_setzero_si512();  // as integers: NaN is above infinity, which is above all else
        for (int64_t k = 0; k < width; k += 16) {
            const __m512 value = _mm512_abs_ps(_mm512_maskz_loadu_ps(first(width - k), from + k));
            largest = _mm512_max_epi32(largest, _mm512_castps_si512(value));
        }
        const int32_t bits = _mm512_reduce_max_epi32(largest);
        const float size = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
        const bool finite = bits < 0x7f800000, small = size < 1e-36f;  // the inverse would be infinite
        scale[row] = !finite ? std::numeric_limits<float>::quiet_NaN() : small ? 0 : size / 127;
        const __m512 inverse = _mm512_set1_ps(!finite || small ? 0 : 127 / size);
        const __m512 magic = _mm512_set1_ps(12582912 + 128);  // 1.5 * 2^23: the sum's low byte is the rounded value
        for (int64_t k = 0; k < padded; k += 16) {
            const __m512 value = _mm512_maskz_loadu_ps(first(width - k), from + k);
            _mm_prefetch(from + width + k, _MM_HINT_T0);
            const __m512i byte = _mm512_castps_si512(_mm512_fmadd_ps(value, inverse, magic));
            _mm512_mask_cvtepi32_storeu_epi8(to + k, first(padded - k), byte);
        }
    }
}

void elseq_linear(const void *x, const float *row_scale, const int8_t *tiles, const int32_t *offset,
                  const float *column_scale, const float *bias, const float *residual, const float *gelu, float *out,
                  int64_t rows, int64_t columns, int64_t groups, int activation, int threads) {
    const Product p{static_cast<const int32_t *>(x), row_scale, tiles, offset,  column_scale, bias,      residual,
                    gelu,                            out,       rows,  columns, groups,       activation};
    const int64_t panels = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const int64_t most = std::clamp<int64_t>(CACHED / (4 * groups + 1), 8 * TILE_ROWS, 32 * TILE_ROWS);
    const int64_t blocks = (rows + most - 1) / most;
    if (rows * columns * groups < SMALL / 4) threads = 1;
    const int64_t chunk = std::clamp<int64_t>(blocks * panels / (8 * threads), 1, 8);
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
    for (int64_t i = 0; i < blocks * panels; i++) {
        const int64_t block = i / panels;
        panel_of(p, rows * block / blocks, rows * (block + 1) / blocks, i % panels);
    }
}

void elseq_log_softmax_top(const float *logits, float *values, int64_t *indices, int64_t rows, int64_t width,
                           int64_t count, int threads) {
    if (rows * width < SMALL / 8) threads = 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        float *best = values + row * count;
        largest(logits + row * width, width, best, indices + row * count, count);
        const double top = best[0], rest = std::log(sum_of_exp(logits + row * width, width, best[0]));
        for (int64_t i = 0; i < count; i++) best[i] = best[i] - top - rest;
    }
}
}
