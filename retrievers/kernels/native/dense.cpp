#include "dense.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace ragq {

Queries::Queries(const float* queries, int64_t n, int64_t dim)
    : padded((dim + 15) / 16 * 16), floats(n * padded + 16, 0.0f) {
    for (int64_t i = 0; i < n; ++i) std::copy_n(queries + i * dim, dim, floats.data() + i * padded);
}

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

namespace {

// A query in 16-bit words for codes of signed bytes: a raw score is `unit` times the sum of products, at most `slack`
// more. Whole numbers are multiplied several times as fast as floats, which score only what may enter the top k.
class WholeQuery {
  public:
    WholeQuery(const float* query, int64_t dim) : words_(dim + 64), high_(dim + 64), low_(dim + 64) {
        constexpr double most = 128;  // of a code
        constexpr double largest_word = 127 * 256 + 127;
        double largest = 0, sum = 0;
        for (int64_t d = 0; d < dim; ++d) {
            largest = std::max<double>(largest, std::abs(query[d]));
            sum += std::abs(query[d]);
        }
        if (!(largest > 0) || !std::isfinite(sum)) {
            slack_ = std::numeric_limits<double>::infinity();
            return;
        }
        unit_ = largest / std::min(largest_word, std::floor(0x7FFFFFFF / (most * static_cast<double>(dim))));
        for (int64_t d = 0; d < dim; ++d) {
            words_[d] = static_cast<int16_t>(std::lrint(query[d] / unit_));
            high_[d] = static_cast<int8_t>((words_[d] + 128) >> 8);
            low_[d] = static_cast<int8_t>(words_[d] - 256 * high_[d]);
            sum_ += words_[d];
        }
        slack_ = most * (0.5 * unit_ * static_cast<double>(dim) + 2e-6 * sum);  // rounding, and that of sums of floats
    }

    WordQuery bytes() const { return {words_.data(), high_.data(), low_.data(), sum_}; }

    // Not with zeros alone, nor with what is not finite.
    bool bounded() const { return std::isfinite(slack_); }

    // Whether a row with this sum of products may score as much.
    bool reaches(int32_t sum, const Factors& factors, int64_t row, float threshold) const {
        return !(factors.most(unit_ * sum, slack_, row, 0) < threshold);
    }

  private:
    Aligned<int16_t> words_;
    Aligned<int8_t> high_, low_;
    int32_t sum_ = 0;
    double unit_ = 1, slack_ = 0;
};

constexpr int64_t kWaiting = 12;  // rows that are asked for ahead

// One thread's scan of all rows, a chunk at a time.
class Scan {
  public:
    Scan(const Request& request, const Rows& rows, const DenseRun& run, const Fetch& fetch,
         const std::vector<Segment>& segments, TopK* best)
        : request_(request), rows_(rows), run_(run), fetch_(fetch), segments_(segments), best_(best),
          tile_(kTileRows * run.padded), out_(kChunkRows * request.n_queries) {
        run_.tile = tile_.data(), run_.out = out_.data();
        if (run.value == Value::i8 && request.n_queries == 1) whole_.emplace(run.queries, run.dim);
        if (whole_ && !whole_->bounded()) whole_.reset();  // it would rule out nothing
    }

    void run() {
        for (int64_t first = rows_.start / kChunkRows * kChunkRows; first < rows_.stop; first += kChunkRows) {
            const int64_t stop = std::min(first + kChunkRows, rows_.stop);
            uint32_t all = ~uint32_t{0};
            for (int64_t block = 0; block < kChunkRows / 32; ++block)
                all &= live_[block] = rows_.live(first / 32 + block);
            if (all == ~uint32_t{0}) {
                scan(first, first, stop);
                fetched_ = stop, waiting_ = 0;
                continue;
            }
            fetch_live(first);
            const int64_t n = stop - first;
            for (int64_t i = next_live(0, n), end; i < n; i = next_live(end, n)) {  // runs, gaps of a few rows included
                end = i + 1;
                for (int64_t next = next_live(end, n); next < n && next - end < 4; next = next_live(end, n))
                    end = next + 1;
                scan(first, first + i, first + end);
            }
        }
    }

