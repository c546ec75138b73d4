#include "lists.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace ragq {

namespace {

constexpr int64_t kTies = 8;         // rows beyond k that are kept, since places do not come in row order
constexpr double kSpread = 4;        // standard deviations of rounding errors that rule a row out
constexpr int64_t kFirstLists = 4;   // of each query, scanned before all others: they set the bar
constexpr int64_t kFewQueries = 4;   // up to which grouping by list does not pay
constexpr int64_t kTileBlocks = 2;   // that one call of a loop scans, short enough to fetch what comes next meanwhile

using Entry = TopK::Entry;

bool better(const Entry& a, const Entry& b) { return a.score > b.score || (a.score == b.score && a.row < b.row); }

void write(const Request& request, int64_t query, const std::vector<Entry>& found) {
    float* scores = request.scores + query * request.k;
    int64_t* rows = request.best + query * request.k;
    const int64_t n = std::min<int64_t>(request.k, found.size());
    for (int64_t i = 0; i < request.k; ++i) {
        scores[i] = i < n ? found[i].score : kNone;
        rows[i] = i < n ? found[i].row : -1;
    }
}

// The lists of the queries [first, stop) from the `from`-th on, each with its query, list by list.
std::vector<std::pair<int64_t, int64_t>> by_list(const Lists& lists, int64_t first, int64_t stop, int64_t from) {
    std::vector<std::pair<int64_t, int64_t>> pairs;
    for (int64_t query = first; query < stop; ++query)
        for (int64_t i = from; i < lists.nprobe; ++i) pairs.emplace_back(lists.probed[query * lists.nprobe + i], query);
    std::sort(pairs.begin(), pairs.end());
    return pairs;
}

// Replace the guaranteed slack of a query's 4-bit tables by a likely one. What rounding took off the entries of a row
// adds up to nearly a normal variable, of the mean and variance that equally frequent codes would give.
void expect_errors(const LutCodes& codes, const float* tables, Bound& bound) {
    if (!std::isfinite(bound.slack)) return;
    double mean = 0, variance = 0;
    for (int64_t j = 0; j < codes.m; ++j, tables += 16) {
        const float low = *std::min_element(tables, tables + 16), step = static_cast<float>(bound.step);
        float sum = 0, squares = 0;
        for (int64_t code = 0; code < 16; ++code) {
            const float above = tables[code] - low, error = above - step * static_cast<float>(static_cast<int>(above / step));
            sum += error, squares += error * error;
        }
        mean += sum / 16;
        variance += squares / 16 - sum / 16 * (sum / 16);
    }
    bound.base += mean;
    bound.slack = std::min(bound.slack - mean, kSpread * std::sqrt(std::max(variance, 0.0)) + 1e-6 * bound.slack);
}

// The queries [first, stop) of a scan of lists.
class ListScan {
  public:
    ListScan(const Request& request, const LutCodes& codes, const Lists& lists, int64_t first, int64_t stop)
        : request_(request), codes_(codes), lists_(lists), first_(first), stop_(stop) {
        for (int64_t query = first; query < stop; ++query) {
            const float* tables = codes.tables + query * codes.m * codes.entries();
            bounds_.push_back({round_tables(*request.loops, tables, codes.m, codes.entries())});
            if (!lists.exact && !codes.low) expect_errors(codes, tables, bounds_.back().back());
            best_.emplace_back(request.k + kTies, kNone);
        }
    }

    void run() {
        if (stop_ - first_ < kFewQueries) {
            for (int64_t query = first_; query < stop_; ++query) scan_lists(query, 0, lists_.nprobe);
        } else {
            for (int64_t query = first_; query < stop_; ++query)
                scan_lists(query, 0, std::min(kFirstLists, lists_.nprobe));
            // what is left: the codes of a list stay in cache from one query to the next
            for (const auto& [list, query] : by_list(lists_, first_, stop_, kFirstLists)) scan(query, list);
        }
        for (int64_t query = first_; query < stop_; ++query) finish(query);
    }

  private:
    void scan_lists(int64_t query, int64_t from, int64_t to) {
        const int64_t* probed = lists_.probed + query * lists_.nprobe;
        for (int64_t i = from; i < to; ++i) scan(query, probed[i]);
    }

