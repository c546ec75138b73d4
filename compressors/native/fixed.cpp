#include "fixed.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "parallel.hpp"
#include "tiles.hpp"

namespace ragq {
namespace {

constexpr std::size_t kChunk = 4096;  // rows whose sums fit in 32 bits, at most 2^16
constexpr double kMost = 32000;       // sum over the columns of |x|: times 127 for c and half as much again, below 2^23
constexpr double kWord = 127;         // most of |c|

// The nearest whole number, ties to even, of anything below 2^51: unlike std::nearbyint a vector at a time.
inline double rounded(double value) { return value + 0x1.8p52 - 0x1.8p52; }

// Adds every row to the sum of its cluster. A width known here stays in registers.
template <std::size_t Width>
void add_rows(const std::int16_t* rows, std::size_t n, std::size_t width, const std::uint8_t* index, std::int32_t* sums,
              std::int32_t* sizes) {
  if (Width != 0) width = Width;
  for (std::size_t i = 0; i < n; ++i) {
    std::int32_t* sum = sums + index[i] * width;
    for (std::size_t j = 0; j < width; ++j) sum[j] += rows[i * width + j];
    ++sizes[index[i]];
  }
}

}  // namespace

FixedRows::FixedRows(const float* x, std::size_t n, std::size_t dim, const float* centre)
    : n_(n), dim_(dim), pairs_((dim + 1) / 2), centre_(centre, centre + dim), range_(dim, 0.0), scale_(dim),
      rows_(n * 2 * pairs_, 0), index_(n) {
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < dim; ++j)
      range_[j] = std::max(range_[j], std::abs(static_cast<double>(x[i * dim + j]) - centre[j]));
  double squares = 0;
  for (const double range : range_) squares += range * range;
  usable_ = squares > 0;
  if (!usable_) return;
  for (std::size_t j = 0; j < dim; ++j) scale_[j] = range_[j] * (kMost / squares);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < dim; ++j)
      rows_[2 * i * pairs_ + j] =
          static_cast<std::int16_t>(rounded((static_cast<double>(x[i * dim + j]) - centre[j]) * scale_[j]));
}

bool FixedRows::assign(const float* centroids, std::size_t k, int threads) {
  const std::size_t tiles = (k + kTile - 1) / kTile, width = 2 * pairs_;
  std::vector<std::int16_t> words(tiles * pairs_ * kTile * 2, 0);
  std::vector<std::int32_t> start(tiles * kTile, std::numeric_limits<std::int32_t>::min());
  for (std::size_t c = 0; c < k; ++c) {
    double half = 0;  // |c|^2 / 2 in the steps of a score
    for (std::size_t j = 0; j < dim_; ++j) {
      if (range_[j] == 0) continue;
      const double exact = (static_cast<double>(centroids[c * dim_ + j]) - centre_[j]) * (kWord / range_[j]);
      const double word = rounded(std::min(kWord, std::max(-kWord, exact)));
      half += word * word * range_[j] * scale_[j] / (2 * kWord);
      words[((c / kTile * pairs_ + j / 2) * kTile + c % kTile) * 2 + j % 2] = static_cast<std::int16_t>(word * 256);
    }
    start[c] = static_cast<std::int32_t>(-256 * rounded(half)) + static_cast<std::int32_t>(255 - c);
  }
  before_ = index_;
  sums_.assign(k * width, 0);
  sizes_.assign(k, 0);
  std::mutex mutex;
  parallel_for(n_, kChunk, threads, [&](std::size_t begin, std::size_t end) {
    tile_kernels().nearest_fixed(&rows_[begin * width], end - begin, pairs_, words.data(), start.data(), tiles,
                                 &index_[begin]);
    std::vector<std::int32_t> sums(k * width, 0), sizes(k, 0);
    const auto add = width == 8 ? add_rows<8> : width == 16 ? add_rows<16> : add_rows<0>;
    add(&rows_[begin * width], end - begin, width, &index_[begin], sums.data(), sizes.data());
    const std::lock_guard<std::mutex> lock(mutex);
    for (std::size_t i = 0; i < sums.size(); ++i) sums_[i] += sums[i];
    for (std::size_t c = 0; c < k; ++c) sizes_[c] += sizes[c];
  });
  return std::find(sizes_.begin(), sizes_.end(), 0) == sizes_.end();
}

double FixedRows::mean(std::size_t c, std::size_t j) const {
  if (range_[j] == 0) return centre_[j];
  return centre_[j] + static_cast<double>(sums_[c * 2 * pairs_ + j]) / (static_cast<double>(sizes_[c]) * scale_[j]);
}

}  // namespace ragq
