// Eight rows of whole words at a time: as many vectors as a row has words. Included by loops.cpp after hamming_loops.h.

// Which bytes of the counts belong to a row: word g of the eight rows is counted in lane g % 8, byte g / 8.
template <int Words>
struct RowBytes {
    static constexpr int parts = (Words + 7) / 8;
    alignas(64) uint8_t index[parts][64] = {};
    uint64_t mask[parts] = {};

    constexpr RowBytes() {
        for (int row = 0; row < 8; ++row)
            for (int word = 0; word < Words; ++word) {
                const int g = Words * row + word, vector = g / 8, byte = 8 * row + word % 8;
                index[word / 8][byte] = static_cast<uint8_t>(vector / 8 * 64 + g % 8 * 8 + vector % 8);
                mask[word / 8] |= uint64_t{1} << byte;
            }
    }
};

// The rows of eight that differ from the query in at most `limit` bits; `pattern` is the query's words eight times over.
template <int Words>
inline uint32_t rows_within(const uint8_t* rows, const uint64_t* pattern, __m512i limit) {
    static constexpr RowBytes<Words> bytes;
    constexpr int parts = RowBytes<Words>::parts;
    __m512i counts[2] = {zero(), zero()}, sum = zero();
    for (int i = 0; i < Words; ++i) {
        const __m512i differ = _mm512_xor_si512(load(rows + 64 * i), _mm512_loadu_si512(pattern + 8 * i));
        const __m512i count = _mm512_sllv_epi64(_mm512_popcnt_epi64(differ), _mm512_set1_epi64(8 * (i % 8)));
        counts[i / 8] = _mm512_or_si512(counts[i / 8], count);
    }
    for (int p = 0; p < parts; ++p) {
        const __m512i index = load(bytes.index[p]);
        const __m512i mine = parts == 1 ? _mm512_maskz_permutexvar_epi8(bytes.mask[p], index, counts[0])
                                        : _mm512_maskz_permutex2var_epi8(bytes.mask[p], counts[0], index, counts[1]);
        sum = _mm512_add_epi64(sum, _mm512_sad_epu8(mine, zero()));
    }
    return _mm512_cmple_epi64_mask(sum, limit);
}

template <int Words>
inline void hamming_eights(const uint8_t* codes, int64_t rows, const HammingQuery* q, int n_queries) {
    for (int n = 0; n < n_queries; ++n) {
        uint64_t pattern[8 * Words];
        for (int i = 0; i < 8 * Words; ++i) pattern[i] = word64(q[n].code + 8 * (i % Words));
        const __m512i limit = _mm512_set1_epi64(q[n].limit);
        const uint8_t* row = codes;
        for (int64_t first = 0; first < rows; first += 32) {
            const int64_t stop = rows - first < 32 ? rows - first : 32;
            uint32_t hits = 0;
            int64_t r = 0;
            for (; r + 8 <= stop; r += 8, row += 64 * Words) hits |= rows_within<Words>(row, pattern, limit) << r;
            for (; r < stop; ++r, row += 8 * Words)
                hits |= uint32_t{distance<Words>(row, q[n].code, 8 * Words) <= q[n].limit} << r;
            q[n].hits[first / 32] = hits;
        }
    }
}

inline void hamming_wide(const uint8_t* codes, int64_t width, int64_t rows, const HammingQuery* q, int n_queries) {
    switch (width) {
        case 16: return hamming_eights<2>(codes, rows, q, n_queries);
        case 32: return hamming_eights<4>(codes, rows, q, n_queries);
        case 48: return hamming_eights<6>(codes, rows, q, n_queries);
        case 64: return hamming_eights<8>(codes, rows, q, n_queries);
        case 96: return hamming_eights<12>(codes, rows, q, n_queries);
        case 128: return hamming_eights<16>(codes, rows, q, n_queries);
        default: return hamming(codes, width, rows, q, n_queries);
    }
}
constexpr auto kHamming = hamming_wide;
