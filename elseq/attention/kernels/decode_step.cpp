// Attention of a decoding step. decode_step.py describes the function and checks its arguments.

#include "largest.hpp"

namespace {

struct Step {
    const float *query;
    float *out;  // [queries, heads, width]
    int64_t query_row, query_head, queries, heads, kv_heads, width, top_k;
    Shared shared;
    Own own;
};

template <class T>
INLINE void fetch(const T *from, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / sizeof(T)) _mm_prefetch(from + i, _MM_HINT_T0);
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

template <int R, class At>
__attribute__((noinline)) void mix(const float *weights, int64_t row, int64_t positions, const At &at, int64_t width, float *out) {
    constexpr int J = REGISTERS == 2 && R <= 2 ? 8 / R : REGISTERS;  // sums that do not wait for each other
    int64_t column = 0;
    for (; column + J * LANES <= width; column += J * LANES)
        accumulate<R, J>(weights, row, positions, at, column, width, out, width);
    for (; column < width; column += LANES) accumulate<R, 1>(weights, row, positions, at, column, width, out, width);
}

// The queries that read a key/value head of a sentence: query q is that of a hypothesis and of a head.
struct HeadQueries {
    const Step &step;
    int64_t sequence, kv_head;
    int64_t ratio() const { return step.heads / step.kv_heads; }
    int64_t per_sequence() const { return step.queries / step.shared.sequences; }
    int64_t row(int64_t q) const { return sequence * per_sequence() + q / ratio(); }
    int64_t head(int64_t q) const { return kv_head * ratio() + q % ratio(); }
};

template <class T, class U>
void block(const HeadQueries &of, int64_t begin, int64_t end, std::vector<float> &memory) {
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
            const float *one[] = {query[i]};
            products<1>(one, four, width, to + s, 0);
        }
    }

    const OfSentence<T> value{values, shared.value[2]};
    const auto own_value = [&](int64_t i) { return OfHypothesis<U>{own_values, own.value, own, of.row(begin + i), of.kv_head}; };
    float sum[MOST];
    std::fill_n(out, count * width, 0.f);
    if (p.top_k < seen(shared, mask) + own.positions) {
        static thread_local std::vector<int32_t> memory_of_places;
        memory_of_places.resize(std::max<int64_t>(memory_of_places.size(), MOST * p.top_k));
        int32_t *places = memory_of_places.data();
        for (int64_t i = 0; i < count; i++) {
            choose(scores + i * row, positions, p.top_k, places + i * p.top_k);
            sum[i] = 1;
        }
        add_chosen<T>(scores, row, places, p.top_k, count, 0, shared.positions, value, width, out);
        for (int64_t i = 0; own.positions && i < count; i++)
            add_chosen<U>(scores + i * row, row, places + i * p.top_k, p.top_k, 1, shared.positions, positions, own_value(i), width,
                          out + i * width);
    } else {
        for (int64_t i = 0; i < count; i++) {
            float *of_query = scores + i * row;
            sum[i] = exponentials(of_query, positions, maximum(of_query, positions));
        }
        with(count, [&](auto rows) { mix<rows()>(scores, row, shared.positions, value, width, out); });
        for (int64_t i = 0, same; own.positions && i < count; i += same) {
            for (same = 1; i + same < count && of.row(begin + i + same) == of.row(begin + i); same++) continue;
            with(same, [&](auto rows) {
                mix<rows()>(scores + i * row + shared.positions, row, own.positions, own_value(i), width, out + i * width);
            });
        }
    }
    for (int64_t i = 0; i < count; i++) {
        float *to = p.out + (of.row(begin + i) * p.heads + of.head(begin + i)) * width;
        for (int64_t k = 0; k < width; k++) to[k] = out[i * width + k] / sum[i];
    }
}

}  // namespace

extern "C" {

void elseq_decode_step(const float *query, float *out, int64_t query_row, int64_t query_head, int64_t queries,
                       int64_t heads, int64_t kv_heads, int64_t width, int64_t top_k, const Shared *shared, const Own *own,
                       int threads) {
    const Step step{query, out, query_row, query_head, queries, heads, kv_heads, width, top_k, *shared, *own};
    if (!queries || !heads) return;
    const int64_t each = HeadQueries{step, 0, 0}.per_sequence() * heads / kv_heads;
    const int64_t blocks = (each + MOST - 1) / MOST, count = shared->sequences * kv_heads * blocks;
    if (2 * queries * heads * width * (shared->positions + own->positions) < SMALL / 8) threads = 1;
    const int64_t chunk = std::clamp<int64_t>(count / (8 * threads), 1, 8);
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        static thread_local std::vector<float> memory;
        const HeadQueries of{step, i / blocks / kv_heads, i / blocks % kv_heads};
        const int64_t begin = each * (i % blocks) / blocks, end = each * (i % blocks + 1) / blocks;
        if (shared->bfloat16 && own->bfloat16) block<uint16_t, uint16_t>(of, begin, end, memory);
        else if (shared->bfloat16) block<uint16_t, float>(of, begin, end, memory);
        else if (own->bfloat16) block<float, uint16_t>(of, begin, end, memory);
        else block<float, float>(of, begin, end, memory);
    }
}
}
