// The nanobind module ragq.retrievers.kernels._cpu. Shapes are checked by cpu.py, which is its only caller.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "dense.h"
#include "dispatch.h"
#include "hamming.h"
#include "lists.h"
#include "lut.h"
#include "maxsim.h"
#include "planes.h"

namespace nb = nanobind;
using namespace ragq;

namespace {

template <class T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <class T>
using Maybe = std::optional<In<T>>;
template <class T>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

template <class T>
const T* data_of(const Maybe<T>& array) {
    return array ? array->data() : nullptr;
}

// What every scan takes, next to its codes; keeps the arrays alive.
struct Call {
    std::string set;
    int64_t start, stop;
    Maybe<uint8_t> mask;
    Maybe<uint16_t> scale, shift;
    Maybe<float> shift_weight;
    In<float> bias;
    Maybe<float> above;
    int threads;
    Out<float> scores;
    Out<int64_t> best;

    Request request() const {
        const Rows rows = {start, stop, data_of(mask), mask ? static_cast<int64_t>(mask->size()) : 0};
        const Factors factors = {data_of(scale), data_of(shift), data_of(shift_weight), bias.data()};
        return {&loops_of(set),
                rows,
                factors,
                static_cast<int64_t>(bias.size()),
                static_cast<int64_t>(best.shape(1)),
                data_of(above),
                threads,
                scores.data(),
                best.data()};
    }
};

void lut(const Call& call, In<uint8_t> high, Maybe<uint8_t> low, In<float> tables, double margin) {
    const Request request = call.request();
    const LutCodes codes = {high.data(), data_of(low), static_cast<int64_t>(high.shape(1)),
                            static_cast<int64_t>(tables.shape(1)), tables.data()};
    nb::gil_scoped_release release;
    lut_topk(request, codes, margin);
}

void lut_of_lists(const Call& call, In<uint8_t> high, Maybe<uint8_t> low, In<float> tables, In<int64_t> offsets,
                  In<uint32_t> rows, In<int64_t> probed, bool exact, bool candidates) {
    const Request request = call.request();
    const LutCodes codes = {high.data(), data_of(low), static_cast<int64_t>(high.shape(1)),
                            static_cast<int64_t>(tables.shape(1)), tables.data()};
    const Lists lists = {offsets.data(), rows.data(), probed.data(), static_cast<int64_t>(probed.shape(1)), exact};
    nb::gil_scoped_release release;
    (candidates ? lut_candidates : lut_lists)(request, codes, lists);
}

DenseCodes dense_codes(int value, const In<uint8_t>& codes, const In<float>& levels, const In<float>& queries) {
    return {static_cast<Value>(value), codes.data(), static_cast<int64_t>(codes.shape(1)),
            static_cast<int64_t>(queries.shape(1)), levels.data(), queries.data()};
}

void dense(const Call& call, int value, In<uint8_t> codes, In<float> levels, In<float> queries) {
    const Request request = call.request();
    const DenseCodes input = dense_codes(value, codes, levels, queries);
    nb::gil_scoped_release release;
    dense_topk(request, input);
}

void dense_of_rows(const Call& call, int value, std::vector<In<uint8_t>> columns, In<int64_t> starts, In<int64_t> rows,
                   int factors, In<float> levels, In<float> queries) {
    const Request request = call.request();
    const DenseCodes input = dense_codes(value, columns.front(), levels, queries);
    Chosen chosen = {{}, starts.data(), rows.data(), static_cast<int64_t>(rows.shape(1)), factors};
    for (const In<uint8_t>& column : columns) chosen.columns.push_back(column.data());
    nb::gil_scoped_release release;
    dense_rows(request, input, chosen);
}

void planes(const Call& call, std::vector<In<uint8_t>> columns, Maybe<uint8_t> words, std::vector<int64_t> dims,
            In<float> levels, In<float> queries, double margin) {
    const Request request = call.request();
    PlaneCodes codes = {{}, static_cast<int>(dims.size()), {}, levels.data(), queries.data()};
    for (size_t b = 0; b < columns.size(); ++b) codes.planes[b] = columns[b].data();
    for (size_t b = 0; b < dims.size(); ++b) codes.dims[b] = dims[b];
    if (words) codes.words = words->data();
    nb::gil_scoped_release release;
    planes_topk(request, codes, margin);
}

void hamming(const Call& call, In<uint8_t> codes, bool blocked, int64_t dim, In<uint8_t> queries, In<float> weight) {
    const Request request = call.request();
    const HammingCodes input = {codes.data(), static_cast<int64_t>(codes.shape(1)), dim, blocked, queries.data(),
                                weight.data()};
    nb::gil_scoped_release release;
    hamming_topk(request, input);
}

void maxsim(const Call& call, int value, In<uint8_t> codes, In<float> levels, In<float> queries, In<int64_t> offsets,
            In<int64_t> query_offsets, Maybe<uint8_t> token_mask) {
    const Request request = call.request();
    const MaxSim input = {dense_codes(value, codes, levels, queries), offsets.data(), query_offsets.data(),
                          data_of(token_mask)};
    nb::gil_scoped_release release;
    maxsim_topk(request, input);
}

void maxsim_of_chosen(const Call& call, int value, Maybe<uint8_t> codes, Maybe<uint8_t> high, Maybe<uint8_t> low,
                      In<float> levels, In<float> codebook, In<int64_t> cuts, Maybe<uint16_t> scale,
                      Maybe<uint16_t> shift, Maybe<float> shift_weight, In<float> queries, In<int64_t> offsets,
                      In<int64_t> query_offsets, In<int64_t> documents) {
    const Request request = call.request();
    const DenseCodes dense = {static_cast<Value>(value), data_of(codes), codes ? static_cast<int64_t>(codes->shape(1)) : 0,
                              static_cast<int64_t>(queries.shape(1)), levels.data(), queries.data()};
    const LutCodes lut = {data_of(high), data_of(low), high ? static_cast<int64_t>(high->shape(1)) : 0,
                          static_cast<int64_t>(cuts.size()) - 1, nullptr};
    const ChosenDocuments input = {dense, lut, codebook.data(), cuts.data(), data_of(scale), data_of(shift),
                                   data_of(shift_weight), offsets.data(), query_offsets.data(), documents.data(),
                                   static_cast<int64_t>(documents.shape(1))};
    nb::gil_scoped_release release;
    maxsim_chosen(request, input);
}

void select_best(const Call& call, In<float> scores) {
    const Request request = call.request();
    const int64_t n = static_cast<int64_t>(scores.shape(1));
    nb::gil_scoped_release release;
    select_topk(request, scores.data(), n);
}

}  // namespace

