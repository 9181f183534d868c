// Attention of a decoding step to hidden states. el_step.py describes the function and checks its arguments.

#include <cmath>

#include "largest.hpp"

namespace {

constexpr int64_t BLOCK = 64;     // positions whose hidden states stay in the second-level cache
constexpr int64_t TOGETHER = 96;  // queries that read a block one after the other
constexpr int64_t SCORED = REGISTERS == 2 ? 3 : MOST;  // queries of a tile of scores, which has four positions
constexpr int64_t PROJECTED = 16;  // numbers of a head that a thread projects together

// A scratch of the scores of all positions, and of the places of the largest: what top-k attention needs.
struct Chosen {
    float *scores;    // [queries, heads, row]
    int32_t *places;  // [queries, heads, top_k]
    int64_t row;
};

struct Step {
    const float *query;                       // [queries, heads, head_width], numbers of queries and heads so far apart:
    int64_t query_row, query_head;
    const void *key_weight, *value_weight;    // [kv_heads, head_width, width], float32 or bfloat16
    const float *value_bias;                  // [kv_heads, head_width], or null
    float *expanded, *context;                // [queries, heads, width]
    float *out;                               // [queries, heads, head_width]
    int64_t queries, heads, kv_heads, head_width, width, top_k;
    Chosen chosen;
    Shared shared;
    Own own;
    int threads;

    int64_t kv_head(int64_t head) const { return head / (heads / kv_heads); }
    int64_t positions() const { return shared.positions + own.positions; }
};

// Some queries of a sentence, each of a hypothesis and a head, and what was found of them in the positions so far.
class Queries {
  public:
    Queries(const Step &step, int64_t begin, int64_t end, bool chooses, std::vector<float> &memory)
        : step(step), begin(begin), count(end - begin), width(step.width), row(chooses ? step.chosen.row : BLOCK),
          chooses(chooses) {
        memory.resize(std::max<int64_t>(memory.size(), count * (2 + BLOCK + width)));
        most = memory.data(), sum = most + count, out = sum + count;
        scores = chooses ? step.chosen.scores + begin * row : out + count * width;
        places = chooses ? step.chosen.places + begin * step.top_k : nullptr;
        std::fill_n(most, count, std::numeric_limits<float>::lowest());
        std::fill_n(sum, count, chooses ? 1.f : 0.f);
        std::fill_n(out, count * width, 0.f);
    }

    int64_t hypothesis(int64_t i) const { return (begin + i) / step.heads; }

    // The queries from i to end attend to the positions from `first` on; `at(s)` are the hidden states of position first + s,
    // of type T. Where only the largest scores count, their scores are kept.
    template <class T, class At>
    void attend(int64_t i, int64_t end, int64_t first, int64_t positions, const At &at, const uint8_t *mask = nullptr) {
        for (int64_t start = 0; start < positions; start += BLOCK) {
            const int64_t some = std::min(BLOCK, positions - start);
            const T *hidden[BLOCK];
            for (int64_t s = 0; s < some; s++) hidden[s] = at(start + s);
            float *found = scores + (chooses ? first + start : 0);
            for (int64_t q = i; q < end; q += SCORED)
                with(std::min(SCORED, end - q), [&](auto rows) { score<rows()>(q, hidden, some, found + q * row); });
            for (int64_t q = i; mask && q < end; q++) hide(found + q * row, mask + start, some);
            if (!chooses) add_block(i, end, hidden, some);
        }
    }

    void choose_largest() {
        for (int64_t i = 0; i < count; i++) choose(scores + i * row, step.positions(), step.top_k, places + i * step.top_k);
    }

    // The queries from i to end attend to what they have chosen of such positions.
    template <class T, class At>
    void attend_to_chosen(int64_t i, int64_t end, int64_t first, int64_t positions, const At &at) {
        add_chosen<T>(scores + i * row, row, places + i * step.top_k, step.top_k, end - i, first, first + positions, at, width,
                      out + i * width);
    }

    void finish() const {
        for (int64_t i = 0; i < count; i++)
            for (int64_t k = 0; k < width; k++) step.context[(begin + i) * width + k] = out[i * width + k] / sum[i];
    }

    const Step &step;
    const int64_t begin, count, width, row;  // row: scores of a query
    const bool chooses;

  private:
    float *most, *sum;    // of the scores, and of their exponentials relative to it
    float *scores, *out;  // [count, row], [count, width]: the weighted sum of the hidden states
    int32_t *places;      // [count, top_k]

    template <int R, class T>
    __attribute__((noinline)) void score(int64_t i, const T *const *hidden, int64_t positions, float *found) {
        const float *query[R];
        UNROLL for (int r = 0; r < R; r++) query[r] = step.expanded + (begin + i + r) * width;
        for (int64_t s = 0; s < positions; s += 4) {
            const T *four[4];
            UNROLL for (int j = 0; j < 4; j++) four[j] = hidden[std::min(s + j, positions - 1)];
            products<R>(query, four, width, found + s, row);
        }
    }

    static void hide(float *found, const uint8_t *mask, int64_t positions) {
        for (int64_t s = 0; s < positions; s += LANES) {
            const Mask there = first(positions - s);
            store(found + s, select(not_zero(mask + s, there), all(-INFINITE), load(found + s, there)), there);
        }
    }

