#include "planes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>

#include "lut.h"

namespace ragq {

namespace {

constexpr int64_t kMeanRows = 16;  // times the dimensions: enough codes for a mean
// Triples of bytes of a row that share a byte of sum: few where rounding must not hide a row, many otherwise.
constexpr int64_t kExactGroup = 1, kGroup = 8;
constexpr int kMostFolds = 3;

Value level_kind(int bits) { return bits <= 4 ? Value::levels16 : Value::levels; }

// `most` evenly spaced rows, or all.
std::vector<int64_t> sample_rows(const Rows& rows, int64_t most) {
    const int64_t n = std::min(most, rows.stop - rows.start);
    std::vector<int64_t> sample(n);
    for (int64_t i = 0; i < n; ++i) sample[i] = rows.start + (rows.stop - rows.start) * i / n;
    return sample;
}

// How often each code occurs in a sample of rows and in all dimensions of a segment.
using Counts = std::vector<std::array<int64_t, 256>>;

Counts count_codes(const Loops& loops, const PlaneCodes& codes, const Rows& rows,
                   const std::vector<Segment>& segments) {
    std::vector<uint8_t> row(codes.stride());
    Counts counts(segments.size());
    for (const int64_t i : sample_rows(rows, kMeanRows)) {
        codes.unpack(loops, i, row.data());
        for (size_t s = 0; s < segments.size(); ++s)
            for (int64_t d = segments[s].first; d < segments[s].stop; ++d) ++counts[s][row[d]];
    }
    return counts;
}

// For each dimension the mean level of the codes whose most significant bit is 0 and 1.
using Means = std::vector<std::array<float, 2>>;

Means half_means(const PlaneCodes& codes, const std::vector<Segment>& segments, const Counts& counts) {
    const int top = codes.bits - 1;
    Means means(codes.dim());
    for (size_t s = 0; s < segments.size(); ++s) {
        std::array<float, 2> mean;
        for (int i = 0; i < 2; ++i) {
            double sum = 0, n = 0;
            for (int code = i << top; code < (i + 1) << top; ++code)
                sum += segments[s].levels[code] * static_cast<double>(counts[s][code]), n += counts[s][code];
            mean[i] = n ? static_cast<float>(sum / n) : segments[s].levels[i << top];
        }
        std::fill(means.begin() + segments[s].first, means.begin() + segments[s].stop, mean);
    }
    return means;
}

// What setting a bit adds to the level of a code, on average over the codes that occur.
float bit_step(const Segment& segment, const std::array<int64_t, 256>& counts, int bit) {
    double sum = 0, n = 0;
    for (int code = 0; code < 256; ++code) {
        if (!(code & bit)) continue;
        const double weight = static_cast<double>(counts[code] + counts[code ^ bit]);
        sum += weight * (segment.levels[code] - segment.levels[code ^ bit]), n += weight;
    }
    return n ? static_cast<float>(sum / n) : 0;
}

// A closer estimate than the sums of the first plane, from these and the bits of the other planes, which are rows: every
// bit of a dimension adds what it adds on average, times the query, rounded to a signed byte.
class BitSums {
  public:
    std::vector<Estimate> fitted;  // a query

    BitSums(const Loops& loops, const PlaneCodes& codes, const std::vector<Segment>& segments, const Counts& counts,
            int64_t n_queries)
        : loops_(loops), codes_(codes) {
        for (int b = 1; b < codes.stored(); ++b) stride_ += weights_of(b);
        std::vector<float> step(stride_, 0.0f), weight(stride_, 0.0f);  // of a bit; times the query
        for (int64_t at = 0, b = 1; b < codes.stored(); at += weights_of(b), ++b)
            for (size_t s = 0; s < segments.size(); ++s) {
                const float mine = bit_step(segments[s], counts[s], 1 << (codes.bits - 1 - b));
                for (int64_t d = segments[s].first; d < std::min(segments[s].stop, codes.covered(b)); ++d)
                    step[at + d] = mine;
            }
        units_.assign(n_queries, 1);
        for (int64_t query = 0; query < n_queries; ++query) {
            for (int64_t at = 0, b = 1; b < codes.stored(); at += weights_of(b), ++b)
                for (int64_t d = 0; d < codes.covered(b); ++d)
                    weight[at + d] = step[at + d] * codes.queries[query * codes.dim() + d];
            float most = 0;
            for (const float w : weight) most = std::max(most, std::abs(w));
            const float unit = most > 0 && std::isfinite(most) ? most / 127 : 1;
            for (const float w : weight)
                weights_.push_back(static_cast<int8_t>(std::isfinite(most) ? std::lrint(w / unit) : 0));
        }
    }

