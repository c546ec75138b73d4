// Top-k of 8-bit codes by candidates: sums over the high nibbles of all rows choose the few that the tables score.
#include <algorithm>
#include <cmath>
#include <utility>

#include "lut.h"

namespace ragq {

namespace {

constexpr int64_t kTileBlocks = 16;
constexpr int64_t kBatch = 32;                            // rows that are scored at once
constexpr double kManyCodes = 48;                         // half as many say so much less that it takes 4 x the rows
constexpr int64_t kPerResult = 15;                        // candidates that each of the k rows adds to the root
constexpr int64_t kRefined = 16, kRefinedPerResult = 10;  // of so many candidates one is scored, and so many more
constexpr int64_t kSampleBlocks = 32, kSampleShare = 96;  // one block in so many, but not fewer
constexpr int64_t kFewSampled = 8;                        // candidates in a sample: fewer say nothing
constexpr int64_t kSpare = 2;                             // a sample may err: look for so many times as many candidates
constexpr int64_t kLevels = 2048;                         // of the estimates of rows with factors
constexpr int64_t kRoom = 4096;                           // candidates that are kept beyond four times those wanted
constexpr int kUsual = 3;                                 // hits of a block that are taken without a branch

// Rows of which a scan of all bytes costs as much more as a candidate, where whole bytes are looked up in registers and
// where not.
constexpr int64_t kWholeRows = 24, kShuffledRows = 6;

// What a mask leaves of rows: those that may be returned, and all of their blocks.
struct Extent {
    int64_t live, scanned;
};

Extent extent_of(const Rows& rows) {
    const int64_t first = rows.start / 32, stop = (rows.stop + 31) / 32;
    if (!rows.mask) return {rows.stop - rows.start, 32 * (stop - first)};
    Extent extent = {0, 0};
    for (int64_t block = first; block < stop; ++block) {
        const uint32_t bits = rows.live(block);
        extent.live += __builtin_popcount(bits), extent.scanned += bits ? 32 : 0;
    }
    return extent;
}

int64_t wanted_of(const Extent& extent, int64_t k, double margin) {
    const double root = std::sqrt(static_cast<double>(k) * static_cast<double>(extent.live));
    const double wanted = margin * root + static_cast<double>(kPerResult * k);
    return wanted < static_cast<double>(extent.live) ? static_cast<int64_t>(wanted) : extent.live;
}

// What the high nibbles say of a query's raw scores: means of 16 neighbours of its tables, and these rounded.
struct HighTables {
    std::vector<float> means;
    Bound bound;
};

HighTables high_tables(const Loops& loops, const float* tables, int64_t m) {
    std::vector<float> means(m * 16);
    for (int64_t i = 0; i < m * 16; ++i, tables += 16) {
        float sum[4] = {};  // lanes of a vector
        for (int j = 0; j < 16; ++j) sum[j % 4] += tables[j];
        means[i] = (sum[0] + sum[1] + sum[2] + sum[3]) / 16;
    }
    Bound bound = round_tables(loops, means.data(), m, 16);
    return {std::move(means), std::move(bound)};
}

// One thread's scan for a few queries: all of them on a tile of rows, then the candidates of each.
class CandidateScan {
  public:
    CandidateScan(const Request& request, const LutCodes& codes, double margin, const Rows& rows, TopK* best)
        : lut4_(request.loops->lut4), codes_(codes), factors_(request.factors), rows_(rows), best_(best),
          extent_(extent_of(rows)), wanted_(wanted_of(extent_, request.k, margin)),
          counts_(factors_.scale ? kLevels : kMaxEntry * codes.m + 1) {}

