// A decoding step of a decoder layer. layer_step.py describes the function and checks its arguments.

#include <cmath>

#include "../attention/kernels/decode_step.hpp"
#include "../native.hpp"
#include "../precision/kernels.hpp"

struct Norm {
    const float *weight, *bias;  // or null
    double epsilon;
};

struct Linear {
    const void *tiles;
    const int32_t *offset;       // of int8, in which all of a layer are, else null
    const float *scale, *bias;   // of int8, else null; or null
    int64_t inputs, outputs;
};

struct Attention {
    Norm norm;
    Linear query, key, value, out;  // key and value: of self-attention
    double scaling;                 // of the query
    int64_t heads, kv_heads, width, top_k;
};

struct Layer {
    Attention self, source;  // source.heads is 0 where there is none
    Norm norm;
    Linear inner, outer;
    const float *gelu;
    // inner_numbers: inner activations that are computed together.
    int64_t width, activation, normalizes_before, inner_numbers;
};

namespace {

// Memory for what is computed on the way, of some rows, whose parts are used again by the next part of the layer.
struct Work {
    float *hidden, *query, *key, *value, *context, *out, *inner, *scale;
    uint8_t *quantized;
    int64_t bytes;

    Work(const Layer &layer, int64_t rows, char *memory) : bytes(0) {
        const auto take = [&](int64_t size) {
            char *at = memory + bytes;
            bytes += (size + 63) / 64 * 64;
            return at;
        };
        const auto numbers = [&](int64_t count) { return reinterpret_cast<float *>(take(count * sizeof(float))); };
        const int64_t queries = std::max(layer.self.heads * layer.self.width, layer.source.heads * layer.source.width);
        const int64_t keys = layer.self.kv_heads * layer.self.width, together = inner_rows(layer, rows);
        hidden = numbers(layer.normalizes_before * rows * layer.width);
        out = numbers(rows * layer.width);
        const int64_t quantized_rows = layer.inner.offset ? rows : 0;
        const int64_t widest = std::max(rows * std::max(queries, layer.width), together * layer.inner.outputs);
        scale = numbers(quantized_rows);
        quantized = reinterpret_cast<uint8_t *>(take(quantized_rows ? widest + 4 * rows : 0));
        const int64_t start = bytes;
        query = numbers(rows * queries), context = numbers(rows * queries);
        key = numbers(rows * keys), value = numbers(rows * keys);
        const int64_t end = bytes;
        bytes = start;
        inner = numbers(together * layer.inner.outputs);
        bytes = std::max(bytes, end);
    }
    static int64_t inner_rows(const Layer &layer, int64_t rows) {
        return std::clamp<int64_t>(layer.inner_numbers / layer.inner.outputs, 1, std::max<int64_t>(rows, 1));
    }
};

struct Input {
    const float *x;  // [rows, inputs]
    int64_t rows;
    bool is_quantized = false;
};

struct Step {
    const Layer &layer;
    Work work;
    int64_t rows;
    int threads;

    void multiply(const Linear &by, Input &x, float *out, int activation = 0) const {
        if (by.offset) {
            if (!x.is_quantized) elseq_quantize_rows(x.x, work.quantized, work.scale, x.rows, by.inputs, threads);
            x.is_quantized = true;
            elseq_linear_int8(work.quantized, work.scale, by.tiles, by.offset, by.scale, by.bias, layer.gelu, out, x.rows,
                              by.outputs, (by.inputs + 3) / 4, activation, threads);
        } else {
            elseq_linear_float32(x.x, by.tiles, by.bias, layer.gelu, out, x.rows, by.outputs, by.inputs, activation, threads);
        }
    }

