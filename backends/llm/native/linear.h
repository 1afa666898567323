// Norms, and linear maps with packed weights: tiles of rows against blocks of 32 outputs.
//
//   weight   [O/32][I/2][32][2]      32 outputs side by side, pairs of inputs innermost
#pragma once

#include <cmath>

#include "vector.h"

namespace {

// x += delta (if any); y = norm(x) · weight.
void add_norm(bf16* x, const bf16* delta, const bf16* weight, bf16* y, int64_t size, double eps) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) {
        __m512 v = load(x + i);
        if (delta) {
            v = round16(_mm512_add_ps(v, load(delta + i)));
            store(x + i, v);
        }
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / size + float(eps)));
    for (int64_t i = 0; i < size; i += 16) {
        __m512 v = round16(_mm512_mul_ps(load(x + i), scale));
        store(y + i, _mm512_mul_ps(load(weight + i), v));
    }
}

constexpr int ROWS = 12;  // 24 sums, 2 weights, some broadcasts: all in registers

inline __m512i widened(const int8_t* w) {  // 32 weights; bfloat16 has all of them exactly
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)w)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(w + 16))));
    return _mm512_inserti64x4(_mm512_castsi256_si512(narrowed(low)), narrowed(high), 1);
}

inline __m512i widened(const bf16* w) { return _mm512_loadu_si512(w); }

template <int M, typename W>
void tile(const bf16* x, int64_t stride, const W* w, int64_t inputs, __m512 (&sum)[ROWS][2]) {
    __m512 a[M][2];
    for (int m = 0; m < M; ++m) a[m][0] = a[m][1] = _mm512_setzero_ps();
    const W* next = w + inputs * 32;  // the block that comes after: on its way while this one is used
    for (int64_t i = 0; i < inputs; i += 2, w += 64, next += 64) {
        _mm_prefetch((const char*)next, _MM_HINT_T1);
        if (sizeof(W) == 2) _mm_prefetch((const char*)(next + 32), _MM_HINT_T1);
        const __m512i w0 = widened(w), w1 = widened(w + 32);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
            const __m512i p = pair(x + m * stride + i);
            a[m][0] = dot2(a[m][0], p, w0);
            a[m][1] = dot2(a[m][1], p, w1);
        }
    }
    for (int m = 0; m < M; ++m) sum[m][0] = a[m][0], sum[m][1] = a[m][1];
}

template <typename W>
using Tile = void (*)(const bf16*, int64_t, const W*, int64_t, __m512 (&)[ROWS][2]);
template <typename W>
constexpr Tile<W> TILES[ROWS + 1] = {nullptr,    tile<1, W>, tile<2, W>, tile<3, W>,  tile<4, W>,
                                     tile<5, W>, tile<6, W>, tile<7, W>, tile<8, W>,  tile<9, W>,
                                     tile<10, W>, tile<11, W>, tile<12, W>};

// The next tile's rows: as even as they can be, so that the last one is not a small one.
inline int rows_of_tile(int64_t left) {
    const int64_t tiles = (left + ROWS - 1) / ROWS;
    return int((left + tiles - 1) / tiles);
}

// One block of a map's weight, and how to multiply by it. int8 is widened once for all rows where
// there are several tiles of them, in `room`; else on the way into the registers.
class Block {
   public:
    Block(const Map& map, int64_t block, int64_t inputs, int64_t count, bf16* room) : inputs_(inputs) {
        const int64_t size = inputs * 32;
        if (!map.scale) {
            wide_ = (const bf16*)map.weight + block * size;
            return;
        }
        narrow_ = (const int8_t*)map.weight + block * size;
        if (count <= ROWS) return;
        for (int64_t i = 0; i < size; i += 64) {
            _mm_prefetch((const char*)(narrow_ + size + i), _MM_HINT_T1);
            _mm512_storeu_si512(room + i, widened(narrow_ + i));
            _mm512_storeu_si512(room + i + 32, widened(narrow_ + i + 32));
        }
        wide_ = room;
    }
    void times(const bf16* x, int rows, __m512 (&sum)[ROWS][2]) const {
        if (wide_)
            TILES<bf16>[rows](x, inputs_, wide_, inputs_, sum);
        else
            TILES<int8_t>[rows](x, inputs_, narrow_, inputs_, sum);
    }

