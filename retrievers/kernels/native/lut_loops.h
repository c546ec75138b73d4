// Sums of rounded table entries over blocks of 32 rows, by byte shuffles. Included inside the namespace of a simd_*.h.
//
// Entries are at most 63, so four of them add up in a byte before they widen to the 16-bit sums: `even` takes whole
// words (even rows plus 256 times odd rows), `odd` the upper bytes, and `sums` takes the one from the other.

// Turn the sums of a block into hits: against a threshold, or against a score bound where rows have factors.
inline uint32_t hits_of(const Sums& s, const LutRun& run, const LutQuery& q, int64_t block) {
    uint16_t* sum = q.sums + 32 * block;
    if (!run.scale) {
        const uint32_t hits = at_least(s, q.threshold);
        if (hits | q.all_sums) store_rows(s, sum);
        return hits;
    }
    store_rows(s, sum);
    const Floats base = set1(q.base), step = set1(q.step), slack = set1(q.slack), floor = set1(q.floor);
    const Floats weight = set1(q.shift_weight), rounding = set1(1e-6f);
    uint32_t hits = 0;
    for (int i = 0; i < 32; i += kFloats) {
        const Floats scale = from_f16(run.scale + 32 * block + i);
        Floats bound = fma(scale, fma(step, from_u16(sum + i), base), mul(magnitude(scale), slack));
        if (run.shift) {
            const Floats shift = mul(from_f16(run.shift + 32 * block + i), weight);
            bound = add(bound, fma(magnitude(shift), rounding, shift));
        }
        hits |= not_below(bound, floor) << i;
    }
    return hits;
}

// Add up two steps at most, whose four shuffles a query fit a byte.
template <int N, int Steps>
inline void lut4_step(const Bytes* code, const LutQuery* q, int64_t at, Bytes* even, Bytes* odd) {
    Bytes low[Steps], high[Steps];
    for (int i = 0; i < Steps; ++i) low[i] = low_nibbles(code[i]), high[i] = high_nibbles(code[i]);
    constexpr int64_t table_bytes = kPairs == 1 ? 16 : 64;
    for (int n = 0; n < N; ++n) {
        const uint8_t* t = q[n].tables + at;
        Bytes x = add8(shuffle(table(t), low[0]), shuffle(table(t + table_bytes), high[0]));
        if (Steps == 2) {
            x = add8(x, shuffle(table(t + 2 * table_bytes), low[Steps - 1]));
            x = add8(x, shuffle(table(t + 3 * table_bytes), high[Steps - 1]));
        }
        even[n] = add16(even[n], x);
        odd[n] = add16(odd[n], odd_bytes(x));
    }
}

template <int N>
inline void lut4_scan(const LutRun& run, const LutQuery* q) {
    constexpr int64_t step_tables = (kPairs == 1 ? 16 : 64) * 2;
    const int64_t whole = run.pairs / (2 * kPairs) * (2 * kPairs);
    for (int64_t block = 0; block < run.blocks; ++block) {
        const uint8_t* codes = run.codes + block * run.pairs * 32;
        Bytes even[N], odd[N];
        for (int n = 0; n < N; ++n) even[n] = odd[n] = zero();
        int64_t at = 0, j = 0;
        for (; j < whole; j += 2 * kPairs, at += 2 * step_tables) {
            const Bytes code[2] = {load(codes + 32 * j), load(codes + 32 * (j + kPairs))};
            lut4_step<N, 2>(code, q, at, even, odd);
        }
        for (; j < run.pairs; j += kPairs, at += step_tables) {
            const Bytes code[1] = {load_part(codes + 32 * j, run.pairs - j)};
            lut4_step<N, 1>(code, q, at, even, odd);
        }
        for (int n = 0; n < N; ++n) q[n].hits[block] = hits_of(sums(even[n], odd[n]), run, q[n], block);
    }
}

inline void lut4(const LutRun& run, const LutQuery* q, int n_queries) {
    for (; n_queries >= 4; n_queries -= 4, q += 4) lut4_scan<4>(run, q);
    switch (n_queries) {
        case 1: return lut4_scan<1>(run, q);
        case 2: return lut4_scan<2>(run, q);
        case 3: return lut4_scan<3>(run, q);
    }
}
