// The same operations in plain C++: any processor.
#pragma once

#include "loops.h"

namespace ragq::scalar {

constexpr const char* kName = "scalar";

constexpr int kPairs = 1;
struct Bytes {
    uint8_t b[32];
};

template <class F>
inline Bytes each(F f) {
    Bytes out;
    for (int i = 0; i < 32; ++i) out.b[i] = static_cast<uint8_t>(f(i));
    return out;
}
template <class F>
inline Bytes each16(F f) {
    Bytes out;
    for (int i = 0; i < 32; i += 2) {
        const unsigned word = f(i);
        out.b[i] = static_cast<uint8_t>(word), out.b[i + 1] = static_cast<uint8_t>(word >> 8);
    }
    return out;
}
inline unsigned word(const Bytes& a, int i) { return a.b[i] | (unsigned{a.b[i + 1]} << 8); }

inline Bytes zero() { return {}; }
inline Bytes load(const uint8_t* p) {
    return each([&](int i) { return p[i]; });
}
inline Bytes load_part(const uint8_t* p, int64_t) { return load(p); }  // a step is one group: never partial
inline void store(uint8_t* p, const Bytes& a) {
    for (int i = 0; i < 32; ++i) p[i] = a.b[i];
}
inline Bytes table(const uint8_t* p) {
    return each([&](int i) { return p[i & 15]; });
}
inline Bytes shuffle(const Bytes& table, const Bytes& index) {
    return each([&](int i) { return table.b[index.b[i]]; });
}
inline Bytes low_nibbles(const Bytes& a) {
    return each([&](int i) { return a.b[i] & 15; });
}
inline Bytes high_nibbles(const Bytes& a) {
    return each([&](int i) { return a.b[i] >> 4; });
}
inline Bytes join(const Bytes& high, const Bytes& low) {
    return each([&](int i) { return (high.b[i] << 4) | low.b[i]; });
}
inline Bytes add8(const Bytes& a, const Bytes& b) {
    return each([&](int i) { return a.b[i] + b.b[i]; });
}
inline Bytes add16(const Bytes& a, const Bytes& b) {
    return each16([&](int i) { return word(a, i) + word(b, i); });
}
inline Bytes odd_bytes(const Bytes& a) {
    return each16([&](int i) { return unsigned{a.b[i + 1]}; });
}
inline Bytes lookup256(const uint8_t* p, const Bytes& code) {
    return each([&](int i) { return p[code.b[i]]; });
}

struct Sums {
    uint16_t row[32];
};
// `even` has collected whole 16-bit words, so the odd rows' sums must come off its upper half.
inline Sums sums(const Bytes& even, const Bytes& odd) {
    Sums out;
    for (int i = 0; i < 32; i += 2) {
        out.row[i] = static_cast<uint16_t>(word(even, i) - (word(odd, i) << 8));
        out.row[i + 1] = static_cast<uint16_t>(word(odd, i));
    }
    return out;
}
inline uint32_t at_least(const Sums& s, uint32_t threshold) {
    uint32_t hits = 0;
    for (int i = 0; i < 32; ++i) hits |= uint32_t{s.row[i] >= threshold} << i;
    return hits;
}
inline void store_rows(const Sums& s, uint16_t* out) {
    for (int i = 0; i < 32; ++i) out[i] = s.row[i];
}

// The 32 bits at `p` as bytes 0 and 1.
inline Bytes bit_bytes(const uint8_t* p) {
    return each([&](int i) { return p[i / 8] >> (i % 8) & 1; });
}

// Bytes 0 and 1 times signed bytes, two products a 16-bit sum; and the sum of such sums.
inline Bytes pair_sums(const Bytes& bits, const int8_t* weights) {
    return each16([&](int i) {
        return static_cast<unsigned>(bits.b[i] * weights[i] + bits.b[i + 1] * weights[i + 1]);
    });
}
inline int32_t total16(const Bytes& a) {
    int32_t sum = 0;
    for (int i = 0; i < 32; i += 2) sum += static_cast<int16_t>(word(a, i));
    return sum;
}

// Signed bytes times 16-bit words, and the sum of such sums.
constexpr int kWords = 4;
using Words = int32_t;
inline Words no_words() { return 0; }
inline Words add_products(Words sum, const uint8_t* bytes, const int16_t* words) {
    for (int i = 0; i < kWords; ++i) sum += static_cast<int8_t>(bytes[i]) * words[i];
    return sum;
}
inline int32_t total32(Words a, Words b) { return a + b; }

constexpr int kFloats = 4;
struct Floats {
    float f[4];
};
template <class F>
inline Floats every(F f) {
    return {{f(0), f(1), f(2), f(3)}};
}
inline float bits(uint32_t word) {
    float out;
    __builtin_memcpy(&out, &word, 4);
    return out;
}
inline uint16_t word_at(const void* p, int i) {
    uint16_t out;
    __builtin_memcpy(&out, static_cast<const uint8_t*>(p) + 2 * i, 2);
    return out;
}
inline float half(uint16_t h) {
    const uint32_t sign = uint32_t{h & 0x8000u} << 16, rest = h & 0x7FFFu;
    const float size = rest >= 0x7C00 ? bits((rest << 13) | 0x7F800000u) : bits(rest << 13) * bits(0x77800000u);
    return sign ? -size : size;
}

inline Floats set1(float a) { return {{a, a, a, a}}; }
inline Floats load_floats(const float* p) {
    return every([&](int i) { return p[i]; });
}
inline void store_floats(float* p, const Floats& a) {
    for (int i = 0; i < 4; ++i) p[i] = a.f[i];
}
inline Floats mul(const Floats& a, const Floats& b) {
    return every([&](int i) { return a.f[i] * b.f[i]; });
}
inline Floats add(const Floats& a, const Floats& b) {
    return every([&](int i) { return a.f[i] + b.f[i]; });
}
inline Floats fma(const Floats& a, const Floats& b, const Floats& c) { return add(mul(a, b), c); }
inline Floats magnitude(const Floats& a) {
    return every([&](int i) { return a.f[i] < 0 ? -a.f[i] : a.f[i]; });
}
inline uint32_t not_below(const Floats& a, const Floats& b) {
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) out |= uint32_t{!(a.f[i] < b.f[i])} << i;
    return out;
}
inline float total(const Floats& a) { return (a.f[0] + a.f[2]) + (a.f[1] + a.f[3]); }

