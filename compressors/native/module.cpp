// The nanobind module ragq.compressors._cpu: argument checks only; the loops are in their own files.
#include <nanobind/stl/pair.h>

#include <algorithm>

#include "arrays.hpp"
#include "beam.hpp"
#include "chain.hpp"
#include "clusters.hpp"
#include "encode_pq.hpp"
#include "kmeans.hpp"
#include "neighbours.hpp"
#include "parallel.hpp"
#include "parallel.hpp"
#include "tiles.hpp"

static Array<float, 2> seed_centroids(Matrix<float> x, std::size_t k, std::uint64_t seed) {
  require(k > 0 && x.shape(0) > 0, "seed_centroids needs rows and at least one centroid");
  auto centroids = make_array<float, 2>({k, x.shape(1)});
  nb::gil_scoped_release release;
  ragq::seed_centroids(x.data(), x.shape(0), x.shape(1), k, seed, centroids.data());
  return centroids;
}

static std::pair<Array<float, 2>, double> lloyd(Matrix<float> x, Matrix<float> centroids, int iterations, int threads) {
  require(x.shape(1) == centroids.shape(1), "x and centroids must have the same dimension");
  require(x.shape(0) > 0 && centroids.shape(0) > 0, "lloyd needs rows and at least one centroid");
  auto improved = make_array<float, 2>({centroids.shape(0), centroids.shape(1)});
  std::copy_n(centroids.data(), centroids.size(), improved.data());
  double inertia;
  {
    nb::gil_scoped_release release;
    inertia = ragq::lloyd(x.data(), x.shape(0), x.shape(1), centroids.shape(0), iterations, threads, improved.data());
  }
  return {improved, inertia};
}

static std::pair<Array<std::uint32_t, 1>, Array<float, 1>> assign(Matrix<float> x, Matrix<float> centroids,
                                                                  int threads) {
  require(x.shape(1) == centroids.shape(1), "x and centroids must have the same dimension");
  require(centroids.shape(0) > 0, "assign needs at least one centroid");
  auto index = make_array<std::uint32_t, 1>({x.shape(0)});
  auto distance = make_array<float, 1>({x.shape(0)});
  {
    nb::gil_scoped_release release;
    ragq::assign(x.data(), x.shape(0), x.shape(1), centroids.data(), centroids.shape(0), threads, index.data(),
                 distance.data());
  }
  return {index, distance};
}

static Array<std::int64_t, 2> exchange(Cube<float> words, Matrix<std::int64_t> order, int sweeps) {
  const std::size_t m = words.shape(0), width = words.shape(2);
  require(words.shape(1) == ragq::kNibbleWords && order.shape(1) == ragq::kNibbleWords && order.shape(0) == m,
          "words must be (m, 256, width) and order (m, 256)");
  auto better = make_array<std::int64_t, 2>({m, ragq::kNibbleWords});
  for (std::size_t i = 0; i < order.size(); ++i) {
    require(order.data()[i] >= 0 && order.data()[i] < 256, "order must name rows of words");
    better.data()[i] = order.data()[i];
  }
  nb::gil_scoped_release release;
  for (std::size_t s = 0; s < m; ++s)
    ragq::exchange(words.data() + s * 256 * width, width, sweeps, better.data() + s * 256);
  return better;
}

static Array<std::uint8_t, 2> encode_pq(Matrix<float> x, Matrix<float> codebook, Vector<std::int64_t> offsets,
                                        int threads) {
  require(codebook.shape(0) >= 1 && codebook.shape(0) <= 256, "a codebook has 1 to 256 codewords");
  require(codebook.shape(1) == x.shape(1), "x and codebook must have the same dimension");
  const std::size_t m = offsets.shape(0) - 1;
  require(offsets.shape(0) >= 2 && offsets(0) == 0 && offsets(m) == static_cast<std::int64_t>(x.shape(1)),
          "offsets must run from 0 to the dimension");
  for (std::size_t s = 0; s < m; ++s) require(offsets(s) < offsets(s + 1), "offsets must increase");
  auto codes = make_array<std::uint8_t, 2>({x.shape(0), m});
  nb::gil_scoped_release release;
  ragq::encode_pq(x.data(), x.shape(0), x.shape(1), codebook.data(), codebook.shape(0), offsets.data(), m, threads,
                  codes.data());
  return codes;
}

