// NEON (AArch64): two registers stand for the 32 rows of a block.
#pragma once

#include <arm_neon.h>

#include "loops.h"

namespace ragq::neon {

constexpr const char* kName = "neon";

constexpr int kPairs = 1;
struct Bytes {
    uint8x16_t a, b;
};

inline uint16x8_t words(uint8x16_t x) { return vreinterpretq_u16_u8(x); }
inline uint8x16_t bytes(uint16x8_t x) { return vreinterpretq_u8_u16(x); }

inline Bytes zero() { return {vdupq_n_u8(0), vdupq_n_u8(0)}; }
inline Bytes load(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16)}; }
inline Bytes load_part(const uint8_t* p, int64_t) { return load(p); }  // a step is one group: never partial
inline void store(uint8_t* p, Bytes x) { vst1q_u8(p, x.a), vst1q_u8(p + 16, x.b); }
inline uint8x16_t table(const uint8_t* p) { return vld1q_u8(p); }
inline Bytes shuffle(uint8x16_t table, Bytes i) { return {vqtbl1q_u8(table, i.a), vqtbl1q_u8(table, i.b)}; }
inline Bytes low_nibbles(Bytes x) { return {vandq_u8(x.a, vdupq_n_u8(15)), vandq_u8(x.b, vdupq_n_u8(15))}; }
inline Bytes high_nibbles(Bytes x) { return {vshrq_n_u8(x.a, 4), vshrq_n_u8(x.b, 4)}; }
inline Bytes join(Bytes high, Bytes low) { return {vsliq_n_u8(low.a, high.a, 4), vsliq_n_u8(low.b, high.b, 4)}; }
inline Bytes add8(Bytes x, Bytes y) { return {vaddq_u8(x.a, y.a), vaddq_u8(x.b, y.b)}; }
inline Bytes add16(Bytes x, Bytes y) {
    return {bytes(vaddq_u16(words(x.a), words(y.a))), bytes(vaddq_u16(words(x.b), words(y.b)))};
}
inline Bytes odd_bytes(Bytes x) { return {bytes(vshrq_n_u16(words(x.a), 8)), bytes(vshrq_n_u16(words(x.b), 8))}; }

// 256-entry table: four look-ups of 64 entries; an index out of range leaves what is there.
inline uint8x16_t lookup256(const uint8_t* p, uint8x16_t code) {
    uint8x16_t out = vqtbl4q_u8(vld1q_u8_x4(p), code);
    for (int i = 1; i < 4; ++i) {
        code = vsubq_u8(code, vdupq_n_u8(64));
        out = vqtbx4q_u8(out, vld1q_u8_x4(p + 64 * i), code);
    }
    return out;
}
inline Bytes lookup256(const uint8_t* p, Bytes code) { return {lookup256(p, code.a), lookup256(p, code.b)}; }

// 16-bit sums of 32 rows in row order.
struct Sums {
    uint16x8_t row[4];
};
// `even` has collected whole 16-bit words, so the odd rows' sums must come off its upper half.
inline Sums sums(Bytes even, Bytes odd) {
    const uint16x8_t oa = words(odd.a), ob = words(odd.b);
    const uint16x8_t ea = vsubq_u16(words(even.a), vshlq_n_u16(oa, 8));
    const uint16x8_t eb = vsubq_u16(words(even.b), vshlq_n_u16(ob, 8));
    return {{vzip1q_u16(ea, oa), vzip2q_u16(ea, oa), vzip1q_u16(eb, ob), vzip2q_u16(eb, ob)}};
}
inline uint32_t at_least(Sums s, uint32_t threshold) {
    const uint16x8_t t = vdupq_n_u16(static_cast<uint16_t>(threshold));
    const uint16x8_t bit = {1, 2, 4, 8, 16, 32, 64, 128};
    uint32_t hits = 0;
    for (int i = 0; i < 4; ++i) hits |= uint32_t{vaddvq_u16(vandq_u16(vcgeq_u16(s.row[i], t), bit))} << (8 * i);
    return hits;
}
inline void store_rows(Sums s, uint16_t* out) {
    for (int i = 0; i < 4; ++i) vst1q_u16(out + 8 * i, s.row[i]);
}

// The 32 bits at `p` as bytes 0 and 1.
inline Bytes bit_bytes(const uint8_t* p) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    const uint8x16_t a = vcombine_u8(vdup_n_u8(p[0]), vdup_n_u8(p[1]));
    const uint8x16_t b = vcombine_u8(vdup_n_u8(p[2]), vdup_n_u8(p[3]));
    return {vshrq_n_u8(vtstq_u8(a, bit), 7), vshrq_n_u8(vtstq_u8(b, bit), 7)};
}

