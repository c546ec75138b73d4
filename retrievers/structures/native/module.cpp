// The nanobind module ragq.retrievers.structures._graph. Shapes are checked by sm2graph.py, which is its only caller.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "graph.h"

namespace nb = nanobind;
using namespace ragq;

namespace {

template <class T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

TwoBitCodes codes_of(const In<uint64_t>& codes) {
    return {codes.data(), static_cast<int64_t>(codes.shape(0)), static_cast<int64_t>(codes.shape(1)) / 2};
}

void insert(In<uint64_t> codes, Out<uint32_t> links, In<uint32_t> order, int64_t start, int64_t stop, int64_t kept,
            int64_t ef, double alpha) {
    nb::gil_scoped_release release;
    insert_rows(codes_of(codes), {links.data(), static_cast<int64_t>(links.shape(1))}, order.data(), start, stop,
                {kept, ef, alpha});
}

void find(In<uint64_t> codes, In<uint32_t> links, In<uint64_t> queries, uint32_t entry, int threads,
          Out<int64_t> found) {
    const Links graph = {const_cast<uint32_t*>(links.data()), static_cast<int64_t>(links.shape(1))};  // only read
    nb::gil_scoped_release release;
    search_all(codes_of(codes), graph, queries.data(), static_cast<int64_t>(queries.shape(0)), entry,
               static_cast<int64_t>(found.shape(1)), threads, found.data());
}

void measure(In<uint64_t> a, In<uint64_t> codes, In<uint32_t> ids, Out<uint32_t> out) {
    distances()(a.data(), codes_of(codes), ids.data(), static_cast<int64_t>(ids.size()), out.data());
}

}  // namespace

NB_MODULE(_graph, m) {
    m.doc() = "Graphs over two-bit codes";
    m.def("insert", insert);
    m.def("search", find);
    m.def("distances", measure);
}
