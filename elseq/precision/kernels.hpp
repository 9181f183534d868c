// Linear layers, also called by a step of a whole layer.

#pragma once

#include <cstdint>

extern "C" {
void elseq_quantize_rows(const float *x, uint8_t *quantized, float *scale, int64_t rows, int64_t width, int threads);
void elseq_linear_int8(const void *x, const float *row_scale, const void *tiles, const int32_t *offset,
                       const float *column_scale, const float *bias, const float *gelu, float *out, int64_t rows,
                       int64_t columns, int64_t groups, int activation, int threads);
void elseq_linear_float32(const void *x, const void *tiles, const float *bias, const float *gelu, float *out, int64_t rows,
                          int64_t columns, int64_t inputs, int activation, int threads);
}
