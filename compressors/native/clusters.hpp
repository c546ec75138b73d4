// Clusters of the few vectors of one document, and documents as sets of clusters of all vectors.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ragq {

// Both write to `labels` the cluster of each of the n rows of `x`, numbered 0 .. in the order of their first rows; there
// are min(k, n) of them, fewer only where spherical k-means ends with clusters that nothing is nearest to.

// Ward's hierarchy, cut where k clusters are left: merges that raise the squared error least.
void ward(const float* x, std::size_t n, std::size_t dim, std::size_t k, std::uint32_t* labels);

// k-means of directions: rows and centroids have unit length.
void spherical_kmeans(const float* x, std::size_t n, std::size_t dim, std::size_t k, int iterations,
                      std::uint32_t* labels);

// For n sets of `width` bytes, one bit a cluster, and query tokens that each probe `nprobe` clusters, the best first:
// scores[i] = sum over tokens of the value of the first probed cluster that the set holds, else of the token's floor.
void set_scores(const std::uint8_t* sets, std::size_t n, std::size_t width, const std::int64_t* probed,
                const float* values, const float* floors, std::size_t tokens, std::size_t nprobe, float* scores);

}  // namespace ragq
