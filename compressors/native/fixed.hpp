// Lloyd's rounds in whole numbers: half the work of floats, and the same on every processor and any number of threads
// because whole numbers may be added in any order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ragq {

// Rows less their mean, column j in steps of 1 / scale[j], and the sums and sizes of clusters in the same steps.
//
// A score <x, c> - |c|^2 / 2, highest for the nearest centroid, takes 24 bits of a 32-bit sum whose low 8 hold the number
// of the centroid, so that one maximum finds both. Columns of x are multiplied by their range and those of c divided by
// it, which keeps the product and lets 8 bits a column do for c. Good for the rounds on the way, not for the last.
class FixedRows {
 public:
  FixedRows(const float* x, std::size_t n, std::size_t dim, const float* centre);

  // Whether the rows have a range that can be divided by.
  bool usable() const { return usable_; }

  static constexpr std::size_t kMostCentroids = 256;

  // Finds the nearest centroid of every row. Returns whether every centroid has rows.
  bool assign(const float* centroids, std::size_t k, int threads);

  // Whether the last call found another centroid for some row.
  bool changed() const { return index_ != before_; }

  std::size_t size(std::size_t c) const { return static_cast<std::size_t>(sizes_[c]); }
  double mean(std::size_t c, std::size_t j) const;

 private:
  std::size_t n_, dim_, pairs_;
  bool usable_;
  std::vector<float> centre_;
  std::vector<double> range_, scale_;
  std::vector<std::int16_t> rows_;  // (n, 2 * pairs)
  std::vector<std::uint8_t> index_, before_;
  std::vector<std::int64_t> sums_, sizes_;  // (k, 2 * pairs), (k)
};

}  // namespace ragq