    // Estimate raw scores by a line of what `add` makes of the sums of a sample.
    void measure(const Sample& sample, double margin) {
        const int64_t n = static_cast<int64_t>(sample.rows.size());
        std::vector<float> sums(n), more(n);
        for (size_t query = 0; query < units_.size(); ++query) {
            const float *raw = sample.raw.data() + query * n, *first = sample.sums.data() + query * n;
            std::fill(more.begin(), more.end(), 0.0f);
            add(query, sample.rows.data(), n, more.data());
            const float unit = second_weight(raw, first, more.data(), n);
            units_[query] = unit > 0 && std::isfinite(unit) ? unit : 0;
            for (int64_t i = 0; i < n; ++i) sums[i] = first[i] + units_[query] * more[i];
            fitted.push_back(fit_estimate(raw, sums.data(), n, margin));
        }
    }

    // Add to the sums of table entries of some rows what their other bits weigh.
    void add(int64_t query, const int64_t* rows, int64_t n, float* sums) const {
        const uint8_t* planes[8];
        int64_t widths[8];
        const int others = codes_.stored() - 1;
        for (int b = 1; b <= others; ++b) widths[b - 1] = codes_.width(b);
        for (int64_t i = 0; i < n; ++i) {
            for (int b = 1; b <= others; ++b) planes[b - 1] = codes_.planes[b] + rows[i] * codes_.width(b);
            const int32_t rest = loops_.weigh_bits(planes, widths, others, weights_.data() + query * stride_);
            sums[i] += units_[query] * static_cast<float>(rest);
        }
    }

  private:
    int64_t weights_of(int plane) const { return (codes_.width(plane) + 7) / 8 * 64; }

    const Loops& loops_;
    const PlaneCodes& codes_;
    int64_t stride_ = 0;         // weights a query: those of a plane behind those of the one before
    std::vector<int8_t> weights_;
    std::vector<float> units_;   // a query: what a unit of weight is worth in units of the first sum
};

class PlaneRescorer : public Rescorer {
  public:
    PlaneRescorer(const Loops& loops, const PlaneCodes& codes, const Queries& queries,
                  const std::vector<Segment>& segments, const BitSums* bit_sums)
        : loops_(loops), codes_(codes), queries_(queries), segments_(segments), bit_sums_(bit_sums),
          row_(kRows * codes.stride()), tile_(kTileRows * queries.padded) {}

    void raw(int64_t query, const int64_t* rows, int64_t n, float* out) override { score(query, 1, rows, n, out); }

    // The same for all queries: (n_queries, n).
    void raw_all(int64_t n_queries, const int64_t* rows, int64_t n, float* out) {
        score(0, n_queries, rows, n, out);
    }

    // Not the first plane, which the first pass has read.
    void fetch(int64_t row) override {
        for (int b = 1; b < codes_.stored(); ++b) {
            const uint8_t *first = codes_.planes[b] + row * codes_.width(b), *last = first + codes_.width(b) - 1;
            for (const uint8_t* line = first; line < last; line += 64) prefetch(line);
            prefetch(last);
        }
    }

    // Few, where a batch would let many wait: their bytes shall not leave the caches before they are read.
    size_t together() const override { return bit_sums_ ? 4 : Rescorer::together(); }
    bool estimates() const override { return bit_sums_ != nullptr; }

    Estimate estimate(int64_t query, const int64_t* rows, int64_t n, float* sums) override {
        bit_sums_->add(query, rows, n, sums);
        return bit_sums_->fitted[query];
    }

  private:
    // Unpack some rows at a time for all queries that want them.
    void score(int64_t query, int64_t n_queries, const int64_t* rows, int64_t n, float* out) {
        for (int64_t i = 0; i < std::min(kAhead, n); ++i) fetch(rows[i]);
        part_.resize(n_queries > 1 ? kRows * n_queries : 0);
        for (int64_t i = 0; i < n; i += kRows) {
            const int64_t part = std::min(kRows, n - i), stride = codes_.stride();
            for (int64_t r = i + kAhead; r < std::min(i + kAhead + kRows, n); ++r) fetch(rows[r]);
            for (int64_t r = 0; r < part; ++r) codes_.unpack(loops_, rows[i + r], row_.data() + r * stride);
            float* scores = n_queries > 1 ? part_.data() : out + i;
            const DenseRun run = {level_kind(codes_.bits), row_.data(), stride, part, codes_.dim(), nullptr,
                                  queries_.floats.data() + query * queries_.padded, queries_.padded, n_queries,
                                  tile_.data(), scores};
            dense_segments(loops_, run, segments_);
            for (int64_t a = 0; a < n_queries && n_queries > 1; ++a)
                std::copy_n(scores + a * part, part, out + a * n + i);
        }
    }