  private:
    bool is_live(int64_t i) const { return live_[i / 32] >> (i % 32) & 1; }

    // The first live row of the chunk from `i` on, or `n`.
    int64_t next_live(int64_t i, int64_t n) const {
        for (; i < n; i = (i / 32 + 1) * 32)
            if (const uint32_t bits = live_[i / 32] >> (i % 32)) return i + __builtin_ctz(bits);
        return n;
    }

    // Ask for rows that a filter leaves, some before they are read: the hardware cannot foresee them.
    void fetch_live(int64_t first) {
        if (!rows_.mask || !run_.codes) return;
        fetched_ = std::max(fetched_, first);
        for (const uint32_t bits : live_) waiting_ -= __builtin_popcount(bits);
        for (; fetched_ < rows_.stop && waiting_ < kWaiting; fetched_ += 32)
            for (uint32_t bits = rows_.live(fetched_ / 32); bits; bits &= bits - 1, ++waiting_) {
                const uint8_t* row = run_.codes + (fetched_ + __builtin_ctz(bits)) * run_.stride;
                for (int64_t at = 0; at < run_.stride; at += 64) prefetch(row + at);
            }
    }

    void scan(int64_t first, int64_t row, int64_t stop) { whole_ ? sift(first, row, stop) : score(first, row, stop); }

    // Score the rows that the query in whole numbers does not rule out. Without factors a row may score the more the
    // larger its sum, so that what rules out one row does so for all with smaller sums, here and in later chunks.
    void sift(int64_t first, int64_t row, int64_t stop) {
        int32_t sums[kChunkRows];
        const int32_t largest = request_.loops->dots_i8(run_.codes + row * run_.stride, run_.stride, stop - row,
                                                        run_.dim, whole_->bytes(), sums);
        if (largest <= ruled_out_) return;
        const bool alike = !request_.factors.scale && !request_.factors.shift;
        for (int64_t i = row; i < stop; ++i) {
            const int32_t sum = sums[i - row];
            if (sum <= ruled_out_) continue;
            if (!whole_->reaches(sum, request_.factors, i, best_[0].threshold())) {
                if (alike) ruled_out_ = sum;
            } else if (is_live(i - first)) {
                score(first, i, i + 1);
            }
        }
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
    const Fetch& fetch_;
    const std::vector<Segment>& segments_;
    TopK* best_;
    Aligned<float> tile_;
    std::vector<float> out_;
    std::optional<WholeQuery> whole_;
    int32_t ruled_out_ = INT32_MIN;  // less than any sum
    uint32_t live_[kChunkRows / 32];
    int64_t fetched_ = 0, waiting_ = 0;  // rows that were asked for: up to where, and those that were not read yet
};

}  // namespace

void scan_dense(const Request& request, const Rows& rows, const DenseRun& run, const Fetch& fetch,
                const std::vector<Segment>& segments, TopK* best) {
    Scan(request, rows, run, fetch, segments, best).run();
}

static void dense_part(const Request& request, const DenseCodes& codes) {
    const Queries queries(codes.queries, request.n_queries, codes.dim);
    const std::vector<Segment> none;
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        const Fetch fetch = [&](int64_t first, int64_t) { return codes.codes + first * codes.stride; };
        const DenseRun run = {codes.value, codes.codes, codes.stride, 0, codes.dim, codes.levels,
                              queries.floats.data(), queries.padded, request.n_queries, nullptr, nullptr};
        scan_dense(request, rows, run, fetch, none, best);
    });
}

void dense_topk(const Request& request, const DenseCodes& codes) {
    share_queries(request, [&](const Request& part, int64_t first) {
        DenseCodes mine = codes;
        mine.queries += first * codes.dim;
        dense_part(part, mine);
    });
}

}  // namespace ragq
