#include "clusters.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kmeans.hpp"
#include "tiles.hpp"

namespace ragq {
namespace {

constexpr float kFarthest = std::numeric_limits<float>::max();

// Numbers clusters in the order of their first rows.
void renumber(std::size_t n, std::uint32_t* labels) {
  const std::uint32_t unset = std::numeric_limits<std::uint32_t>::max();
  std::vector<std::uint32_t> number(n, unset);
  std::uint32_t next = 0;
  for (std::size_t i = 0; i < n; ++i) {
    auto& known = number[labels[i]];
    if (known == unset) known = next++;
    labels[i] = known;
  }
}

struct Merge {
  std::uint32_t a, b;  // a row of each side
  float cost;
};

// Clusters that are left, each with its centroid and one of its rows for a name.
class Clusters {
 public:
  Clusters(const float* x, std::size_t n, std::size_t dim)
      : dim_(dim), alive_(n), size_(n, 1), name_(n), centroids_(x, x + n * dim) {
    for (std::size_t i = 0; i < n; ++i) name_[i] = static_cast<std::uint32_t>(i);
    pack();
  }

  std::size_t alive() const { return alive_; }
  std::size_t count() const { return size_.size(); }  // with those that were merged away, of size 0
  bool live(std::size_t c) const { return size_[c] != 0; }

  // The cluster whose merge with `c` costs least; of equals `before`, else the first. A merge raises the squared error
  // by |A| |B| / (|A| + |B|) times the squared distance of the centroids.
  std::size_t nearest(std::size_t c, std::size_t before, float* cost) {
    std::fill(distance_.begin(), distance_.end(), kFarthest);
    tile_kernels().closer(columns_.data(), padded_, dim_, &centroids_[c * dim_], distance_.data());
    std::size_t best = c;
    *cost = std::numeric_limits<float>::infinity();
    const float own = static_cast<float>(size_[c]);
    for (std::size_t b = 0; b < count(); ++b) {
      if (b == c || !live(b)) continue;
      const float other = static_cast<float>(size_[b]);
      const float here = own * other / (own + other) * distance_[b];
      if (here < *cost || (here == *cost && b == before)) best = b, *cost = here;
    }
    return best;
  }

  Merge merge(std::size_t a, std::size_t b, float cost) {
    const Merge merged = {name_[a], name_[b], cost};
    const float own = static_cast<float>(size_[a]), other = static_cast<float>(size_[b]);
    for (std::size_t j = 0; j < dim_; ++j) {
      float& mean = centroids_[a * dim_ + j];
      mean = (own * mean + other * centroids_[b * dim_ + j]) / (own + other);
      columns_[j * padded_ + a] = mean;
    }
    size_[a] += size_[b];
    size_[b] = 0;
    --alive_;
    return merged;
  }

  // Drops the clusters that were merged away; their numbers change.
  void pack() {
    std::size_t to = 0;
    for (std::size_t c = 0; c < count(); ++c) {
      if (!live(c)) continue;
      size_[to] = size_[c];
      name_[to] = name_[c];
      std::copy_n(&centroids_[c * dim_], dim_, &centroids_[to * dim_]);
      ++to;
    }
    size_.resize(to);
    name_.resize(to);
    padded_ = (to + kTile - 1) / kTile * kTile;
    columns_.assign(dim_ * padded_, 0.0f);
    distance_.resize(padded_);
    for (std::size_t c = 0; c < to; ++c)
      for (std::size_t j = 0; j < dim_; ++j) columns_[j * padded_ + c] = centroids_[c * dim_ + j];
  }

 private:
  std::size_t dim_, alive_, padded_ = 0;
  std::vector<std::size_t> size_;
  std::vector<std::uint32_t> name_;
  std::vector<float> centroids_, columns_, distance_;  // columns_: the centroids, dimension by dimension
};

// The whole hierarchy by chains of nearest neighbours (Murtagh 1983): where two clusters are each other's nearest, they
// are merged, which Ward's cost allows in any order.
std::vector<Merge> hierarchy(const float* x, std::size_t n, std::size_t dim) {
  Clusters clusters(x, n, dim);
  std::vector<Merge> merges;
  std::vector<std::size_t> chain;
  while (clusters.alive() > 1) {
    if (chain.empty()) {
      if (2 * clusters.alive() <= clusters.count()) clusters.pack();
      std::size_t start = 0;
      while (!clusters.live(start)) ++start;
      chain.push_back(start);
    }
    const std::size_t top = chain.back(), before = chain.size() > 1 ? chain[chain.size() - 2] : top;
    float cost;
    const std::size_t next = clusters.nearest(top, before, &cost);
    if (next == before && chain.size() > 1) {
      merges.push_back(clusters.merge(std::min(top, next), std::max(top, next), cost));
      chain.resize(chain.size() - 2);
    } else {
      chain.push_back(next);
    }
  }
  return merges;
}

}  // namespace

void ward(const float* x, std::size_t n, std::size_t dim, std::size_t k, std::uint32_t* labels) {
  for (std::size_t i = 0; i < n; ++i) labels[i] = static_cast<std::uint32_t>(i);
  if (k >= n) return;
  auto merges = hierarchy(x, n, dim);
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) { return a.cost < b.cost; });
  const auto root = [&](std::uint32_t i) {
    while (labels[i] != i) i = labels[i] = labels[labels[i]];
    return i;
  };
  for (std::size_t m = 0; m + k < n; ++m) labels[root(merges[m].b)] = root(merges[m].a);
  for (std::size_t i = 0; i < n; ++i) labels[i] = root(static_cast<std::uint32_t>(i));
  renumber(n, labels);
}

void spherical_kmeans(const float* x, std::size_t n, std::size_t dim, std::size_t k, int iterations,
                      std::uint32_t* labels) {
  if (k >= n) return ward(x, n, dim, k, labels);
  const auto to_unit = [dim](float* row) {
    double square = 0;
    for (std::size_t j = 0; j < dim; ++j) square += static_cast<double>(row[j]) * row[j];
    if (square <= 0) return;
    const double scale = 1 / std::sqrt(square);
    for (std::size_t j = 0; j < dim; ++j) row[j] = static_cast<float>(row[j] * scale);
  };
  std::vector<float> unit(x, x + n * dim), centroids(k * dim), distance(n);
  for (std::size_t i = 0; i < n; ++i) to_unit(&unit[i * dim]);
  seed_centroids(unit.data(), n, dim, k, 0, centroids.data());
  for (int round = 0; round < iterations; ++round) {
    lloyd(unit.data(), n, dim, k, 1, 1, centroids.data());
    for (std::size_t c = 0; c < k; ++c) to_unit(&centroids[c * dim]);
  }
  assign(unit.data(), n, dim, centroids.data(), k, 1, labels, distance.data());
  renumber(n, labels);
}

void set_scores(const std::uint8_t* sets, std::size_t n, std::size_t width, const std::int64_t* probed,
                const float* values, const float* floors, std::size_t tokens, std::size_t nprobe, float* scores) {
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint8_t* set = sets + i * width;
    float sum = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
      const std::int64_t* own = probed + t * nprobe;
      std::size_t p = 0;
      while (p < nprobe && !(set[own[p] >> 3] >> (own[p] & 7) & 1)) ++p;
      sum += p < nprobe ? values[t * nprobe + p] : floors[t];
    }
    scores[i] = sum;
  }
}

}  // namespace ragq