    static constexpr int64_t kRows = 4, kAhead = 8;
    const Loops& loops_;
    const PlaneCodes& codes_;
    const Queries& queries_;
    const std::vector<Segment>& segments_;
    const BitSums* bit_sums_;
    std::vector<uint8_t> row_;
    std::vector<float> tile_, part_;
};

// Tables of the first plane: four dimensions a nibble, `level[dimension][bit]` each.
std::vector<float> plane_tables(const float* query, const Means& level) {
    const int64_t dim = static_cast<int64_t>(level.size());
    std::vector<float> tables((dim + 7) / 8 * 32);
    for (int64_t i = 0; i < static_cast<int64_t>(tables.size()); ++i) {
        float sum = 0;
        for (int64_t b = 0; b < 4 && i / 16 * 4 + b < dim; ++b)
            sum += query[i / 16 * 4 + b] * level[i / 16 * 4 + b][i >> b & 1];
        tables[i] = sum;
    }
    return tables;
}

// The first plane of the codes, and each query's bounds on what it adds up to: by `Loops::plane` for batches, by
// `Loops::lut4`, which waits for memory less, for one query.
struct FirstPlane {
    LutCodes codes;
    std::vector<Bound> bounds;
    std::vector<float> tables;  // four dimensions a nibble

    FirstPlane(const Loops& loops, const PlaneCodes& planes, const Means& level,
               int64_t n_queries, bool whole)
        : codes{planes.planes[0], nullptr, planes.width(0), 2 * planes.width(0), nullptr} {
        const int64_t dim = planes.covered(0);
        if (loops.plane && n_queries > 1) {
            const int64_t triples = (codes.pairs + 2) / 3;
            codes.group = std::max(whole ? kExactGroup : kGroup, triples / 256 + 1);
            int folds = 0;
            while (triples > kGroup << folds) ++folds;
            if (!whole && folds <= kMostFolds) codes.folds = folds, codes.group = 1 + ((triples - 1) >> folds);
        }
        std::vector<float> weight(dim);
        for (int64_t query = 0; query < n_queries; ++query) {
            const float* mine = planes.queries + query * planes.dim();
            std::vector<float> t;
            if (whole || !codes.group) t = plane_tables(mine, level);
            if (codes.group) {
                double base = 0;
                for (int64_t d = 0; d < dim; ++d) {
                    weight[d] = mine[d] * (level[d][1] - level[d][0]);
                    base += mine[d] * level[d][0];
                }
                bounds.push_back(round_plane(weight.data(), dim, codes.group));
                bounds.back().base += base;
            } else {
                bounds.push_back(round_tables(loops, t.data(), codes.m, 16));
            }
            tables.insert(tables.end(), t.begin(), t.end());
        }
        codes.tables = tables.data();
    }
};

void planes_exact(const Request& request, const PlaneCodes& codes, const Queries& queries,
                  const std::vector<Segment>& segments) {
    const int64_t stride = codes.stride();
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        std::vector<uint8_t> buffer(kChunkRows * stride);
        const Fetch fetch = [&](int64_t first, int64_t n) {
            for (int64_t i = 0; i < n; ++i) codes.unpack(*request.loops, first + i, buffer.data() + i * stride);
            return static_cast<const uint8_t*>(buffer.data());
        };
        const DenseRun run = {level_kind(codes.bits), nullptr, stride, 0, codes.dim(), nullptr,
                              queries.floats.data(), queries.padded, request.n_queries, nullptr, nullptr};
        scan_dense(request, rows, run, fetch, segments, best);
    });
}

}  // namespace

// As ragq.layouts.HAMMING_WORDS.
constexpr uint8_t kHammingWords[16] = {0x00, 0xe1, 0xd2, 0x33, 0xb4, 0x55, 0x66, 0x87,
                                       0x78, 0x99, 0xaa, 0x4b, 0xcc, 0x2d, 0x1e, 0xff};

