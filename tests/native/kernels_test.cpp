// Every scan, with every instruction set of this processor, against the scalar loops on the same input.
//
// Built by tests/sanitize.sh (address and undefined-behaviour sanitizers) and tests/neon.sh (AArch64 under qemu).
// Arrays are allocated to the byte, so that a read past a column is one that the sanitizer sees.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "dispatch.h"
#include "hamming.h"
#include "lists.h"
#include "lut.h"
#include "maxsim.h"
#include "planes.h"

using namespace ragq;

namespace {

std::mt19937 generator(1);

int64_t pick(std::initializer_list<int64_t> values) { return values.begin()[generator() % values.size()]; }

std::vector<uint8_t> bytes(int64_t n) {
    std::vector<uint8_t> out(n);
    for (uint8_t& b : out) b = static_cast<uint8_t>(generator());
    return out;
}

std::vector<float> floats(int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> out(n);
    for (float& f : out) f = normal(generator);
    return out;
}

std::vector<uint16_t> halves(int64_t n) {
    std::vector<uint16_t> out(n);
    for (uint16_t& h : out) h = static_cast<uint16_t>((generator() & 0x8000) | (0x3000 + generator() % 0x1400));
    return out;
}

// Inputs that all scans share, and an answer a set of instructions.
struct Case {
    int64_t rows = pick({0, 1, 31, 33, 100, 1023}), padded = (rows + 63) / 64 * 64;
    int64_t dim = pick({1, 7, 64, 100, 384}), queries = pick({1, 2, 3, 5, 9}), k = pick({1, 10, 2000});
    int factors = static_cast<int>(pick({0, 1, 2})), threads = static_cast<int>(pick({1, 3}));
    std::vector<uint16_t> scale = halves(padded), shift = halves(padded);
    std::vector<float> weight = floats(queries), bias = floats(queries);
    std::vector<uint8_t> mask = bytes((rows + 7) / 8);
    int masked = static_cast<int>(pick({0, 1, 2}));
    int64_t start = rows / pick({3, 1000000}), stop = rows - rows / pick({5, 1000000});

    struct Answer {
        std::vector<float> scores;
        std::vector<int64_t> rows;
    };

