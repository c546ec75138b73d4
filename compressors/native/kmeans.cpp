#include "kmeans.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.hpp"
#include "tiles.hpp"

namespace ragq {
namespace {

constexpr std::size_t kChunk = 512;             // rows a thread takes at once
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
  std::vector<float> columns(n * dim), distance(n, std::numeric_limits<float>::max());
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < dim; ++j) columns[j * n + i] = x[i * dim + j];
  SplitMix64 random{seed};
  std::size_t row = std::min(n - 1, static_cast<std::size_t>(random.uniform() * static_cast<double>(n)));
  for (std::size_t c = 0; c < k; ++c) {
    std::memcpy(centroids + c * dim, x + row * dim, dim * sizeof(float));
    if (c + 1 == k) break;
    tile_kernels().closer(columns.data(), n, dim, x + row * dim, distance.data());
    double total = 0;
    for (std::size_t i = 0; i < n; ++i) total += distance[i];
    double left = random.uniform() * total;
    if (total <= 0) {  // fewer different rows than centroids: any row will do
      row = (row + 1) % n;
      continue;
    }
    row = n - 1;
    while (row > 0 && distance[row] <= 0) --row;  // where rounding leaves a rest, the last row that may be chosen
    for (std::size_t i = 0; i < n; ++i) {
      left -= distance[i];
      if (left < 0) {
        row = i;
        break;
      }
    }
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

double lloyd(const float* x, std::size_t n, std::size_t dim, std::size_t k, int iterations, int threads,
             float* centroids) {
  std::vector<std::uint32_t> index(n), before;
  std::vector<float> distance(n);
  double inertia = 0;
  for (int round = 0; round < iterations; ++round) {
    assign(x, n, dim, centroids, k, threads, index.data(), distance.data());
    inertia = 0;
    for (const float d : distance) inertia += d;
    repair(index, distance, k);
    if (index == before) break;
    before = index;
    const Members members(index, k);
    parallel_for(k, n * dim < kWorthThreads ? k : 16, threads, [&](std::size_t begin, std::size_t end) {
      std::vector<double> sum(dim);
      for (std::size_t c = begin; c < end; ++c) {
        const std::size_t size = members.start[c + 1] - members.start[c];
        if (size == 0) continue;
        std::fill(sum.begin(), sum.end(), 0.0);
        for (std::size_t i = members.start[c]; i < members.start[c + 1]; ++i)
          for (std::size_t j = 0; j < dim; ++j) sum[j] += x[members.rows[i] * dim + j];
        for (std::size_t j = 0; j < dim; ++j)
          centroids[c * dim + j] = static_cast<float>(sum[j] / static_cast<double>(size));
      }
    });
  }
  return inertia / static_cast<double>(n);
}

}  // namespace ragq
