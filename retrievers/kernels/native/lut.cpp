#include "lut.h"

#include <algorithm>
#include <cmath>

namespace ragq {

namespace {

constexpr int64_t kTileBlocks = 16;
constexpr int64_t kFirst = 8;          // candidates beyond k that are scored before the others
constexpr int64_t kBatch = 32;         // rows that are scored at once
constexpr int kFewRows = 2;            // a batch scores so few live rows of a block faster than it scans the block

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
          n_queries_(static_cast<int64_t>(bounds.size())), found_(n_queries_),
          few_rows_(n_queries_ < kMaxQueries ? 0 : kFewRows),
          loop_(eight ? loops.lut8 : codes.group ? loops.plane : loops.lut4),
          scratch_(eight ? (kTileBlocks + 1) * 64 * codes.pairs : 0) {}

    void run() {
        const int64_t stop = (rows_.stop + 31) / 32;
        for (int64_t block = rows_.start / 32; block < stop; block += kTileBlocks)
            scan_tile(block, std::min(stop, block + kTileBlocks));
        score_few();
        for (int64_t query = 0; query < n_queries_; ++query) settle(query);
    }

  private:
    struct Candidate {
        float bound;  // the most that the row may score
        uint16_t sum;
        int64_t row;
    };

    void scan_tile(int64_t first, int64_t stop) {
        if (!rows_.mask && 32 * first >= rows_.start && 32 * stop <= rows_.stop) {
            std::fill_n(live_, stop - first, ~uint32_t{0});
            return scan_run(first, stop);
        }
        for (int64_t block = first; block < stop;) {  // runs of blocks that are worth scanning
            int64_t end = block;
            for (; end < stop; ++end) {
                live_[end - block] = rows_.live(end);
                if (__builtin_popcount(live_[end - block]) <= few_rows_) break;
            }
            if (end > block) scan_run(block, end);
            if (end < stop) collect_few(end, rows_.live(end));
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
                            codes_.group,
                            scratch_.data()};
        for (int64_t query = 0; query < n_queries_; query += kMaxQueries) {
            const int n = static_cast<int>(std::min<int64_t>(kMaxQueries, n_queries_ - query));
            LutQuery q[kMaxQueries];
            for (int i = 0; i < n; ++i) {
                q[i].tables = bounds_[query + i].tables.data();
                q[i].hits = hits_[i], q[i].sums = sums_[i];
                set_threshold(q[i], bounds_[query + i], factors_, query + i, best_[query + i].threshold());
            }
            loop_(run, q, n);
            for (int i = 0; i < n; ++i) {
                if (found_[query + i].size() >= rescorer_.together()) settle(query + i);
                if (factors_.scale || q[i].threshold < 65536) collect(first, stop, query + i, q[i]);
            }
        }
    }

    void collect(int64_t first, int64_t stop, int64_t query, const LutQuery& q) {
        std::vector<Candidate>& found = found_[query];
        const Bound& bound = bounds_[query];
        for (int64_t i = 0; i < stop - first; ++i)
            for (uint32_t bits = q.hits[i] & live_[i]; bits; bits &= bits - 1) {
                const int64_t r = __builtin_ctz(bits), row = 32 * (first + i) + r;
                const uint16_t sum = q.sums[32 * i + r];
                const float most = factors_.most(bound.base + bound.step * sum, bound.slack, row, query);
                if (most < best_[query].threshold()) continue;
                found.push_back({most, sum, row});
                rescorer_.fetch(row);
            }
    }

    // Score the candidates of a query; the most promising ones of many first, since they rule out most of the others.
    void settle(int64_t query) {
        std::vector<Candidate>& found = found_[query];
        const int64_t ahead = best_[query].k() + kFirst;
        if (static_cast<int64_t>(found.size()) > 2 * ahead) {
            std::nth_element(found.begin(), found.begin() + ahead, found.end(),
                             [](const Candidate& a, const Candidate& b) { return a.bound > b.bound; });
            score(query, found.begin(), found.begin() + ahead);
            found.erase(found.begin(), found.begin() + ahead);
        }
        drop(query);
        estimate(query);
        score(query, found.begin(), found.end());
        found.clear();
    }

    // Leave out candidates that what was scored since has ruled out.
    void drop(int64_t query) {
        std::vector<Candidate>& found = found_[query];
        const float floor = best_[query].threshold();
        found.erase(std::remove_if(found.begin(), found.end(), [&](const Candidate& c) { return c.bound < floor; }),
                    found.end());
    }