    // The queries from `first` on, at most kMaxQueries.
    void run(const std::vector<HighTables>& tables, int64_t first, int n) {
        Query* open[kMaxQueries];
        for (int i = 0; i < n; ++i) {
            open[i] = &queries_[i];
            queries_[i].number = first + i, queries_[i].tables = &tables[first + i];
        }
        const auto done = [&](const Query* query) {
            return query->floor == 0 || static_cast<int64_t>(query->found.size()) >= wanted_ * 3 / 4;
        };
        int n_open = n;
        for (int64_t spare = kSpare; n_open > 0; spare *= 8) {  // again where the sample was unlike the rows
            for (int i = 0; i < n_open; ++i) set_floor(*open[i], spare);
            scan(open, n_open);
            n_open = static_cast<int>(std::remove_if(open, open + n_open, done) - open);
        }
        for (int i = 0; i < n; ++i) {
            keep(queries_[i], wanted_);
            refine(queries_[i]);
            keep(queries_[i], wanted_ / kRefined + kRefinedPerResult * best_[first].k());
            score(queries_[i]);
        }
    }

  private:
    struct Candidate {
        int32_t row;
        uint16_t sum, level;  // of its entries; of its estimate, higher is better
    };
    struct Query {
        int64_t number;
        const HighTables* tables;
        int64_t floor = 0;            // rows of lower levels are no candidates
        float lowest = 0, scale = 1;  // with factors: level = (estimate - lowest) * scale
        std::vector<Candidate> found;
    };

    void set_floor(Query& query, int64_t spare) {
        query.floor = 0, query.found.clear();
        const int64_t first = rows_.start / 32, blocks = (rows_.stop + 31) / 32 - first;
        const int64_t n = std::min(blocks, std::max(kSampleBlocks, blocks / kSampleShare));
        std::vector<Candidate> sample;
        sample.reserve(32 * n);
        for (int64_t i = 0; i < n; ++i) {
            int64_t block = first + blocks * i / n;
            while (block + 1 < first + blocks * (i + 1) / n && !rows_.live(block)) ++block;
            LutQuery q = ask(query, 0);
            lut4_(run_of(block, 1), &q, 1);
            for (uint32_t bits = rows_.live(block); bits; bits &= bits - 1)
                sample.push_back(candidate(block, __builtin_ctz(bits), q.sums));
        }
        if (factors_.scale) set_levels(query, sample);
        const int64_t n_sampled = static_cast<int64_t>(sample.size());
        const int64_t among = spare * wanted_ * n_sampled / std::max<int64_t>(1, extent_.live);
        if (among >= kFewSampled) query.floor = level_of_best(sample, among);
    }

    static Candidate candidate(int64_t block, int row, const uint16_t* sums) {
        return {static_cast<int32_t>(32 * block + row), sums[row], sums[row]};
    }

    // Levels that tell apart what rows with factors may score, twice as far up as the best of a sample.
    void set_levels(Query& query, std::vector<Candidate>& sample) const {
        float low = std::numeric_limits<float>::infinity(), high = -low;
        for (const Candidate& c : sample) {
            const float x = estimate(query, c);
            if (std::isfinite(x)) low = std::min(low, x), high = std::max(high, x);
        }
        query.lowest = std::isfinite(low) ? low : 0;
        query.scale = high > low ? static_cast<float>(kLevels / 2) / (high - low) : 0;
        for (Candidate& c : sample) c.level = level(query, c);
    }

    // What a row scores by the sum of its entries, but for the query's bias.
    float estimate(const Query& query, const Candidate& c) const {
        float x = static_cast<float>(query.tables->bound.base + query.tables->bound.step * c.sum);
        if (factors_.scale) x *= half_to_float(factors_.scale[c.row]);
        if (factors_.shift) x += factors_.shift_weight[query.number] * half_to_float(factors_.shift[c.row]);
        return x;
    }

    uint16_t level(const Query& query, const Candidate& c) const {
        const float x = (estimate(query, c) - query.lowest) * query.scale;
        return static_cast<uint16_t>(x < kLevels - 1 ? std::max(x, 0.0f) : kLevels - 1);  // NaN: the tables will say
    }

