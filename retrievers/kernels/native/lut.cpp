#include "lut.h"

#include <algorithm>
#include <cmath>

namespace ragq {

namespace {

constexpr int64_t kSampleRows = 128;
constexpr int64_t kTileBlocks = 16;
constexpr int64_t kWarmStep = 16;
constexpr int64_t kWarmRows = 8192;  // rows from which a warm-up pays
constexpr int kFewRows = 2;  // a block with so few live rows is cheaper to score row by row

// Where the entry of a code lies in rounded 4-bit tables: see Loops::copies.
int64_t entry_at(int64_t j, int code, int copies, int copy) {
    if (copies == 1) return 16 * j + code;
    return (j / 4) * 128 + (j % 2) * 64 + (j / 2 % 2) * 32 + copy * 16 + code;
}

// The threshold of `q` for a query whose k-th best score is `least`.
void set_threshold(LutQuery& q, const Bound& bound, const Factors& factors, int64_t query, float least) {
    const double bias = factors.bias[query];
    if (factors.scale) {
        q.base = static_cast<float>(bound.base), q.step = static_cast<float>(bound.step);
        q.slack = static_cast<float>(bound.slack);
        q.shift_weight = factors.shift ? factors.shift_weight[query] : 0;
        const double floor = least - bias;
        q.floor = static_cast<float>(floor - 1e-6 * (std::abs(floor) + std::abs(bias)));
        return;
    }
    const double rounding = 1e-6 * (std::abs(bias) + std::abs(static_cast<double>(least)));
    const double sum = (least - bias - bound.base - bound.slack - rounding) / bound.step;
    q.threshold = sum > 0 ? static_cast<uint32_t>(std::min(std::ceil(sum), 65536.0)) : 0;  // NaN and -inf: all rows
}

// One thread's scan: its rows, tile by tile, all queries on a tile.
class Scan {
  public:
    Scan(const Loops& loops, const LutCodes& codes, bool eight, const std::vector<Bound>& bounds, Rescorer& rescorer,
         const Factors& factors, const Rows& rows, TopK* best)
        : codes_(codes), bounds_(bounds), rescorer_(rescorer), factors_(factors), rows_(rows), best_(best),
          loop_(eight ? loops.lut8 : loops.lut4),
          scratch_(eight ? (kTileBlocks + 1) * 64 * codes.pairs : 0) {}

    // Scan every `kWarmStep`-th tile with bounds cut to what a row scores on average.
    void warm_up() {
        const int64_t stop = rows_.stop / 32;
        int64_t tile = 1;
        for (int64_t block = rows_.start / 32; block < stop; block += kWarmStep * tile) {
            scan_tile(block, std::min(stop, block + tile));
            tile = std::min(2 * tile, kTileBlocks);
        }
    }

    void run() {
        const int64_t stop = (rows_.stop + 31) / 32;
        // Short tiles first: the first rows all pass, until there is a threshold.
        int64_t tile = best_[0].threshold() > kNone ? kTileBlocks : 1;
        for (int64_t block = rows_.start / 32; block < stop; block += tile, tile = std::min(2 * tile, kTileBlocks))
            scan_tile(block, std::min(stop, block + tile));
    }

  private:
    void scan_tile(int64_t first, int64_t stop) {
        for (int64_t block = first; block < stop;) {
            int64_t end = block;
            for (; end < stop; ++end) {
                live_[end - block] = rows_.live(end);
                if (__builtin_popcount(live_[end - block]) <= kFewRows) break;
            }
            if (end > block) scan_run(block, end);
            if (end < stop) score_few(end, rows_.live(end));
            block = end + 1;
        }
    }

    void scan_run(int64_t first, int64_t stop) {
        const int64_t at = first * 32 * codes_.pairs;
        const LutRun run = {codes_.high + at,
                            codes_.low ? codes_.low + at : nullptr,
                            codes_.pairs,
                            stop - first,
                            factors_.scale ? factors_.scale + 32 * first : nullptr,
                            factors_.shift ? factors_.shift + 32 * first : nullptr,
                            scratch_.data()};
        const int64_t n_queries = static_cast<int64_t>(bounds_.size());
        for (int64_t query = 0; query < n_queries; query += kMaxQueries) {
            const int n = static_cast<int>(std::min<int64_t>(kMaxQueries, n_queries - query));
            LutQuery q[kMaxQueries];
            for (int i = 0; i < n; ++i) {
                q[i].tables = bounds_[query + i].tables.data();
                q[i].hits = hits_[i];
                set_threshold(q[i], bounds_[query + i], factors_, query + i, best_[query + i].threshold());
            }
            loop_(run, q, n);
            for (int i = 0; i < n; ++i)
                if (factors_.scale || q[i].threshold < 65536) score_hits(first, stop, query + i, hits_[i]);
        }
    }

