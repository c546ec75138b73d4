// One bit a dimension: a byte of 64 rows (two blocks) is looked up at once, seven of its bits in two registers and the
// eighth, which adds the same to every entry, by a mask. Sums wrap at 256 on the way, never at the end of a group.

template <int Units, int Queries>
inline void plane_units(const LutRun& run, const LutQuery* q, int64_t first) {
    const Blocks<Units> blocks(run, first);
    Bytes even[Units][Queries], odd[Units][Queries];
    for (int u = 0; u < Units; ++u)
        for (int n = 0; n < Queries; ++n) even[u][n] = odd[u][n] = zero();
    for (int64_t j = 0; j < run.pairs; j += run.group) {
        const int64_t stop = j + run.group < run.pairs ? j + run.group : run.pairs;
        Bytes x[Units][Queries];
        for (int u = 0; u < Units; ++u)
            for (int n = 0; n < Queries; ++n) x[u][n] = zero();
        for (int64_t i = j; i < stop; ++i) {
            Bytes lower[Queries], upper[Queries], eighth[Queries];
            for (int n = 0; n < Queries; ++n) {
                const uint8_t* t = q[n].tables + kPlaneTable * i;
                int word;
                __builtin_memcpy(&word, t + kPlaneEntries, 4);
                lower[n] = load(t), upper[n] = load(t + 64), eighth[n] = _mm512_set1_epi32(word);
            }
            for (int u = 0; u < Units; ++u) {
                Bytes code = blocks.load(run.codes, u, i);
                asm("" : "+v"(code));  // one load: the compiler would take one for each use
                const __mmask64 bit = _mm512_movepi8_mask(code);
                for (int n = 0; n < Queries; ++n) {
                    x[u][n] = add8(x[u][n], _mm512_permutex2var_epi8(lower[n], code, upper[n]));
                    x[u][n] = _mm512_mask_add_epi8(x[u][n], bit, x[u][n], eighth[n]);
                }
            }
        }
        for (int u = 0; u < Units; ++u)
            for (int n = 0; n < Queries; ++n)
                even[u][n] = add16(even[u][n], x[u][n]), odd[u][n] = add16(odd[u][n], odd_bytes(x[u][n]));
    }
    for (int u = 0; u < Units; ++u)
        for (int n = 0; n < Queries; ++n) hits_of_two(even[u][n], odd[u][n], run, q[n], first + 2 * u);
}

template <int Queries>
inline void plane_scan(const LutRun& run, const LutQuery* q) {
    int64_t block = 0;
    for (; block + 8 <= run.blocks; block += 8) plane_units<4, Queries>(run, q, block);
    for (; block < run.blocks; block += 2) plane_units<1, Queries>(run, q, block);
}

inline void plane(const LutRun& run, const LutQuery* q, int n_queries) {
    touch(run.codes, 32 * run.pairs * run.blocks);
    int n = 0;
    for (; n + 2 <= n_queries; n += 2) plane_scan<2>(run, q + n);
    if (n < n_queries) plane_scan<1>(run, q + n);
}
constexpr void (*kPlane)(const LutRun&, const LutQuery*, int) = plane;
