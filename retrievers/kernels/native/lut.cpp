#include "lut.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace ragq {

namespace {

constexpr int64_t kTileBlocks = 16;
constexpr int64_t kFirst = 8;          // candidates beyond k that are scored before the others
constexpr int64_t kBatch = 32;         // rows that are scored at once
constexpr int64_t kSparse = 5;         // one of so many blocks is reached sooner by reading all: gaps cost more
constexpr int64_t kProbes = 256;

// The scales of some rows when they are positive: then a row is hit by its sum alone, give or take their range.
struct Scales {
    float low = 1, high = 1;

    static std::optional<Scales> of(const uint16_t* scale, int64_t n) {
        uint16_t low = 0xFFFF, high = 0;  // positive halves are in the order of their bits
        for (int64_t i = 0; i < n; ++i) low = std::min(low, scale[i]), high = std::max(high, scale[i]);
        if (low == 0 || high >= 0x7C00) return {};
        return Scales{half_to_float(low), half_to_float(high)};
    }
};

// The threshold of `q` for a query whose k-th best score is `least`; without `scales` by the factors of each row.
void set_threshold(LutQuery& q, const Bound& bound, const Factors& factors, const std::optional<Scales>& scales,
                   int64_t query, float least) {
    const double bias = factors.bias[query], rounding = 1e-6 * (std::abs(bias) + std::abs(double{least}));
    const double floor = least - bias - rounding;
    if (scales) {
        const double raw = floor / (floor > 0 ? scales->high : scales->low);
        const double sum = (raw - bound.base - bound.slack) / bound.step;
        q.threshold = sum > 0 ? static_cast<uint32_t>(std::min(std::ceil(sum), 65536.0)) : 0;  // NaN, -inf: all rows
        return;
    }
    q.base = static_cast<float>(bound.base), q.step = static_cast<float>(bound.step);
    q.slack = static_cast<float>(bound.slack);
    q.shift_weight = factors.shift ? factors.shift_weight[query] : 0;
    q.floor = static_cast<float>(floor);
}

// Live rows of blocks that have few, put together in blocks of their own, factors and all.
class Packed {
  public:
    static constexpr int64_t most = 32 * kTileBlocks;
    int64_t rows = 0;
    int64_t names[most] = {};  // their numbers in the columns

    Packed(const LutCodes& codes, const Factors& factors)
        : codes_(codes), factors_(factors), high_(most * codes.pairs), low_(codes.low ? most * codes.pairs : 0) {}

    void add(int64_t row) {
        const int64_t from = row / 32 * 32 * codes_.pairs + row % 32, to = rows / 32 * 32 * codes_.pairs + rows % 32;
        for (int64_t j = 0; j < 32 * codes_.pairs; j += 32) high_.data()[to + j] = codes_.high[from + j];
        for (int64_t j = 0; j < 32 * codes_.pairs && codes_.low; j += 32) low_.data()[to + j] = codes_.low[from + j];
        if (factors_.scale) scale_[rows] = factors_.scale[row];
        if (factors_.shift) shift_[rows] = factors_.shift[row];
        names[rows++] = row;
    }

    // The codes, and the factors of their rows.
    LutCodes codes() const {
        LutCodes mine = codes_;
        mine.high = high_.data();
        if (mine.low) mine.low = low_.data();
        return mine;
    }
    const uint16_t* scale() const { return factors_.scale ? scale_ : nullptr; }
    const uint16_t* shift() const { return factors_.shift ? shift_ : nullptr; }

  private:
    const LutCodes& codes_;
    const Factors& factors_;
    Lines high_, low_;
    uint16_t scale_[most] = {}, shift_[most] = {};
};

// One thread's scan: its rows, tile by tile, all queries on a tile.
class Scan {
  public:
    Scan(const Loops& loops, const LutCodes& codes, bool eight, const std::vector<Bound>& bounds, Rescorer& rescorer,
         const Factors& factors, const Rows& rows, TopK* best)
        : codes_(codes), bounds_(bounds), rescorer_(rescorer), factors_(factors), rows_(rows), best_(best),
          n_queries_(static_cast<int64_t>(bounds.size())), found_(n_queries_),
          // A block is scanned as fast as so many rows are put together, which is done once for all queries.
          few_rows_(n_queries_ < kMaxQueries ? 0 : static_cast<int>(32 * n_queries_ / (n_queries_ + 100))),
          loop_(eight ? loops.lut8 : codes.group ? loops.plane : loops.lut4),
          scratch_(eight || codes.group ? scratch_bytes(kTileBlocks, codes.pairs) : 0) {}