    void score_hits(int64_t first, int64_t stop, int64_t query, const uint32_t* hits) {
        int64_t rows[kTileBlocks * 32], n = 0;
        for (int64_t block = first; block < stop; ++block)
            for (uint32_t bits = hits[block - first] & live_[block - first]; bits; bits &= bits - 1)
                rows[n++] = 32 * block + __builtin_ctz(bits);
        score_rows(query, rows, n);
    }

    void score_few(int64_t block, uint32_t bits) {
        int64_t rows[kFewRows], n = 0;
        for (; bits; bits &= bits - 1) rows[n++] = 32 * block + __builtin_ctz(bits);
        for (int64_t query = 0; n && query < static_cast<int64_t>(bounds_.size()); ++query) score_rows(query, rows, n);
    }

    void score_rows(int64_t query, const int64_t* rows, int64_t n) {
        if (n == 0) return;
        float raw[kTileBlocks * 32];
        rescorer_.raw(query, rows, n, raw);
        for (int64_t i = 0; i < n; ++i) best_[query].push(factors_.score(raw[i], rows[i], query), rows[i]);
    }

    const LutCodes& codes_;
    const std::vector<Bound>& bounds_;
    Rescorer& rescorer_;
    const Factors& factors_;
    const Rows& rows_;
    TopK* best_;
    void (*loop_)(const LutRun&, const LutQuery*, int);
    Lines scratch_;
    uint32_t live_[kTileBlocks];
    uint32_t hits_[kMaxQueries][kTileBlocks];
};

// Mean of each 16 neighbours of 256-entry tables: tables for the high nibble.
std::vector<float> high_means(const float* tables, int64_t m) {
    std::vector<float> means(m * 16);
    for (int64_t i = 0; i < m * 16; ++i) {
        float sum = 0;
        for (int64_t j = 0; j < 16; ++j) sum += tables[16 * i + j];
        means[i] = sum / 16;
    }
    return means;
}

struct Span {
    float low, high;
};

// The loops over `lane` become vector instructions; NaN in a table shows up in `high - low` or in the size.
Span span_of(const float* t, int64_t entries) {
    float low[8], high[8];
    std::copy_n(t, 8, low), std::copy_n(t, 8, high);
    for (int64_t e = 8; e < entries; e += 8)
        for (int lane = 0; lane < 8; ++lane) {
            const float x = t[e + lane];
            low[lane] = x < low[lane] ? x : low[lane];
            high[lane] = x > high[lane] ? x : high[lane];
        }
    return {*std::min_element(low, low + 8), *std::max_element(high, high + 8)};
}

// Round the entries of a table down to multiples of `step` above `low`; return the most that it took off an entry.
double round_table(const float* t, int64_t entries, float low, float step, float inverse, float top, uint8_t* level) {
    float worst[8] = {};
    for (int64_t e = 0; e < entries; e += 8)
        for (int lane = 0; lane < 8; ++lane) {
            const float above = t[e + lane] - low, wanted = above * inverse;
            const int whole = static_cast<int>(wanted < top ? wanted : top);
            const float off = above - static_cast<float>(whole) * step;
            worst[lane] = off > worst[lane] ? off : worst[lane];
            level[e + lane] = static_cast<uint8_t>(whole);
        }
    return *std::max_element(worst, worst + 8);
}

}  // namespace

Bound round_tables(const Loops& loops, const float* tables, int64_t m, int64_t entries) {
    const int copies = entries == 16 ? loops.copies : 1;
    const int64_t padded = (m + 7) / 8 * 8;  // the widest loop takes eight codes a step
    Bound bound;
    bound.tables = Lines(padded * entries * copies);
    std::vector<Span> spans(m);
    double range = 0, size = 0;
    for (int64_t j = 0; j < m; ++j) {
        spans[j] = span_of(tables + j * entries, entries);
        range = std::max(range, static_cast<double>(spans[j].high) - spans[j].low);
        size += std::max(std::abs(spans[j].low), std::abs(spans[j].high));
    }
    if (!std::isfinite(range) || !std::isfinite(size)) {  // no bound: every row is scored by the float tables
        bound.slack = std::numeric_limits<double>::infinity();
        return bound;
    }
    const int64_t top = std::min<int64_t>(kMaxEntry, 65535 / std::max<int64_t>(m, 1));
    if (range > 0) bound.step = range / static_cast<double>(top);
    const float step = static_cast<float>(bound.step), inverse = static_cast<float>(1 / bound.step);
    uint8_t level[256];
    for (int64_t j = 0; j < m; ++j) {
        const float* t = tables + j * entries;
        const float low = spans[j].low;
        bound.base += low;
        bound.slack += round_table(t, entries, low, step, inverse, static_cast<float>(top), level);
        if (entries == 256) std::copy_n(level, 256, bound.tables.data() + 256 * j);
        if (entries == 16)
            for (int copy = 0; copy < copies; ++copy)
                std::copy_n(level, 16, bound.tables.data() + entry_at(j, 0, copies, copy));
    }
    // The float tables are summed in float32, and so is what was rounded off.
    bound.slack += 1e-6 * static_cast<double>(m + 1) * size;
    return bound;
}

void scan_bounds(const Loops& loops, const LutCodes& codes, bool eight, const std::vector<Bound>& bounds,
                 Rescorer& rescorer, const Factors& factors, const Rows& rows, TopK* best) {
    const int64_t n_queries = static_cast<int64_t>(bounds.size()), k = best[0].k();
    if (rows.stop - rows.start >= kWarmRows && k > 0 && k <= (rows.stop - rows.start) / (4 * kWarmStep)) {
        // The k-th score of a part of the rows is one that the k-th score of all rows reaches: start from there.
        std::vector<Bound> average = bounds;
        for (Bound& bound : average) bound.slack *= 0.5;
        std::vector<TopK> part(best, best + n_queries);
        Scan(loops, codes, eight, average, rescorer, factors, rows, part.data()).warm_up();
        for (int64_t query = 0; query < n_queries; ++query)
            best[query].start_at(std::nextafter(part[query].threshold(), kNone));
    }
    Scan(loops, codes, eight, bounds, rescorer, factors, rows, best).run();
}

std::vector<int64_t> sample_rows(const Rows& rows, int64_t most) {
    const int64_t n = std::min(most, rows.stop - rows.start);
    std::vector<int64_t> sample(n);
    for (int64_t i = 0; i < n; ++i) sample[i] = rows.start + (rows.stop - rows.start) * i / n;
    return sample;
}

void measure_bounds(const LutCodes& codes, const Rows& rows, Rescorer& rescorer, int copies, double margin,
                    std::vector<Bound>& bounds) {
    const std::vector<int64_t> sample = sample_rows(rows, kSampleRows);
    const int64_t n = static_cast<int64_t>(sample.size());
    std::vector<float> raw(n);
    std::vector<double> sum(n);
    std::vector<uint8_t> code(n * codes.m);
    for (int64_t i = 0; i < n; ++i) {
        const uint8_t* pair = codes.high + sample[i] / 32 * codes.pairs * 32 + sample[i] % 32;
        for (int64_t j = 0; j < codes.m; ++j) code[i * codes.m + j] = pair[j / 2 * 32] >> (j % 2 * 4) & 15;
    }
    for (size_t query = 0; query < bounds.size(); ++query) {
        Bound& bound = bounds[query];
        rescorer.raw(static_cast<int64_t>(query), sample.data(), n, raw.data());
        const uint8_t* tables = bound.tables.data();
        double raw_mean = 0, sum_mean = 0, covariance = 0, variance = 0, rest = 0;
        for (int64_t i = 0; i < n; ++i) {
            int total = 0;
            for (int64_t j = 0; j < codes.m; ++j) total += tables[entry_at(j, code[i * codes.m + j], copies, 0)];
            sum[i] = total;
            raw_mean += raw[i] / n, sum_mean += sum[i] / n;
        }
        for (int64_t i = 0; i < n; ++i) {
            covariance += (raw[i] - raw_mean) * (sum[i] - sum_mean);
            variance += (raw[i] - raw_mean) * (raw[i] - raw_mean);
        }
        const double slope = covariance / variance;
        for (int64_t i = 0; i < n; ++i) {
            const double error = sum[i] - sum_mean - slope * (raw[i] - raw_mean);
            rest += error * error / n;
        }
        bound.step = 1 / slope;
        bound.base = raw_mean - sum_mean / slope;
        bound.slack = margin * std::sqrt(rest) / slope;
        if (!(slope > 0) || !std::isfinite(bound.slack)) {  // the sample says nothing: rule no row out
            bound.step = 1, bound.base = 0, bound.slack = std::numeric_limits<double>::infinity();
        }
    }
}

// Sum the tables of a query for `Rows` rows, in the order of the reference, sub-quantizer by sub-quantizer; several rows
// at once hide the latency of the sum.
template <bool Eight, int64_t Rows>
static void sum_tables(const LutCodes& codes, const float* tables, const int64_t* rows, float* out) {
    constexpr int64_t entries = Eight ? 256 : 16;
    const uint8_t *high[Rows], *low[Rows];
    float sum[Rows] = {};
    for (int64_t r = 0; r < Rows; ++r) {
        const int64_t at = rows[r] / 32 * codes.pairs * 32 + rows[r] % 32;
        high[r] = codes.high + at, low[r] = Eight ? codes.low + at : nullptr;
    }
    for (int64_t j = 0; j < codes.m; j += 2, tables += 2 * entries) {
        const bool second = j + 1 < codes.m;
        for (int64_t r = 0; r < Rows; ++r) {
            const unsigned h = high[r][16 * j], l = Eight ? low[r][16 * j] : 0;
            sum[r] += tables[Eight ? (h & 15) << 4 | (l & 15) : h & 15];
            if (second) sum[r] += tables[entries + (Eight ? (h & 240) | l >> 4 : h >> 4)];
        }
    }
    std::copy_n(sum, Rows, out);
}

template <bool Eight>
static void sum_all(const LutCodes& codes, const float* tables, const int64_t* rows, int64_t n, float* out) {
    // A first pass over the high nibbles has left the low ones of a row, a byte in each 32, in memory.
    for (int64_t r = 0; Eight && r < n; ++r)
        for (int64_t at = 0; at < 32 * codes.pairs; at += 64)
            __builtin_prefetch(codes.low + rows[r] / 32 * codes.pairs * 32 + at + rows[r] % 32);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) sum_tables<Eight, 4>(codes, tables, rows + i, out + i);
    for (; i < n; ++i) sum_tables<Eight, 1>(codes, tables, rows + i, out + i);
}

