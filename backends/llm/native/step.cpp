// One step of a decoder on a CPU with AVX512, all layers in one parallel region.
//
// Owns the arithmetic of `backends.llm.network` for bfloat16 activations: weights in bfloat16 or
// int8 with a scale per output, both packed for pairs of inputs; keys and values in pages that are
// packed the same way, so that no dot product ends in a sum over lanes. Rounds to bfloat16 where the
// Hugging Face models round. Allocates only scratch that grows with the step.
//
// Layouts, in elements:
//   weight   [O/32][I/2][32][2]      32 outputs side by side, pairs of inputs innermost
//   keys     [page][K][D/2][Z][2]    a page: pairs of dimensions, each for all its Z tokens
//   values   [page][K][Z/2][D][2]    a page: pairs of tokens, each with all dimensions
//
// Letters: T tokens, S sequences, C width, I inputs, O outputs, H query heads, K key heads, G = H/K,
// D head_dim, Z tokens of a page, R rows of a tile (a row is one query head of one token).

#include <immintrin.h>
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if !defined(__AVX512F__) || !defined(__AVX512BW__)
#error "this CPU has no AVX512"
#endif

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

// --------------------------------------------------------------------------------- small things

inline __m512 load(const bf16* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

#ifdef __AVX512BF16__
inline __m256i narrowed(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }

inline __m512 dot2(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
#else  // the same in more instructions
inline __m256i narrowed(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i safe = _mm512_mask_mov_epi32(near, nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(safe, 16));
}

inline __m512 dot2(__m512 sum, __m512i a, __m512i b) {
    const __m512i high = _mm512_set1_epi32(int(0xffff0000));
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
                          _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), sum);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, high)),
                           _mm512_castsi512_ps(_mm512_and_si512(b, high)), sum);
}
#endif

inline void store(bf16* p, __m512 v) { _mm256_storeu_si256((__m256i*)p, narrowed(v)); }

inline __m512 round16(__m512 v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrowed(v)), 16));
}

inline __m512i pair(const bf16* p) {
    int32_t two;
    std::memcpy(&two, p, 4);
    return _mm512_set1_epi32(two);
}

// e^x for x ≤ 0; relative error below 2^-22 (degree-6 polynomial on [-ln2/2, ln2/2]).
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    return _mm512_scalef_ps(p, n);
}

// Waits by spinning for about as long as a phase takes, then yields: beside a busy gateway the other
// thread may not be running.
class Barrier {
   public:
    explicit Barrier(int count) : count_(count) {}
    void wait() {
        if (count_ == 1) return;
        const int turn = turn_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins)
            spins < 4000 ? _mm_pause() : void(sched_yield());
    }

   private:
    const int count_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> turn_{0};
};

struct Range {
    int64_t first, end;
};

inline Range share(int64_t count, int who, int of) {
    return {count * who / of, count * (who + 1) / of};
}

// ---------------------------------------------------------------------------------------- norms

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

// --------------------------------------------------------------------------------------- linear

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

// ------------------------------------------------------------------------------------ attention

void norm_head(bf16* head, const bf16* weight, int64_t D, double eps) {
    if (weight) add_norm(head, nullptr, weight, head, D, eps);
}

void turn(bf16* head, const bf16* cosine, const bf16* sine, int64_t D) {
    for (int64_t i = 0; i < D / 2; i += 16) {
        const __m512 a = load(head + i), b = load(head + D / 2 + i);
        const __m512 c = load(cosine + i), s = load(sine + i);
        const __m512 ac = round16(_mm512_mul_ps(a, c)), bs = round16(_mm512_mul_ps(b, s));
        const __m512 bc = round16(_mm512_mul_ps(b, c)), as = round16(_mm512_mul_ps(a, s));
        store(head + i, _mm512_sub_ps(ac, bs));
        store(head + D / 2 + i, _mm512_add_ps(bc, as));
    }
}

