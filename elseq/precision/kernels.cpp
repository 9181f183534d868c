// int8 linear layers and log-probabilities. kernels.py describes the functions and checks their arguments.

#include <cmath>
#include <vector>

#include "../native.hpp"

namespace {

constexpr int64_t TILE_ROWS = 6, PANEL_COLUMNS = 64;
constexpr int VECTORS = REGISTERS * sizeof(Numbers) / sizeof(Sums);  // of a tile
constexpr int64_t COLUMNS = VECTORS * LANES;
constexpr int64_t LINE = std::min<int64_t>(64, 4 * COLUMNS), LINES = 4 * COLUMNS / LINE;  // of the weights of a group
constexpr int64_t CACHED = 512 << 10;  // bytes of x that stay in the second-level cache beside the weights

enum Activation { NONE, RELU, GELU };

struct Product {
    const uint8_t *x;  // [rows, groups, 4]
    const float *row_scale;
    const int8_t *tiles;  // [columns / COLUMNS, groups, COLUMNS, 4]
    const int32_t *offset;
    const float *column_scale, *bias, *gelu;
    float *out;
    int64_t rows, columns, groups;
    int activation;
};

// relu(x) minus |x| P(X > |x|), a cubic in each of 32 intervals; `table` is [4, 32], the highest power first.
INLINE Numbers gelu(Numbers x, const float *table) {
    const Numbers magic = all(12582912);  // 1.5 * 2^23: what is added to it is rounded, in its low bits
    const Numbers place = min(magnitude(x) * all(5.75f), all(31));
    const Numbers rounded = place + magic;
    const Integers index = integers(rounded);
    const Numbers rest = place - (rounded - magic);
    Numbers tail = look_up(table, index);
    UNROLL for (int power = 1; power < 4; power++) tail = fmadd(tail, rest, look_up(table + 32 * power, index));
    return max(all(0), x) - tail;  // max: NaN stays, as the second operand
}

template <int R, int ACTIVATION>
INLINE void finish(const Product &p, const Sums (&sums)[R][VECTORS], int64_t row, int64_t column) {
    UNROLL for (int j = 0; j < VECTORS; j++) {
        const int64_t start = column + LANES * j;
        const Mask there = first(p.columns - start);
        const Integers offset = load(p.offset + start);
        const Numbers scale = load(p.column_scale + start, there);
        const Numbers bias = p.bias ? load(p.bias + start, there) : all(0);
        UNROLL for (int r = 0; r < R; r++) {
            Numbers y = as_numbers(add(total(sums[r][j]), offset)) * all(p.row_scale[row + r]);
            y = fmadd(y, scale, bias);
            if (ACTIVATION == RELU) y = max(all(0), y);
            if (ACTIVATION == GELU) y = gelu(y, p.gelu);
            store(p.out + (row + r) * p.columns + start, y, there);
        }
    }
}

// R rows, whose groups are given, by COLUMNS. FETCH: cache lines of the next weights that each step asks for.
template <int R, int FETCH>
void tile(const Product &p, const Group *x, int64_t row, int64_t column, const int8_t *next) {
    const int8_t *w = p.tiles + column * p.groups * 4;
    Sums sums[R][VECTORS];
    if (p.rows * p.columns > CACHED)  // the memory of the result is far away as well
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int j = 0; j < VECTORS; j++)
                _mm_prefetch(p.out + (row + r) * p.columns + column + LANES * j, _MM_HINT_T0);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < VECTORS; j++) sums[r][j] = no_sums();
    for (int64_t group = 0; group < p.groups; group++, w += 4 * COLUMNS) {
        UNROLL for (int i = 0; i < FETCH; i++) _mm_prefetch(next + LINE * (FETCH * group + i), _MM_HINT_T1);
        Weights weights[VECTORS];
        UNROLL for (int j = 0; j < VECTORS; j++) weights[j] = load(w + 4 * LANES * j);
        UNROLL for (int r = 0; r < R; r++) {
            const auto four = repeated(x + r * p.groups + group);
            UNROLL for (int j = 0; j < VECTORS; j++) sums[r][j] = add_products(sums[r][j], four, weights[j]);
        }
    }
    if (p.activation == NONE) finish<R, NONE>(p, sums, row, column);
    if (p.activation == RELU) finish<R, RELU>(p, sums, row, column);
    if (p.activation == GELU) finish<R, GELU>(p, sums, row, column);
}