    // The level that `n` of the rows reach, and perhaps some more.
    int64_t level_of_best(const std::vector<Candidate>& rows, int64_t n) {
        std::fill(counts_.begin(), counts_.end(), 0);
        for (const Candidate& c : rows) ++counts_[c.level];
        int64_t level = static_cast<int64_t>(counts_.size());
        while (level > 0 && n > 0) n -= counts_[--level];
        return level;
    }

    LutRun run_of(int64_t block, int64_t blocks) const {
        return {codes_.high + 32 * block * codes_.pairs,
                nullptr,
                codes_.pairs,
                blocks,
                factors_.scale ? factors_.scale + 32 * block : nullptr,
                factors_.shift ? factors_.shift + 32 * block : nullptr,
                0,
                -1,
                nullptr,
                true};
    }

    LutQuery ask(const Query& query, int slot) {
        LutQuery q = {};
        q.tables = query.tables->bound.tables.data(), q.hits = hits_[slot], q.sums = sums_[slot], q.all_sums = true;
        q.threshold = static_cast<uint32_t>(query.floor);
        q.base = static_cast<float>(query.tables->bound.base), q.step = static_cast<float>(query.tables->bound.step);
        q.shift_weight = factors_.shift ? factors_.shift_weight[query.number] : 0;
        q.floor = query.floor ? query.lowest + static_cast<float>(query.floor) / query.scale : kNone;
        return q;
    }

    void scan(Query* const* open, int n) {
        const int64_t stop = (rows_.stop + 31) / 32;
        for (int64_t block = rows_.start / 32; block < stop; ++block) {
            const int64_t first = block, most = std::min(stop, first + kTileBlocks);
            while (block < most && (live_[block - first] = rows_.live(block))) ++block;
            if (block == first) continue;
            LutQuery q[kMaxQueries];
            for (int i = 0; i < n; ++i) q[i] = ask(*open[i], i);
            lut4_(run_of(first, block - first), q, n);
            for (int i = 0; i < n; ++i) collect(first, block, *open[i], q[i]);
            --block;
        }
    }

    // A block has some hits or none, which no processor foresees: take a few whether they are there or not.
    void collect(int64_t first, int64_t stop, Query& query, const LutQuery& q) {
        Candidate* out = tile_;
        for (int64_t block = first; block < stop; ++block) {
            const uint16_t* sums = q.sums + 32 * (block - first);
            uint32_t bits = q.hits[block - first] & live_[block - first];
            for (int usual = 0; usual < kUsual; ++usual, bits &= bits - 1) {
                *out = candidate(block, __builtin_ctz(bits | uint32_t{1} << 31), sums);
                out += bits != 0;
            }
            for (; bits; bits &= bits - 1) *out++ = candidate(block, __builtin_ctz(bits), sums);
        }
        if (factors_.scale)
            for (Candidate* c = tile_; c < out; ++c) c->level = level(query, *c);
        query.found.insert(query.found.end(), tile_, out);
        if (static_cast<int64_t>(query.found.size()) > 4 * wanted_ + kRoom) narrow(query);
    }

    // Leave as many of far too many candidates as are wanted: the best estimates, equal ones in the order of rows.
    void narrow(Query& query) {
        const auto worth = [&](const Candidate& c) {
            const float x = estimate(query, c);
            return std::isnan(x) ? std::numeric_limits<float>::infinity() : x;
        };
        const auto last = query.found.begin() + std::max<int64_t>(1, wanted_) - 1;
        std::nth_element(query.found.begin(), last, query.found.end(), [&](const Candidate& a, const Candidate& b) {
            const float x = worth(a), y = worth(b);
            return x > y || (x == y && a.row < b.row);
        });
        query.floor = std::max<int64_t>(query.floor, last->level);
        query.found.erase(last + 1, query.found.end());
    }

    // Leave the best candidates, and as many as are as good as the worst of them.
    void keep(Query& query, int64_t n) {
        const int64_t floor = level_of_best(query.found, n);
        size_t kept = 0;
        for (const Candidate c : query.found) query.found[kept] = c, kept += c.level >= floor;
        query.found.resize(kept);
    }

