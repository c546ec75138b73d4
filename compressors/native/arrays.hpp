// Arrays in and out of the module, and the check of arguments that its functions share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <stdexcept>

namespace nb = nanobind;
using namespace nb::literals;

template <class T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Cube = nb::ndarray<const T, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T, int Dims>
using Array = nb::ndarray<nb::numpy, T, nb::ndim<Dims>>;

// An uninitialised NumPy array that owns its memory.
template <class T, int Dims>
Array<T, Dims> make_array(std::initializer_list<std::size_t> shape) {
  std::size_t size = 1;
  for (const auto extent : shape) size *= extent;
  auto data = std::make_unique<T[]>(size);
  T* pointer = data.release();
  nb::capsule owner(pointer, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Array<T, Dims>(pointer, shape, owner);
}

inline void require(bool good, const char* message) {
  if (!good) throw std::invalid_argument(message);
}