void LutRescorer::raw(int64_t query, const int64_t* rows, int64_t n, float* out) {
    const float* tables = codes_.tables + query * codes_.m * codes_.entries();
    if (codes_.low) return sum_all<true>(codes_, tables, rows, n, out);
    sum_all<false>(codes_, tables, rows, n, out);
}

void lut_topk(const Request& request, const LutCodes& codes, double margin) {
    const bool batch = request.n_queries >= kMaxQueries;
    const bool candidates = codes.low && margin > 0 && !(batch && request.loops->whole_bytes);
    const LutCodes high = {codes.high, nullptr, codes.pairs, codes.m, nullptr};
    std::vector<Bound> bounds;
    for (int64_t query = 0; query < request.n_queries; ++query) {
        const float* tables = codes.tables + query * codes.m * codes.entries();
        if (candidates)
            bounds.push_back(round_tables(*request.loops, high_means(tables, codes.m).data(), codes.m, 16));
        else
            bounds.push_back(round_tables(*request.loops, tables, codes.m, codes.entries()));
    }
    if (candidates) {
        LutRescorer rescorer(codes);
        measure_bounds(high, request.rows, rescorer, request.loops->copies, margin, bounds);
    }
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        LutRescorer rescorer(codes);
        scan_bounds(*request.loops, candidates ? high : codes, codes.low && !candidates, bounds, rescorer,
                    request.factors, rows, best);
    });
}

}  // namespace ragq