// Bytes 0 and 1 times signed bytes, two products a 16-bit sum; and the sum of such sums.
inline uint8x16_t pair_sums(uint8x16_t bits, const int8_t* weights) {
    return vreinterpretq_u8_s16(vpaddlq_s8(vmulq_s8(vreinterpretq_s8_u8(bits), vld1q_s8(weights))));
}
inline Bytes pair_sums(Bytes bits, const int8_t* weights) {
    return {pair_sums(bits.a, weights), pair_sums(bits.b, weights + 16)};
}
inline int32_t total16(Bytes x) {
    return vaddlvq_s16(vreinterpretq_s16_u8(x.a)) + vaddlvq_s16(vreinterpretq_s16_u8(x.b));
}

// Signed bytes times 16-bit words, two products a 32-bit sum; and the sum of such sums.
constexpr int kWords = 8;
using Words = int32x4_t;
inline Words no_words() { return vdupq_n_s32(0); }
inline Words add_products(Words sum, const uint8_t* bytes, const int16_t* words) {
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(vld1_u8(bytes))), query = vld1q_s16(words);
    return vmlal_high_s16(vmlal_s16(sum, vget_low_s16(wide), vget_low_s16(query)), wide, query);
}
inline int32_t total32(Words a, Words b) { return vaddvq_s32(vaddq_s32(a, b)); }

constexpr int kFloats = 4;
using Floats = float32x4_t;

inline Floats set1(float a) { return vdupq_n_f32(a); }
inline Floats load_floats(const float* p) { return vld1q_f32(p); }
inline void store_floats(float* p, Floats a) { vst1q_f32(p, a); }
inline Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
inline Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
inline Floats magnitude(Floats a) { return vabsq_f32(a); }
inline uint32_t not_below(Floats a, Floats b) {
    const uint32x4_t bit = {1, 2, 4, 8};
    return vaddvq_u32(vbicq_u32(bit, vcltq_f32(a, b)));
}
inline float total(Floats a) { return vaddvq_f32(a); }

constexpr int kTileQueries = 2;  // that the dense loop multiplies four rows by at once
inline void totals(const Floats* a, float* out) {
    for (int i = 0; i < kFloats; ++i) out[i] = total(a[i]);
}

inline uint16x4_t four_words(const void* p) {
    uint16x4_t out;
    __builtin_memcpy(&out, p, 8);
    return out;
}
inline uint8x8_t four_bytes(const uint8_t* p) {
    uint32_t word;
    __builtin_memcpy(&word, p, 4);
    return vreinterpret_u8_u32(vdup_n_u32(word));
}
inline uint16x4_t four_widened(const uint8_t* p) { return vget_low_u16(vmovl_u8(four_bytes(p))); }
inline Floats halves(uint16x4_t bits) { return vcvt_f32_f16(vreinterpret_f16_u16(bits)); }
inline Floats from_u16(const uint16_t* p) { return vcvtq_f32_u32(vmovl_u16(four_words(p))); }
inline Floats from_f16(const void* p) { return halves(four_words(p)); }
inline Floats from_bf16(const void* p) { return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(four_words(p)), 16)); }
inline Floats from_i8(const uint8_t* p) {
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(four_bytes(p)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
inline Floats from_u8(const uint8_t* p) { return vcvtq_f32_u32(vmovl_u16(four_widened(p))); }
// Codes above the largest finite one, of either sign, count as it; the sign is bit 7.
inline uint16x4_t finite(const uint8_t* p, uint16_t largest) {
    const uint16x4_t code = four_widened(p);
    const uint16x4_t size = vmin_u16(vand_u16(code, vdup_n_u16(0x7F)), vdup_n_u16(largest));
    return vorr_u16(vand_u16(code, vdup_n_u16(0x80)), size);
}
inline Floats from_e5m2(const uint8_t* p) { return halves(vshl_n_u16(finite(p, 0x7B), 8)); }
// The bits of an E4M3 number, one place down from those of a half: its value / 256.
inline Floats from_e4m3(const uint8_t* p) {
    const uint16x4_t wide = finite(p, 0x7E);
    const uint16x4_t sign = vshl_n_u16(vand_u16(wide, vdup_n_u16(0x80)), 8);
    return halves(vorr_u16(sign, vshl_n_u16(vand_u16(wide, vdup_n_u16(0x7F)), 7)));
}
inline Floats from_levels(const uint8_t* p, const float* levels) {
    const float out[4] = {levels[p[0]], levels[p[1]], levels[p[2]], levels[p[3]]};
    return load_floats(out);
}
inline Floats from_levels16(const uint8_t* p, const float* levels) { return from_levels(p, levels); }

}  // namespace ragq::neon
