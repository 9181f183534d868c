// Linear layers. kernels.py describes the functions and checks their arguments.

#include "kernels.hpp"

#include "../native.hpp"

namespace {

constexpr int64_t TILE_ROWS = 6;
constexpr int64_t CACHED = 512 << 10;  // bytes of x that stay in the second-level cache beside the weights

enum Activation { NONE, RELU, GELU };

// How a product multiplies. A step takes four bytes of each row and of each column; their products are added up.
struct Int8 {
    using Step = Group;
    using Sum = decltype(no_sum());
    static constexpr int64_t WIDTH = COLUMNS_OF_A_SUM;
    static constexpr int64_t PANEL = 64;  // columns for which the steps of some rows are made once
    static constexpr int64_t PART = int64_t(1) << 40;  // all steps: sums are exact, and parts are never added
    INLINE static Sum nothing() { return no_sum(); }
    INLINE static Sum columns(const char *from) { return load_weights(reinterpret_cast<const int8_t *>(from)); }
    INLINE static Sum row(const Step *from) { return repeated(from); }
    INLINE static Sum add(Sum sum, Sum row, Sum columns) { return add_products(sum, row, columns); }
    INLINE static const Step *steps(const char *x, int64_t count, std::vector<Step> &memory) {
        return as_groups(reinterpret_cast<const uint8_t *>(x), count, memory);
    }
};
struct Float32 {
    using Step = float;
    using Sum = Numbers;
    static constexpr int64_t WIDTH = LANES;
    static constexpr int64_t PANEL = REGISTERS * LANES;
    static constexpr int64_t PART = 256;  // steps that are added up on their own, for the sake of precision
    INLINE static Sum nothing() { return all(0); }
    INLINE static Sum columns(const char *from) { return load(reinterpret_cast<const float *>(from)); }
    INLINE static Sum row(const Step *from) { return all(*from); }
    INLINE static Sum add(Sum sum, Sum row, Sum columns) { return fmadd(row, columns, sum); }
    INLINE static const Step *steps(const char *x, int64_t, std::vector<Step> &) { return reinterpret_cast<const float *>(x); }
};
template <class Format>
constexpr int64_t COLUMNS = REGISTERS * Format::WIDTH;  // of a tile
template <class Format>
constexpr int64_t LINE = std::min<int64_t>(64, 4 * COLUMNS<Format>);  // of the cache, of the weights of a step

struct Product {
    const char *x;        // [rows, steps, 4 bytes]
    const char *weights;  // [columns / COLUMNS, steps, COLUMNS, 4 bytes]
    const float *row_scale, *column_scale;  // of int8
    const int32_t *offset;                  // of int8
    const float *bias, *gelu;
    float *out;
    int64_t rows, columns, steps;
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

template <class Format, int R>
using Sums = typename Format::Sum[R][REGISTERS];

// What the sums of a row and of `LANES` columns mean, without the bias.
INLINE Numbers value(const Product &p, const Int8::Sum *sums, int64_t row, int64_t column, Mask there) {
    const Numbers in_row = as_numbers(add(total(sums), load(p.offset + column))) * all(p.row_scale[row]);
    return in_row * load(p.column_scale + column, there);
}
INLINE Numbers value(const Product &, const Float32::Sum *sums, int64_t, int64_t, Mask) { return *sums; }

template <class Format, int R, int ACTIVATION>
__attribute__((noinline)) void finish(const Product &p, const Sums<Format, R> &sums, int64_t row, int64_t column) {
    UNROLL for (int j = 0; j < REGISTERS; j += LANES / Format::WIDTH) {
        const int64_t start = column + Format::WIDTH * j;
        const Mask there = first(p.columns - start);
        const Numbers bias = p.bias ? load(p.bias + start, there) : all(0);
        UNROLL for (int r = 0; r < R; r++) {
            Numbers y = value(p, sums[r] + j, row + r, start, there) + bias;
            if (ACTIVATION == RELU) y = max(all(0), y);
            if (ACTIVATION == GELU) y = gelu(y, p.gelu);
            store(p.out + (row + r) * p.columns + start, y, there);
        }
    }
}

// Adds up the products of some steps. FETCH: cache lines of the next weights that each step asks for.
template <class Format, int R, int FETCH>
INLINE void add_steps(int64_t begin, int64_t end, int64_t steps, const typename Format::Step *x, const char *weights,
                      const char *next, Sums<Format, R> &sums) {
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < REGISTERS; j++) sums[r][j] = Format::nothing();
    for (int64_t step = begin; step < end; step++) {
        UNROLL for (int i = 0; i < FETCH; i++) _mm_prefetch(next + LINE<Format> * (FETCH * step + i), _MM_HINT_T1);
        typename Format::Sum columns[REGISTERS];
        UNROLL for (int j = 0; j < REGISTERS; j++)
            columns[j] = Format::columns(weights + 4 * (COLUMNS<Format> * step + Format::WIDTH * j));
        UNROLL for (int r = 0; r < R; r++) {
            const auto row = Format::row(x + r * steps + step);
            UNROLL for (int j = 0; j < REGISTERS; j++) sums[r][j] = Format::add(sums[r][j], row, columns[j]);
        }
    }
}

// R rows, whose steps are given, by COLUMNS.
template <class Format, int R, int FETCH>
void tile(const Product &p, const typename Format::Step *x, int64_t row, int64_t column, const char *next) {
    const char *weights = p.weights + column * p.steps * 4;
    if (p.rows * p.columns > CACHED)  // the memory of the result is far away as well
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int64_t j = 0; j < COLUMNS<Format>; j += LANES)
                _mm_prefetch(p.out + (row + r) * p.columns + column + j, _MM_HINT_T0);
    Sums<Format, R> totals;  // apart from the sums, which stay in registers as they have no address
    for (int64_t begin = 0; begin < std::max<int64_t>(p.steps, 1); begin += Format::PART) {
        Sums<Format, R> sums;
        add_steps<Format, R, FETCH>(begin, std::min(p.steps, begin + Format::PART), p.steps, x, weights, next, sums);
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int j = 0; j < REGISTERS; j++) totals[r][j] = begin ? totals[r][j] + sums[r][j] : sums[r][j];
    }
    if (p.activation == NONE) finish<Format, R, NONE>(p, totals, row, column);
    if (p.activation == RELU) finish<Format, R, RELU>(p, totals, row, column);
    if (p.activation == GELU) finish<Format, R, GELU>(p, totals, row, column);
}