    template <class T>
    void add_block(int64_t i, int64_t end, const T *const *hidden, int64_t positions) {
        for (int64_t q = i; q < end; q++) weigh(q, positions);
        const auto at = [&](int64_t s) INLINED { return hidden[s]; };
        for (int64_t column = 0; column < width; column += TILE)
            for (int64_t q = i; q < end; q += MOST)
                with(std::min(MOST, end - q), [&](auto rows) {
                    accumulate<rows(), REGISTERS>(scores + q * row, row, positions, at, column, width, out + q * width, width);
                });
    }

    // Exponentials of the scores of a query; what was found before is lowered to the same scale.
    void weigh(int64_t i, int64_t positions) {
        float *of_query = scores + i * row;
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

// All queries, those of a sentence in so many parts, attend to their positions.
template <class T, class U>
void attend(const Step &p, int64_t parts) {
    const Shared &shared = p.shared;
    const Own &own = p.own;
    const int64_t each = p.queries / shared.sequences * p.heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(p.threads)
    for (int64_t i = 0; i < shared.sequences * parts; i++) {
        static thread_local std::vector<float> memory;
        const int64_t sequence = i / parts, part = i % parts, begin = sequence * each;
        const uint8_t *mask = shared.mask ? shared.mask + sequence * shared.mask_row : nullptr;
        const bool chooses = p.top_k < seen(shared, mask) + own.positions;
        Queries queries(p, begin + each * part / parts, begin + each * (part + 1) / parts, chooses, memory);
        const T *states = static_cast<const T *>(shared.values) + sequence * shared.value[0];
        const OfSentence<T> of_sentence{states, shared.value[2]};
        const auto each_hypothesis = [&](const auto &call) {
            for (int64_t i = 0, end; own.positions && i < queries.count; i = end) {
                const int64_t n = queries.hypothesis(i);
                for (end = i + 1; end < queries.count && queries.hypothesis(end) == n; end++) continue;
                call(i, end, OfHypothesis<U>{static_cast<const U *>(own.values), own.value, own, n, 0});
            }
        };
        queries.template attend<T>(0, queries.count, 0, shared.positions, of_sentence, mask);
        each_hypothesis([&](int64_t i, int64_t end, const auto &at) {
            queries.template attend<U>(i, end, shared.positions, own.positions, at);
        });
        if (chooses) {
            queries.choose_largest();
            queries.template attend_to_chosen<T>(0, queries.count, 0, shared.positions, of_sentence);
            each_hypothesis([&](int64_t i, int64_t end, const auto &at) {
                queries.template attend_to_chosen<U>(i, end, shared.positions, own.positions, at);
            });
        }
        queries.finish();
    }
}

// The queries in the width of the hidden states.
template <class T>
void expand(const Step &p) {
    const int64_t parts = (p.width + TILE - 1) / TILE, row = p.heads * p.width;
#pragma omp parallel for num_threads(p.threads)
    for (int64_t i = 0; i < p.heads * parts; i++) {
        const int64_t head = i / parts, column = i % parts * TILE;
        const float *query = p.query + head * p.query_head;
        const T *weight = static_cast<const T *>(p.key_weight) + p.kv_head(head) * p.head_width * p.width;
        float *out = p.expanded + head * p.width;
        for (int64_t n = 0; n < p.queries; n++) std::fill_n(out + n * row + column, std::min(TILE, p.width - column), 0.f);
        for (int64_t n = 0; n < p.queries; n += MOST)
            with(std::min(MOST, p.queries - n), [&](auto rows) {
                accumulate<rows(), REGISTERS>(query + n * p.query_row, p.query_row, p.head_width, OfSentence<T>{weight, p.width},
                                              column, p.width, out + n * row, row);
            });
    }
}

// The values of the weighted hidden states.
template <class T>
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
                    const T *weight[4];
                    float found[4 * rows()];
                    UNROLL for (int j = 0; j < 4; j++)
                        weight[j] = static_cast<const T *>(p.value_weight) + (first + std::min(k + j, end - 1)) * p.width;
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

extern "C" void elseq_el_step(const float *query, int64_t query_row, int64_t query_head, const void *key_weight,
                              const void *value_weight, const float *value_bias, float *expanded, float *context, float *out,
                              float *scores, int32_t *places, int64_t queries, int64_t heads, int64_t kv_heads,
                              int64_t head_width, int64_t width, int64_t top_k, const Shared *shared, const Own *own,
                              int bfloat16, int threads) {
    if (!queries || !heads) return;
    const int64_t positions = shared->positions + own->positions;
    if (2 * queries * heads * width * (positions + head_width) < SMALL / 8) threads = 1;
    const Step step{query, query_row, query_head, key_weight, value_weight, value_bias, expanded, context, out,
                    queries, heads, kv_heads, head_width, width, top_k, {scores, places, positions + 3}, *shared, *own, threads};
    (bfloat16 ? expand<uint16_t> : expand<float>)(step);
    const int64_t sequences = shared->sequences, each = queries / sequences * heads;
    const int64_t parts = std::clamp<int64_t>((threads + sequences - 1) / sequences, (each + TOGETHER - 1) / TOGETHER,
                                              (each + MOST - 1) / MOST);
    if (shared->bfloat16) (own->bfloat16 ? attend<uint16_t, uint16_t> : attend<uint16_t, float>)(step, parts);
    else (own->bfloat16 ? attend<float, uint16_t> : attend<float, float>)(step, parts);
    (bfloat16 ? project<uint16_t> : project<float>)(step);
}