    void scan(int64_t query, int64_t list) {
        Rows rows = request_.rows;
        rows.start = lists_.offsets[list], rows.stop = lists_.offsets[list + 1];
        LutCodes codes = codes_;
        codes.tables += query * codes.m * codes.entries();
        Factors factors = request_.factors;
        factors.bias += query;
        if (factors.shift) factors.shift_weight += query;
        LutRescorer rescorer(codes);
        scan_bounds(*request_.loops, codes, codes.low != nullptr, bounds_[query - first_], rescorer, factors, rows,
                    &best_[query - first_]);
    }

    void finish(int64_t query) {
        TopK& best = best_[query - first_];
        while (true) {
            std::vector<Entry> found = best.entries();
            for (Entry& entry : found) entry.row = lists_.rows[entry.row];
            std::sort(found.begin(), found.end(), better);
            const int64_t n = static_cast<int64_t>(found.size());
            if (request_.k == 0 || n < best.k() || found[request_.k - 1].score > found[n - 1].score)
                return write(request_, query, found);
            best = TopK(4 * best.k(), kNone);  // as many as that score the same, and the lowest of them are wanted
            scan_lists(query, 0, lists_.nprobe);
        }
    }

    const Request& request_;
    const LutCodes& codes_;
    const Lists& lists_;
    const int64_t first_, stop_;
    std::vector<std::vector<Bound>> bounds_;
    std::vector<TopK> best_;
};

// The k candidates of a query that have the best rounded scores. Twice as many are gathered before the others go.
class Pool {
  public:
    explicit Pool(int64_t k) : k_(k), most_(2 * k + 32) { entries_.reserve(most_); }
    // A candidate that scores less is none.
    float floor() const { return floor_; }
    std::vector<Entry>& entries() { return entries_; }

    void push(float score, int64_t place) {
        if (!(score >= floor_)) return;
        entries_.push_back({score, place});
        if (static_cast<int64_t>(entries_.size()) == most_) shrink();
    }

    void shrink() {
        if (static_cast<int64_t>(entries_.size()) <= k_) return;
        std::nth_element(entries_.begin(), entries_.begin() + k_ - 1, entries_.end(), better);
        entries_.resize(k_);
        floor_ = entries_.back().score;
    }

  private:
    int64_t k_, most_;
    float floor_ = kNone;
    std::vector<Entry> entries_;
};

// The candidates of the queries [first, stop).
class CandidateScan {
  public:
    CandidateScan(const Request& request, const LutCodes& codes, const Lists& lists, int64_t first, int64_t stop)
        : request_(request), codes_(codes), lists_(lists), first_(first), stop_(stop),
          loop_(codes.low ? request.loops->lut8 : request.loops->lut4),
          scratch_(codes.low ? scratch_bytes(kTileBlocks, codes.pairs) : 0) {
        for (int64_t query = first; query < stop; ++query) {
            const float* tables = codes.tables + query * codes.m * codes.entries();
            bounds_.push_back(round_tables(*request.loops, tables, codes.m, codes.entries()));
            if (!codes.low) expect_errors(codes, tables, bounds_.back());
            finite_ = finite_ && std::isfinite(bounds_.back().slack);
            pools_.emplace_back(request.k);
        }
    }

    void run() {
        if (!finite_) return ListScan(request_, codes_, lists_, first_, stop_).run();
        const bool grouped = stop_ - first_ >= kFewQueries;
        const int64_t ahead = grouped ? std::min(kFirstLists, lists_.nprobe) : lists_.nprobe;
        for (int64_t query = first_; query < stop_; ++query)
            for (int64_t i = 0; i < ahead; ++i) {
                const int64_t* list = lists_.probed + query * lists_.nprobe + i;
                if (i + 1 < lists_.nprobe) announce(list[1]);
                scan(*list, &query, 1);
            }
        if (grouped) scan_grouped(ahead);
        for (int64_t query = first_; query < stop_; ++query) finish(query);
    }

  private:
    // Lists lie anywhere: while one is scanned the next is fetched, block by block.
    void announce(int64_t list) {
        next_ = lists_.offsets[list] * codes_.pairs, end_ = lists_.offsets[list + 1] * codes_.pairs;
    }

