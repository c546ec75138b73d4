// Scans of inverted lists, where each query has its own runs of rows, and scores of chosen rows.
#pragma once

#include "dense.h"
#include "lut.h"

namespace ragq {

// Codes sorted into lists, which begin at multiples of 32 places, and the lists that each query looks at.
struct Lists {
    const int64_t* offsets;  // (nlist + 1,)
    const uint32_t* rows;    // the row of each place
    const int64_t* probed;   // (n_queries, nprobe), the most promising list first
    int64_t nprobe;
    bool exact;              // or rows may be ruled out by what rounding the tables practically costs
};

// Top-k of look-up-table codes over the lists of each query. `request.rows` and its mask count places; the rows that
// come out are those of `lists.rows`, and of equal scores the lower ones.
void lut_lists(const Request& request, const LutCodes& codes, const Lists& lists);

// The same for somebody who scores what comes out by finer codes: rows are compared by their rounded tables alone, come
// in no order, and those of equal sums at the end are the ones of lower places.
void lut_candidates(const Request& request, const LutCodes& codes, const Lists& lists);

// Rows that somebody else chose for each query, anywhere in a series of columns.
struct Chosen {
    std::vector<const uint8_t*> columns;
    const int64_t* starts;  // (columns + 1,): the first row of each column
    const int64_t* rows;    // (n_queries, n), -1 where there is none
    int64_t n;
    int factors;            // fp16 numbers behind the codes of a row: none, scale, scale and shift
};

// Top-k of numbers of one row code among chosen rows; the factors come with the rows, not with the request.
void dense_rows(const Request& request, const DenseCodes& codes, const Chosen& chosen);

}  // namespace ragq
