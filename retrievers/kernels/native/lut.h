// Scans of look-up-table codes: rounded sums by byte shuffles rule rows out, float tables score the rest.
#pragma once

#include "common.h"

namespace ragq {

// Codes of 4 bits (`low` null) or 8 bits in blocks of 32 rows, and float tables of 16 or 256 entries.
struct LutCodes {
    const uint8_t* high;
    const uint8_t* low;
    int64_t pairs;        // 32-byte groups a block
    int64_t m;            // sub-quantizers, 2 * pairs or one less
    const float* tables;  // (n_queries, m, 16 or 256)
    int64_t group = 0;    // not 0: bits, summed by Loops::plane; see LutRun
    int folds = -1;

    int64_t entries() const { return low ? 256 : 16; }
    int code(int64_t row, int64_t j) const {
        const int64_t at = (row / 32 * pairs + j / 2) * 32 + row % 32;
        const int shift = j % 2 ? 4 : 0;
        const int nibble = (high[at] >> shift) & 15;
        return low ? nibble << 4 | ((low[at] >> shift) & 15) : nibble;
    }
};

using Lines = Aligned<uint8_t>;  // no vector load crosses a cache line

// A query's rounded tables, and what the sum of their entries says of the raw score.
struct Bound : Estimate {
    Lines tables;
};

// Tables of 16 or 256 entries rounded down to 0 .. 63.
Bound round_tables(const Loops& loops, const float* tables, int64_t m, int64_t entries);

// Tables of bits for `Loops::plane`, where a bit of dimension d adds `weight[d]`; `group` as in LutRun. The bound is on
// the whole sum, not on the mean of parts of it.
Bound round_plane(const float* weight, int64_t dim, int64_t group);

// Scan all rows: rows whose bound cannot beat the k-th score so far are skipped, the others go to the rescorer.
// `bounds` has one entry a query; `eight` scans 8-bit codes.
void scan_bounds(const Loops& loops, const LutCodes& codes, bool eight, const std::vector<Bound>& bounds,
                 Rescorer& rescorer, const Factors& factors, const Rows& rows, TopK* best);

// Rows, the raw scores that queries give them and the sums of their tables' entries, (n_queries, rows) each.
struct Sample {
    std::vector<int64_t> rows;
    std::vector<float> raw, sums;
};

// Raw scores that all queries give some rows, (n_queries, n).
using ScoreRows = std::function<void(const int64_t* rows, int64_t n, float* out)>;

// A sample of `rows`; `codes` are those that the bounds' tables belong to: 4-bit codes or bits.
Sample take_sample(const Loops& loops, const LutCodes& codes, const Rows& rows, const ScoreRows& score,
                   const std::vector<Bound>& bounds);

// An estimate by measure: the sum that a row of a given raw score has is fitted by a line, and rows more than `margin`
// standard deviations below it are ruled out.
Estimate fit_estimate(const float* raw, const float* sums, int64_t n, double margin);

// What a unit of `second` is worth beside one of `first` in the sum of both that tells most of the raw scores: its
// coefficient in a least squares fit, as a share of the other's; not a number where the fit says nothing.
float second_weight(const float* raw, const float* first, const float* second, int64_t n);

// Replace the guaranteed slack of bounds on an approximation by a measured one.
void measure_bounds(const Sample& sample, double margin, std::vector<Bound>& bounds);

class LutRescorer : public Rescorer {
  public:
    explicit LutRescorer(const LutCodes& codes) : codes_(codes) {}
    size_t together() const override { return 512; }  // the tables of 8-bit codes take most of the nearest cache
    void fetch(int64_t row) override;
    void raw(int64_t query, const int64_t* rows, int64_t n, float* out) override;

  private:
    LutCodes codes_;
};

// Top-k of 8-bit codes by candidates: `margin` times the root of k times the rows, and some a row of the k, those of the
// best sums over the high nibbles. False where a scan of all bytes is as fast, or the tables are not finite.
bool candidates_topk(const Request& request, const LutCodes& codes, double margin);

// Top-k by tables; `margin` > 0: see `candidates_topk`.
void lut_topk(const Request& request, const LutCodes& codes, double margin);

}  // namespace ragq
