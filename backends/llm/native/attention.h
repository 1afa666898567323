// Attention over pages: where keys and values go, tiles of queries over spans of tokens, and the
// merging of what several threads saw of one context.
//
//   keys     [page][K][D/2][Z][2]    a page: pairs of dimensions, each for all its Z tokens
//   values   [page][K][Z/2][D][2]    a page: pairs of tokens, each with all dimensions
#pragma once

#include <algorithm>
#include <cmath>

#include "linear.h"

namespace {

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
// Tokens of a part: each has a maximum and a sum of its own, and parts are merged in their order,
// whoever computed them.
constexpr int64_t PART = 4 * SPAN;

inline int64_t parts_of(int64_t context) { return (context + PART - 1) / PART; }

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

// What a row of an item saw in all parts of the context, together. Empty parts change nothing.
void merge(const Partial* parts, int64_t count, int64_t r, int64_t D, bf16* out) {
    alignas(64) float total[MAX_D];
    std::memset(total, 0, D * sizeof(float));
    float maximum = -INFINITY, sum = 0;
    for (int64_t i = 0; i < count; ++i) maximum = std::max(maximum, parts[i * TILE + r].maximum);
    for (int64_t i = 0; i < count; ++i) {
        const Partial& p = parts[i * TILE + r];
        if (p.maximum == -INFINITY) continue;
        const float share = std::exp(p.maximum - maximum);
        sum += p.sum * share;
        for (int64_t d = 0; d < D; d += 16)
            _mm512_store_ps(total + d, _mm512_fmadd_ps(_mm512_loadu_ps(p.out + d), _mm512_set1_ps(share),
                                                       _mm512_load_ps(total + d)));
    }
    for (int64_t d = 0; d < D; d += 16)
        store(out + d, _mm512_mul_ps(_mm512_load_ps(total + d), _mm512_set1_ps(1.0f / sum)));
}

}  // namespace
