#include "dense.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "lut.h"

namespace ragq {

namespace {

constexpr int64_t kChunkRows = 128;
constexpr int64_t kMeanRows = 16;  // times the dimensions: enough codes for a mean
// Bytes of a row of the first plane that share a byte of sum: few where rounding must not hide a row, many otherwise.
constexpr int64_t kExactGroup = 3, kGroup = 12;

// Queries padded with zeros, so that the loops read whole vectors, also those of a segment that ends early.
struct Queries {
    int64_t padded;
    std::vector<float> floats;

    Queries(const float* queries, int64_t n, int64_t dim) : padded((dim + 15) / 16 * 16), floats(n * padded + 16, 0.0f) {
        for (int64_t i = 0; i < n; ++i) std::copy_n(queries + i * dim, dim, floats.data() + i * padded);
    }
};

// Where the codes of a chunk of rows are: in place, or unpacked into a buffer.
using Fetch = std::function<const uint8_t*(int64_t first, int64_t rows)>;

// Add up the scores of segments of the dimensions, each with its own levels; none: the run as it is.
void dense_segments(const Loops& loops, const DenseRun& run, const std::vector<Segment>& segments) {
    if (segments.empty()) return loops.dense(run);
    std::vector<float> more(segments.size() > 1 ? run.rows * run.n_queries : 0);
    for (size_t i = 0; i < segments.size(); ++i) {
        DenseRun part = run;
        part.codes += segments[i].first, part.queries += segments[i].first;
        part.dim = segments[i].stop - segments[i].first;
        part.levels = segments[i].levels;
        if (i) part.out = more.data();
        loops.dense(part);
        for (size_t j = 0; i && j < more.size(); ++j) run.out[j] += more[j];
    }
}

// One thread's scan of all rows, a chunk at a time.
class Scan {
  public:
    Scan(const Request& request, const Rows& rows, DenseRun run, Fetch fetch, const std::vector<Segment>& segments,
         TopK* best)
        : request_(request), rows_(rows), run_(run), fetch_(std::move(fetch)), segments_(segments), best_(best),
          tile_(kTileRows * run.padded), out_(kChunkRows * request.n_queries) {
        run_.tile = tile_.data(), run_.out = out_.data();
    }

    void run() {
        for (int64_t first = rows_.start / kChunkRows * kChunkRows; first < rows_.stop; first += kChunkRows) {
            int64_t row = first;
            const int64_t stop = std::min(first + kChunkRows, rows_.stop);
            for (int64_t block = 0; block < kChunkRows / 32; ++block) live_[block] = rows_.live(first / 32 + block);
            prefetch(first, stop);
            while (row < stop) {  // runs of live rows, gaps of a few rows included
                while (row < stop && !is_live(row - first)) ++row;
                int64_t end = row, gap = row;
                while (gap < stop && gap - end < 4)
                    if (is_live(gap++ - first)) end = gap;
                if (end > row) score(first, row, end);
                row = gap;
            }
        }
    }

  private:
    bool is_live(int64_t i) const { return live_[i / 32] >> (i % 32) & 1; }

    // A filter leaves rows that the hardware cannot foresee.
    void prefetch(int64_t first, int64_t stop) {
        if (!rows_.mask || !run_.codes) return;
        for (int64_t row = first; row < stop; ++row)
            if (is_live(row - first))
                for (int64_t at = 0; at < run_.stride; at += 64)
                    __builtin_prefetch(run_.codes + row * run_.stride + at);
    }

    void score(int64_t first, int64_t row, int64_t stop) {
        DenseRun run = run_;
        run.rows = stop - row;
        run.codes = fetch_(row, run.rows);
        dense_segments(*request_.loops, run, segments_);
        float scale[kChunkRows], shift[kChunkRows];
        const Factors& factors = request_.factors;
        if (factors.scale)
            for (int64_t i = 0; i < run.rows; ++i) scale[i] = half_to_float(factors.scale[row + i]);
        if (factors.shift)
            for (int64_t i = 0; i < run.rows; ++i) shift[i] = half_to_float(factors.shift[row + i]);
        for (int64_t query = 0; query < request_.n_queries; ++query) {
            float* scores = run.out + query * run.rows;
            if (factors.scale)
                for (int64_t i = 0; i < run.rows; ++i) scores[i] *= scale[i];
            if (factors.shift)
                for (int64_t i = 0; i < run.rows; ++i) scores[i] += factors.shift_weight[query] * shift[i];
            const float bias = factors.bias[query];
            TopK& best = best_[query];
            for (int64_t i = 0; i < run.rows; ++i)
                if (scores[i] + bias > best.threshold() && is_live(row + i - first))
                    best.push(scores[i] + bias, row + i);
        }
    }

    const Request& request_;
    const Rows& rows_;
    DenseRun run_;
    Fetch fetch_;
    const std::vector<Segment>& segments_;
    TopK* best_;
    std::vector<float> tile_, out_;
    uint32_t live_[kChunkRows / 32];
};

Value level_kind(int bits) { return bits <= 4 ? Value::levels16 : Value::levels; }

class PlaneRescorer : public Rescorer {
  public:
    PlaneRescorer(const Loops& loops, const PlaneCodes& codes, const Queries& queries,
                  const std::vector<Segment>& segments)
        : loops_(loops), codes_(codes), queries_(queries), segments_(segments), row_(kRows * codes.stride()),
          tile_(kTileRows * queries.padded) {}

    void raw(int64_t query, const int64_t* rows, int64_t n, float* out) override { score(query, 1, rows, n, out); }

