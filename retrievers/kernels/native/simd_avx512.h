// AVX-512 F, BW, DQ, VL, VBMI, VNNI, VPOPCNTDQ: what Ice Lake, Zen 4 and later have.
#pragma once

#include <immintrin.h>

#include "loops.h"

namespace ragq::avx512 {

constexpr const char* kName = "avx512";

// Bytes: kPairs groups of 32 rows.
constexpr int kPairs = 2;
using Bytes = __m512i;

inline Bytes zero() { return _mm512_setzero_si512(); }
inline Bytes load(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Bytes load_part(const uint8_t* p, int64_t groups) {
    return groups >= 2 ? load(p) : _mm512_maskz_loadu_epi64(0x0F, p);
}
inline void store(uint8_t* p, Bytes a) { _mm512_storeu_si512(p, a); }
inline Bytes table(const uint8_t* p) { return load(p); }
inline Bytes shuffle(Bytes table, Bytes index) { return _mm512_shuffle_epi8(table, index); }
inline Bytes low_nibbles(Bytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline Bytes high_nibbles(Bytes a) { return low_nibbles(_mm512_srli_epi16(a, 4)); }
inline Bytes add8(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
inline Bytes add16(Bytes a, Bytes b) { return _mm512_add_epi16(a, b); }
inline Bytes odd_bytes(Bytes a) { return _mm512_srli_epi16(a, 8); }

// 16-bit sums of 32 rows: even rows and odd rows.
struct Sums {
    __m256i even, odd;
};
inline __m256i fold(Bytes a) { return _mm256_add_epi16(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1)); }
// `even` has collected whole 16-bit words, so the odd rows' sums must come off its upper half.
inline Sums sums(Bytes even, Bytes odd) {
    const __m256i o = fold(odd);
    return {_mm256_sub_epi16(fold(even), _mm256_slli_epi16(o, 8)), o};
}

inline uint32_t at_least(Sums s, uint32_t threshold) {
    const __m256i t = _mm256_set1_epi16(static_cast<short>(threshold));
    const __m256i even = _mm256_cmpeq_epi16(_mm256_max_epu16(s.even, t), s.even);
    const __m256i odd = _mm256_cmpeq_epi16(_mm256_max_epu16(s.odd, t), s.odd);
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_blendv_epi8(even, odd, _mm256_set1_epi16(-256))));
}

inline void store_rows(Sums s, uint16_t* out) {
    const __m256i low = _mm256_unpacklo_epi16(s.even, s.odd), high = _mm256_unpackhi_epi16(s.even, s.odd);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 16), _mm256_permute2x128_si256(low, high, 0x31));
}

// The 64 bits at `p` as bytes 0 and 1.
inline Bytes bit_bytes(const uint8_t* p) {
    uint64_t word;
    __builtin_memcpy(&word, p, 8);
    return _mm512_maskz_set1_epi8(word, 1);
}

// Bytes 0 and 1 times signed bytes, two products a 16-bit sum; and the sum of such sums.
inline Bytes pair_sums(Bytes bits, const int8_t* weights) {
    return _mm512_maddubs_epi16(bits, _mm512_loadu_si512(weights));
}
inline int32_t total16(Bytes a) { return _mm512_reduce_add_epi32(_mm512_madd_epi16(a, _mm512_set1_epi16(1))); }

// Floats.
constexpr int kFloats = 16;
using Floats = __m512;

inline Floats set1(float a) { return _mm512_set1_ps(a); }
inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline void store_floats(float* p, Floats a) { _mm512_storeu_ps(p, a); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats magnitude(Floats a) { return _mm512_abs_ps(a); }
inline uint32_t not_below(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
inline float total(Floats a) { return _mm512_reduce_add_ps(a); }

constexpr int kTileQueries = 4;  // that the dense loop multiplies four rows by at once
// The totals of 16 vectors, halves first as in `total`: 45 instructions instead of ten a vector.
inline void totals(const Floats* a, float* out) {
    Floats half[8], quarter[4], pair[2];
    for (int i = 0; i < 8; ++i)
        half[i] = add(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x44), _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xEE));
    for (int i = 0; i < 4; ++i)
        quarter[i] = add(_mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0xDD));
    for (int i = 0; i < 2; ++i)
        pair[i] = add(_mm512_unpacklo_ps(quarter[2 * i], quarter[2 * i + 1]),
                      _mm512_unpackhi_ps(quarter[2 * i], quarter[2 * i + 1]));
    const Floats sum = add(_mm512_shuffle_ps(pair[0], pair[1], 0x44), _mm512_shuffle_ps(pair[0], pair[1], 0xEE));
    // Lane 4 l + i holds vector 4 i + l.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    store_floats(out, _mm512_permutexvar_ps(order, sum));
}

inline __m128i sixteen_bytes(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i sixteen_words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Floats from_u16(const uint16_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sixteen_words(p))); }
inline Floats from_f16(const void* p) { return _mm512_cvtph_ps(sixteen_words(p)); }
inline Floats from_bf16(const void* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen_words(p)), 16));
}
inline Floats from_i8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen_bytes(p))); }
inline Floats from_u8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(sixteen_bytes(p))); }
// Codes above the largest finite one, of either sign, count as it.
inline __m128i finite(__m128i codes, int largest) {
    const __m128i positive = _mm_min_epi8(codes, _mm_set1_epi8(static_cast<char>(largest)));
    return _mm_min_epu8(positive, _mm_set1_epi8(static_cast<char>(largest | 0x80)));
}
inline Floats from_e5m2(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(finite(sixteen_bytes(p), 0x7B)), 8));
}
// The bits of an E4M3 number, one place down from those of a half: its value / 256.
inline Floats from_e4m3(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepi8_epi16(finite(sixteen_bytes(p), 0x7E));
    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<short>(0xBF80))));
}
inline Floats from_levels16(const uint8_t* p, const float* levels) {
    return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(sixteen_bytes(p)), load_floats(levels));
}
inline Floats from_levels(const uint8_t* p, const float* levels) {
    return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(sixteen_bytes(p)), levels, 4);
}

}  // namespace ragq::avx512