void PlaneCodes::unpack(const Loops& loops, int64_t row, uint8_t* codes) const {
    const int64_t padded = stride() / 8;
    uint8_t buffer[2048];  // the planes of a row, one after the other; longer ones go to the heap
    std::vector<uint8_t> heap(bits * padded > 2048 ? bits * padded : 0);
    uint8_t* plane = heap.empty() ? buffer : heap.data();
    const uint8_t* first = planes[0] + row / 32 * width(0) * 32 + row % 32;
    for (int64_t at = 0; at < padded; at += 8, first += 32 * 8) {
        uint64_t word = 0;
        const int64_t n = std::min<int64_t>(8, width(0) - at);
        for (int64_t i = 0; i < n; ++i) word |= uint64_t{first[32 * i]} << (8 * i);
        std::memcpy(plane + at, &word, 8);
    }
    const uint8_t* part[8] = {plane};
    for (int b = 0; b < stored(); ++b) {
        part[b] = plane + b * padded;
        if (b > 0 && !words && covered(b) == 8 * padded) {  // whole words: they are read where they are
            part[b] = planes[b] + row * padded;
            continue;
        }
        if (b > 0) std::memcpy(plane + b * padded, planes[b] + row * width(b), width(b));
        if (width(b) < padded) std::memset(plane + b * padded + width(b), 0, padded - width(b));
        // nothing beyond the dimensions of a plane
        if (covered(b) % 8) plane[b * padded + width(b) - 1] &= static_cast<uint8_t>((1 << covered(b) % 8) - 1);
    }
    if (words) {
        const int64_t segments = (dim() + 7) / 8;
        const uint8_t* word = words + row * ((segments + 1) / 2);
        std::memset(plane + stored() * padded, 0, padded);
        part[stored()] = plane + stored() * padded;
        int last = bits - 1;  // the plane that the last bits of a segment belong to
        for (int64_t j = 0; j < segments; ++j) {
            while (dims[last] <= 8 * j) --last;
            plane[last * padded + j] = kHammingWords[word[j / 2] >> 4 * (j % 2) & 15];
        }
    }
    loops.join_planes(part, padded, bits, codes);
}

static std::vector<Segment> segments_of(const PlaneCodes& codes) {
    std::vector<Segment> segments;
    for (int n = codes.bits; n >= 1; --n) {
        const int64_t first = n < codes.bits ? codes.dims[n] : 0, stop = codes.dims[n - 1];
        if (first == stop) continue;
        Segment segment = {first, stop, {}};
        const int lacking = codes.bits - n;
        for (int code = 0; code < 1 << n; ++code) segment.levels[code << lacking] = codes.levels[(1 << n) - 2 + code];
        segments.push_back(segment);
    }
    return segments;
}

static void planes_part(const Request& request, const PlaneCodes& codes, double margin) {
    const Loops& loops = *request.loops;
    const Queries queries(codes.queries, request.n_queries, codes.dim());
    const std::vector<Segment> segments = segments_of(codes);
    const bool whole = codes.bits == 1;  // the first plane is all there is: its tables give the score itself
    if (!whole && !(margin > 0)) return planes_exact(request, codes, queries, segments);
    Means level(codes.dim(), {codes.levels[0], codes.levels[1]});
    Counts counts;
    if (!whole) counts = count_codes(loops, codes, request.rows, segments), level = half_means(codes, segments, counts);
    level.resize(codes.covered(0));  // the first plane says nothing of dimensions that have a word only
    FirstPlane first(loops, codes, level, request.n_queries, whole);
    std::optional<BitSums> bit_sums;
    if (!whole) {
        PlaneRescorer rescorer(loops, codes, queries, segments, nullptr);
        const auto score = [&](const int64_t* rows, int64_t n, float* out) {
            rescorer.raw_all(request.n_queries, rows, n, out);
        };
        const Sample sample = take_sample(loops, first.codes, request.rows, score, first.bounds);
        if (codes.stored() > 1) {
            bit_sums.emplace(loops, codes, segments, counts, request.n_queries);
            bit_sums->measure(sample, margin);
        }
        measure_bounds(sample, margin, first.bounds);
    }
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        LutRescorer by_table(first.codes);
        PlaneRescorer by_planes(loops, codes, queries, segments, bit_sums ? &*bit_sums : nullptr);
        Rescorer& rescorer = whole ? static_cast<Rescorer&>(by_table) : by_planes;
        scan_bounds(loops, first.codes, false, first.bounds, rescorer, request.factors, rows, best);
    });
}

void planes_topk(const Request& request, const PlaneCodes& codes, double margin) {
    share_queries(request, [&](const Request& part, int64_t first) {
        PlaneCodes mine = codes;
        mine.queries += first * codes.dim();
        planes_part(part, mine, margin);
    });
}

}  // namespace ragq