// Norms and turns the heads of one token in place; its key and value go to their slot. `last`: no
// later token of its sequence is in the step.
void write_kv(const Model& m, const Step& s, const Layer& layer, bf16* qkv, int64_t t, bool last, bf16* keys,
              bf16* values) {
    const int64_t D = m.head_dim, Z = s.page_size;
    const bf16 *cosine = s.cosine + t * D, *sine = s.sine + t * D;
    for (int64_t h = 0; h < m.heads; ++h) {
        norm_head(qkv + h * D, layer.q_norm, D, m.eps);
        turn(qkv + h * D, cosine, sine, D);
    }
    const int64_t page = s.slot[t] / Z, z = s.slot[t] % Z;
    for (int64_t k = 0; k < m.kv_heads; ++k) {
        bf16* key = qkv + (m.heads + k) * D;
        const bf16* value = qkv + (m.heads + m.kv_heads + k) * D;
        norm_head(key, layer.k_norm, D, m.eps);
        turn(key, cosine, sine, D);
        bf16* to = keys + (page * m.kv_heads + k) * Z * D + z * 2;
        for (int64_t d = 0; d < D; d += 2) std::memcpy(to + d * Z, key + d, 4);
        to = values + (page * m.kv_heads + k) * Z * D + (z / 2) * D * 2 + z % 2;
        for (int64_t d = 0; d < D; ++d) to[2 * d] = value[d];
        // Its partner in the pair is multiplied by zero: it must not be what an old owner left.
        if (last && z % 2 == 0)
            for (int64_t d = 0; d < D; ++d) to[2 * d + 1] = 0;
    }
}

constexpr int TILE = 4, SPAN = 64;  // rows of a tile; tokens whose scores are taken at a time
constexpr int MAX_D = 256;

struct Partial {  // of one row over one part of its context
    float maximum, sum;
    float out[MAX_D];
};

