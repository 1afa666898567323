// Sixteen numbers at a time: bfloat16 to and from float, dot products of pairs, e^x; and the split of
// work over threads.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "model.h"

#if !defined(__AVX512F__) || !defined(__AVX512BW__)
#error "this CPU has no AVX512"
#endif

namespace {

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

struct Range {
    int64_t first, end;
};

inline Range share(int64_t count, int who, int of) {
    return {count * who / of, count * (who + 1) / of};
}

}  // namespace
