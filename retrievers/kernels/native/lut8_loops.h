// 8-bit codes against 256-entry tables, for instruction sets whose Bytes are one block of 32 rows.

// Put the byte codes of a run into its scratch, sub-quantizer by sub-quantizer: (blocks, 2 * pairs, 32).
inline void join_nibbles(const LutRun& run) {
    uint8_t* out = run.scratch;
    for (int64_t j = 0; j < run.blocks * run.pairs; ++j, out += 64) {
        const Bytes high = load(run.codes + 32 * j), low = load(run.low + 32 * j);
        store(out, join(low_nibbles(high), low_nibbles(low)));
        store(out + 32, join(high_nibbles(high), high_nibbles(low)));
    }
}

inline void lut8(const LutRun& run, const LutQuery* q, int n_queries) {
    join_nibbles(run);
    const int64_t m = 2 * run.pairs;
    for (int n = 0; n < n_queries; ++n) {
        for (int64_t block = 0; block < run.blocks; ++block) {
            const uint8_t* codes = run.scratch + block * m * 32;
            Bytes even = zero(), odd = zero();
            for (int64_t j = 0; j < m; j += 2) {
                const uint8_t* t = q[n].tables + 256 * j;
                const Bytes x = add8(lookup256(t, load(codes + 32 * j)), lookup256(t + 256, load(codes + 32 * j + 32)));
                even = add16(even, x);
                odd = add16(odd, odd_bytes(x));
            }
            q[n].hits[block] = hits_of(sums(even, odd), run, q[n], block);
        }
    }
}