template <class Format, int FETCH>
void tile_of(int rows, const Product &p, const typename Format::Step *x, int64_t row, int64_t column, const char *next) {
    switch (rows) {
        case 1: return tile<Format, 1, FETCH>(p, x, row, column, next);
        case 2: return tile<Format, 2, FETCH>(p, x, row, column, next);
        case 3: return tile<Format, 3, FETCH>(p, x, row, column, next);
        case 4: return tile<Format, 4, FETCH>(p, x, row, column, next);
        case 5: return tile<Format, 5, FETCH>(p, x, row, column, next);
        case 6: return tile<Format, 6, FETCH>(p, x, row, column, next);
    }
}

// All rows of a block by the columns of a panel, in tiles of almost equal heights. The weights of the next panel come
// from memory meanwhile.
template <class Format>
void panel_of(const Product &p, int64_t begin, int64_t end, int64_t panel) {
    constexpr int64_t LINES = 4 * COLUMNS<Format> / LINE<Format>;
    static thread_local std::vector<typename Format::Step> memory;
    const int64_t count = (end - begin + TILE_ROWS - 1) / TILE_ROWS;
    const int64_t last = std::min((panel + 1) * Format::PANEL, p.columns);
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = begin + (end - begin) * i / count;
        const int rows = begin + (end - begin) * (i + 1) / count - row;
        const auto *x = Format::steps(p.x + row * p.steps * 4, rows * p.steps, memory);
        for (int64_t column = panel * Format::PANEL; column < last; column += COLUMNS<Format>) {
            const char *next = p.weights + (column + Format::PANEL) * p.steps * 4;
            if (count < LINES && i == 0) tile_of<Format, LINES>(rows, p, x, row, column, next);
            else if (count >= LINES && i < LINES) tile_of<Format, 1>(rows, p, x, row, column, next + i * LINE<Format> * p.steps);
            else tile_of<Format, 0>(rows, p, x, row, column, next);
        }
    }
}