   private:
    const int64_t inputs_;
    const bf16* wide_ = nullptr;
    const int8_t* narrow_ = nullptr;
};

inline void finish(const Map& map, int64_t block, int rows, __m512 (&sum)[ROWS][2]) {
    for (int half = 0; half < 2; ++half) {
        const int64_t at = block * 32 + half * 16;
        for (int m = 0; m < rows; ++m) {
            if (map.scale) sum[m][half] = _mm512_mul_ps(sum[m][half], _mm512_loadu_ps(map.scale + at));
            if (map.bias) sum[m][half] = _mm512_add_ps(sum[m][half], load(map.bias + at));
        }
    }
}

// Blocks [first, end) of 32 outputs; `put(row, output, values, values)` gets each row's.
template <typename Put>
void linear(const bf16* x, int64_t count, int64_t inputs, const Map& map, Range blocks, bf16* room, Put put) {
    __m512 sum[ROWS][2];
    for (int64_t block = blocks.first; block < blocks.end; ++block) {
        const Block weight(map, block, inputs, count, room);
        for (int64_t row = 0; row < count;) {
            const int rows = rows_of_tile(count - row);
            weight.times(x + row * inputs, rows, sum);
            finish(map, block, rows, sum);
            for (int m = 0; m < rows; ++m) put(row + m, block * 32, sum[m][0], sum[m][1]);
            row += rows;
        }
    }
}

void linear(const bf16* x, int64_t count, int64_t inputs, const Map& map, int64_t outputs, bf16* y,
            bf16* room, int who, int of) {
    linear(x, count, inputs, map, share(outputs / 32, who, of), room,
           [=](int64_t row, int64_t at, __m512 a, __m512 b) {
               store(y + row * outputs + at, a);
               store(y + row * outputs + at + 16, b);
           });
}

inline __m512 gated(__m512 gate, __m512 up) {
    gate = round16(gate);
    const __m512 magnitude = _mm512_abs_ps(gate);
    const __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), magnitude));  // e^-|g|
    const __m512 one = _mm512_set1_ps(1.0f);
    const __mmask16 negative = _mm512_cmp_ps_mask(gate, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 top = _mm512_mask_mov_ps(one, negative, e);
    const __m512 silu = _mm512_div_ps(_mm512_mul_ps(gate, top), _mm512_add_ps(one, e));
    return _mm512_mul_ps(round16(silu), round16(up));
}

// silu(gate) · up; blocks of the two alternate in the packed weight.
void gated_linear(const bf16* x, int64_t count, int64_t inputs, const Map& map, int64_t hidden, bf16* y,
                  bf16* room, int who, int of) {
    const Range own = share(hidden / 32, who, of);
    __m512 gate[ROWS][2], up[ROWS][2];
    for (int64_t block = own.first; block < own.end; ++block) {
        const Block gates(map, 2 * block, inputs, count, room);
        const Block ups(map, 2 * block + 1, inputs, count, room + inputs * 32);
        for (int64_t row = 0; row < count;) {
            const int rows = rows_of_tile(count - row);
            gates.times(x + row * inputs, rows, gate);
            ups.times(x + row * inputs, rows, up);
            finish(map, 2 * block, rows, gate);
            finish(map, 2 * block + 1, rows, up);
            for (int m = 0; m < rows; ++m) {
                bf16* out = y + (row + m) * hidden + block * 32;
                store(out, gated(gate[m][0], up[m][0]));
                store(out + 16, gated(gate[m][1], up[m][1]));
            }
            row += rows;
        }
    }
}

}  // namespace
