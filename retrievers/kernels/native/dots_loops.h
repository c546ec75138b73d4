// Rows of signed bytes times a query of 16-bit words. Included inside the namespace of a simd_*.h.

// Two sums a row, as in `one_query`.
inline int32_t dots_i8(const uint8_t* codes, int64_t stride, int64_t rows, int64_t dim, const WordQuery& query,
                       int32_t* out) {
    int32_t largest = INT32_MIN;
    for (int64_t row = 0; row < rows; ++row, codes += stride) {
        Words even = no_words(), odd = no_words();
        int64_t d = 0;
        for (; d + 2 * kWords <= dim; d += 2 * kWords) {
            even = add_products(even, codes + d, query.words + d);
            odd = add_products(odd, codes + d + kWords, query.words + d + kWords);
        }
        for (; d < dim; d += kWords) {
            uint8_t last[kWords] = {};
            const bool whole = d + kWords <= dim;
            for (int64_t i = 0; !whole && d + i < dim; ++i) last[i] = codes[d + i];
            even = add_products(even, whole ? codes + d : last, query.words + d);
        }
        out[row] = total32(even, odd);
        largest = out[row] > largest ? out[row] : largest;
    }
    return largest;
}
