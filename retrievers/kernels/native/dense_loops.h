// Queries against rows of bytes, halves, floats or bits. Included inside the namespace of a simd_*.h.
//
// A score in floats is two vector accumulators over the dimensions, for every other vector each, then a total, whether
// a row is decoded for one query or for many: a query gets the same bits alone and in a batch.

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
// come one after the other, because the processor foresees one stream better than several. Halves and floats are summed
// as fast as they are read, and what is asked for beyond that slows them down; bytes take longer and are asked for.
constexpr int64_t kAhead = 3072;  // bytes

template <class V>
inline void one_query(const DenseRun& run) {
    constexpr int64_t step = Line<V>::vectors * kFloats;
    const Line<V> line(run.levels);
    const float* query = run.queries;
    const uint8_t* codes = run.codes;
    for (int64_t row = 0; row < run.rows; ++row, codes += run.stride) {
        Floats even = set1(0), odd = set1(0), x[Line<V>::vectors];
        int64_t d = 0;
        for (; d + step <= run.dim; d += step) {
            if constexpr (V::size == 1) __builtin_prefetch(codes + d + kAhead);
            line.decode(codes + d * V::size, x);
            for (int i = 0; i < Line<V>::vectors; i += 2) {
                even = fma(x[i], load_floats(query + d + i * kFloats), even);
                odd = fma(x[i + 1], load_floats(query + d + (i + 1) * kFloats), odd);
            }
        }
        for (bool second = false; d < run.dim; d += kFloats, second = !second) {
            const Floats part = decode_part<V>(codes + d * V::size, run.dim - d, run.levels);
            (second ? odd : even) = fma(part, load_floats(query + d), second ? odd : even);
        }
        run.out[row] = total(add(even, odd));
    }
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
    run.n_queries > 1 ? many_queries<V>(run) : one_query<V>(run);
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
