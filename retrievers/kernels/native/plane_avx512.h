// One bit a dimension: three bytes of 64 rows (two blocks) become four codes of six bits, which are looked up in a
// register. Sums are bytes, which runs of codes do not exceed; those of runs are added up exactly, or averaged.

// Put the codes of a run into its scratch, (blocks / 2, triples, 4, 64): three bytes, whose last two bits the look-up
// leaves out, and these bits together.
inline void six_bits(const LutRun& run) {
    uint8_t* out = run.scratch;
    const __m512i first = _mm512_set1_epi8(3), second = _mm512_set1_epi8(12), third = _mm512_set1_epi8(48);
    for (int64_t block = 0; block < run.blocks; block += 2) {
        const Blocks<1> blocks(run, block);
        for (int64_t i = 0; i < run.pairs; i += 3, out += kTripleTable) {
            const Bytes a = blocks.load(run.codes, 0, i);
            const Bytes b = i + 1 < run.pairs ? blocks.load(run.codes, 0, i + 1) : zero();
            const Bytes c = i + 2 < run.pairs ? blocks.load(run.codes, 0, i + 2) : zero();
            store(out, a), store(out + 64, b), store(out + 128, c);
            const __m512i x = _mm512_and_si512(_mm512_srli_epi16(a, 6), first);
            const __m512i y = _mm512_and_si512(_mm512_srli_epi16(b, 4), second);
            const __m512i z = _mm512_and_si512(_mm512_srli_epi16(c, 2), third);
            store(out + 192, _mm512_or_si512(x, _mm512_or_si512(y, z)));
        }
    }
}

// The hits of two blocks whose sums are bytes.
inline void hits_of_bytes(Bytes sum, const LutRun& run, const LutQuery& q, int64_t block) {
    if (run.scale) return hits_of_two(sum, odd_bytes(sum), run, q, block);
    const bool two = block + 1 < run.blocks;
    const __mmask64 all =
        q.threshold < 256 ? _mm512_cmpge_epu8_mask(sum, _mm512_set1_epi8(static_cast<char>(q.threshold))) : 0;
    q.hits[block] = static_cast<uint32_t>(all);
    if (two) q.hits[block + 1] = static_cast<uint32_t>(all >> 32);
    if (!all) return;
    store(reinterpret_cast<uint8_t*>(q.sums + 32 * block), _mm512_cvtepu8_epi16(_mm512_castsi512_si256(sum)));
    if (two)
        store(reinterpret_cast<uint8_t*>(q.sums + 32 * (block + 1)),
              _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(sum, 1)));
}

// The mean of the sums of 2^Folds groups of codes from `first` on.
template <int Folds, int Units, int Queries>
inline void fold(const LutRun& run, const uint8_t* scratch, const LutQuery* q, int64_t first, Bytes (*x)[Queries]) {
    const int64_t codes = (run.pairs + 2) / 3 * 4, stride = 64 * codes;
    if constexpr (Folds > 0) {
        Bytes y[Units][Queries];
        fold<Folds - 1, Units, Queries>(run, scratch, q, first, x);
        fold<Folds - 1, Units, Queries>(run, scratch, q, first + (2 * run.group << Folds), y);
        for (int u = 0; u < Units; ++u)
            for (int n = 0; n < Queries; ++n) x[u][n] = _mm512_avg_epu8(x[u][n], y[u][n]);
    } else {
        for (int u = 0; u < Units; ++u)
            for (int n = 0; n < Queries; ++n) x[u][n] = zero();
        const int64_t stop = first + 4 * run.group < codes ? first + 4 * run.group : codes;
        for (int64_t i = first; i < stop; ++i) {
            Bytes table[Queries];
            for (int n = 0; n < Queries; ++n) table[n] = load(q[n].tables + 64 * i);
            for (int u = 0; u < Units; ++u) {
                const Bytes code = load(scratch + u * stride + 64 * i);
                for (int n = 0; n < Queries; ++n) x[u][n] = add8(x[u][n], _mm512_permutexvar_epi8(code, table[n]));
            }
        }
    }
}

template <int Folds, int Units, int Queries>
inline void plane_units(const LutRun& run, const LutQuery* q, int64_t first) {
    const int64_t codes = (run.pairs + 2) / 3 * 4;
    const uint8_t* scratch = run.scratch + first / 2 * 64 * codes;
    Bytes x[Units][Queries];
    if constexpr (Folds >= 0) {
        fold<Folds, Units, Queries>(run, scratch, q, 0, x);
        for (int u = 0; u < Units; ++u)
            for (int n = 0; n < Queries; ++n) hits_of_bytes(x[u][n], run, q[n], first + 2 * u);
        return;
    }
    Bytes even[Units][Queries], odd[Units][Queries];
    for (int u = 0; u < Units; ++u)
        for (int n = 0; n < Queries; ++n) even[u][n] = odd[u][n] = zero();
    for (int64_t i = 0; i < codes; i += 4 * run.group) {
        fold<0, Units, Queries>(run, scratch, q, i, x);
        for (int u = 0; u < Units; ++u)
            for (int n = 0; n < Queries; ++n)
                even[u][n] = add16(even[u][n], x[u][n]), odd[u][n] = add16(odd[u][n], odd_bytes(x[u][n]));
    }
    for (int u = 0; u < Units; ++u)
        for (int n = 0; n < Queries; ++n) hits_of_two(even[u][n], odd[u][n], run, q[n], first + 2 * u);
}

template <int Folds, int Queries>
inline void plane_scan(const LutRun& run, const LutQuery* q) {
    int64_t block = 0;
    for (; block + 8 <= run.blocks; block += 8) plane_units<Folds, 4, Queries>(run, q, block);
    for (; block < run.blocks; block += 2) plane_units<Folds, 1, Queries>(run, q, block);
}

template <int Folds>
inline void plane_queries(const LutRun& run, const LutQuery* q, int n_queries) {
    for (; n_queries >= 4; n_queries -= 4, q += 4) plane_scan<Folds, 4>(run, q);
    for (; n_queries > 0; --n_queries, ++q) plane_scan<Folds, 1>(run, q);
}

inline void plane(const LutRun& run, const LutQuery* q, int n_queries) {
    if (run.fresh) touch(run.codes, 32 * run.pairs * run.blocks), six_bits(run);
    switch (run.folds) {
        case 0: return plane_queries<0>(run, q, n_queries);
        case 1: return plane_queries<1>(run, q, n_queries);
        case 2: return plane_queries<2>(run, q, n_queries);
        case 3: return plane_queries<3>(run, q, n_queries);
        default: return plane_queries<-1>(run, q, n_queries);
    }
}
constexpr void (*kPlane)(const LutRun&, const LutQuery*, int) = plane;