    // Bound candidates by the rescorer's estimates, where it has any.
    void estimate(int64_t query) {
        std::vector<Candidate>& found = found_[query];
        for (size_t first = 0; first < found.size(); first += kBatch) {
            int64_t rows[kBatch];
            uint16_t sums[kBatch];
            float raw[kBatch];
            Candidate* mine = found.data() + first;
            const int64_t n = std::min<int64_t>(kBatch, found.size() - first);
            for (int64_t i = 0; i < n; ++i) rows[i] = mine[i].row, sums[i] = mine[i].sum;
            const std::optional<double> slack = rescorer_.estimate(query, rows, sums, n, raw);
            if (!slack) return;
            for (int64_t i = 0; i < n; ++i)
                mine[i].bound = std::min(mine[i].bound, factors_.most(raw[i], *slack, rows[i], query));
        }
    }

    void score(int64_t query, std::vector<Candidate>::const_iterator first,
               std::vector<Candidate>::const_iterator stop) {
        while (first < stop) {
            int64_t rows[kBatch], n = 0;
            for (; first < stop && n < kBatch; ++first)
                if (!(first->bound < best_[query].threshold())) rows[n++] = first->row;
            score_rows(query, rows, n);
        }
    }

    void score_rows(int64_t query, const int64_t* rows, int64_t n) {
        if (n == 0) return;
        float raw[kBatch];
        rescorer_.raw(query, rows, n, raw);
        for (int64_t i = 0; i < n; ++i) best_[query].push(factors_.score(raw[i], rows[i], query), rows[i]);
    }

    void collect_few(int64_t block, uint32_t bits) {
        for (; bits; bits &= bits - 1) few_.push_back(32 * block + __builtin_ctz(bits));
        if (static_cast<int64_t>(few_.size()) >= kBatch) score_few();
    }

    // Score rows for all queries, which unpacks each row once.
    void score_few() {
        const int64_t n = static_cast<int64_t>(few_.size());
        std::vector<float> raw(n * n_queries_);
        if (n) rescorer_.raw_all(n_queries_, few_.data(), n, raw.data());
        for (int64_t query = 0; query < n_queries_; ++query)
            for (int64_t i = 0; i < n; ++i)
                best_[query].push(factors_.score(raw[query * n + i], few_[i], query), few_[i]);
        few_.clear();
    }

    const LutCodes& codes_;
    const std::vector<Bound>& bounds_;
    Rescorer& rescorer_;
    const Factors& factors_;
    const Rows& rows_;
    TopK* best_;
    int64_t n_queries_;
    std::vector<std::vector<Candidate>> found_;  // a query
    std::vector<int64_t> few_;                   // live rows of blocks that were not scanned
    int few_rows_;
    void (*loop_)(const LutRun&, const LutQuery*, int);
    Lines scratch_;
    uint32_t live_[kTileBlocks];
    uint32_t hits_[kMaxQueries][kTileBlocks];
    uint16_t sums_[kMaxQueries][kTileBlocks * 32];
};

}  // namespace

void scan_bounds(const Loops& loops, const LutCodes& codes, bool eight, const std::vector<Bound>& bounds,
                 Rescorer& rescorer, const Factors& factors, const Rows& rows, TopK* best) {
    Scan(loops, codes, eight, bounds, rescorer, factors, rows, best).run();
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
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) sum_tables<Eight, 4>(codes, tables, rows + i, out + i);
    for (; i < n; ++i) sum_tables<Eight, 1>(codes, tables, rows + i, out + i);
}

void LutRescorer::fetch(int64_t row) {
    if (!codes_.low) return;  // the first pass has read the others
    for (int64_t at = 0; at < 32 * codes_.pairs; at += 64)
        prefetch(codes_.low + row / 32 * codes_.pairs * 32 + at + row % 32);
}

void LutRescorer::raw(int64_t query, const int64_t* rows, int64_t n, float* out) {
    const float* tables = codes_.tables + query * codes_.m * codes_.entries();
    if (codes_.low) return sum_all<true>(codes_, tables, rows, n, out);
    sum_all<false>(codes_, tables, rows, n, out);
}

static void lut_part(const Request& request, const LutCodes& codes, double margin) {
    if (codes.low && candidates_topk(request, codes, margin)) return;
    std::vector<Bound> bounds;
    for (int64_t query = 0; query < request.n_queries; ++query)
        bounds.push_back(round_tables(*request.loops, codes.tables + query * codes.m * codes.entries(), codes.m,
                                      codes.entries()));
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        LutRescorer rescorer(codes);
        scan_bounds(*request.loops, codes, codes.low, bounds, rescorer, request.factors, rows, best);
    });
}

void lut_topk(const Request& request, const LutCodes& codes, double margin) {
    share_queries(request, [&](const Request& part, int64_t first) {
        LutCodes mine = codes;
        mine.tables += first * codes.m * codes.entries();
        lut_part(part, mine, margin);
    });
}

}  // namespace ragq
