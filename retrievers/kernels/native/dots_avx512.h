// Rows of signed bytes times a query of 16-bit words, 64 products an instruction. Included inside the namespace of
// simd_avx512.h.
//
// VNNI multiplies unsigned by signed bytes: a code is flipped to code + 128, whose share of the sum is known, and a
// word is two bytes. The rows come from memory as fast as from a plain read when the processor foresees them by itself:
// few load instructions, each with one stride, so the loop over rows is not unrolled, and nothing is asked for ahead.

// The products of a row of `Lines` lines of 64 dimensions, or of any number with 0, and a query that lies in registers
// unless it is too long for them.
template <int Lines>
class RowDots {
  public:
    RowDots(int64_t dim, const WordQuery& query)
        : query_(query), whole_((dim - 1) / 64), last_(~uint64_t{0} >> (-dim & 63)) {
        for (int i = 0; i < Lines; ++i) high_[i] = load_bytes(query.high, i), low_[i] = load_bytes(query.low, i);
    }

    __m512i operator()(const uint8_t* row) const {
        const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
        __m512i high = _mm512_setzero_si512(), low = high;
        if constexpr (Lines) {
            for (int i = 0; i < Lines; ++i) {
                const __m512i line = i + 1 < Lines ? load(row + 64 * i) : _mm512_maskz_loadu_epi8(last_, row + 64 * i);
                high = _mm512_dpbusd_epi32(high, _mm512_xor_si512(line, flip), high_[i]);
                low = _mm512_dpbusd_epi32(low, _mm512_xor_si512(line, flip), low_[i]);
            }
        } else {
            for (int64_t i = 0; i <= whole_; ++i) {
                const __m512i line = _mm512_maskz_loadu_epi8(i < whole_ ? ~uint64_t{0} : last_, row + 64 * i);
                high = _mm512_dpbusd_epi32(high, _mm512_xor_si512(line, flip), load_bytes(query_.high, i));
                low = _mm512_dpbusd_epi32(low, _mm512_xor_si512(line, flip), load_bytes(query_.low, i));
            }
        }
        return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
    }

  private:
    static __m512i load_bytes(const int8_t* p, int64_t line) { return _mm512_loadu_si512(p + 64 * line); }

    const WordQuery query_;
    const int64_t whole_;
    const __mmask64 last_;
    __m512i high_[Lines + 1], low_[Lines + 1];
};

// The totals of four vectors.
inline __m128i totals32(const __m512i* a) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

template <int Lines>
inline int32_t dots_lines(const uint8_t* codes, int64_t stride, int64_t rows, int64_t dim, const WordQuery& query,
                          int32_t* out) {
    const RowDots<Lines> dots(dim, query);
    const __m128i flipped = _mm_set1_epi32(static_cast<int32_t>(uint32_t{128} * static_cast<uint32_t>(query.sum)));
    __m128i largest = _mm_set1_epi32(INT32_MIN);
    for (int64_t row = 0; row < rows; row += 4) {
        const int n = rows - row < 4 ? static_cast<int>(rows - row) : 4;
        const __mmask8 mine = static_cast<__mmask8>((1 << n) - 1);
        __m512i sums[4];
#pragma GCC unroll 1
        for (int r = 0; r < n; ++r, codes += stride) sums[r] = dots(codes);
        const __m128i totals = _mm_sub_epi32(totals32(sums), flipped);
        largest = _mm_mask_max_epi32(largest, mine, largest, totals);
        _mm_mask_storeu_epi32(out + row, mine, totals);
    }
    largest = _mm_max_epi32(largest, _mm_shuffle_epi32(largest, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(largest, _mm_shuffle_epi32(largest, 0xB1)));
}

inline int32_t dots_i8(const uint8_t* codes, int64_t stride, int64_t rows, int64_t dim, const WordQuery& query,
                       int32_t* out) {
    switch ((dim + 63) / 64) {
        case 1: return dots_lines<1>(codes, stride, rows, dim, query, out);
        case 2: return dots_lines<2>(codes, stride, rows, dim, query, out);
        case 3: return dots_lines<3>(codes, stride, rows, dim, query, out);
        case 4: return dots_lines<4>(codes, stride, rows, dim, query, out);
        case 5: return dots_lines<5>(codes, stride, rows, dim, query, out);
        case 6: return dots_lines<6>(codes, stride, rows, dim, query, out);
        case 7: return dots_lines<7>(codes, stride, rows, dim, query, out);
        case 8: return dots_lines<8>(codes, stride, rows, dim, query, out);
        default: return dots_lines<0>(codes, stride, rows, dim, query, out);
    }
}
