// 8-bit codes against 256-entry tables held in four registers, 64 rows (two blocks) at a time.

inline Bytes two_blocks(const uint8_t* first, const uint8_t* second) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)), 1);
}

// Put the byte codes of a run into its scratch: (ceil(blocks / 2), 2 * pairs, 64). An odd last block stands twice.
inline void join_nibbles(const LutRun& run) {
    const __m512i lower = _mm512_set1_epi8(15);
    const int64_t width = 32 * run.pairs;
    uint8_t* out = run.scratch;
    for (int64_t block = 0; block < run.blocks; block += 2) {
        const uint8_t *high = run.codes + block * width, *low = run.low + block * width;
        const int64_t next = block + 1 < run.blocks ? width : 0;
        for (int64_t at = 0; at < width; at += 32, out += 128) {
            const Bytes h = two_blocks(high + at, high + at + next), l = two_blocks(low + at, low + at + next);
            // select by bit: (mask & a) | (~mask & b)
            store(out, _mm512_ternarylogic_epi64(lower, l, _mm512_slli_epi16(h, 4), 0xCA));
            store(out + 64, _mm512_ternarylogic_epi64(lower, _mm512_srli_epi16(l, 4), h, 0xCA));
        }
    }
}

struct Table256 {
    __m512i part[4];
};
inline Table256 table256(const uint8_t* p) { return {{load(p), load(p + 64), load(p + 128), load(p + 192)}}; }
inline Bytes lookup256(const Table256& t, Bytes code) {
    const Bytes lower = _mm512_permutex2var_epi8(t.part[0], code, t.part[1]);
    const Bytes upper = _mm512_permutex2var_epi8(t.part[2], code, t.part[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), lower, upper);
}

// Sum the tables of one query for `Units` times 64 rows.
template <int Units>
inline void lut8_units(const LutRun& run, const LutQuery& q, int64_t unit) {
    const int64_t m = 2 * run.pairs;
    const uint8_t* codes = run.scratch + unit * m * 64;
    Bytes even[Units], odd[Units];
    for (int u = 0; u < Units; ++u) even[u] = odd[u] = zero();
    for (int64_t j = 0; j < m; j += 4) {
        Bytes x[Units];
        for (int u = 0; u < Units; ++u) x[u] = zero();
        const int64_t stop = j + 4 < m ? j + 4 : m;
        for (int64_t i = j; i < stop; ++i) {
            const Table256 t = table256(q.tables + 256 * i);
            for (int u = 0; u < Units; ++u) x[u] = add8(x[u], lookup256(t, load(codes + (u * m + i) * 64)));
        }
        for (int u = 0; u < Units; ++u) even[u] = add16(even[u], x[u]), odd[u] = add16(odd[u], odd_bytes(x[u]));
    }
    for (int u = 0; u < Units; ++u) {
        const __m512i e = _mm512_sub_epi16(even[u], _mm512_slli_epi16(odd[u], 8));
        for (int half = 0; half < 2; ++half) {
            const int64_t block = 2 * (unit + u) + half;
            if (block >= run.blocks) break;
            const Sums s = half ? Sums{_mm512_extracti64x4_epi64(e, 1), _mm512_extracti64x4_epi64(odd[u], 1)}
                                : Sums{_mm512_castsi512_si256(e), _mm512_castsi512_si256(odd[u])};
            q.hits[block] = hits_of(s, run, q, block);
        }
    }
}

inline void lut8(const LutRun& run, const LutQuery* q, int n_queries) {
    join_nibbles(run);
    const int64_t units = (run.blocks + 1) / 2;
    for (int n = 0; n < n_queries; ++n) {
        int64_t unit = 0;
        for (; unit + 4 <= units; unit += 4) lut8_units<4>(run, q[n], unit);
        for (; unit < units; ++unit) lut8_units<1>(run, q[n], unit);
    }
}