NB_MODULE(_cpu, m) {
    m.doc() = "C++ kernels of ragq";
    nb::class_<Call>(m, "Call").def(
        "__init__",
        [](Call* self, std::string set, int64_t start, int64_t stop, Maybe<uint8_t> mask, Maybe<uint16_t> scale,
           Maybe<uint16_t> shift, Maybe<float> shift_weight, In<float> bias, Maybe<float> above, int threads, Out<float> scores,
           Out<int64_t> best) {
            new (self) Call{std::move(set), start, stop, mask, scale, shift, shift_weight, bias, above, threads, scores, best};
        },
        nb::arg("set"), nb::arg("start"), nb::arg("stop"), nb::arg("mask").none(), nb::arg("scale").none(),
        nb::arg("shift").none(), nb::arg("shift_weight").none(), nb::arg("bias"), nb::arg("above").none(),
        nb::arg("threads"), nb::arg("scores"), nb::arg("best"));
    m.def("built_sets", built_sets);
    m.def("available_sets", available_sets);
    m.def("lut", lut, nb::arg("call"), nb::arg("high"), nb::arg("low").none(), nb::arg("tables"), nb::arg("margin"));
    m.def("lut_lists", lut_of_lists, nb::arg("call"), nb::arg("high"), nb::arg("low").none(), nb::arg("tables"),
          nb::arg("offsets"), nb::arg("rows"), nb::arg("probed"), nb::arg("exact"), nb::arg("candidates"));
    m.def("dense", dense);
    m.def("dense_rows", dense_of_rows);
    m.def("planes", planes);
    m.def("hamming", hamming);
    m.def("maxsim", maxsim, nb::arg("call"), nb::arg("value"), nb::arg("codes"), nb::arg("levels"),
          nb::arg("queries"), nb::arg("offsets"), nb::arg("query_offsets"), nb::arg("token_mask").none());
    m.def("maxsim_chosen", maxsim_of_chosen, nb::arg("call"), nb::arg("value"), nb::arg("codes").none(),
          nb::arg("high").none(), nb::arg("low").none(), nb::arg("levels"), nb::arg("codebook"), nb::arg("cuts"),
          nb::arg("scale").none(), nb::arg("shift").none(), nb::arg("shift_weight").none(), nb::arg("queries"),
          nb::arg("offsets"), nb::arg("query_offsets"), nb::arg("documents"));
    m.def("select", select_best);
}
