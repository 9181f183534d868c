// Attention of a decoding step, also called by a step of a whole layer.

#pragma once

#include <cstdint>

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

// query: numbers of hypotheses and heads lie so far apart. out: [queries, heads, width]. top_k: scores of a query that count.
extern "C" void elseq_decode_step(const float *query, float *out, int64_t query_row, int64_t query_head, int64_t queries,
                                  int64_t heads, int64_t kv_heads, int64_t width, int64_t top_k, const Shared *shared,
                                  const Own *own, int threads);