    void run() {
        const int64_t stop = (rows_.stop + 31) / 32;
        read_all_ = rows_.mask && !few_rows_ && !sparse(rows_.start / 32, stop);
        for (int64_t block = rows_.start / 32; block < stop; block += kTileBlocks)
            scan_tile(block, std::min(stop, block + kTileBlocks));
        scan_packed();
        for (int64_t query = 0; query < n_queries_; ++query) settle(query);
    }

  private:
    struct Candidate {
        float bound;  // the most that the row may score
        uint16_t sum;
        int64_t row;
    };

    // Whether a filter leaves rows of few blocks only.
    bool sparse(int64_t first, int64_t stop) const {
        int64_t live = 0;
        const int64_t probes = std::min(kProbes, stop - first);
        for (int64_t i = 0; i < probes; ++i) live += rows_.live(first + (stop - first) * i / probes) != 0;
        return kSparse * live < probes;
    }

    void scan_tile(int64_t first, int64_t stop) {
        if (!rows_.mask && 32 * first >= rows_.start && 32 * stop <= rows_.stop) {
            std::fill_n(live_, stop - first, ~uint32_t{0});
            return scan_run(first, stop);
        }
        if (read_all_) {
            bool any = false;
            for (int64_t i = 0; i < stop - first; ++i) any |= (live_[i] = rows_.live(first + i)) != 0;
            if (any) scan_run(first, stop);
            return;
        }
        for (int64_t block = first; block < stop;) {  // runs of blocks that are worth scanning
            int64_t end = block;
            for (; end < stop; ++end) {
                live_[end - block] = rows_.live(end);
                if (__builtin_popcount(live_[end - block]) <= few_rows_) break;
            }
            if (end > block) scan_run(block, end);
            if (end < stop) pack(end, rows_.live(end));
            block = end + 1;
        }
    }

    void pack(int64_t block, uint32_t bits) {
        if (bits && !packed_) packed_.emplace(codes_, factors_);
        for (; bits; bits &= bits - 1) {
            packed_->add(32 * block + __builtin_ctz(bits));
            if (packed_->rows == Packed::most) scan_packed();
        }
    }

    void scan_packed() {
        if (!packed_ || packed_->rows == 0) return;
        const int64_t blocks = (packed_->rows + 31) / 32;
        for (int64_t i = 0; i < blocks; ++i) live_[i] = ~uint32_t{0};
        if (packed_->rows % 32) live_[blocks - 1] = (uint32_t{1} << packed_->rows % 32) - 1;
        scan_blocks(packed_->codes(), packed_->scale(), packed_->shift(), blocks, packed_->names, 0);
        packed_->rows = 0;
    }

    void scan_run(int64_t first, int64_t stop) {
        LutCodes codes = codes_;
        codes.high += first * 32 * codes.pairs;
        if (codes.low) codes.low += first * 32 * codes.pairs;
        scan_blocks(codes, factors_.scale ? factors_.scale + 32 * first : nullptr,
                    factors_.shift ? factors_.shift + 32 * first : nullptr, stop - first, nullptr, 32 * first);
    }

