// Attention of a decoding step to hidden states. el_step.py describes the function and checks its arguments.

#include <cmath>

#include "attend.hpp"

namespace {

constexpr int64_t BLOCK = 64;     // positions whose hidden states stay in the second-level cache
constexpr int64_t TOGETHER = 96;  // queries that read a block one after the other
constexpr int64_t SCORED = REGISTERS == 2 ? 3 : MOST;  // queries of a tile of scores, which has four positions
constexpr int64_t PROJECTED = 16;  // numbers of a head that a thread projects together

struct Step {
    const float *query;                         // [queries, heads, head_width], numbers of queries and heads so far apart:
    int64_t query_row, query_head;
    const float *key_weight, *value_weight;     // [kv_heads, head_width, width]
    const float *value_bias;                    // [kv_heads, head_width], or null
    float *expanded, *context;                  // [queries, heads, width]
    float *out;                                 // [queries, heads, head_width]
    int64_t queries, heads, kv_heads, head_width, width;
    Shared shared;
    Own own;
    int threads;

    int64_t kv_head(int64_t head) const { return head / (heads / kv_heads); }
};

// Some queries of a sentence, each of a hypothesis and a head, and what was found of them in the positions so far.
class Queries {
  public:
    Queries(const Step &step, int64_t begin, int64_t end, std::vector<float> &memory)
        : step(step), begin(begin), count(end - begin), width(step.width) {
        memory.resize(std::max<int64_t>(memory.size(), count * (2 + BLOCK + width)));
        most = memory.data(), sum = most + count, scores = sum + count, out = scores + count * BLOCK;
        std::fill_n(most, count, std::numeric_limits<float>::lowest());
        std::fill_n(sum, count, 0.f);
        std::fill_n(out, count * width, 0.f);
    }

    int64_t hypothesis(int64_t i) const { return (begin + i) / step.heads; }

    // The queries from i to end attend to more positions; `at(s)` are the hidden states of position s of type T.
    template <class T, class At>
    void attend(int64_t i, int64_t end, int64_t positions, const At &at, const uint8_t *mask = nullptr) {
        for (int64_t start = 0; start < positions; start += BLOCK) {
            const int64_t some = std::min(BLOCK, positions - start);
            const T *hidden[BLOCK];
            for (int64_t s = 0; s < some; s++) hidden[s] = at(start + s);
            attend_to_block(i, end, hidden, some, mask ? mask + start : nullptr);
        }
    }

    void finish() const {
        for (int64_t i = 0; i < count; i++)
            for (int64_t k = 0; k < width; k++) step.context[(begin + i) * width + k] = out[i * width + k] / sum[i];
    }

    const Step &step;
    const int64_t begin, count, width;

  private:
    float *most, *sum;    // of the scores, and of their exponentials relative to it
    float *scores, *out;  // [count, BLOCK], [count, width]: the weighted sum of the hidden states

    template <class T>
    void attend_to_block(int64_t i, int64_t end, const T *const *hidden, int64_t positions, const uint8_t *mask) {
        for (int64_t row = i; row < end; row += SCORED)
            with(std::min(SCORED, end - row), [&](auto rows) { score<rows()>(row, hidden, positions); });
        for (int64_t row = i; row < end; row++) weigh(row, positions, mask);
        const auto at = [&](int64_t s) INLINED { return hidden[s]; };
        for (int64_t column = 0; column < width; column += TILE)
            for (int64_t row = i; row < end; row += MOST)
                with(std::min(MOST, end - row), [&](auto rows) {
                    accumulate<rows(), REGISTERS>(scores + row * BLOCK, BLOCK, positions, at, column, width, out + row * width, width);
                });
    }

    template <int R, class T>
    __attribute__((noinline)) void score(int64_t row, const T *const *hidden, int64_t positions) {
        const float *query[R];
        UNROLL for (int r = 0; r < R; r++) query[r] = step.expanded + (begin + row + r) * width;
        for (int64_t s = 0; s < positions; s += 4) {
            const T *four[4];
            UNROLL for (int j = 0; j < 4; j++) four[j] = hidden[std::min(s + j, positions - 1)];
            products<R>(query, four, width, scores + row * BLOCK + s, BLOCK);
        }
    }