static Array<std::uint8_t, 2> encode_chain(Matrix<float> x, Cube<float> codebooks, Vector<std::int64_t> offsets,
                                           int threads) {
  const std::size_t dim = x.shape(1), k = codebooks.shape(1), groups = offsets.shape(0) - 1;
  require(codebooks.shape(0) == 2 && codebooks.shape(2) == dim, "codebooks must be (2, k, dimension of x)");
  require(k == 16 || k == 256, "a codebook has 16 or 256 codewords");
  require(offsets.shape(0) >= 2 && offsets(0) == 0 && offsets(groups) == static_cast<std::int64_t>(dim),
          "offsets must run from 0 to the dimension");
  for (std::size_t g = 0; g < groups; ++g) require(offsets(g) < offsets(g + 1), "offsets must increase");
  auto codes = make_array<std::uint8_t, 2>({x.shape(0), groups + 1});
  nb::gil_scoped_release release;
  ragq::encode_chain(x.data(), x.shape(0), dim, codebooks.data(), k, offsets.data(), groups, threads, codes.data());
  return codes;
}

static Array<float, 2> project(Matrix<float> x, Matrix<float> matrix, int threads) {
  require(x.shape(1) == matrix.shape(1), "x and matrix must have the same dimension");
  auto out = make_array<float, 2>({x.shape(0), matrix.shape(0)});
  nb::gil_scoped_release release;
  ragq::project(x.data(), x.shape(0), x.shape(1), matrix.data(), matrix.shape(0), threads, out.data());
  return out;
}

static Array<std::uint8_t, 3> extend_beams(Matrix<float> x, Cube<float> codebooks, Cube<std::uint8_t> beams,
                                           std::size_t wider, int threads) {
  const std::size_t n = x.shape(0), dim = x.shape(1), m = beams.shape(2), width = beams.shape(1), k = codebooks.shape(1);
  require(codebooks.shape(2) == dim && codebooks.shape(0) == m + 1, "codebooks must be (stages so far + 1, k, dim)");
  require(beams.shape(0) == n && width >= 1, "beams must be (rows of x, width, stages so far)");
  require(k >= 1 && k <= 256 && wider >= 1 && wider <= width * k, "too many beams, or too large a codebook");
  for (std::size_t i = 0; i < beams.size(); ++i) require(beams.data()[i] < k, "a code is outside of its codebook");
  auto extended = make_array<std::uint8_t, 3>({n, wider, m + 1});
  nb::gil_scoped_release release;
  ragq::extend_beams(x.data(), n, dim, codebooks.data(), m, k, beams.data(), width, wider, threads, extended.data());
  return extended;
}

// The cluster of each row of each document: rows offsets[d] .. offsets[d + 1] make counts[d] clusters.
static Array<std::uint32_t, 1> cluster_runs(Matrix<float> x, Vector<std::int64_t> offsets, Vector<std::int64_t> counts,
                                            int iterations, int threads) {
  const std::size_t n = counts.shape(0), dim = x.shape(1);
  require(offsets.shape(0) == n + 1 && offsets(0) == 0 && offsets(n) == static_cast<std::int64_t>(x.shape(0)),
          "offsets must run from 0 to the rows of x, one more than counts");
  for (std::size_t d = 0; d < n; ++d)
    require(offsets(d) <= offsets(d + 1) && counts(d) >= 1, "offsets must not fall, and every count be at least 1");
  auto labels = make_array<std::uint32_t, 1>({x.shape(0)});
  nb::gil_scoped_release release;
  ragq::parallel_for(n, 1, threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t d = begin; d < end; ++d) {
      const std::size_t first = static_cast<std::size_t>(offsets(d)), rows = static_cast<std::size_t>(offsets(d + 1)) - first;
      const std::size_t k = static_cast<std::size_t>(counts(d));
      if (rows == 0) continue;
      if (iterations > 0)
        ragq::spherical_kmeans(x.data() + first * dim, rows, dim, k, iterations, labels.data() + first);
      else
        ragq::ward(x.data() + first * dim, rows, dim, k, labels.data() + first);
    }
  });
  return labels;
}

