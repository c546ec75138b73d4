// Bits that differ between packed rows and packed queries. Included inside the namespace of a simd_*.h.

inline uint64_t word64(const uint8_t* p) {
    uint64_t out;
    __builtin_memcpy(&out, p, 8);
    return out;
}
inline uint64_t last_bytes(const uint8_t* p, int64_t n) {
    uint64_t out = 0;
    for (int64_t i = 0; i < n; ++i) out |= uint64_t{p[i]} << (8 * i);
    return out;
}

// Width known at compile time (in words) for the usual sizes, so that the loop over a row unrolls; 0: any width.
template <int Words>
inline int64_t distance(const uint8_t* row, const uint8_t* code, int64_t width) {
    const int64_t words = Words ? Words : width / 8;
    int64_t out = 0;
    for (int64_t w = 0; w < words; ++w) out += __builtin_popcountll(word64(row + 8 * w) ^ word64(code + 8 * w));
    if (!Words && width % 8) {
        const int64_t at = 8 * words;
        out += __builtin_popcountll(last_bytes(row + at, width - at) ^ last_bytes(code + at, width - at));
    }
    return out;
}

template <int Words>
inline void hamming_scan(const uint8_t* codes, int64_t width, int64_t rows, const HammingQuery* q, int n_queries) {
    for (int n = 0; n < n_queries; ++n) {
        const uint8_t* code = q[n].code;
        const int64_t limit = q[n].limit;
        const uint8_t* row = codes;
        for (int64_t first = 0; first < rows; first += 32) {
            const int64_t stop = rows - first < 32 ? rows - first : 32;
            uint32_t hits = 0;
            for (int64_t r = 0; r < stop; ++r, row += width)
                hits |= uint32_t{distance<Words>(row, code, width) <= limit} << r;
            q[n].hits[first / 32] = hits;
        }
    }
}

inline void hamming(const uint8_t* codes, int64_t width, int64_t rows, const HammingQuery* q, int n_queries) {
    switch (width) {
        case 16: return hamming_scan<2>(codes, width, rows, q, n_queries);
        case 32: return hamming_scan<4>(codes, width, rows, q, n_queries);
        case 48: return hamming_scan<6>(codes, width, rows, q, n_queries);
        case 64: return hamming_scan<8>(codes, width, rows, q, n_queries);
        case 96: return hamming_scan<12>(codes, width, rows, q, n_queries);
        case 128: return hamming_scan<16>(codes, width, rows, q, n_queries);
        default: return hamming_scan<0>(codes, width, rows, q, n_queries);
    }
}
