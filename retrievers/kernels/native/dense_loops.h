// Queries against rows of bytes, halves, floats or bits. Included inside the namespace of a simd_*.h.
//
// A score in floats is two vector accumulators over the dimensions, for every other vector each, then a total, whether a
// row is decoded for one query or for many: a query gets the same bits alone and in a batch.

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

inline int32_t weigh_bits(const uint8_t* const* bits, const int64_t* widths, int n, const int8_t* weights) {
    constexpr int64_t step = 4 * kPairs;
    constexpr int most = 128;  // vectors whose sums of two weights add up in 16 bits
    int left = most;
    int32_t out = 0;
    Bytes sum = zero();
    for (int b = 0; b < n; ++b) {
        for (int64_t at = 0; at < widths[b]; at += step) {
            uint8_t last[step] = {};
            const uint8_t* p = bits[b] + at;
            if (at + step > widths[b]) {
                for (int64_t i = 0; at + i < widths[b]; ++i) last[i] = p[i];
                p = last;
            }
            sum = add16(sum, pair_sums(bit_bytes(p), weights + 8 * at));
            if (--left == 0) out += total16(sum), sum = zero(), left = most;
        }
        weights += (widths[b] + 7) / 8 * 64;
    }
    return out + total16(sum);
}

// The even vectors of a row add up in one register and the odd ones in another, which halves the wait for a sum; rows
// come one after the other, because the processor foresees one stream better than several. Bytes asked for ahead:
constexpr int64_t kAhead = 3072;

template <class V>
inline float one_query(const DenseRun& run, const uint8_t* row) {
    constexpr int64_t line = 64 / V::size < kFloats ? kFloats : 64 / V::size;  // dimensions
    Floats sum[2] = {set1(0), set1(0)};
    const int64_t whole = run.dim / kFloats * kFloats;
    int64_t d = 0;
    for (; d + line <= whole; d += line) {
        __builtin_prefetch(row + d * V::size + kAhead);
        for (int64_t e = 0; e < line; e += kFloats) {
            Floats& mine = sum[(d + e) / kFloats % 2];
            mine = fma(V::decode(row + (d + e) * V::size, run.levels), load_floats(run.queries + d + e), mine);
        }
    }
    for (; d < run.dim; d += kFloats) {
        const Floats x = decode_part<V>(row + d * V::size, run.dim - d, run.levels);
        Floats& mine = sum[d / kFloats % 2];
        mine = fma(x, load_floats(run.queries + d), mine);
    }
    return total(add(sum[0], sum[1]));
}

template <int Rows, int Queries>
inline void tile_scores(const DenseRun& run, int64_t first, int64_t row, int64_t query) {
    const float *x = run.tile + row * run.padded, *q = run.queries + query * run.padded;
    Floats sum[Rows * Queries], even[Rows * Queries];
    for (int i = 0; i < Rows * Queries; ++i) sum[i] = set1(0);
    for (int odd = 0; odd < 2; ++odd) {  // one after the other: together they are more than there are registers
        for (int i = 0; i < Rows * Queries; ++i) even[i] = sum[i], sum[i] = set1(0);
        for (int64_t d = odd * kFloats; d < run.dim; d += 2 * kFloats) {
            Floats v[Queries];
            for (int n = 0; n < Queries; ++n) v[n] = load_floats(q + n * run.padded + d);
            for (int r = 0; r < Rows; ++r) {
                const Floats u = load_floats(x + r * run.padded + d);
                for (int n = 0; n < Queries; ++n) sum[r * Queries + n] = fma(u, v[n], sum[r * Queries + n]);
            }
        }
    }
    for (int i = 0; i < Rows * Queries; ++i) sum[i] = add(even[i], sum[i]);
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
    for (int64_t row = 0; row < run.rows; ++row) run.out[row] = one_query<V>(run, run.codes + row * run.stride);
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