template <class Format>
void multiply(const Product &p, int threads) {
    const int64_t panels = (p.columns + Format::PANEL - 1) / Format::PANEL;
    const int64_t most = std::clamp<int64_t>(CACHED / (4 * p.steps + 1), 8 * TILE_ROWS, 32 * TILE_ROWS);
    const int64_t blocks = (p.rows + most - 1) / most;
    if (p.rows * p.columns * p.steps < SMALL / 4) threads = 1;
    const int64_t chunk = std::clamp<int64_t>(blocks * panels / (8 * threads), 1, 8);
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
    for (int64_t i = 0; i < blocks * panels; i++) {
        const int64_t block = i / panels;
        panel_of<Format>(p, p.rows * block / blocks, p.rows * (block + 1) / blocks, i % panels);
    }
}

// Rows of four bytes for each step, in the order in which products read them: [columns / COLUMNS, steps, COLUMNS].
template <class Format>
void lay_out(const uint32_t *rows, uint32_t *tiles, int64_t columns, int64_t steps, uint32_t zero_point, int threads) {
    constexpr int64_t STEPS = 16;  // of a line of the cache
#pragma omp parallel for num_threads(threads)
    for (int64_t first = 0; first < columns; first += COLUMNS<Format>) {
        const uint32_t *from = rows + first * steps;
        uint32_t *to = tiles + first * steps;
        for (int64_t start = 0; start < steps; start += STEPS)
            for (int64_t column = 0; column < std::min(COLUMNS<Format>, columns - first); column++) {
                _mm_prefetch(from + column * steps + start + STEPS, _MM_HINT_T1);
                for (int64_t step = start; step < std::min(steps, start + STEPS); step++)
                    to[step * COLUMNS<Format> + column] = from[column * steps + step] ^ zero_point;
            }
    }
}

}  // namespace

extern "C" {

// The number of the interface where the processor runs it, else 0; native.py has the same number. It changes with any
// argument or structure that crosses the boundary.
int elseq_available() {
    constexpr int interface = 10;
    return interface * is_supported();
}

int elseq_columns(int is_int8) { return is_int8 ? COLUMNS<Int8> : COLUMNS<Float32>; }

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

void elseq_lay_out(const void *rows, void *tiles, int32_t *offset, int64_t columns, int64_t steps, int threads) {
    const auto *from = static_cast<const uint32_t *>(rows);
    auto *to = static_cast<uint32_t *>(tiles);
    if (columns * steps < SMALL / 8) threads = 1;
    if (!offset) return lay_out<Float32>(from, to, columns, steps, 0, threads);
    lay_out<Int8>(from, to, columns, steps, 0x80808080, threads);
    const auto *bytes = static_cast<const uint8_t *>(rows);
    for (int64_t column = 0; column < columns; column++) {
        int32_t sum = 0;
        for (int64_t i = 4 * steps * column; i < 4 * steps * (column + 1); i++) sum += bytes[i] - 128;
        offset[column] = -128 * sum;
    }
}

void elseq_linear_int8(const void *x, const float *row_scale, const void *tiles, const int32_t *offset,
                       const float *column_scale, const float *bias, const float *gelu, float *out, int64_t rows,
                       int64_t columns, int64_t groups, int activation, int threads) {
    multiply<Int8>({static_cast<const char *>(x), static_cast<const char *>(tiles), row_scale, column_scale, offset, bias,
                    gelu, out, rows, columns, groups, activation}, threads);
}

void elseq_linear_float32(const void *x, const void *tiles, const float *bias, const float *gelu, float *out, int64_t rows,
                          int64_t columns, int64_t inputs, int activation, int threads) {
    multiply<Float32>({static_cast<const char *>(x), static_cast<const char *>(tiles), nullptr, nullptr, nullptr, bias, gelu,
                       out, rows, columns, inputs, activation}, threads);
}
}
