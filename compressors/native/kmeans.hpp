// k-means: seeding by k-means++, Lloyd's iterations, repair of empty clusters.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ragq {

// Writes k of the n rows of `x` to `centroids`, chosen with probability in proportion to the squared distance to the
// nearest one chosen before (k-means++, Arthur and Vassilvitskii 2007).
void seed_centroids(const float* x, std::size_t n, std::size_t dim, std::size_t k, std::uint64_t seed,
                    float* centroids);

// Improves `centroids` in place by at most `iterations` rounds, overshooting the means until the last; returns the mean
// squared distance of the last assignment. An emptied cluster takes over the row that lies farthest from its own centroid.
double lloyd(const float* x, std::size_t n, std::size_t dim, std::size_t k, int iterations, int threads,
             float* centroids);

// Nearest centroid of each row and its squared distance.
void assign(const float* x, std::size_t n, std::size_t dim, const float* centroids, std::size_t k, int threads,
            std::uint32_t* index, float* distance);

}  // namespace ragq
