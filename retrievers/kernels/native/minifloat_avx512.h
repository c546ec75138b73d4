// 64 small floats at once. Included inside the namespace of simd_avx512.h.
//
// The value of a code is exact in the upper half of a float: its sign, and two bytes that are looked up among 128.

// A code is the upper bits of a half, `Bits` places down; codes above the largest finite one count as it.
template <int Largest, int Bits>
struct HalfTables {
    alignas(64) uint8_t high[128], low[128];

    constexpr HalfTables() : high(), low() {
        for (int code = 0; code < 128; ++code) {
            int half = (code < Largest ? code : Largest) << Bits, exponent = 113;
            if (half && half < 0x400)
                for (; half < 0x400; half <<= 1) --exponent;  // normal among floats
            else if (half)
                exponent = 112 + (half >> 10);
            const int word = half ? exponent << 7 | (half & 0x3FF) >> 3 : 0;
            high[code] = static_cast<uint8_t>(word >> 8), low[code] = static_cast<uint8_t>(word);
        }
    }
};

// Where the code of each dimension goes, so that the floats come out in order: in 16-byte lane l, bytes 2 i, 2 i + 1,
// 2 i + 8 and 2 i + 9 become lane 4 l + i of the four vectors.
struct LineOrder {
    alignas(64) uint8_t from[64];

    constexpr LineOrder() : from() {
        for (int at = 0; at < 64; ++at)
            from[at] = static_cast<uint8_t>(at / 16 * 4 + at % 8 / 2 + (at % 2) * 16 + (at % 16 / 8) * 32);
    }
};

template <int Largest, int Bits>
class MiniLine {
  public:
    static constexpr int vectors = 4;

    explicit MiniLine(const float*)
        : order_(kept(kOrder.from)), high_{kept(kTables.high), kept(kTables.high + 64)},
          low_{kept(kTables.low), kept(kTables.low + 64)} {}

    void decode(const uint8_t* p, Floats* out) const {
        const __m512i codes = _mm512_permutexvar_epi8(order_, load(p));
        const __m512i low = _mm512_permutex2var_epi8(low_[0], codes, low_[1]);
        const __m512i size = _mm512_permutex2var_epi8(high_[0], codes, high_[1]);
        const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
        const __m512i high = _mm512_ternarylogic_epi32(size, codes, sign, 0xF8);  // size | (codes & sign)
        const __m512i words[2] = {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
        for (int i = 0; i < 2; ++i) {
            out[2 * i] = _mm512_castsi512_ps(_mm512_slli_epi32(words[i], 16));
            out[2 * i + 1] = _mm512_castsi512_ps(_mm512_and_si512(words[i], _mm512_set1_epi32(-65536)));
        }
    }

  private:
    static constexpr HalfTables<Largest, Bits> kTables{};
    static constexpr LineOrder kOrder{};

    // A load that stays out of loops: GCC takes one of a constant for so cheap that it repeats it.
    static __m512i kept(const uint8_t* p) {
        __m512i out = load(p);
        asm("" : "+v"(out));
        return out;
    }

    const __m512i order_, high_[2], low_[2];
};
template <>
class Line<Plain<1, from_e4m3>> : public MiniLine<0x7E, 7> {
  public:
    using MiniLine::MiniLine;
};
template <>
class Line<Plain<1, from_e5m2>> : public MiniLine<0x7B, 8> {
  public:
    using MiniLine::MiniLine;
};