    // Each row of `width` numbers; `out` may be x.
    void normalize(const Norm &norm, const float *x, float *out) const {
        const int64_t width = layer.width;
#pragma omp parallel for num_threads(rows * width < SMALL / 8 ? 1 : threads)
        for (int64_t row = 0; row < rows; row++) {
            const float *from = x + row * width;
            Numbers sum = all(0), squares = all(0);
            for (int64_t k = 0; k < width; k += LANES) sum += load(from + k, first(width - k));
            const Numbers mean = all(sum_of(sum) / width);
            for (int64_t k = 0; k < width; k += LANES) {
                const Mask there = first(width - k);
                const Numbers rest = select(there, load(from + k, there) - mean, all(0));
                squares = fmadd(rest, rest, squares);
            }
            const float total = sum_of(squares), unknown = std::numeric_limits<float>::quiet_NaN();
            const Numbers inverse = all(total < INFINITE ? 1 / std::sqrt(total / width + float(norm.epsilon)) : unknown);
            for (int64_t k = 0; k < width; k += LANES) {
                const Mask there = first(width - k);
                Numbers y = (load(from + k, there) - mean) * inverse;
                if (norm.weight) y = y * load(norm.weight + k, there);
                if (norm.bias) y = y + load(norm.bias + k, there);
                store(out + row * width + k, y, there);
            }
        }
    }

    // What a part of the layer reads.
    Input input(const Norm &norm, const float *x) const {
        if (!layer.normalizes_before) return {x, rows};
        normalize(norm, x, work.hidden);
        return {work.hidden, rows};
    }

    // Adds what a part of the layer has computed to what it has read.
    void output(const Norm &norm, float *x) const {
        for (int64_t i = 0; i < rows * layer.width; i += LANES) {
            const Mask there = first(rows * layer.width - i);
            store(x + i, load(x + i, there) + load(work.out + i, there), there);
        }
        if (!layer.normalizes_before) normalize(norm, x, x);
    }

    // The newest position of each hypothesis.
    void remember(const Attention &of, const Own &own) const {
        const int64_t newest = own.positions - 1;
        for (int64_t i = 0; i < rows * of.kv_heads; i++) {
            const int64_t n = i / of.kv_heads, head = i % of.kv_heads, size = of.width * sizeof(float);
            const auto at = [&](const void *numbers, const int64_t *stride) {
                return const_cast<float *>(static_cast<const float *>(numbers)) + n * stride[0] + head * stride[1] +
                       newest * stride[2];
            };
            std::memcpy(at(own.keys, own.key), work.key + i * of.width, size);
            std::memcpy(at(own.values, own.value), work.value + i * of.width, size);
        }
    }

    void attend(const Attention &by, float *x, const Shared *shared, const Own *own) const {
        Input read = input(by.norm, x);
        multiply(by.query, read, work.query);
        const int64_t width = by.heads * by.width;
        const Numbers scaling = all(by.scaling);
        for (int64_t i = 0; i < rows * width; i += LANES) {
            const Mask there = first(rows * width - i);
            store(work.query + i, load(work.query + i, there) * scaling, there);
        }
        if (own->positions) {
            multiply(by.key, read, work.key);
            multiply(by.value, read, work.value);
            remember(by, *own);
        }
        elseq_decode_step(work.query, work.context, width, by.width, rows, by.heads, by.kv_heads, by.width, by.top_k,
                          shared, own, threads);
        Input context{work.context, rows};
        multiply(by.out, context, work.out);
        output(by.norm, x);
    }

    void feed_forward(float *x) const {
        const Input read = input(layer.norm, x);
        const int64_t most = Work::inner_rows(layer, rows);
        for (int64_t row = 0; row < rows; row += most) {
            Input some{read.x + row * layer.width, std::min(most, rows - row)};
            multiply(layer.inner, some, work.inner, layer.activation);
            Input inner{work.inner, some.rows};
            multiply(layer.outer, inner, work.out + row * layer.width);
        }
        output(layer.norm, x);
    }
};

}  // namespace

extern "C" {

int64_t elseq_layer_step_bytes(const Layer *layer, int64_t rows) { return Work(*layer, rows, nullptr).bytes; }

// x: [rows, width], overwritten by the result. memory: `elseq_layer_step_bytes`, from a multiple of 64 on.
void elseq_layer_step(const Layer *layer, float *x, int64_t rows, const Shared *prompt, const Own *own, const Shared *source,
                      char *memory, int threads) {
    const Step step{*layer, Work(*layer, rows, memory), rows, threads};
    step.attend(layer->self, x, prompt, own);
    const Own nothing{};
    if (layer->source.heads) step.attend(layer->source, x, source, &nothing);
    step.feed_forward(x);
}
}