    // Exponentials of the scores of a query; what was found before is lowered to the same scale.
    void weigh(int64_t i, int64_t positions, const uint8_t *mask) {
        float *of_query = scores + i * BLOCK;
        for (int64_t s = 0; mask && s < positions; s += LANES) {
            const Mask there = first(positions - s);
            store(of_query + s, select(not_zero(mask + s, there), all(-INFINITE), load(of_query + s)), there);
        }
        const float before = most[i];
        most[i] = std::max(before, maximum(of_query, positions));
        const float total = exponentials(of_query, positions, most[i]);
        if (most[i] != before) {
            const float scale = std::exp(before - most[i]);
            sum[i] *= scale;
            for (int64_t k = 0; k < width; k++) out[i * width + k] *= scale;
        }
        sum[i] += total;
    }
};

template <class T>
void attend_to_sentence(Queries &queries, const Shared &shared, int64_t sequence) {
    const T *hidden = static_cast<const T *>(shared.values) + sequence * shared.value[0];
    const uint8_t *mask = shared.mask ? shared.mask + sequence * shared.mask_row : nullptr;
    queries.attend<T>(0, queries.count, shared.positions, OfSentence<T>{hidden, shared.value[2]}, mask);
}

template <class T>
void attend_to_own(Queries &queries, const Own &own) {
    for (int64_t i = 0, end; i < queries.count; i = end) {
        const int64_t n = queries.hypothesis(i);
        for (end = i + 1; end < queries.count && queries.hypothesis(end) == n; end++) continue;
        queries.attend<T>(i, end, own.positions, OfHypothesis<T>{static_cast<const T *>(own.values), own.value, own, n, 0});
    }
}

// The queries in the width of the hidden states.
void expand(const Step &p) {
    const int64_t parts = (p.width + TILE - 1) / TILE, row = p.heads * p.width;
#pragma omp parallel for num_threads(p.threads)
    for (int64_t i = 0; i < p.heads * parts; i++) {
        const int64_t head = i / parts, column = i % parts * TILE;
        const float *query = p.query + head * p.query_head, *weight = p.key_weight + p.kv_head(head) * p.head_width * p.width;
        float *out = p.expanded + head * p.width;
        for (int64_t n = 0; n < p.queries; n++) std::fill_n(out + n * row + column, std::min(TILE, p.width - column), 0.f);
        for (int64_t n = 0; n < p.queries; n += MOST)
            with(std::min(MOST, p.queries - n), [&](auto rows) {
                accumulate<rows(), REGISTERS>(query + n * p.query_row, p.query_row, p.head_width,
                                              OfSentence<float>{weight, p.width}, column, p.width, out + n * row, row);
            });
    }
}

// The values of the weighted hidden states.
void project(const Step &p) {
    const int64_t parts = (p.head_width + PROJECTED - 1) / PROJECTED, row = p.heads * p.width;
#pragma omp parallel for num_threads(p.threads)
    for (int64_t i = 0; i < p.heads * parts; i++) {
        const int64_t head = i / parts, begin = i % parts * PROJECTED, end = std::min(begin + PROJECTED, p.head_width);
        const int64_t first = p.kv_head(head) * p.head_width;
        const float *context = p.context + head * p.width;
        for (int64_t n = 0; n < p.queries; n += SCORED)
            with(std::min(SCORED, p.queries - n), [&](auto rows) {
                const float *of[rows()];
                UNROLL for (int r = 0; r < rows(); r++) of[r] = context + (n + r) * row;
                for (int64_t k = begin; k < end; k += 4) {
                    const float *weight[4];
                    float found[4 * rows()];
                    UNROLL for (int j = 0; j < 4; j++) weight[j] = p.value_weight + (first + std::min(k + j, end - 1)) * p.width;
                    products<rows()>(of, weight, p.width, found, 4);
                    for (int r = 0; r < rows(); r++)
                        for (int64_t j = 0; j < std::min<int64_t>(4, end - k); j++)
                            p.out[((n + r) * p.heads + head) * p.head_width + k + j] =
                                found[4 * r + j] + (p.value_bias ? p.value_bias[first + k + j] : 0);
                }
            });
    }
}

}  // namespace

extern "C" void elseq_el_step(const float *query, int64_t query_row, int64_t query_head, const float *key_weight,
                              const float *value_weight, const float *value_bias, float *expanded, float *context, float *out,
                              int64_t queries, int64_t heads, int64_t kv_heads, int64_t head_width, int64_t width,
                              const Shared *shared, const Own *own, int threads) {
    if (!queries || !heads) return;
    if (2 * queries * heads * width * (shared->positions + own->positions + head_width) < SMALL / 8) threads = 1;
    const Step step{query, query_row, query_head, key_weight, value_weight, value_bias, expanded, context, out,
                    queries, heads, kv_heads, head_width, width, *shared, *own, threads};
    expand(step);
    const int64_t sequences = shared->sequences, each = queries / sequences * heads;
    const int64_t parts = std::clamp<int64_t>((threads + sequences - 1) / sequences, (each + TOGETHER - 1) / TOGETHER,
                                              (each + MOST - 1) / MOST);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < sequences * parts; i++) {
        static thread_local std::vector<float> memory;
        const int64_t sequence = i / parts, part = i % parts;
        const int64_t begin = sequence * each + each * part / parts, end = sequence * each + each * (part + 1) / parts;
        Queries some(step, begin, end, memory);
        (shared->bfloat16 ? attend_to_sentence<uint16_t> : attend_to_sentence<float>)(some, *shared, sequence);
        (own->bfloat16 ? attend_to_own<uint16_t> : attend_to_own<float>)(some, *own);
        some.finish();
    }
    project(step);
}