    template <class Scan>
    Answer run(const std::string& set, int64_t n, Scan scan) {
        Answer answer = {std::vector<float>(queries * k), std::vector<int64_t>(queries * k)};
        if (masked == 2) std::fill(mask.begin(), mask.end(), uint8_t{0});
        const Rows range = {std::min(start, n), std::min(stop, n), masked ? mask.data() : nullptr,
                            static_cast<int64_t>(mask.size())};
        const Factors f = {factors ? scale.data() : nullptr, factors == 2 ? shift.data() : nullptr, weight.data(),
                           bias.data()};
        scan(Request{&loops_of(set), range, f, queries, k, nullptr, threads, answer.scores.data(), answer.rows.data()});
        return answer;
    }
};

int failures = 0;

// Compare with the scalar answer; sums of floats in another order may differ in the last bits, and swap close rows.
template <class Scan>
void check(const char* name, Case& input, int64_t n, double tolerance, Scan scan) {
    const Case::Answer expected = input.run("scalar", n, scan);
    for (const std::string& set : available_sets()) {
        if (set == "scalar") continue;
        const Case::Answer got = input.run(set, n, scan);
        for (size_t i = 0; i < got.scores.size(); ++i) {
            const float a = expected.scores[i], b = got.scores[i];
            const bool close = a == b || std::abs(a - b) <= tolerance * (1 + std::abs(a));
            if (close && (tolerance > 0 || expected.rows[i] == got.rows[i])) continue;
            std::printf("%s %s: rows %d dim %d at %d: %g (row %d), scalar %g (row %d)\n", name, set.c_str(),
                        int(input.rows), int(input.dim), int(i), b, int(got.rows[i]), a, int(expected.rows[i]));
            ++failures;
            break;
        }
    }
}

// Each query's documents: all of them, but for every seventh.
std::vector<int64_t> places(int64_t queries, int64_t documents) {
    std::vector<int64_t> out(queries * documents);
    for (size_t i = 0; i < out.size(); ++i) out[i] = i % 7 ? static_cast<int64_t>(i) % documents : -1;
    return out;
}

// Documents of codewords, with sub-quantizers of one to five dimensions.
void chosen_codewords(Case& c) {
    std::vector<int64_t> cuts = {0}, offsets(c.rows / 3 + 1), query_offsets(c.queries + 1);
    while (cuts.back() < c.dim) cuts.push_back(std::min<int64_t>(c.dim, cuts.back() + 1 + generator() % 5));
    for (int64_t& offset : offsets) offset = c.rows ? generator() % (c.rows + 1) : 0;
    std::sort(offsets.begin(), offsets.end());
    for (int64_t i = 0; i <= c.queries; ++i) query_offsets[i] = i;
    const int64_t m = static_cast<int64_t>(cuts.size()) - 1, pairs = (m + 1) / 2, documents = c.rows / 3;
    const auto high = bytes(c.padded * pairs), low = bytes(c.padded * pairs);
    const auto queries = floats(c.queries * c.dim), book = floats(256 * c.dim), weight = floats(c.queries);
    const auto every = places(c.queries, documents);
    const DenseCodes none = {Value::f32, nullptr, 0, c.dim, nullptr, queries.data()};
    for (const uint8_t* second : {static_cast<const uint8_t*>(nullptr), low.data()}) {
        const LutCodes codes = {high.data(), second, pairs, m, nullptr};
        const ChosenDocuments chosen = {none, codes, book.data(), cuts.data(), c.scale.data(), c.shift.data(),
                                        weight.data(), offsets.data(), query_offsets.data(), every.data(), documents};
        check("maxsim codewords", c, documents, 1e-3, [&](const Request& r) { maxsim_chosen(r, chosen); });
    }
}

void luts(Case& c) {
    const int64_t pairs = (c.dim + 1) / 2;
    const auto high = bytes(c.padded * pairs), low = bytes(c.padded * pairs);
    const auto t4 = floats(c.queries * c.dim * 16), t8 = floats(c.queries * c.dim * 256);
    const LutCodes four = {high.data(), nullptr, pairs, c.dim, t4.data()};
    const LutCodes eight = {high.data(), low.data(), pairs, c.dim, t8.data()};
    check("lut4", c, c.rows, 0, [&](const Request& r) { lut_topk(r, four, 0); });
    check("lut8", c, c.rows, 0, [&](const Request& r) { lut_topk(r, eight, 0); });
    check("lut8 margin", c, c.rows, 0, [&](const Request& r) { lut_topk(r, eight, 50); });
    if (c.rows == 1023 && c.k == 1 && c.dim > 48)  // so few candidates that all sets choose them; they round rows with factors
        check("lut8 candidates", c, c.rows, c.factors ? 100 : 0, [&](const Request& r) { lut_topk(r, eight, 0.1); });
}

// Some rows in lists, of which some are empty, and the lists of each query in an order of its own.
void lists(Case& c) {
    const int64_t pairs = (c.dim + 1) / 2, blocks = c.padded / 32, nlist = 6, nprobe = pick({1, 4, nlist});
    const auto high = bytes(c.padded * pairs), low = bytes(c.padded * pairs);
    const auto t4 = floats(c.queries * c.dim * 16), t8 = floats(c.queries * c.dim * 256);
    std::vector<int64_t> offsets(nlist + 1, 0), probed;
    for (int64_t i = 1; i < nlist; ++i) offsets[i] = 32 * (generator() % (blocks + 1));
    offsets[nlist] = c.padded;
    std::sort(offsets.begin(), offsets.end());
    std::vector<uint32_t> rows(c.padded);
    for (int64_t i = 0; i < c.padded; ++i) rows[i] = static_cast<uint32_t>(c.padded - 1 - i);
    for (int64_t query = 0; query < c.queries; ++query) {
        std::vector<int64_t> order = {0, 1, 2, 3, 4, 5};
        std::shuffle(order.begin(), order.end(), generator);
        probed.insert(probed.end(), order.begin(), order.begin() + nprobe);
    }
    for (const uint8_t* second : {static_cast<const uint8_t*>(nullptr), low.data()}) {
        const LutCodes codes = {high.data(), second, pairs, c.dim, second ? t8.data() : t4.data()};
        const Lists exact = {offsets.data(), rows.data(), probed.data(), nprobe, true};
        check("lists", c, c.padded, 0, [&](const Request& r) { lut_lists(r, codes, exact); });
        check("candidates", c, c.padded, 0, [&](const Request& r) { lut_candidates(r, codes, exact); });
    }
}

void dense_and_maxsim(Case& c) {
    const auto queries = floats(c.queries * c.dim);
    std::vector<float> levels = floats(256);
    for (int value = 0; value <= static_cast<int>(Value::levels); ++value) {
        const int64_t size = value == 0 ? 4 : value <= 2 ? 2 : 1;
        auto codes = bytes(c.rows * c.dim * size);
        if (value == 0) {
            const auto x = floats(c.rows * c.dim);
            std::copy_n(reinterpret_cast<const uint8_t*>(x.data()), codes.size(), codes.data());
        } else if (value <= 2) {
            const auto x = halves(c.rows * c.dim);
            std::copy_n(reinterpret_cast<const uint8_t*>(x.data()), codes.size(), codes.data());
        } else if (value == static_cast<int>(Value::levels16)) {
            for (uint8_t& b : codes) b &= 15;
        }
        const DenseCodes input = {static_cast<Value>(value), codes.data(), c.dim * size, c.dim,
                                  levels.data(),             queries.data()};
        // Sums of 384 products of numbers up to 255, or E5M2's 57344, leave this behind where they cancel.
        const double tolerance = size > 1 ? 1e-3 : value == static_cast<int>(Value::e5m2) ? 1 : 5e-2;
        check("dense", c, c.rows, tolerance, [&](const Request& r) { dense_topk(r, input); });

        const int64_t documents = c.rows / 3;
        std::vector<int64_t> offsets(documents + 1), query_offsets(c.queries + 1);
        for (int64_t& offset : offsets) offset = c.rows ? generator() % (c.rows + 1) : 0;
        std::sort(offsets.begin(), offsets.end());
        for (int64_t i = 0; i <= c.queries; ++i) query_offsets[i] = i;
        const auto tokens = bytes((c.rows + 7) / 8);
        const MaxSim late = {input, offsets.data(), query_offsets.data(), tokens.data()};
        check("maxsim", c, documents, tolerance, [&](const Request& r) { maxsim_topk(r, late); });

        const auto every = places(c.queries, documents);
        const ChosenDocuments chosen = {input, {}, nullptr, nullptr, nullptr, nullptr, nullptr, offsets.data(),
                                        query_offsets.data(), every.data(), documents};
        check("maxsim chosen", c, documents, tolerance, [&](const Request& r) { maxsim_chosen(r, chosen); });
    }
}

// Rows of bits, the last of which are not a whole vector, and up to 7 of them: more weights than fit a 16-bit sum.
void weights(Case& c) {
    const int n = 1 + static_cast<int>(generator() % 7);
    std::vector<std::vector<uint8_t>> rows;
    std::vector<int8_t> weights;
    const uint8_t* at[7];
    int64_t widths[7];
    int32_t expected = 0;
    for (int b = 0; b < n; ++b) {
        widths[b] = b ? generator() % (2 * c.dim) : 2 * c.dim;
        rows.push_back(bytes(widths[b]));
        if (b % 2) std::fill(rows[b].begin(), rows[b].end(), uint8_t{255});
        const auto mine = bytes((widths[b] + 7) / 8 * 64);
        for (size_t i = 0; i < mine.size(); ++i) {
            const int weight = b % 2 ? 127 : std::max(-127, mine[i] - 128);
            weights.push_back(static_cast<int8_t>(weight));
            if (i < 8 * rows[b].size() && (rows[b][i / 8] >> (i % 8) & 1)) expected += weight;
        }
        at[b] = rows[b].data();
    }
    for (const std::string& set : available_sets()) {
        const int32_t got = loops_of(set).weigh_bits(at, widths, n, weights.data());
        if (got == expected) continue;
        std::printf("weigh_bits %s: dim %d, %d rows: %d instead of %d\n", set.c_str(), int(c.dim), n, got, expected);
        ++failures;
    }
}

// Sums of products with the words of a query, for rows that do not fill vectors, and the largest of them.
void dots(Case& c) {
    const int64_t dim = pick({c.dim, 511, 512, 777}), stride = dim + pick({0, 3}), rows = std::min<int64_t>(c.rows, 33);
    auto codes = bytes(rows ? (rows - 1) * stride + dim : 0);
    if (c.masked) std::fill(codes.begin(), codes.end(), uint8_t{128});
    std::vector<int16_t> words(dim + 64);
    std::vector<int8_t> high(dim + 64), low(dim + 64);
    const int64_t most = std::min<int64_t>(127 * 256 + 127, 0x7FFFFFFF / (128 * dim));
    int32_t sum = 0;
    for (int64_t d = 0; d < dim; ++d) {
        const int64_t word = c.masked == 2 ? most : static_cast<int64_t>(generator() % (2 * most + 1)) - most;
        words[d] = static_cast<int16_t>(word), sum += words[d];
        high[d] = static_cast<int8_t>((word + 128) >> 8), low[d] = static_cast<int8_t>(word - 256 * high[d]);
    }
    std::vector<int32_t> expected(rows);
    int32_t largest = INT32_MIN;
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t d = 0; d < dim; ++d) expected[row] += static_cast<int8_t>(codes[row * stride + d]) * words[d];
        largest = std::max(largest, expected[row]);
    }
    for (const std::string& set : available_sets()) {
        std::vector<int32_t> got(rows);
        const WordQuery query = {words.data(), high.data(), low.data(), sum};
        const int32_t most_of_all = loops_of(set).dots_i8(codes.data(), stride, rows, dim, query, got.data());
        if (got == expected && most_of_all == largest) continue;
        std::printf("dots_i8 %s: dim %d, %d rows\n", set.c_str(), int(dim), int(rows));
        ++failures;
    }
}