    void raw_all(int64_t n_queries, const int64_t* rows, int64_t n, float* out) override {
        score(0, n_queries, rows, n, out);
    }

  private:
    // Not the first plane, where a row is a byte in each line of its block: so many lines are read faster than asked for.
    void fetch(int64_t row) const {
        for (int b = 1; b < codes_.stored(); ++b)
            for (int64_t at = 0; at < codes_.width(b); at += 64)
                __builtin_prefetch(codes_.planes[b] + row * codes_.width(b) + at);
    }

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
    std::vector<uint8_t> row_;
    std::vector<float> tile_, part_;
};

// `most` evenly spaced rows, or all.
std::vector<int64_t> sample_rows(const Rows& rows, int64_t most) {
    const int64_t n = std::min(most, rows.stop - rows.start);
    std::vector<int64_t> sample(n);
    for (int64_t i = 0; i < n; ++i) sample[i] = rows.start + (rows.stop - rows.start) * i / n;
    return sample;
}

// The mean level of each dimension's codes whose most significant bit is 0 and 1: over a sample of rows, and over the
// dimensions of its segment.
std::vector<std::array<float, 2>> half_means(const Loops& loops, const PlaneCodes& codes, const Rows& rows,
                                             const std::vector<Segment>& segments) {
    const int top = codes.bits - 1;
    std::vector<uint8_t> row(codes.stride());
    std::vector<std::array<int64_t, 256>> count(segments.size());
    for (const int64_t i : sample_rows(rows, kMeanRows)) {
        codes.unpack(loops, i, row.data());
        for (size_t s = 0; s < segments.size(); ++s)
            for (int64_t d = segments[s].first; d < segments[s].stop; ++d) ++count[s][row[d]];
    }
    std::vector<std::array<float, 2>> means(codes.dim());
    for (size_t s = 0; s < segments.size(); ++s) {
        std::array<float, 2> mean;
        for (int i = 0; i < 2; ++i) {
            double sum = 0, n = 0;
            for (int code = i << top; code < (i + 1) << top; ++code)
                sum += segments[s].levels[code] * static_cast<double>(count[s][code]), n += count[s][code];
            mean[i] = n ? static_cast<float>(sum / n) : segments[s].levels[i << top];
        }
        std::fill(means.begin() + segments[s].first, means.begin() + segments[s].stop, mean);
    }
    return means;
}

// Tables of the first plane: four dimensions a nibble, `level[dimension][bit]` each.
std::vector<float> plane_tables(const float* query, const std::vector<std::array<float, 2>>& level) {
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

    FirstPlane(const Loops& loops, const PlaneCodes& planes, const std::vector<std::array<float, 2>>& level,
               int64_t n_queries, bool whole)
        : codes{planes.planes[0], nullptr, planes.width(0), 2 * planes.width(0), nullptr} {
        const int64_t dim = planes.covered(0);
        if (loops.plane && n_queries > 1) codes.group = std::max(whole ? kExactGroup : kGroup, codes.pairs / 256 + 1);
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
        const auto fetch = [&](int64_t first, int64_t n) {
            for (int64_t i = 0; i < n; ++i) codes.unpack(*request.loops, first + i, buffer.data() + i * stride);
            return static_cast<const uint8_t*>(buffer.data());
        };
        const DenseRun run = {level_kind(codes.bits), nullptr, stride, 0, codes.dim(), nullptr,
                              queries.floats.data(), queries.padded, request.n_queries, nullptr, nullptr};
        Scan(request, rows, run, fetch, segments, best).run();
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

std::vector<Segment> segments_of(const PlaneCodes& codes) {
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

static void dense_part(const Request& request, const DenseCodes& codes) {
    const Queries queries(codes.queries, request.n_queries, codes.dim);
    const std::vector<Segment> none;
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        const auto fetch = [&](int64_t first, int64_t) { return codes.codes + first * codes.stride; };
        const DenseRun run = {codes.value, codes.codes, codes.stride, 0, codes.dim, codes.levels,
                              queries.floats.data(), queries.padded, request.n_queries, nullptr, nullptr};
        Scan(request, rows, run, fetch, none, best).run();
    });
}

void dense_topk(const Request& request, const DenseCodes& codes) {
    share_queries(request, [&](const Request& part, int64_t first) {
        DenseCodes mine = codes;
        mine.queries += first * codes.dim;
        dense_part(part, mine);
    });
}

static void planes_part(const Request& request, const PlaneCodes& codes, double margin) {
    const Queries queries(codes.queries, request.n_queries, codes.dim());
    const std::vector<Segment> segments = segments_of(codes);
    const bool whole = codes.bits == 1;  // the first plane is all there is: its tables give the score itself
    if (!whole && !(margin > 0)) return planes_exact(request, codes, queries, segments);
    std::vector<std::array<float, 2>> level(codes.dim(), {codes.levels[0], codes.levels[1]});
    if (!whole) level = half_means(*request.loops, codes, request.rows, segments);
    level.resize(codes.covered(0));  // the first plane says nothing of dimensions that have a word only
    FirstPlane first(*request.loops, codes, level, request.n_queries, whole);
    if (!whole) {
        PlaneRescorer rescorer(*request.loops, codes, queries, segments);
        measure_bounds(*request.loops, first.codes, request.rows, rescorer, margin, first.bounds);
    }
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        LutRescorer by_table(first.codes);
        PlaneRescorer by_planes(*request.loops, codes, queries, segments);
        Rescorer& rescorer = whole ? static_cast<Rescorer&>(by_table) : by_planes;
        scan_bounds(*request.loops, first.codes, false, first.bounds, rescorer, request.factors, rows, best);
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