    void fetch(int64_t blocks) {
        const int64_t end = std::min(end_, next_ + blocks * 32 * codes_.pairs);
        for (; next_ < end; next_ += 64) {
            __builtin_prefetch(codes_.high + next_, 0, 2);
            if (codes_.low) __builtin_prefetch(codes_.low + next_, 0, 2);
        }
    }

    // What is left, list by list, all queries of a list at once.
    void scan_grouped(int64_t ahead) {
        const auto pairs = by_list(lists_, first_, stop_, ahead);
        int64_t queries[kMaxQueries];
        for (size_t i = 0; i < pairs.size();) {
            const int64_t list = pairs[i].first;
            int n = 0;
            for (; n < kMaxQueries && i < pairs.size() && pairs[i].first == list; ++i) queries[n++] = pairs[i].second;
            if (i < pairs.size() && pairs[i].first != list) announce(pairs[i].first);
            scan(list, queries, n);
        }
    }

    void scan(int64_t list, const int64_t* queries, int n) {
        const int64_t stop = lists_.offsets[list + 1] / 32;
        for (int64_t block = lists_.offsets[list] / 32; block < stop;) {
            int64_t end = block;
            while (end < stop && end < block + kTileBlocks && (live_[end - block] = request_.rows.live(end))) ++end;
            if (end > block) scan_run(block, end, queries, n);
            block = end < stop && end < block + kTileBlocks ? end + 1 : end;  // beyond a block without live rows
        }
    }

    void scan_run(int64_t first, int64_t stop, const int64_t* queries, int n) {
        const Factors& factors = request_.factors;
        const int64_t at = first * 32 * codes_.pairs;
        const LutRun run = {codes_.high + at, codes_.low ? codes_.low + at : nullptr, codes_.pairs, stop - first,
                            factors.scale ? factors.scale + 32 * first : nullptr,
                            factors.shift ? factors.shift + 32 * first : nullptr, 0, -1, scratch_.data(), true};
        LutQuery q[kMaxQueries];
        for (int i = 0; i < n; ++i) {
            q[i].tables = bounds_[queries[i] - first_].tables.data();
            q[i].hits = hits_[i], q[i].sums = sums_[i];
            set_bar(q[i], queries[i]);
        }
        fetch(stop - first);
        loop_(run, q, n);
        for (int i = 0; i < n; ++i) collect(first, stop, queries[i], q[i]);
    }

    // Let the loop report rows of the floor's score or more; `push` looks again.
    void set_bar(LutQuery& q, int64_t query) {
        const Bound& bound = bounds_[query - first_];
        const double floor = pools_[query - first_].floor(), bias = request_.factors.bias[query];
        const double bar = floor - bias - 1e-6 * (std::abs(floor) + std::abs(bias));
        q.base = static_cast<float>(bound.base), q.step = static_cast<float>(bound.step), q.slack = 0;
        q.shift_weight = request_.factors.shift ? request_.factors.shift_weight[query] : 0;
        q.floor = static_cast<float>(bar);
        const double sum = std::floor((bar - bound.base) / bound.step);
        q.threshold = sum > 0 ? static_cast<uint32_t>(std::min(sum, 65535.0)) : 0;  // NaN and -inf: all rows
    }

    void collect(int64_t first, int64_t stop, int64_t query, const LutQuery& q) {
        Pool& pool = pools_[query - first_];
        for (int64_t i = 0; i < stop - first; ++i)
            for (uint32_t bits = q.hits[i] & live_[i]; bits; bits &= bits - 1) {
                const int64_t r = __builtin_ctz(bits), place = 32 * (first + i) + r;
                pool.push(request_.factors.score(q.base + q.step * q.sums[32 * i + r], place, query), place);
            }
    }

    void finish(int64_t query) {
        Pool& pool = pools_[query - first_];
        pool.shrink();
        for (Entry& entry : pool.entries()) entry.row = lists_.rows[entry.row];
        write(request_, query, pool.entries());
    }