static Array<std::uint8_t, 2> nearest_pair(Matrix<float> y, Matrix<float> table, Vector<float> half,
                                           Vector<std::int32_t> odd, int threads) {
  require(y.shape(1) == 8, "y must have 8 columns");
  require(table.shape(0) == 8 && table.shape(1) == 256 && half.shape(0) == 256 && odd.shape(0) == 256,
          "the codebook has 256 patterns of 8 magnitudes");
  auto codes = make_array<std::uint8_t, 2>({y.shape(0), 2});
  nb::gil_scoped_release release;
  ragq::parallel_for(y.shape(0), 1024, threads, [&](std::size_t begin, std::size_t end) {
    ragq::tile_kernels().nearest_pair(y.data() + 8 * begin, end - begin, table.data(), half.data(), odd.data(),
                                      codes.data() + 2 * begin);
  });
  return codes;
}

static Array<float, 2> set_scores(Matrix<std::uint8_t> sets, Matrix<std::int64_t> probed, Matrix<float> values,
                                  Vector<float> floors, Vector<std::int64_t> offsets) {
  const std::size_t n = sets.shape(0), width = sets.shape(1), nprobe = probed.shape(1), total = probed.shape(0);
  const std::size_t queries = offsets.shape(0) - 1;
  require(values.shape(0) == total && values.shape(1) == nprobe && floors.shape(0) == total,
          "probed, values and floors must belong to the same tokens");
  require(offsets(0) == 0 && offsets(queries) == static_cast<std::int64_t>(total), "offsets must run from 0 to the tokens");
  for (std::size_t a = 0; a < queries; ++a) require(offsets(a) <= offsets(a + 1), "offsets must not fall");
  for (std::size_t i = 0; i < probed.size(); ++i)
    require(probed.data()[i] >= 0 && probed.data()[i] < static_cast<std::int64_t>(8 * width), "a cluster is outside of the sets");
  auto scores = make_array<float, 2>({queries, n});
  nb::gil_scoped_release release;
  for (std::size_t a = 0; a < queries; ++a) {
    const std::size_t first = static_cast<std::size_t>(offsets(a)), tokens = static_cast<std::size_t>(offsets(a + 1)) - first;
    ragq::set_scores(sets.data(), n, width, probed.data() + first * nprobe, values.data() + first * nprobe,
                     floors.data() + first, tokens, nprobe, scores.data() + a * n);
  }
  return scores;
}

void register_scalar(nb::module_& m);

NB_MODULE(_cpu, m) {
  m.doc() = "C++ loops of the codecs";
  m.def("kernel", [] { return ragq::tile_kernels().name; }, "Name the instruction set that runs.");
  m.def("seed_centroids", &seed_centroids, "x"_a, "k"_a, "seed"_a);
  m.def("lloyd", &lloyd, "x"_a, "centroids"_a, "iterations"_a, "threads"_a);
  m.def("assign", &assign, "x"_a, "centroids"_a, "threads"_a);
  m.def("exchange", &exchange, "words"_a, "order"_a, "sweeps"_a);
  m.def("encode_pq", &encode_pq, "x"_a, "codebook"_a, "offsets"_a, "threads"_a);
  m.def("encode_chain", &encode_chain, "x"_a, "codebooks"_a, "offsets"_a, "threads"_a);
  m.def("project", &project, "x"_a, "matrix"_a, "threads"_a);
  m.def("nearest_pair", &nearest_pair, "y"_a, "table"_a, "half"_a, "odd"_a, "threads"_a);
  m.def("extend_beams", &extend_beams, "x"_a, "codebooks"_a, "beams"_a, "wider"_a, "threads"_a);
  m.def("cluster_runs", &cluster_runs, "x"_a, "offsets"_a, "counts"_a, "iterations"_a, "threads"_a,
        "Spherical k-means, or Ward's hierarchy with no iterations.");
  m.def("set_scores", &set_scores, "sets"_a, "probed"_a, "values"_a, "floors"_a, "offsets"_a);
  register_scalar(m);
}