void bits(Case& c) {
    const int64_t width = (c.dim + 7) / 8;
    const auto queries = floats(c.queries * c.dim), levels = floats(256), weight = floats(c.queries);
    std::vector<std::vector<uint8_t>> columns;
    for (int b = 0; b < 4; ++b) columns.push_back(bytes(c.padded * width));
    for (const int planes : {1, 2, 4}) {
        PlaneCodes input = {{}, planes, {}, levels.data(), queries.data()};
        const int64_t fall = pick({0, 1, c.dim / 5});  // dimensions that each plane has less than the one before
        for (int b = 0; b < planes; ++b) {
            input.planes[b] = columns[b].data();
            input.dims[b] = std::max<int64_t>(c.dim - b * fall, b ? 0 : 1);
        }
        check("planes", c, c.rows, 1e-4, [&](const Request& r) { planes_topk(r, input, 0); });
        check("planes margin", c, c.rows, 1e-4, [&](const Request& r) { planes_topk(r, input, 50); });
    }
    const auto mine = bytes(c.queries * width), rows = bytes(c.rows * width);
    const HammingCodes plain = {rows.data(), width, c.dim, false, mine.data(), weight.data()};
    const HammingCodes blocked = {columns[0].data(), width, c.dim, true, mine.data(), weight.data()};
    check("hamming", c, c.rows, 0, [&](const Request& r) { hamming_topk(r, plain); });
    check("hamming blocks", c, c.rows, 0, [&](const Request& r) { hamming_topk(r, blocked); });
    const auto scores = floats(c.queries * c.rows);
    check("select", c, c.rows, 0, [&](const Request& r) { select_topk(r, scores.data(), c.rows); });
}

}  // namespace

int main(int argc, char** argv) {
    const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
    for (int i = 0; i < cases; ++i) {
        Case c;
        luts(c);
        lists(c);
        dense_and_maxsim(c);
        chosen_codewords(c);
        bits(c);
        weights(c);
        dots(c);
    }
    std::printf("%d cases, sets:", cases);
    for (const std::string& set : available_sets()) std::printf(" %s", set.c_str());
    std::printf(": %s\n", failures ? "FAILED" : "ok");
    return failures ? 1 : 0;
}
