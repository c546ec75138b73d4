// AVX2 + FMA + F16C + POPCNT.
#pragma once

#include <immintrin.h>

#include "loops.h"

namespace ragq::avx2 {

constexpr const char* kName = "avx2";

// Bytes: kPairs groups of 32 rows.
constexpr int kPairs = 1;
using Bytes = __m256i;

inline Bytes zero() { return _mm256_setzero_si256(); }
inline Bytes load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Bytes load_part(const uint8_t* p, int64_t) { return load(p); }  // a step is one group: never partial
inline void store(uint8_t* p, Bytes a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
inline Bytes table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Bytes shuffle(Bytes table, Bytes index) { return _mm256_shuffle_epi8(table, index); }
inline Bytes low_nibbles(Bytes a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
inline Bytes high_nibbles(Bytes a) { return low_nibbles(_mm256_srli_epi16(a, 4)); }
inline Bytes join(Bytes high, Bytes low) { return _mm256_or_si256(_mm256_slli_epi16(high, 4), low); }
inline Bytes add8(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
inline Bytes add16(Bytes a, Bytes b) { return _mm256_add_epi16(a, b); }
inline Bytes odd_bytes(Bytes a) { return _mm256_srli_epi16(a, 8); }

// 16-bit sums of 32 rows: even rows and odd rows.
struct Sums {
    __m256i even, odd;
};
// `even` has collected whole 16-bit words, so the odd rows' sums must come off its upper half.
inline Sums sums(Bytes even, Bytes odd) { return {_mm256_sub_epi16(even, _mm256_slli_epi16(odd, 8)), odd}; }

inline uint32_t at_least(Sums s, uint32_t threshold) {
    const __m256i t = _mm256_set1_epi16(static_cast<short>(threshold));
    const __m256i even = _mm256_cmpeq_epi16(_mm256_max_epu16(s.even, t), s.even);
    const __m256i odd = _mm256_cmpeq_epi16(_mm256_max_epu16(s.odd, t), s.odd);
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_blendv_epi8(even, odd, _mm256_set1_epi16(-256))));
}

inline void store_rows(Sums s, uint16_t* out) {
    const __m256i low = _mm256_unpacklo_epi16(s.even, s.odd), high = _mm256_unpackhi_epi16(s.even, s.odd);
    store(reinterpret_cast<uint8_t*>(out), _mm256_permute2x128_si256(low, high, 0x20));
    store(reinterpret_cast<uint8_t*>(out + 16), _mm256_permute2x128_si256(low, high, 0x31));
}

// 256-entry table: 16 shuffles by the low nibble, then a tree of blends by the bits of the high one.
inline Bytes lookup256(const uint8_t* p, Bytes code) {
    const Bytes low = low_nibbles(code);
    const Bytes bit[4] = {_mm256_slli_epi16(code, 3), _mm256_slli_epi16(code, 2), _mm256_slli_epi16(code, 1), code};
    Bytes quarter[4];
    for (int i = 0; i < 4; ++i, p += 64) {
        const Bytes a = _mm256_blendv_epi8(shuffle(table(p), low), shuffle(table(p + 16), low), bit[0]);
        const Bytes b = _mm256_blendv_epi8(shuffle(table(p + 32), low), shuffle(table(p + 48), low), bit[0]);
        quarter[i] = _mm256_blendv_epi8(a, b, bit[1]);
    }
    return _mm256_blendv_epi8(_mm256_blendv_epi8(quarter[0], quarter[1], bit[2]),
                              _mm256_blendv_epi8(quarter[2], quarter[3], bit[2]), bit[3]);
}

// The 32 bits at `p` as bytes 0 and 1.
inline Bytes bit_bytes(const uint8_t* p) {
    int word;
    __builtin_memcpy(&word, p, 4);
    const Bytes byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const Bytes bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
    const Bytes spread = _mm256_and_si256(shuffle(_mm256_set1_epi32(word), byte), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), _mm256_set1_epi8(1));
}

// Signed bytes times 16-bit words, two products a 32-bit sum; and the sum of such sums.
constexpr int kWords = 16;
using Words = __m256i;
inline Words no_words() { return _mm256_setzero_si256(); }
inline Words add_products(Words sum, const uint8_t* bytes, const int16_t* words) {
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(wide, load(reinterpret_cast<const uint8_t*>(words))));
}
inline int32_t total32(Words a, Words b) {
    const __m256i both = _mm256_add_epi32(a, b);
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

// Bytes 0 and 1 times signed bytes, two products a 16-bit sum; and the sum of such sums.
inline Bytes pair_sums(Bytes bits, const int8_t* weights) {
    return _mm256_maddubs_epi16(bits, load(reinterpret_cast<const uint8_t*>(weights)));
}
inline int32_t total16(Bytes a) { return total32(_mm256_madd_epi16(a, _mm256_set1_epi16(1)), no_words()); }

// Floats.
constexpr int kFloats = 8;
using Floats = __m256;

inline Floats set1(float a) { return _mm256_set1_ps(a); }
inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline void store_floats(float* p, Floats a) { _mm256_storeu_ps(p, a); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats magnitude(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline uint32_t not_below(Floats a, Floats b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLT_UQ)));
}
inline float total(Floats a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

constexpr int kTileQueries = 2;  // that the dense loop multiplies four rows by at once
// The totals of 8 vectors, halves first as in `total`: 21 instructions instead of seven a vector.
inline void totals(const Floats* a, float* out) {
    Floats half[4], pair[2];
    for (int i = 0; i < 4; ++i)
        half[i] = add(_mm256_permute2f128_ps(a[2 * i], a[2 * i + 1], 0x20), _mm256_permute2f128_ps(a[2 * i], a[2 * i + 1], 0x31));
    for (int i = 0; i < 2; ++i)
        pair[i] = add(_mm256_unpacklo_ps(half[2 * i], half[2 * i + 1]), _mm256_unpackhi_ps(half[2 * i], half[2 * i + 1]));
    const Floats sum = add(_mm256_shuffle_ps(pair[0], pair[1], 0x44), _mm256_shuffle_ps(pair[0], pair[1], 0xEE));
    // Lane 4 l + i holds vector 2 i + l.
    store_floats(out, _mm256_permutevar8x32_ps(sum, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

inline __m128i eight_bytes(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
inline __m128i eight_words(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline Floats from_u16(const uint16_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(eight_words(p))); }
inline Floats from_f16(const void* p) { return _mm256_cvtph_ps(eight_words(p)); }
inline Floats from_bf16(const void* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight_words(p)), 16));
}
inline Floats from_i8(const uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight_bytes(p))); }
inline Floats from_u8(const uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight_bytes(p))); }
// Codes above the largest finite one, of either sign, count as it.
inline __m128i finite(__m128i codes, int largest) {
    const __m128i positive = _mm_min_epi8(codes, _mm_set1_epi8(static_cast<char>(largest)));
    return _mm_min_epu8(positive, _mm_set1_epi8(static_cast<char>(largest | 0x80)));
}
inline Floats from_e5m2(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), finite(eight_bytes(p), 0x7B)));
}
// The bits of an E4M3 number, one place down from those of a half: its value / 256.
inline Floats from_e4m3(const uint8_t* p) {
    const __m128i wide = _mm_cvtepi8_epi16(finite(eight_bytes(p), 0x7E));
    return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(static_cast<short>(0xBF80))));
}
inline Floats from_levels16(const uint8_t* p, const float* levels) {
    const __m256i code = _mm256_cvtepu8_epi32(eight_bytes(p));
    const Floats low = _mm256_permutevar8x32_ps(load_floats(levels), code);
    const Floats high = _mm256_permutevar8x32_ps(load_floats(levels + 8), code);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
}
inline Floats from_levels(const uint8_t* p, const float* levels) {
    return _mm256_i32gather_ps(levels, _mm256_cvtepu8_epi32(eight_bytes(p)), 4);
}

}  // namespace ragq::avx2