// R rows over tokens [first, end) of one sequence's pages; row r sees tokens below limit[r].
template <int R>
void attend(const bf16* const* query, const int64_t* limit, const bf16* keys, const bf16* values,
            const int32_t* table, int64_t first, int64_t end, int64_t D, int64_t Z, int64_t page_stride,
            float scale, Partial* found) {
    alignas(64) float out[R][MAX_D];
    alignas(64) bf16 weight[R][SPAN];
    float maximum[R], sum[R];
    for (int r = 0; r < R; ++r) {
        maximum[r] = -INFINITY, sum[r] = 0;
        std::memset(out[r], 0, D * sizeof(float));
    }
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int64_t base = first; base < end; base += SPAN) {
        const int groups = int(std::min<int64_t>(SPAN, end - base) + 15) / 16;
        __m512 score[R][SPAN / 16];
        for (int g = 0; g < groups; ++g) {
            const int64_t at = base + g * 16;
            const int64_t page = int64_t(table[at / Z]) * page_stride;
            const bf16* k = keys + page + (at % Z) * 2;
            const char* v = (const char*)(values + page + (at % Z) * D);  // needed next, all of it
            __m512 even[R], odd[R];
            for (int r = 0; r < R; ++r) even[r] = odd[r] = _mm512_setzero_ps();
            for (int64_t d = 0; d < D; d += 4) {
                _mm_prefetch(v + d * 32, _MM_HINT_T0);
                _mm_prefetch(v + d * 32 + 64, _MM_HINT_T0);
                const __m512i k0 = _mm512_loadu_si512(k + d * Z), k1 = _mm512_loadu_si512(k + (d + 2) * Z);
                for (int r = 0; r < R; ++r) {
                    even[r] = dot2(even[r], pair(query[r] + d), k0);
                    odd[r] = dot2(odd[r], pair(query[r] + d + 2), k1);
                }
            }
            for (int r = 0; r < R; ++r) {
                const __m512 s = _mm512_mul_ps(_mm512_add_ps(even[r], odd[r]), _mm512_set1_ps(scale));
                const int seen = int(std::clamp<int64_t>(limit[r] - at, 0, 16));
                const __mmask16 mask = _mm512_cmp_epi32_mask(lanes, _mm512_set1_epi32(seen), _MM_CMPINT_LT);
                score[r][g] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), mask, s);
            }
        }
        for (int r = 0; r < R; ++r) {
            __m512 top = score[r][0];
            for (int g = 1; g < groups; ++g) top = _mm512_max_ps(top, score[r][g]);
            const float best = std::max(maximum[r], _mm512_reduce_max_ps(top));
            if (best == -INFINITY) {  // this row sees nothing here
                std::memset(weight[r], 0, sizeof weight[r]);
                continue;
            }
            __m512 total = _mm512_setzero_ps();
            for (int g = 0; g < groups; ++g) {
                const __mmask16 seen = _mm512_cmp_ps_mask(score[r][g], _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
                const __m512 e = _mm512_maskz_mov_ps(
                    seen, round16(exponential(_mm512_sub_ps(score[r][g], _mm512_set1_ps(best)))));
                store(weight[r] + g * 16, e);
                total = _mm512_add_ps(total, e);
            }
            if (best > maximum[r]) {
                const float fade = maximum[r] == -INFINITY ? 0.0f : std::exp(maximum[r] - best);
                sum[r] *= fade;
                for (int64_t d = 0; d < D; d += 16)
                    _mm512_store_ps(out[r] + d, _mm512_mul_ps(_mm512_load_ps(out[r] + d), _mm512_set1_ps(fade)));
                maximum[r] = best;
            }
            sum[r] += _mm512_reduce_add_ps(total);
        }
        const int64_t stop = std::min<int64_t>(base + SPAN, end);
        for (int64_t d = 0; d < D; d += 32) {
            __m512 a[R][2];
            for (int r = 0; r < R; ++r)
                a[r][0] = _mm512_load_ps(out[r] + d), a[r][1] = _mm512_load_ps(out[r] + d + 16);
            for (int64_t at = base; at < stop;) {
                const bf16* v = values + int64_t(table[at / Z]) * page_stride + (at % Z) * D + 2 * d;
                const int64_t next = std::min<int64_t>(stop, (at / Z + 1) * Z);
                // The same tokens' keys in the next span: a part with each block of 32 dimensions.
                const int64_t later = std::min(at + SPAN, end - 1);
                const char* k = (const char*)(keys + int64_t(table[later / Z]) * page_stride) + d * Z * 2;
                for (; at < next; at += 2, v += 2 * D, k += 128) {
                    _mm_prefetch(k, _MM_HINT_T0);
                    _mm_prefetch(k + 64, _MM_HINT_T0);
                    const __m512i v0 = _mm512_loadu_si512(v), v1 = _mm512_loadu_si512(v + 32);
                    for (int r = 0; r < R; ++r) {
                        const __m512i p = pair(weight[r] + (at - base));
                        a[r][0] = dot2(a[r][0], p, v0);
                        a[r][1] = dot2(a[r][1], p, v1);
                    }
                }
                at = next;
            }
            for (int r = 0; r < R; ++r)
                _mm512_store_ps(out[r] + d, a[r][0]), _mm512_store_ps(out[r] + d + 16, a[r][1]);
        }
    }
    for (int r = 0; r < R; ++r) {
        found[r].maximum = maximum[r], found[r].sum = sum[r];
        std::memcpy(found[r].out, out[r], D * sizeof(float));
    }
}

using Attend = void (*)(const bf16* const*, const int64_t*, const bf16*, const bf16*, const int32_t*, int64_t,
                        int64_t, int64_t, int64_t, int64_t, float, Partial*);
constexpr Attend ATTEND[TILE + 1] = {nullptr, attend<1>, attend<2>, attend<3>, attend<4>};

struct Item {  // some rows of one key head of one sequence
    int64_t sequence, head, row, rows;
};

// What the rows of an item saw in all parts of the context, together.
void merge(const Partial* parts, int64_t splits, int64_t r, int64_t D, bf16* out) {
    float maximum = -INFINITY, sum = 0;
    for (int64_t i = 0; i < splits; ++i) maximum = std::max(maximum, parts[i * TILE + r].maximum);
    for (int64_t d = 0; d < D; d += 16) {
        __m512 total = _mm512_setzero_ps();
        sum = 0;
        for (int64_t i = 0; i < splits; ++i) {
            const Partial& p = parts[i * TILE + r];
            const float share = p.maximum == -INFINITY ? 0.0f : std::exp(p.maximum - maximum);
            total = _mm512_fmadd_ps(_mm512_loadu_ps(p.out + d), _mm512_set1_ps(share), total);
            sum += p.sum * share;
        }
        store(out + d, _mm512_mul_ps(total, _mm512_set1_ps(1.0f / sum)));
    }
}