    // Look the whole bytes of half of the codes up, of which there were only means in the sums.
    void refine(Query& query) {
        LutCodes half = codes_;
        half.m = codes_.m / 4 * 2;
        std::vector<float> tables(half.m * 256);
        const float* whole = codes_.tables + query.number * codes_.m * 256;
        for (int64_t i = 0; i < half.m * 256; ++i) tables[i] = whole[i] - query.tables->means[i / 16];
        half.tables = tables.data();
        LutRescorer rescorer(half);
        const float per_step = static_cast<float>(1 / query.tables->bound.step);
        const float most = static_cast<float>(std::min<int64_t>(kMaxEntry * codes_.m, 65535));
        in_batches(query, [&](Candidate* mine, const int64_t* rows, int64_t n) {
            float raw[kBatch];
            rescorer.raw(0, rows, n, raw);
            for (int64_t i = 0; i < n; ++i) {
                const float sum = mine[i].sum + raw[i] * per_step + 0.5f;
                mine[i].sum = static_cast<uint16_t>(sum < most ? std::max(sum, 0.0f) : most);  // NaN as well
                mine[i].level = factors_.scale ? level(query, mine[i]) : mine[i].sum;
            }
        });
    }

    void score(Query& query) {
        LutRescorer rescorer(codes_);
        in_batches(query, [&](Candidate*, const int64_t* rows, int64_t n) {
            float raw[kBatch];
            rescorer.raw(query.number, rows, n, raw);
            for (int64_t i = 0; i < n; ++i)
                best_[query.number].push(factors_.score(raw[i], rows[i], query.number), rows[i]);
        });
    }

    template <class Task>
    void in_batches(Query& query, Task task) {
        const int64_t all = static_cast<int64_t>(query.found.size());
        for (int64_t i = 0; i < all; i += kBatch) {
            int64_t rows[kBatch];
            const int64_t n = std::min(kBatch, all - i);
            for (int64_t j = 0; j < n; ++j) rows[j] = query.found[i + j].row;
            task(&query.found[i], rows, n);
        }
    }

    void (*lut4_)(const LutRun&, const LutQuery*, int);
    const LutCodes& codes_;
    const Factors& factors_;
    const Rows& rows_;
    TopK* best_;
    Extent extent_;
    int64_t wanted_;
    std::vector<int32_t> counts_;  // rows a level
    Query queries_[kMaxQueries];
    uint32_t live_[kTileBlocks];
    uint32_t hits_[kMaxQueries][kTileBlocks];
    uint16_t sums_[kMaxQueries][kTileBlocks * 32];
    Candidate tile_[kTileBlocks * 32 + 1];
};

}  // namespace

bool candidates_topk(const Request& request, const LutCodes& codes, double margin) {
    const double fewer = kManyCodes / static_cast<double>(codes.m);
    margin *= std::max(1.0, fewer * fewer);
    const Extent extent = extent_of(request.rows);
    const int64_t rows = request.loops->whole_bytes ? kWholeRows : kShuffledRows;
    if (!(margin > 0) || request.k == 0 || extent.scanned / rows < wanted_of(extent, request.k, margin)) return false;
    if (request.rows.stop > std::numeric_limits<int32_t>::max()) return false;
    std::vector<HighTables> tables;
    for (int64_t query = 0; query < request.n_queries; ++query) {
        tables.push_back(high_tables(*request.loops, codes.tables + query * codes.m * 256, codes.m));
        if (!std::isfinite(tables.back().bound.slack)) return false;  // sums that say nothing
    }
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        CandidateScan scan(request, codes, margin, rows, best);
        for (int64_t query = 0; query < request.n_queries; query += kMaxQueries)
            scan.run(tables, query, static_cast<int>(std::min<int64_t>(kMaxQueries, request.n_queries - query)));
    });
    return true;
}

}  // namespace ragq