    const Request& request_;
    const LutCodes& codes_;
    const Lists& lists_;
    const int64_t first_, stop_;
    void (*loop_)(const LutRun&, const LutQuery*, int);
    Lines scratch_;
    bool finite_ = true;
    std::vector<Bound> bounds_;  // a query
    std::vector<Pool> pools_;    // a query
    int64_t next_ = 0, end_ = 0;  // bytes of the codes to fetch
    uint32_t live_[kTileBlocks];
    uint32_t hits_[kMaxQueries][kTileBlocks];
    uint16_t sums_[kMaxQueries][kTileBlocks * 32];
};

// Scores the chosen rows of a query at a time.
class RowScan {
  public:
    RowScan(const Request& request, const DenseCodes& codes, const Chosen& chosen)
        : request_(request), codes_(codes), chosen_(chosen), padded_((codes.dim + 15) / 16 * 16), query_(padded_ + 16),
          tile_(kTileRows * padded_), gathered_(chosen.n * codes.stride + 64), scores_(chosen.n) {}

    void run(int64_t query) {
        const int64_t* given = chosen_.rows + query * chosen_.n;
        rows_.assign(given, given + chosen_.n);
        rows_.erase(std::remove_if(rows_.begin(), rows_.end(), [](int64_t row) { return row < 0; }), rows_.end());
        std::sort(rows_.begin(), rows_.end());  // of equal scores the lower row stays
        gather();
        std::copy_n(codes_.queries + query * codes_.dim, codes_.dim, query_.data());
        const int64_t n = static_cast<int64_t>(rows_.size());
        request_.loops->dense({codes_.value, gathered_.data(), codes_.stride, n, codes_.dim, codes_.levels, query_.data(),
                               padded_, 1, tile_.data(), scores_.data()});
        TopK best(request_.k, kNone);
        for (int64_t i = 0; i < n; ++i) best.push(score(i, query), rows_[i]);
        std::vector<Entry> found = best.entries();
        std::sort(found.begin(), found.end(), better);
        write(request_, query, found);
    }

  private:
    // Copy the rows side by side; all of them are asked for before the first is waited for.
    void gather() {
        at_.clear();
        size_t column = 0;
        for (const int64_t row : rows_) {
            while (row >= chosen_.starts[column + 1]) ++column;
            at_.push_back(chosen_.columns[column] + (row - chosen_.starts[column]) * codes_.stride);
        }
        for (const uint8_t* row : at_)
            for (int64_t byte = 0; byte < codes_.stride; byte += 64) prefetch(row + byte);
        for (size_t i = 0; i < at_.size(); ++i)
            std::memcpy(gathered_.data() + i * codes_.stride, at_[i], codes_.stride);
    }

    float score(int64_t i, int64_t query) const {
        const uint8_t* end = gathered_.data() + (i + 1) * codes_.stride;
        float score = scores_[i];
        uint16_t half;
        if (chosen_.factors) {
            std::memcpy(&half, end - 2 * chosen_.factors, 2);
            score = score * half_to_float(half);
        }
        if (chosen_.factors == 2) {
            std::memcpy(&half, end - 2, 2);
            score = score + request_.factors.shift_weight[query] * half_to_float(half);
        }
        return score + request_.factors.bias[query];
    }

    const Request& request_;
    const DenseCodes& codes_;
    const Chosen& chosen_;
    const int64_t padded_;
    std::vector<float> query_, tile_;
    std::vector<uint8_t> gathered_;
    std::vector<float> scores_;
    std::vector<int64_t> rows_;
    std::vector<const uint8_t*> at_;
};

}  // namespace

void lut_lists(const Request& request, const LutCodes& codes, const Lists& lists) {
    each_query_part(request.n_queries, request.threads, [&](int64_t first, int64_t stop) {
        ListScan(request, codes, lists, first, stop).run();
    });
}

void lut_candidates(const Request& request, const LutCodes& codes, const Lists& lists) {
    if (request.k == 0) return;
    each_query_part(request.n_queries, request.threads, [&](int64_t first, int64_t stop) {
        CandidateScan(request, codes, lists, first, stop).run();
    });
}

void dense_rows(const Request& request, const DenseCodes& codes, const Chosen& chosen) {
    each_query_part(request.n_queries, request.threads, [&](int64_t first, int64_t stop) {
        RowScan scan(request, codes, chosen);
        for (int64_t query = first; query < stop; ++query) scan.run(query);
    });
}

}  // namespace ragq