// ----------------------------------------------------------------------------------------- step

struct Scratch {
    std::vector<bf16> x, h, qkv, mixed, hidden, delta, rows, picked;
    std::vector<Item> items;
    std::vector<Partial> partials;
    int64_t splits;
    std::vector<int64_t> owner;  // token → sequence

    Scratch(const Model& m, const Step& s) {
        const int64_t T = s.tokens, G = m.heads / m.kv_heads, D = m.head_dim;
        x.resize(T * m.width), h.resize(T * m.width), delta.resize(T * m.width);
        qkv.resize(T * (m.heads + 2 * m.kv_heads) * D), mixed.resize(T * m.heads * D);
        hidden.resize(T * m.hidden);
        rows.resize(s.rows * m.width), picked.resize(s.rows * m.width);
        owner.resize(T);
        int64_t longest = 0;
        for (int64_t q = 0; q < s.sequences; ++q) {
            const int64_t count = (s.start[q + 1] - s.start[q]) * G;
            longest = std::max<int64_t>(longest, s.context[q]);
            for (int64_t t = s.start[q]; t < s.start[q + 1]; ++t) owner[t] = q;
            for (int64_t k = 0; k < m.kv_heads; ++k)
                for (int64_t row = 0; row < count; row += TILE)
                    items.push_back({q, k, row, std::min<int64_t>(TILE, count - row)});
        }
        // Few long ones: several threads to a row.
        splits = int64_t(items.size()) < 4 * s.threads ? std::clamp<int64_t>(longest / 256, 1, 8) : 1;
        partials.resize(items.size() * splits * TILE);
    }
};

void attend_part(const Model& m, const Step& s, Scratch& c, const bf16* keys, const bf16* values, int64_t which) {
    const Item& item = c.items[which / c.splits];
    const int64_t G = m.heads / m.kv_heads, D = m.head_dim, Z = s.page_size;
    const int64_t first = s.start[item.sequence], count = s.start[item.sequence + 1] - first;
    const int64_t context = s.context[item.sequence], E = (m.heads + 2 * m.kv_heads) * D;
    const bf16* query[TILE];
    int64_t limit[TILE], most = 0;
    for (int64_t r = 0; r < item.rows; ++r) {
        const int64_t token = (item.row + r) / G, head = item.head * G + (item.row + r) % G;
        query[r] = c.qkv.data() + (first + token) * E + head * D;
        limit[r] = context - count + token + 1;
        most = std::max(most, limit[r]);
    }
    // Parts begin at whole spans; a part beyond what the rows see is empty.
    const int64_t spans = (most + SPAN - 1) / SPAN;
    const Range part = share(spans, int(which % c.splits), int(c.splits));
    const int64_t stride = m.kv_heads * Z * D, offset = item.head * Z * D;
    ATTEND[item.rows](query, limit, keys + offset, values + offset, s.table + item.sequence * s.table_width,
                      part.first * SPAN, std::min(most, part.end * SPAN), D, Z, stride,
                      1.0f / std::sqrt(float(D)), c.partials.data() + which * TILE);
}

void merge_part(const Model& m, const Step& s, Scratch& c, int64_t which) {
    const Item& item = c.items[which];
    const int64_t G = m.heads / m.kv_heads, D = m.head_dim, first = s.start[item.sequence];
    for (int64_t r = 0; r < item.rows; ++r) {
        const int64_t token = (item.row + r) / G, head = item.head * G + (item.row + r) % G;
        merge(c.partials.data() + which * c.splits * TILE, c.splits, r, D,
              c.mixed.data() + ((first + token) * m.heads + head) * D);
    }
}

