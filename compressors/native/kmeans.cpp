#include "kmeans.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "fixed.hpp"
#include "parallel.hpp"
#include "tiles.hpp"

namespace ragq {
namespace {

constexpr std::size_t kChunk = 512;             // rows a thread takes at once

// How centroids move: `step` times the way to the mean of their rows, and `drift` times what they moved before. Rows near
// the border of a cluster follow a moving centroid, so a mean is nearer than where the centroid comes to rest: steps beyond
// it (over-relaxation) save rounds. In few dimensions, where most rows are near a border, the heavy ball (Polyak 1964)
// saves more: stable for step < 2 + 2 drift, and these two are best where the slowest direction closes a twentieth of its
// gap in a plain round. 8 rounds of it reach what takes 25 plain ones; 11 of the other in many dimensions.
struct Move {
  double step, drift;
};
struct Course {
  Move first, middle, landing;
};
constexpr Move kPlain{1.0, 0.0};
constexpr Course kNarrow{{1.8, 0.0}, {2.6, 0.4}, {1.8, 0.0}}, kWide{{1.5, 0.0}, {1.9, 0.0}, {1.6, 0.0}};
constexpr std::size_t kFewDimensions = 24;

Move move_of(int round, int rounds, const Course& course) {
  if (round + 1 == rounds || rounds == 2) return kPlain;
  return round + 2 == rounds ? course.landing : round == 0 ? course.first : course.middle;
}

constexpr std::size_t kBlock = 256;             // rows whose distances are added up together
constexpr std::size_t kWorthThreads = 1 << 16;  // numbers to add up, below which starting a thread takes longer

// splitmix64 (Steele, Lea and Flood 2014): the same numbers on every platform, which <random>'s distributions are not.
struct SplitMix64 {
  std::uint64_t state;
  std::uint64_t next() {
    std::uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
};

// Rows grouped by cluster: rows[start[c] .. start[c + 1]) are the members of c in row order.
struct Members {
  std::vector<std::size_t> start, rows;
  Members(const std::vector<std::uint32_t>& index, std::size_t k) : start(k + 1, 0), rows(index.size()) {
    for (const auto c : index) ++start[c + 1];
    for (std::size_t c = 0; c < k; ++c) start[c + 1] += start[c];
    std::vector<std::size_t> next(start.begin(), start.end() - 1);
    for (std::size_t i = 0; i < index.size(); ++i) rows[next[index[i]]++] = i;
  }
};

// Gives each empty cluster the farthest row of a cluster that has others; stops when every row is its own centroid.
void repair(std::vector<std::uint32_t>& index, std::vector<float>& distance, std::size_t k) {
  std::vector<std::size_t> size(k, 0);
  for (const auto c : index) ++size[c];
  if (std::find(size.begin(), size.end(), 0u) == size.end()) return;
  std::vector<std::size_t> order(index.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return distance[a] > distance[b]; });
  auto row = order.begin();
  for (std::size_t c = 0; c < k; ++c) {
    if (size[c] != 0) continue;
    while (row != order.end() && (size[index[*row]] < 2 || distance[*row] <= 0)) ++row;
    if (row == order.end()) return;
    --size[index[*row]];
    index[*row] = static_cast<std::uint32_t>(c);
    size[c] = 1;
    distance[*row] = 0;
  }
}

}  // namespace

void seed_centroids(const float* x, std::size_t n, std::size_t dim, std::size_t k, std::uint64_t seed,
                    float* centroids) {
  // Columns in blocks, so that a draw looks up the sum of a block, then the rows of one.
  const std::size_t blocks = (n + kBlock - 1) / kBlock;
  std::vector<float> columns(blocks * kBlock * dim), distance(blocks * kBlock, 0.0f), sums(blocks);
  std::fill_n(distance.begin(), n, std::numeric_limits<float>::max());  // beyond `n`: never drawn
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < dim; ++j) columns[(i / kBlock * dim + j) * kBlock + i % kBlock] = x[i * dim + j];
  SplitMix64 random{seed};
  std::size_t row = std::min(n - 1, static_cast<std::size_t>(random.uniform() * static_cast<double>(n)));
  for (std::size_t c = 0; c < k; ++c) {
    std::memcpy(centroids + c * dim, x + row * dim, dim * sizeof(float));
    if (c + 1 == k) break;
    double total = 0;
    for (std::size_t b = 0; b < blocks; ++b) {
      sums[b] = tile_kernels().closer(&columns[b * kBlock * dim], kBlock, dim, x + row * dim, &distance[b * kBlock]);
      total += sums[b];
    }
    double left = random.uniform() * total;
    if (total <= 0) {  // fewer different rows than centroids: any row will do
      row = (row + 1) % n;
      continue;
    }
    std::size_t block = 0;
    while (block + 1 < blocks && left >= sums[block]) left -= sums[block++];
    row = block * kBlock;
    const std::size_t end = std::min(n, row + kBlock);
    while (row + 1 < end && (left -= distance[row]) >= 0) ++row;
    while (row > 0 && distance[row] <= 0) --row;  // where rounding leaves a rest, the last row that may be chosen
  }
}

void assign(const float* x, std::size_t n, std::size_t dim, const float* centroids, std::size_t k, int threads,
            std::uint32_t* index, float* distance) {
  const Tiles tiles(centroids, k, dim, dim, kFar);
  const auto& kernels = tile_kernels();
  parallel_for(n, kChunk, threads, [&](std::size_t begin, std::size_t end) {
    kernels.nearest(x + begin * dim, end - begin, dim, dim, tiles.data(), tiles.tiles, distance + begin, index + begin);
  });
}