template <int FETCH>
void tile_of(int rows, const Product &p, const Group *x, int64_t row, int64_t column, const int8_t *next) {
    switch (rows) {
        case 1: return tile<1, FETCH>(p, x, row, column, next);
        case 2: return tile<2, FETCH>(p, x, row, column, next);
        case 3: return tile<3, FETCH>(p, x, row, column, next);
        case 4: return tile<4, FETCH>(p, x, row, column, next);
        case 5: return tile<5, FETCH>(p, x, row, column, next);
        case 6: return tile<6, FETCH>(p, x, row, column, next);
    }
}

// All rows of a block by the columns of a panel, in tiles of almost equal heights. The weights of the next panel come
// from memory meanwhile.
void panel_of(const Product &p, int64_t begin, int64_t end, int64_t panel) {
    static thread_local std::vector<Group> memory;
    memory.resize(std::max<int64_t>(memory.size(), TILE_ROWS * p.groups));
    const int64_t count = (end - begin + TILE_ROWS - 1) / TILE_ROWS, step = LINE * p.groups;
    const int64_t last = std::min((panel + 1) * PANEL_COLUMNS, p.columns);
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = begin + (end - begin) * i / count;
        const int rows = begin + (end - begin) * (i + 1) / count - row;
        const Group *x = as_groups(p.x + row * p.groups * 4, rows * p.groups, memory.data());
        for (int64_t column = panel * PANEL_COLUMNS; column < last; column += COLUMNS) {
            const int8_t *next = p.tiles + (column + PANEL_COLUMNS) * p.groups * 4;
            if (count < LINES && i == 0) tile_of<LINES>(rows, p, x, row, column, next);
            else if (count >= LINES && i < LINES) tile_of<1>(rows, p, x, row, column, next + i * step);
            else tile_of<0>(rows, p, x, row, column, next);
        }
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

// The number of the interface where the processor runs it, else 0; native.py has the same number. It changes with any
// argument or structure that crosses the boundary.
int elseq_available() {
    constexpr int interface = 4;
    return interface * is_supported();
}

int elseq_columns() { return COLUMNS; }

void elseq_quantize_rows(const float *x, uint8_t *quantized, float *scale, int64_t rows, int64_t width, int threads) {
    const int64_t padded = (width + 3) / 4 * 4;
    if (rows * width < SMALL / 8) threads = 1;
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * width;
        uint8_t *to = quantized + row * padded;
        Integers largest = integers(all(0));  // as integers: NaN is above infinity, which is above all else
        for (int64_t k = 0; k < width; k += LANES)
            largest = max(largest, integers(magnitude(load(from + k, first(width - k)))));
        const int32_t most = largest_of(largest);
        float size;
        std::memcpy(&size, &most, sizeof size);
        const bool finite = most < 0x7f800000, small = size < 1e-36f;  // the inverse would be infinite
        scale[row] = !finite ? std::numeric_limits<float>::quiet_NaN() : small ? 0 : size / 127;
        const Numbers inverse = all(!finite || small ? 0 : 127 / size);
        const Numbers magic = all(12582912 + 128);  // 1.5 * 2^23: the sum's low byte is the rounded value
        for (int64_t k = 0; k < padded; k += LANES) {
            const Numbers value = load(from + k, first(width - k));
            _mm_prefetch(from + width + k, _MM_HINT_T0);
            store_low_bytes(to + k, integers(fmadd(value, inverse, magic)), padded - k);
        }
    }
}

void elseq_linear(const uint8_t *x, const float *row_scale, const int8_t *tiles, const int32_t *offset,
                  const float *column_scale, const float *bias, const float *gelu, float *out, int64_t rows,
                  int64_t columns, int64_t groups, int activation, int threads) {
    const Product p{x, row_scale, tiles, offset, column_scale, bias, gelu, out, rows, columns, groups, activation};
    const int64_t panels = (columns + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
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