void run(const Model& m, const Step& s, Scratch& c, Barrier& barrier, int who, int of) {
    const int64_t T = s.tokens, C = m.width, D = m.head_dim, E = (m.heads + 2 * m.kv_heads) * D;
    const Range tokens = share(T, who, of);
    const int64_t widest = std::max({C, m.heads * D, m.hidden});
    std::vector<bf16> room(widest * 64 + 32);
    bf16* x = c.x.data();
    for (int64_t t = tokens.first; t < tokens.end; ++t)
        std::memcpy(x + t * C, m.embedding + s.token[t] * C, C * sizeof(bf16));
    const int64_t cached = s.pages * m.kv_heads * s.page_size * D;
    for (int64_t i = 0; i < m.layers; ++i) {
        const Layer& layer = m.layer[i];
        bf16 *keys = s.keys + i * cached, *values = s.values + i * cached;
        for (int64_t t = tokens.first; t < tokens.end; ++t)
            add_norm(x + t * C, i ? c.delta.data() + t * C : nullptr, layer.input_norm, c.h.data() + t * C, C, m.eps);
        barrier.wait();
        linear(c.h.data(), T, C, layer.qkv, E, c.qkv.data(), room.data(), who, of);
        barrier.wait();
        for (int64_t t = tokens.first; t < tokens.end; ++t)
            write_kv(m, s, layer, c.qkv.data() + t * E, t, t + 1 == s.start[c.owner[t] + 1], keys, values);
        barrier.wait();
        for (int64_t w = who; w < int64_t(c.items.size()) * c.splits; w += of) {
            attend_part(m, s, c, keys, values, w);
            if (c.splits == 1) merge_part(m, s, c, w);
        }
        barrier.wait();
        if (c.splits > 1) {
            for (int64_t w = who; w < int64_t(c.items.size()); w += of) merge_part(m, s, c, w);
            barrier.wait();
        }
        linear(c.mixed.data(), T, m.heads * D, layer.output, C, c.delta.data(), room.data(), who, of);
        barrier.wait();
        for (int64_t t = tokens.first; t < tokens.end; ++t)
            add_norm(x + t * C, c.delta.data() + t * C, layer.mlp_norm, c.h.data() + t * C, C, m.eps);
        barrier.wait();
        gated_linear(c.h.data(), T, C, layer.gate_up, m.hidden, c.hidden.data(), room.data(), who, of);
        barrier.wait();
        linear(c.hidden.data(), T, m.hidden, layer.down, C, c.delta.data(), room.data(), who, of);
        barrier.wait();
    }
    const Range rows = share(s.rows, who, of);
    for (int64_t r = rows.first; r < rows.end; ++r) {
        bf16* own = c.rows.data() + r * C;
        std::memcpy(own, x + s.row[r] * C, C * sizeof(bf16));
        add_norm(own, c.delta.data() + s.row[r] * C, m.norm, c.picked.data() + r * C, C, m.eps);
    }
    barrier.wait();
    float* logits = s.logits;
    const int64_t V = m.vocabulary;
    linear(c.picked.data(), s.rows, C, m.head, share((V + 31) / 32, who, of), room.data(),
           [=](int64_t row, int64_t at, __m512 a, __m512 b) {
               // Rounded as the reference rounds logits; the last block may reach past the vocabulary.
               const int64_t left = V - at;
               const __mmask16 low = left >= 16 ? 0xffff : __mmask16((1u << left) - 1);
               const __mmask16 high = left >= 32 ? 0xffff : left > 16 ? __mmask16((1u << (left - 16)) - 1) : 0;
               _mm512_mask_storeu_ps(logits + row * V + at, low, round16(a));
               _mm512_mask_storeu_ps(logits + row * V + at + 16, high, round16(b));
           });
}

}  // namespace

extern "C" void penstock_step(const Model* model, const Step* step) {
    Scratch scratch(*model, *step);
    const int threads = int(step->threads);
    Barrier barrier(threads);
#pragma omp parallel num_threads(threads)
    {
        // Fewer may have come than were asked for: the barrier counts them, so all must be there.
        const int who = omp_get_thread_num();
        if (omp_get_num_threads() == threads)
            run(*model, *step, scratch, barrier, who, threads);
        else if (who == 0) {
            Barrier alone(1);
            run(*model, *step, scratch, alone, 0, 1);
        }
    }
}