    // Scan blocks of rows that have `names`, or numbers from `first` on.
    void scan_blocks(const LutCodes& codes, const uint16_t* scale, const uint16_t* shift, int64_t blocks,
                     const int64_t* names, int64_t first) {
        std::optional<Scales> scales;
        if (!shift) scales = scale ? Scales::of(scale, 32 * blocks) : Scales{};
        LutRun run = {codes.high,  codes.low,   codes.pairs,     blocks, scales ? nullptr : scale, shift,
                      codes.group, codes.folds, scratch_.data(), true};
        for (int64_t query = 0; query < n_queries_; query += kMaxQueries, run.fresh = false) {
            const int n = static_cast<int>(std::min<int64_t>(kMaxQueries, n_queries_ - query));
            LutQuery q[kMaxQueries];
            for (int i = 0; i < n; ++i) {
                if (best_[query + i].threshold() == kNone) settle(query + i);  // any threshold is worth more than rest
                q[i].tables = bounds_[query + i].tables.data();
                q[i].hits = hits_[i], q[i].sums = sums_[i];
                set_threshold(q[i], bounds_[query + i], factors_, scales, query + i, best_[query + i].threshold());
            }
            loop_(run, q, n);
            for (int i = 0; i < n; ++i) {
                if (found_[query + i].size() >= rescorer_.together()) settle(query + i);
                if (!scales || q[i].threshold < 65536) collect(blocks, names, first, query + i, q[i]);
            }
        }
    }

    void collect(int64_t blocks, const int64_t* names, int64_t first, int64_t query, const LutQuery& q) {
        std::vector<Candidate>& found = found_[query];
        const Bound& bound = bounds_[query];
        const bool few = best_[query].threshold() > kNone;  // of all rows next to none are read
        for (int64_t i = 0; i < blocks; ++i)
            for (uint32_t bits = q.hits[i] & live_[i]; bits; bits &= bits - 1) {
                const int64_t at = 32 * i + __builtin_ctz(bits), row = names ? names[at] : first + at;
                const uint16_t sum = q.sums[at];
                const float most = factors_.most(bound.base + bound.step * sum, bound.slack, row, query);
                if (most < best_[query].threshold()) continue;
                found.push_back({most, sum, row});
                if (few) rescorer_.fetch(row);
            }
    }

    // Score the candidates of a query that closer estimates leave, where there are any.
    void settle(int64_t query) {
        std::vector<Candidate>& found = found_[query];
        if (!rescorer_.estimates() || best_[query].threshold() == kNone) score_ahead(query);
        drop(query);
        if (rescorer_.estimates()) estimate(query), score_ahead(query);
        score(query, found.begin(), found.end());
        found.clear();
    }

    // Score the most promising ones of many, since they rule out most of the others.
    void score_ahead(int64_t query) {
        std::vector<Candidate>& found = found_[query];
        const int64_t ahead = best_[query].k() + kFirst;
        if (static_cast<int64_t>(found.size()) <= 2 * ahead) return;
        std::nth_element(found.begin(), found.begin() + ahead, found.end(),
                         [](const Candidate& a, const Candidate& b) { return a.bound > b.bound; });
        score(query, found.begin(), found.begin() + ahead);
        found.erase(found.begin(), found.begin() + ahead);
    }

    // Leave out candidates that what was scored since has ruled out.
    void drop(int64_t query) {
        std::vector<Candidate>& found = found_[query];
        const float floor = best_[query].threshold();
        found.erase(std::remove_if(found.begin(), found.end(), [&](const Candidate& c) { return c.bound < floor; }),
                    found.end());
    }

    // Bound candidates by the rescorer's estimates.
    void estimate(int64_t query) {
        std::vector<Candidate>& found = found_[query];
        for (size_t first = 0; first < found.size(); first += kBatch) {
            int64_t rows[kBatch];
            float sums[kBatch];
            Candidate* mine = found.data() + first;
            const int64_t n = std::min<int64_t>(kBatch, found.size() - first);
            for (int64_t i = 0; i < n; ++i) rows[i] = mine[i].row, sums[i] = mine[i].sum;
            const Estimate line = rescorer_.estimate(query, rows, n, sums);
            for (int64_t i = 0; i < n; ++i)
                mine[i].bound = std::min(
                    mine[i].bound, factors_.most(line.base + line.step * sums[i], line.slack, rows[i], query));
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

    const LutCodes& codes_;
    const std::vector<Bound>& bounds_;
    Rescorer& rescorer_;
    const Factors& factors_;
    const Rows& rows_;
    TopK* best_;
    int64_t n_queries_;
    std::vector<std::vector<Candidate>> found_;  // a query
    int few_rows_;
    bool read_all_ = false;
    std::optional<Packed> packed_;
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
