// The scalar codes' part of ragq.compressors._cpu: argument checks only.
#include <nanobind/stl/pair.h>

#include "arrays.hpp"
#include "scalar.hpp"

static Array<float, 2> hadamard(Matrix<float> x, Matrix<std::int32_t> order, Matrix<float> signs, bool inverse,
                                int threads) {
  const std::size_t dim = x.shape(1), rounds = order.shape(0);
  require(order.shape(1) == dim && signs.shape(1) == dim && signs.shape(0) == rounds,
          "order and signs must have a row a round and a column a dimension");
  for (std::size_t i = 0; i < order.size(); ++i)
    require(order.data()[i] >= 0 && static_cast<std::size_t>(order.data()[i]) < dim, "order must hold dimensions");
  auto out = make_array<float, 2>({x.shape(0), dim});
  nb::gil_scoped_release release;
  ragq::hadamard({dim, rounds, order.data(), signs.data(), inverse}, x.data(), x.shape(0), threads, out.data());
  return out;
}

static std::pair<Array<std::uint8_t, 2>, Array<float, 1>> encode_planes(
    Matrix<float> z, Vector<std::uint8_t> bits, Vector<float> step, Vector<float> levels, Vector<float> scales,
    Vector<float> along, Vector<float> noise, int rounds, bool uniform, bool coded,
    bool normalise, int threads) {
  const std::size_t dim = z.shape(1);
  require(dim > 0 && bits.shape(0) == dim && step.shape(0) == dim && along.shape(0) == dim && noise.shape(0) == dim,
          "bits, step, along and noise must have one entry a dimension");
  require(scales.shape(0) > 0, "scales must not be empty");
  const int most = bits(0);
  std::size_t width = 0;
  for (std::size_t j = 0; j < dim; ++j) require(j == 0 || bits(j) <= bits(j - 1), "bits must not increase");
  require(most <= ragq::kMaxBits, "a coordinate has at most 16 bits");
  require(uniform || levels.shape(0) + 2 >= std::size_t{2} << most, "levels must hold a table for each number of bits");
  for (int p = coded; p < most; ++p) {
    std::size_t covered = 0;
    while (covered < dim && bits(covered) > p) ++covered;
    width += (covered + 7) / 8;
  }
  if (coded) {
    std::size_t live = 0;
    while (live < dim && bits(live) > 0) ++live;
    width += (live + 15) / 16;
  }
  auto codes = make_array<std::uint8_t, 2>({z.shape(0), width});
  auto factor = make_array<float, 1>({z.shape(0)});
  const ragq::PlanesSpec spec{dim,           bits.data(),     step.data(),  levels.data(), uniform, coded, normalise,
                              scales.data(), scales.shape(0), along.data(), noise.data(),  rounds,  width, nullptr, nullptr};
  {
    nb::gil_scoped_release release;
    ragq::encode_planes(spec, z.data(), z.shape(0), threads, codes.data(), factor.data());
  }
  return {codes, factor};
}

void register_scalar(nb::module_& m) {
  m.def("hadamard", &hadamard, "x"_a, "order"_a, "signs"_a, "inverse"_a, "threads"_a);
  m.def("encode_planes", &encode_planes, "z"_a, "bits"_a, "step"_a, "levels"_a, "scales"_a, "along"_a, "noise"_a,
        "rounds"_a, "uniform"_a, "coded"_a, "normalise"_a, "threads"_a);
}
