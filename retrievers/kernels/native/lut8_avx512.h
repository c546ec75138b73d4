// 8-bit codes against 256-entry tables held in four registers, 64 rows (two blocks) at a time.

inline Bytes two_blocks(const uint8_t* first, const uint8_t* second) {
    const __m512i a = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)));
    // A masked load takes no turn of the shuffle unit, as an insertion would.
    return _mm512_mask_broadcast_i64x4(a, 0xF0, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)));
}

// Read codes in the order that the processor foresees, before they are read in many streams at once.
inline void touch(const uint8_t* codes, int64_t n) {
    Bytes all = zero();
    for (int64_t at = 0; at + 64 <= n; at += 64) all = _mm512_or_si512(all, load(codes + at));
    asm volatile("" : : "v"(all));
}

struct Pair {
    Bytes even, odd;  // the byte codes of two sub-quantizers
};
inline Pair join_nibbles(Bytes high, Bytes low) {
    const __m512i lower = _mm512_set1_epi8(15);
    // select by bit: (mask & a) | (~mask & b)
    return {_mm512_ternarylogic_epi64(lower, low, _mm512_slli_epi16(high, 4), 0xCA),
            _mm512_ternarylogic_epi64(lower, _mm512_srli_epi16(low, 4), high, 0xCA)};
}

struct Table256 {
    __m512i part[4];
};
inline Table256 table256(const uint8_t* p) { return {{load(p), load(p + 64), load(p + 128), load(p + 192)}}; }
inline Bytes lookup256(const Table256& t, Bytes code) {
    asm("" : "+v"(code));  // one load: the compiler would take one for each use
    const Bytes lower = _mm512_permutex2var_epi8(t.part[0], code, t.part[1]);
    const Bytes upper = _mm512_permutex2var_epi8(t.part[2], code, t.part[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), lower, upper);
}

// The hits of two blocks, the second of which may not be there.
inline void hits_of_two(Bytes even, Bytes odd, const LutRun& run, const LutQuery& q, int64_t block) {
    const __m512i e = _mm512_sub_epi16(even, _mm512_slli_epi16(odd, 8));
    q.hits[block] = hits_of({_mm512_castsi512_si256(e), _mm512_castsi512_si256(odd)}, run, q, block);
    if (++block == run.blocks) return;
    q.hits[block] = hits_of({_mm512_extracti64x4_epi64(e, 1), _mm512_extracti64x4_epi64(odd, 1)}, run, q, block);
}

// Where `Units` times 64 rows are; an odd last block stands twice.
template <int Units>
struct Blocks {
    int64_t at[2 * Units];
    Blocks(const LutRun& run, int64_t first) {
        for (int i = 0; i < 2 * Units; ++i)
            at[i] = 32 * run.pairs * (first + i < run.blocks ? first + i : run.blocks - 1);
    }
    Bytes load(const uint8_t* codes, int u, int64_t pair) const {
        return two_blocks(codes + at[2 * u] + 32 * pair, codes + at[2 * u + 1] + 32 * pair);
    }
};

// Sum the tables of one query for `Units` times 64 rows: the byte codes come from the nibbles, and go to or come from
// the scratch, (blocks / 2, 2 * pairs, 64), when there are more queries.
enum class Scratch { none, write, read };

template <int Units, Scratch Use>
inline void lut8_units(const LutRun& run, const LutQuery& q, int64_t first) {
    const Blocks<Units> blocks(run, first);
    uint8_t* scratch = run.scratch + first / 2 * run.pairs * 128;
    const auto codes_of = [&](int u, int64_t j) {
        uint8_t* at = scratch + (u * run.pairs + j) * 128;
        if (Use == Scratch::read) return Pair{load(at), load(at + 64)};
        const Pair pair = join_nibbles(blocks.load(run.codes, u, j), blocks.load(run.low, u, j));
        if (Use == Scratch::write) store(at, pair.even), store(at + 64, pair.odd);
        return pair;
    };
    Bytes even[Units], odd[Units];
    for (int u = 0; u < Units; ++u) even[u] = odd[u] = zero();
    for (int64_t j = 0; j < run.pairs; j += 2) {
        Bytes x[Units];
        for (int u = 0; u < Units; ++u) x[u] = zero();
        for (int64_t i = j; i < j + 2 && i < run.pairs; ++i) {
            const Table256 a = table256(q.tables + 512 * i), b = table256(q.tables + 512 * i + 256);
            for (int u = 0; u < Units; ++u) {
                const Pair code = codes_of(u, i);
                x[u] = add8(x[u], add8(lookup256(a, code.even), lookup256(b, code.odd)));
            }
        }
        for (int u = 0; u < Units; ++u) even[u] = add16(even[u], x[u]), odd[u] = add16(odd[u], odd_bytes(x[u]));
    }
    for (int u = 0; u < Units; ++u) hits_of_two(even[u], odd[u], run, q, first + 2 * u);
}

template <Scratch Use>
inline void lut8_scan(const LutRun& run, const LutQuery& q) {
    int64_t block = 0;
    for (; block + 8 <= run.blocks; block += 8) lut8_units<4, Use>(run, q, block);
    for (; block < run.blocks; block += 2) lut8_units<1, Use>(run, q, block);
}

inline void lut8(const LutRun& run, const LutQuery* q, int n_queries) {
    touch(run.codes, 32 * run.pairs * run.blocks), touch(run.low, 32 * run.pairs * run.blocks);
    if (n_queries == 1) return lut8_scan<Scratch::none>(run, q[0]);
    lut8_scan<Scratch::write>(run, q[0]);
    for (int n = 1; n < n_queries; ++n) lut8_scan<Scratch::read>(run, q[n]);
}
constexpr bool kWholeBytes = true;