constexpr int kTileQueries = 2;  // that the dense loop multiplies four rows by at once
inline void totals(const Floats* a, float* out) {
    for (int i = 0; i < kFloats; ++i) out[i] = total(a[i]);
}

inline Floats from_u16(const uint16_t* p) {
    return every([&](int i) { return static_cast<float>(p[i]); });
}
inline Floats from_f16(const void* p) {
    return every([&](int i) { return half(word_at(p, i)); });
}
inline Floats from_bf16(const void* p) {
    return every([&](int i) { return bits(uint32_t{word_at(p, i)} << 16); });
}
inline Floats from_i8(const uint8_t* p) {
    return every([&](int i) { return static_cast<float>(static_cast<int8_t>(p[i])); });
}
inline Floats from_u8(const uint8_t* p) {
    return every([&](int i) { return static_cast<float>(p[i]); });
}
// Codes above the largest finite one, of either sign, count as it.
inline uint16_t finite(uint8_t code, int largest) {
    const int size = code & 0x7F;
    return static_cast<uint16_t>((code & 0x80) | (size < largest ? size : largest));
}
inline Floats from_e5m2(const uint8_t* p) {
    return every([&](int i) { return half(static_cast<uint16_t>(finite(p[i], 0x7B) << 8)); });
}
// The bits of an E4M3 number, one place down from those of a half: its value / 256.
inline Floats from_e4m3(const uint8_t* p) {
    return every([&](int i) {
        const uint16_t code = finite(p[i], 0x7E);
        return half(static_cast<uint16_t>(((code & 0x80) << 8) | ((code & 0x7F) << 7)));
    });
}
inline Floats from_levels(const uint8_t* p, const float* levels) {
    return every([&](int i) { return levels[p[i]]; });
}
inline Floats from_levels16(const uint8_t* p, const float* levels) { return from_levels(p, levels); }

}  // namespace ragq::scalar
