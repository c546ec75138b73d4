#include "hamming.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "lut.h"

namespace ragq {

namespace {

constexpr int64_t kChunkBlocks = 8;

int64_t differing(const uint8_t* a, const uint8_t* b, int64_t width) {
    int64_t bits = 0, i = 0;
    for (; i + 8 <= width; i += 8) {
        uint64_t x, y;
        std::memcpy(&x, a + i, 8), std::memcpy(&y, b + i, 8);
        bits += __builtin_popcountll(x ^ y);
    }
    for (; i < width; ++i) bits += __builtin_popcount(a[i] ^ b[i]);
    return bits;
}

float score_of(const HammingCodes& codes, int64_t query, int64_t distance) {
    return codes.weight[query] * static_cast<float>(codes.dim - 2 * distance);
}

// Scores rows of blocked codes.
class BlockRescorer : public Rescorer {
  public:
    explicit BlockRescorer(const HammingCodes& codes) : codes_(codes) {}

    void raw(int64_t query, const int64_t* rows, int64_t n, float* out) override {
        const uint8_t* mine = codes_.queries + query * codes_.width;
        for (int64_t i = 0; i < n; ++i) {
            const uint8_t* row = codes_.codes + rows[i] / 32 * codes_.width * 32 + rows[i] % 32;
            int64_t distance = 0;
            for (int64_t j = 0; j < codes_.width; ++j) distance += __builtin_popcount(row[32 * j] ^ mine[j]);
            out[i] = score_of(codes_, query, distance);
        }
    }

  private:
    const HammingCodes& codes_;
};

// Blocked codes are 4-bit codes whose table holds how many of four bits agree (differ, for a negative weight): exact.
Bound agreement_tables(const Loops& loops, const HammingCodes& codes, int64_t query) {
    const double weight = codes.weight[query];
    std::vector<float> tables(codes.width * 32);
    for (int64_t i = 0; i < codes.width * 32; ++i) {
        const int nibble = codes.queries[query * codes.width + i / 32] >> (i / 16 % 2 * 4) & 15;
        const int differ = __builtin_popcount(nibble ^ (i % 16));
        tables[i] = static_cast<float>(weight < 0 ? differ : 4 - differ) * (kMaxEntry / 4);
    }
    Bound bound = round_tables(loops, tables.data(), 2 * codes.width, 16);
    // sum of tables = step * sum of entries; raw = |weight| * (2 * sum / (kMaxEntry / 4) - 8 * width +- spare bits)
    const double unit = 2 * std::abs(weight) / (kMaxEntry / 4);
    const double spare = weight * static_cast<double>(codes.dim - 8 * codes.width);
    bound.base = bound.base * unit - std::abs(weight) * 8 * static_cast<double>(codes.width) + spare;
    bound.step *= unit, bound.slack = bound.slack * unit + 1e-6 * std::abs(weight) * static_cast<double>(codes.dim);
    if (!(bound.step > 0)) bound.step = 1, bound.slack = std::numeric_limits<double>::infinity();
    return bound;
}

void blocks_topk(const Request& request, const HammingCodes& codes) {
    std::vector<Bound> bounds;
    for (int64_t query = 0; query < request.n_queries; ++query)
        bounds.push_back(agreement_tables(*request.loops, codes, query));
    const LutCodes nibbles = {codes.codes, nullptr, codes.width, 2 * codes.width, nullptr};
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        BlockRescorer rescorer(codes);
        scan_bounds(*request.loops, nibbles, false, bounds, rescorer, request.factors, rows, best);
    });
}

// One thread's scan of rows: chunk by chunk, all queries on a chunk.
class Scan {
  public:
    Scan(const Request& request, const HammingCodes& codes, const Rows& rows, TopK* best)
        : request_(request), codes_(codes), rows_(rows), best_(best), limits_(request.n_queries, 8 * codes.width) {}

    void run() {
        const int64_t stop = (rows_.stop + 31) / 32;
        int64_t chunk = 1;  // short chunks first: the first rows all pass, until there is a threshold
        for (int64_t block = rows_.start / 32; block < stop; block += chunk, chunk = std::min(2 * chunk, kChunkBlocks))
            scan_chunk(block, std::min(stop, block + chunk));
    }

  private:
    void scan_chunk(int64_t first, int64_t stop) {
        uint32_t live[kChunkBlocks], any = 0, hits[kChunkBlocks];
        for (int64_t block = first; block < stop; ++block) any |= live[block - first] = rows_.live(block);
        if (!any) return;
        const int64_t row = 32 * first, rows = std::min(32 * stop, rows_.stop) - row;
        for (int64_t query = 0; query < request_.n_queries; ++query) {
            if (limits_[query] < 0) continue;
            const HammingQuery q = {codes_.queries + query * codes_.width, limits_[query], hits};
            request_.loops->hamming(codes_.codes + row * codes_.width, codes_.width, rows, &q, 1);
            bool pushed = false;
            for (int64_t block = first; block < stop; ++block)
                for (uint32_t bits = hits[block - first] & live[block - first]; bits; bits &= bits - 1, pushed = true)
                    push(query, 32 * block + __builtin_ctz(bits));
            if (pushed && !request_.factors.scale) tighten(query);
        }
    }

    void push(int64_t query, int64_t row) {
        const uint8_t* code = codes_.codes + row * codes_.width;
        const float raw = score_of(codes_, query, differing(code, codes_.queries + query * codes_.width, codes_.width));
        best_[query].push(request_.factors.score(raw, row, query), row);
    }

    // Lower the limit to the largest distance whose score still enters; scores fall with distance when weight > 0.
    void tighten(int64_t query) {
        if (!(codes_.weight[query] > 0)) return;
        const float bias = request_.factors.bias[query];
        while (limits_[query] >= 0 && !(score_of(codes_, query, limits_[query]) + bias > best_[query].threshold()))
            --limits_[query];
    }

    const Request& request_;
    const HammingCodes& codes_;
    const Rows& rows_;
    TopK* best_;
    std::vector<int64_t> limits_;
};

}  // namespace

void hamming_topk(const Request& request, const HammingCodes& codes) {
    share_queries(request, [&](const Request& part, int64_t first) {
        HammingCodes mine = codes;
        mine.queries += first * codes.width, mine.weight += first;
        if (codes.blocked) return blocks_topk(part, mine);
        scan_parts(part, [&](const Rows& rows, TopK* best) { Scan(part, mine, rows, best).run(); });
    });
}

void select_topk(const Request& request, const float* scores, int64_t n) {
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        for (int64_t query = 0; query < request.n_queries; ++query) {
            const float* mine = scores + query * n;
            TopK& top = best[query];
            for (int64_t block = rows.start / 32; 32 * block < rows.stop; ++block) {
                const uint32_t live = rows.live(block);
                const int64_t first = 32 * block, stop = std::min(first + 32, n);
                for (int64_t i = first; i < stop; ++i)
                    if (mine[i] > top.threshold() && (live >> (i - first) & 1)) top.push(mine[i], i);
            }
        }
    });
}

}  // namespace ragq