// The nearest centroid of each row and half the squared distance, as `assign` has them but for rounding.
static void assign_quickly(const float* x, std::size_t n, std::size_t dim, const float* centre, const float* centroids,
                           std::size_t k, int threads, std::uint32_t* index, float* distance) {
  std::vector<float> centred(centroids, centroids + k * dim);
  for (std::size_t c = 0; c < k; ++c)
    for (std::size_t j = 0; j < dim; ++j) centred[c * dim + j] -= centre[j];
  const Tiles tiles(centred.data(), k, dim, dim, 0.0f);
  std::vector<float> half(tiles.tiles * kTile, kWorst);
  for (std::size_t c = 0; c < k; ++c) {
    half[c] = 0;
    for (std::size_t j = 0; j < dim; ++j) half[c] += centred[c * dim + j] * centred[c * dim + j] / 2;
  }
  const auto& kernels = tile_kernels();
  parallel_for(n, kChunk, threads, [&](std::size_t begin, std::size_t end) {
    std::vector<float> rows((end - begin) * dim);
    for (std::size_t i = 0; i < end - begin; ++i)
      for (std::size_t j = 0; j < dim; ++j) rows[i * dim + j] = x[(begin + i) * dim + j] - centre[j];
    kernels.nearest_score(rows.data(), end - begin, dim, tiles.data(), half.data(), tiles.tiles, distance + begin,
                          index + begin);
    for (std::size_t i = 0; i < end - begin; ++i) {
      float square = 0;
      for (std::size_t j = 0; j < dim; ++j) square += rows[i * dim + j] * rows[i * dim + j];
      distance[begin + i] = std::max(0.0f, square + 2 * distance[begin + i]);
    }
  });
}

namespace {

// Centroids on their way.
class Moving {
 public:
  Moving(float* centroids, std::size_t k, std::size_t dim)
      : now_(centroids), before_(centroids, centroids + k * dim), dim_(dim) {}

  // Moves coordinate j of centroid c; one with a single row goes there.
  void operator()(std::size_t c, std::size_t j, std::size_t size, double mean, Move move) {
    float &now = now_[c * dim_ + j], &before = before_[c * dim_ + j];
    if (size == 1) move = kPlain;
    const double next = now + move.step * (mean - now) + move.drift * (static_cast<double>(now) - before);
    before = now;
    now = static_cast<float>(next);
  }

 private:
  float* now_;
  std::vector<float> before_;
  std::size_t dim_;
};

void move_to_means(const float* x, std::size_t n, std::size_t dim, std::size_t k,
                   const std::vector<std::uint32_t>& index, Move move, int threads, Moving& centroids) {
  const Members members(index, k);
  parallel_for(k, n * dim < kWorthThreads ? k : 16, threads, [&](std::size_t begin, std::size_t end) {
    std::vector<double> sum(dim);
    for (std::size_t c = begin; c < end; ++c) {
      const std::size_t size = members.start[c + 1] - members.start[c];
      if (size == 0) continue;
      std::fill(sum.begin(), sum.end(), 0.0);
      for (std::size_t i = members.start[c]; i < members.start[c + 1]; ++i)
        for (std::size_t j = 0; j < dim; ++j) sum[j] += x[members.rows[i] * dim + j];
      for (std::size_t j = 0; j < dim; ++j) centroids(c, j, size, sum[j] / static_cast<double>(size), move);
    }
  });
}

std::vector<float> mean_row(const float* x, std::size_t n, std::size_t dim) {
  std::vector<double> sum(dim, 0.0);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < dim; ++j) sum[j] += x[i * dim + j];
  std::vector<float> mean(dim);
  for (std::size_t j = 0; j < dim; ++j) mean[j] = static_cast<float>(sum[j] / static_cast<double>(n));
  return mean;
}

}  // namespace

double lloyd(const float* x, std::size_t n, std::size_t dim, std::size_t k, int iterations, int threads,
             float* centroids) {
  const std::vector<float> centre = mean_row(x, n, dim);
  const bool narrow = dim <= kFewDimensions;
  const Course& course = narrow ? kNarrow : kWide;
  Moving moving(centroids, k, dim);
  std::optional<FixedRows> fixed;
  if (narrow && k <= FixedRows::kMostCentroids && iterations > 1) fixed.emplace(x, n, dim, centre.data());
  bool rough = fixed && fixed->usable();
  std::vector<std::uint32_t> index(n), before;
  std::vector<float> distance(n);
  Move move = course.middle;
  double inertia = 0;
  for (int round = 0; round < iterations; ++round) {
    if (rough && round + 1 < iterations && fixed->assign(centroids, k, threads)) {
      rough = fixed->changed();  // else the last rounds, in floats
      move = rough ? move_of(round, iterations, course) : kPlain;
      for (std::size_t c = 0; c < k; ++c)
        for (std::size_t j = 0; j < dim; ++j) moving(c, j, fixed->size(c), fixed->mean(c, j), move);
      continue;
    }
    assign_quickly(x, n, dim, centre.data(), centroids, k, threads, index.data(), distance.data());
    inertia = 0;
    for (const float d : distance) inertia += d;
    repair(index, distance, k);
    const bool settled = index == before;
    if (settled && move.step == 1) break;
    move = settled ? kPlain : move_of(round, iterations, course);
    before = index;
    move_to_means(x, n, dim, k, index, move, threads, moving);
  }
  return inertia / static_cast<double>(n);
}

}  // namespace ragq
