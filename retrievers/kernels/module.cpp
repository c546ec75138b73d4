// The nanobind module ragq.retrievers.kernels._cpu: argument checks only; the loops are in their own files.
#include <nanobind/nanobind.h>

NB_MODULE(_cpu, m) { m.doc() = "C++ kernels of ragq"; }
