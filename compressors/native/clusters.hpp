// Clusters of the few vectors of one document.
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

}  // namespace ragq
