// Rounded tables, and how far below a row's score their sums may lie.
#include <algorithm>
#include <cmath>

#include "lut.h"

namespace ragq {

namespace {

constexpr int64_t kSampleBlocks = 8;
constexpr int64_t kSampleStride = 2;  // every other row of a block: rows that were inserted together are alike

// Where the entry of a code lies in rounded 4-bit tables: see Loops::copies.
int64_t entry_at(int64_t j, int code, int copies, int copy) {
    if (copies == 1) return 16 * j + code;
    return (j / 4) * 128 + (j % 2) * 64 + (j / 2 % 2) * 32 + copy * 16 + code;
}

struct Span {
    float low, high;
    float finite;  // 0, or NaN where an entry is not
};

// The loops over `lane` become vector instructions.
Span span_of(const float* t, int64_t entries) {
    float low[8], high[8], finite[8] = {};
    std::copy_n(t, 8, low), std::copy_n(t, 8, high);
    for (int64_t e = 0; e < entries; e += 8)
        for (int lane = 0; lane < 8; ++lane) {
            const float x = t[e + lane];
            low[lane] = x < low[lane] ? x : low[lane];
            high[lane] = x > high[lane] ? x : high[lane];
            finite[lane] += x - x;
        }
    float all = 0;
    for (const float x : finite) all += x;
    return {*std::min_element(low, low + 8), *std::max_element(high, high + 8), all};
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

// A line through points, and the standard deviation of their distance from it in y.
struct Line {
    double slope, offset, deviation;
};

Line fit(const float* x, const float* y, int64_t n) {
    double mean_x = 0, mean_y = 0, covariance = 0, variance = 0, rest = 0;
    for (int64_t i = 0; i < n; ++i) mean_x += x[i] / static_cast<double>(n), mean_y += y[i] / static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) {
        covariance += (x[i] - mean_x) * (y[i] - mean_y);
        variance += (x[i] - mean_x) * (x[i] - mean_x);
    }
    const double slope = covariance / variance;
    for (int64_t i = 0; i < n; ++i) {
        const double error = y[i] - mean_y - slope * (x[i] - mean_x);
        rest += error * error / static_cast<double>(n);
    }
    return {slope, mean_y - slope * mean_x, std::sqrt(rest)};
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
        size += std::max(std::abs(spans[j].low), std::abs(spans[j].high)) + spans[j].finite;
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

Bound round_plane(const float* weight, int64_t dim, int64_t group) {
    const int64_t triples = (dim + 23) / 24;
    Bound bound;
    bound.tables = Lines(triples * kTripleTable);
    double most = 0, size = 0;
    for (int64_t j = 0; j < triples; j += group) {
        double range = 0;
        for (int64_t d = 24 * j; d < std::min(dim, 24 * (j + group)); ++d) range += std::abs(weight[d]);
        most = std::max(most, range), size += range;
    }
    if (most > 0) bound.step = most / 254;  // room for what the float sums round up
    const float step = static_cast<float>(bound.step), inverse = 1 / step;
    if (!std::isfinite(size) || !std::isfinite(inverse)) {  // no bound: every row is scored by the float tables
        bound.slack = std::numeric_limits<double>::infinity();
        return bound;
    }
    for (int64_t j = 0; j < 4 * triples; ++j) {
        float entry[64] = {};
        for (int i = 0; i < 6; ++i) {
            // the first six bits of a byte, or the last two of three bytes
            const int64_t d = j / 4 * 24 + (j % 4 < 3 ? j % 4 * 8 + i : i / 2 * 8 + 6 + i % 2);
            const float w = d < dim ? weight[d] : 0;
            for (int code = 0; code < 1 << i; ++code) entry[(1 << i) + code] = entry[code] + w;
        }
        const float low = *std::min_element(entry, entry + 64);
        bound.base += low;
        bound.slack += round_table(entry, 64, low, step, inverse, 255, bound.tables.data() + 64 * j);
    }
    bound.slack += 1e-6 * static_cast<double>(dim + 1) * size;
    return bound;
}

Sample take_sample(const Loops& loops, const LutCodes& codes, const Rows& rows, const ScoreRows& score,
                   const std::vector<Bound>& bounds) {
    const int64_t first = rows.start / 32, stop = rows.stop / 32, n_queries = static_cast<int64_t>(bounds.size());
    const int64_t n_blocks = std::min(kSampleBlocks, stop - first), n = n_blocks * (32 / kSampleStride);
    Sample sample;
    for (int64_t i = 0; i < n_blocks; ++i)
        for (int64_t r = 0; r < 32; r += kSampleStride)
            sample.rows.push_back(32 * (first + (stop - first) * i / n_blocks) + r);
    sample.raw.resize(n * n_queries);
    score(sample.rows.data(), n, sample.raw.data());
    Lines scratch(codes.group ? scratch_bytes(1, codes.pairs) : 0);
    for (int64_t query = 0; query < n_queries; ++query)
        for (int64_t i = 0; i < n_blocks; ++i) {
            uint32_t hits;
            uint16_t sums[32];
            LutQuery q = {};
            q.tables = bounds[query].tables.data(), q.hits = &hits, q.sums = sums;
            const LutRun run = {codes.high + sample.rows[i * 32 / kSampleStride] * codes.pairs, nullptr, codes.pairs, 1,
                                nullptr, nullptr, codes.group, codes.folds, scratch.data(), true};
            (codes.group ? loops.plane : loops.lut4)(run, &q, 1);
            for (int64_t r = 0; r < 32; r += kSampleStride) sample.sums.push_back(sums[r]);
        }
    return sample;
}

Estimate fit_estimate(const float* raw, const float* sums, int64_t n, double margin) {
    const Line line = fit(raw, sums, n);
    const double slack = margin * line.deviation / line.slope;
    if (!(line.slope > 0) || !std::isfinite(slack))  // the sample says nothing: rule no row out
        return {0, 1, std::numeric_limits<double>::infinity()};
    return {-line.offset / line.slope, 1 / line.slope, slack};
}

float second_weight(const float* raw, const float* first, const float* second, int64_t n) {
    double mean[3] = {}, c[3][3] = {};
    const float* x[3] = {first, second, raw};
    for (int a = 0; a < 3; ++a)
        for (int64_t i = 0; i < n; ++i) mean[a] += x[a][i] / static_cast<double>(n);
    for (int a = 0; a < 3; ++a)
        for (int b = 0; b <= a; ++b)
            for (int64_t i = 0; i < n; ++i) c[a][b] += (x[a][i] - mean[a]) * (x[b][i] - mean[b]);
    return static_cast<float>((c[2][1] * c[0][0] - c[2][0] * c[1][0]) / (c[2][0] * c[1][1] - c[2][1] * c[1][0]));
}

void measure_bounds(const Sample& sample, double margin, std::vector<Bound>& bounds) {
    const int64_t n = static_cast<int64_t>(sample.rows.size());
    for (size_t query = 0; query < bounds.size(); ++query)
        static_cast<Estimate&>(bounds[query]) =
            fit_estimate(sample.raw.data() + query * n, sample.sums.data() + query * n, n, margin);
}

}  // namespace ragq
