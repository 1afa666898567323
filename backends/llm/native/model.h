// What Python hands over: the model's pointers and a step's. `library.py` has the same layout.
#pragma once

#include <cstdint>

namespace {

using bf16 = uint16_t;

struct Map {  // y = x · wᵀ · scale + bias
    const void* weight;
    const float* scale;  // null: the weight is bfloat16
    const bf16* bias;
};

struct Layer {
    const bf16 *input_norm, *mlp_norm, *q_norm, *k_norm;
    Map qkv, output, gate_up, down;
};

struct Model {
    int64_t layers, width, hidden, heads, kv_heads, head_dim, vocabulary;
    double eps;
    const bf16* embedding;
    const bf16* norm;
    Map head;
    const Layer* layer;
};

struct Step {
    int64_t tokens, sequences, rows, table_width, page_size, pages, threads;
    const int64_t *token, *slot, *row;
    const int32_t *start, *context, *table;
    const bf16 *cosine, *sine;  // [T, D]
    bf16 *keys, *values;
    float* logits;  // [rows, vocabulary]
};

}  // namespace
