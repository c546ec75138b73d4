#include "dense.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "lut.h"

namespace ragq {

namespace {

constexpr int64_t kChunkRows = 128;

// Queries padded with zeros, so that the loops read whole vectors.
struct Queries {
    int64_t padded;
    std::vector<float> floats;

    Queries(const float* queries, int64_t n, int64_t dim) : padded((dim + 15) / 16 * 16), floats(n * padded, 0.0f) {
        for (int64_t i = 0; i < n; ++i) std::copy_n(queries + i * dim, dim, floats.data() + i * padded);
    }
};

// Where the codes of a chunk of rows are: in place, or unpacked into a buffer.
using Fetch = std::function<const uint8_t*(int64_t first, int64_t rows)>;

// One thread's scan of all rows, a chunk at a time.
class Scan {
  public:
    Scan(const Request& request, const Rows& rows, DenseRun run, Fetch fetch, TopK* best)
        : request_(request), rows_(rows), run_(run), fetch_(std::move(fetch)), best_(best),
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
        request_.loops->dense(run);
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
    TopK* best_;
    std::vector<float> tile_, out_;
    uint32_t live_[kChunkRows / 32];
};

Value level_kind(int bits) { return bits <= 4 ? Value::levels16 : Value::levels; }

class PlaneRescorer : public Rescorer {
  public:
    PlaneRescorer(const Loops& loops, const PlaneCodes& codes, const Queries& queries)
        : loops_(loops), codes_(codes), queries_(queries), row_(kRows * codes.stride()), tile_(16) {}

    void raw(int64_t query, const int64_t* rows, int64_t n, float* out) override {
        for (int64_t i = 0; i < n; ++i)
            for (int b = 1; b < codes_.bits; ++b)
                for (int64_t at = 0; at < codes_.width; at += 64)
                    __builtin_prefetch(codes_.planes[b] + rows[i] * codes_.width + at);
        for (int64_t i = 0; i < n; i += kRows) {
            const int64_t part = std::min(kRows, n - i), stride = codes_.stride();
            for (int64_t r = 0; r < part; ++r) codes_.unpack(loops_, rows[i + r], row_.data() + r * stride);
            loops_.dense({level_kind(codes_.bits), row_.data(), stride, part, codes_.dim, codes_.levels,
                          queries_.floats.data() + query * queries_.padded, queries_.padded, 1, tile_.data(), out + i});
        }
    }

  private:
    static constexpr int64_t kRows = 4;
    const Loops& loops_;
    const PlaneCodes& codes_;
    const Queries& queries_;
    std::vector<uint8_t> row_;
    std::vector<float> tile_;
};

// The mean level of the codes of each half (most significant bit 0 and 1), over a sample of rows.
std::array<float, 2> half_means(const Loops& loops, const PlaneCodes& codes, const Rows& rows) {
    double sum[2] = {}, count[2] = {};
    std::vector<uint8_t> row(codes.stride());
    for (const int64_t i : sample_rows(rows, 32)) {
        codes.unpack(loops, i, row.data());
        for (int64_t d = 0; d < codes.dim; ++d) {
            const int half = row[d] >> (codes.bits - 1);
            sum[half] += codes.levels[row[d]], count[half] += 1;
        }
    }
    std::array<float, 2> means;
    const int half = 1 << (codes.bits - 1);
    for (int i = 0; i < 2; ++i)
        means[i] = static_cast<float>(count[i] ? sum[i] / count[i] : codes.levels[i * half + half / 2]);
    return means;
}

// Tables of the first plane: four dimensions a nibble, `level[bit]` each.
std::vector<float> plane_tables(const PlaneCodes& codes, const float* query, const std::array<float, 2>& level) {
    std::vector<float> tables(codes.width * 32);
    for (int64_t i = 0; i < codes.width * 32; ++i) {
        float sum = 0;
        for (int64_t b = 0; b < 4 && i / 16 * 4 + b < codes.dim; ++b) sum += query[i / 16 * 4 + b] * level[i >> b & 1];
        tables[i] = sum;
    }
    return tables;
}

void planes_exact(const Request& request, const PlaneCodes& codes, const Queries& queries) {
    const int64_t stride = codes.stride();
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        std::vector<uint8_t> buffer(kChunkRows * stride);
        const auto fetch = [&](int64_t first, int64_t n) {
            for (int64_t i = 0; i < n; ++i) codes.unpack(*request.loops, first + i, buffer.data() + i * stride);
            return static_cast<const uint8_t*>(buffer.data());
        };
        const DenseRun run = {level_kind(codes.bits), nullptr, stride, 0, codes.dim, codes.levels,
                              queries.floats.data(), queries.padded, request.n_queries, nullptr, nullptr};
        Scan(request, rows, run, fetch, best).run();
    });
}

}  // namespace

void PlaneCodes::unpack(const Loops& loops, int64_t row, uint8_t* codes) const {
    const int64_t padded = stride() / 8;
    uint8_t buffer[2048];  // the planes of a row, one after the other; longer ones go to the heap
    std::vector<uint8_t> heap(bits * padded > 2048 ? bits * padded : 0);
    uint8_t* plane = heap.empty() ? buffer : heap.data();
    const uint8_t* first = planes[0] + row / 32 * width * 32 + row % 32;
    for (int64_t j = 0; j < width; ++j) plane[j] = first[32 * j];
    std::memset(plane + width, 0, padded - width);
    for (int b = 1; b < bits; ++b) {
        std::memcpy(plane + b * padded, planes[b] + row * width, width);
        std::memset(plane + b * padded + width, 0, padded - width);
    }
    loops.join_planes(plane, padded, bits, codes);
}

void dense_topk(const Request& request, const DenseCodes& codes) {
    const Queries queries(codes.queries, request.n_queries, codes.dim);
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        const auto fetch = [&](int64_t first, int64_t) { return codes.codes + first * codes.stride; };
        const DenseRun run = {codes.value, codes.codes, codes.stride, 0, codes.dim, codes.levels,
                              queries.floats.data(), queries.padded, request.n_queries, nullptr, nullptr};
        Scan(request, rows, run, fetch, best).run();
    });
}

void planes_topk(const Request& request, const PlaneCodes& codes, double margin) {
    const Queries queries(codes.queries, request.n_queries, codes.dim);
    if (codes.bits > 1 && !(margin > 0)) return planes_exact(request, codes, queries);
    std::array<float, 2> level = {codes.levels[0], codes.levels[1]};
    if (codes.bits > 1) level = half_means(*request.loops, codes, request.rows);
    LutCodes first = {codes.planes[0], nullptr, codes.width, 2 * codes.width, nullptr};
    std::vector<float> tables;
    std::vector<Bound> bounds;
    for (int64_t query = 0; query < request.n_queries; ++query) {
        const std::vector<float> t = plane_tables(codes, codes.queries + query * codes.dim, level);
        bounds.push_back(round_tables(*request.loops, t.data(), first.m, 16));
        tables.insert(tables.end(), t.begin(), t.end());
    }
    first.tables = tables.data();
    if (codes.bits > 1) {
        PlaneRescorer rescorer(*request.loops, codes, queries);
        measure_bounds(first, request.rows, rescorer, request.loops->copies, margin, bounds);
    }
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        if (codes.bits == 1) {
            LutRescorer rescorer(first);
            return scan_bounds(*request.loops, first, false, bounds, rescorer, request.factors, rows, best);
        }
        PlaneRescorer rescorer(*request.loops, codes, queries);
        scan_bounds(*request.loops, first, false, bounds, rescorer, request.factors, rows, best);
    });
}

}  // namespace ragq
