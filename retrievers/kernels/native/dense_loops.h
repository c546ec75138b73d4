// Float queries against rows of bytes, halves or floats. Included inside the namespace of a simd_*.h.
//
// A score is one vector accumulator over the dimensions, then a total, whether a row is decoded for one query or for
// many: a query gets the same bits alone and in a batch.

template <int Size, Floats (*Decode)(const uint8_t*)>
struct Plain {
    static constexpr int size = Size;
    static inline Floats decode(const uint8_t* p, const float*) { return Decode(p); }
};
inline Floats f32_at(const uint8_t* p) {
    float out[kFloats];
    __builtin_memcpy(out, p, sizeof out);
    return load_floats(out);
}
inline Floats f16_at(const uint8_t* p) { return from_f16(p); }
inline Floats bf16_at(const uint8_t* p) { return from_bf16(p); }
struct Affine {
    static constexpr int size = 1;
    static inline Floats decode(const uint8_t* p, const float* l) { return fma(from_u8(p), set1(l[0]), set1(l[1])); }
};
struct Levels16 {
    static constexpr int size = 1;
    static inline Floats decode(const uint8_t* p, const float* l) { return from_levels16(p, l); }
};
struct Levels {
    static constexpr int size = 1;
    static inline Floats decode(const uint8_t* p, const float* l) { return from_levels(p, l); }
};

// Decode a vector that may reach beyond the row: what lies there counts as zero.
template <class V>
inline Floats decode_part(const uint8_t* p, int64_t left, const float* levels) {
    if (left >= kFloats) return V::decode(p, levels);
    uint8_t bytes[kFloats * V::size] = {};
    for (int64_t i = 0; i < left * V::size; ++i) bytes[i] = p[i];
    float out[kFloats];
    store_floats(out, V::decode(bytes, levels));
    for (int64_t i = left; i < kFloats; ++i) out[i] = 0;
    return load_floats(out);
}

// Join the bit planes of a row, most significant first, `width` bytes each (a multiple of 8), to a byte a dimension.
inline void join_planes(const uint8_t* const* planes, int64_t width, int bits, uint8_t* codes) {
    constexpr int64_t step = 4 * kPairs;
    for (int64_t at = 0; at < width; at += step) {
        Bytes code = bit_bytes(planes[0] + at);
        for (int b = 1; b < bits; ++b) code = add8(add8(code, code), bit_bytes(planes[b] + at));
        store(codes + 8 * at, code);
    }
}

template <class V, int Rows>
inline void one_query(const DenseRun& run, int64_t first) {
    Floats sum[Rows];
    const uint8_t* row[Rows];
    for (int r = 0; r < Rows; ++r) sum[r] = set1(0), row[r] = run.codes + (first + r) * run.stride;
    const int64_t whole = run.dim / kFloats * kFloats;
    for (int64_t d = 0; d < whole; d += kFloats) {
        const Floats q = load_floats(run.queries + d);
        for (int r = 0; r < Rows; ++r) sum[r] = fma(V::decode(row[r] + d * V::size, run.levels), q, sum[r]);
    }
    if (whole < run.dim) {
        const Floats q = load_floats(run.queries + whole);
        for (int r = 0; r < Rows; ++r)
            sum[r] = fma(decode_part<V>(row[r] + whole * V::size, run.dim - whole, run.levels), q, sum[r]);
    }
    for (int r = 0; r < Rows; ++r) run.out[first + r] = total(sum[r]);
}

template <int Rows, int Queries>
inline void tile_scores(const DenseRun& run, int64_t first, int64_t row, int64_t query) {
    Floats sum[Rows * Queries];
    for (int i = 0; i < Rows * Queries; ++i) sum[i] = set1(0);
    const float *x = run.tile + row * run.padded, *q = run.queries + query * run.padded;
    for (int64_t d = 0; d < run.dim; d += kFloats) {
        Floats v[Queries];
        for (int n = 0; n < Queries; ++n) v[n] = load_floats(q + n * run.padded + d);
        for (int r = 0; r < Rows; ++r) {
            const Floats u = load_floats(x + r * run.padded + d);
            for (int n = 0; n < Queries; ++n) sum[r * Queries + n] = fma(u, v[n], sum[r * Queries + n]);
        }
    }
    float out[Rows * Queries];
    if constexpr (Rows * Queries == kFloats)
        totals(sum, out);
    else
        for (int i = 0; i < Rows * Queries; ++i) out[i] = total(sum[i]);
    for (int n = 0; n < Queries; ++n)
        for (int r = 0; r < Rows; ++r) run.out[(query + n) * run.rows + first + row + r] = out[r * Queries + n];
}

template <int Queries>
inline void tile_queries(const DenseRun& run, int64_t first, int64_t rows, int64_t query) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) tile_scores<4, Queries>(run, first, row, query);
    for (; row < rows; ++row) tile_scores<1, Queries>(run, first, row, query);
}

template <class V>
inline void many_queries(const DenseRun& run) {
    for (int64_t first = 0; first < run.rows; first += kTileRows) {
        const int64_t rows = run.rows - first < kTileRows ? run.rows - first : kTileRows;
        for (int64_t r = 0; r < rows; ++r) {
            const uint8_t* row = run.codes + (first + r) * run.stride;
            for (int64_t d = 0; d < run.dim; d += kFloats)
                store_floats(run.tile + r * run.padded + d, decode_part<V>(row + d * V::size, run.dim - d, run.levels));
        }
        int64_t query = 0;
        for (; query + kTileQueries <= run.n_queries; query += kTileQueries)
            tile_queries<kTileQueries>(run, first, rows, query);
        for (; query < run.n_queries; ++query) tile_queries<1>(run, first, rows, query);
    }
}

template <class V>
inline void dense_of(const DenseRun& run) {
    if (run.n_queries > 1) return many_queries<V>(run);
    int64_t row = 0;
    for (; row + 2 <= run.rows; row += 2) one_query<V, 2>(run, row);  // more at once are more streams to foresee
    for (; row < run.rows; ++row) one_query<V, 1>(run, row);
}

inline void dense(const DenseRun& run) {
    switch (run.value) {
        case Value::f32: return dense_of<Plain<4, f32_at>>(run);
        case Value::f16: return dense_of<Plain<2, f16_at>>(run);
        case Value::bf16: return dense_of<Plain<2, bf16_at>>(run);
        case Value::i8: return dense_of<Plain<1, from_i8>>(run);
        case Value::e4m3: return dense_of<Plain<1, from_e4m3>>(run);
        case Value::e5m2: return dense_of<Plain<1, from_e5m2>>(run);
        case Value::affine: return dense_of<Affine>(run);
        case Value::levels16: return dense_of<Levels16>(run);
        case Value::levels: return dense_of<Levels>(run);
    }
}
