// Late interaction: a document's score is, summed over the query's tokens, the best score among its own tokens.
#pragma once

#include "dense.h"
#include "lut.h"

namespace ragq {

struct MaxSim {
    DenseCodes tokens;             // token rows of all documents; `queries` holds the tokens of all queries
    const int64_t* offsets;        // document d owns token rows offsets[d] .. offsets[d + 1]
    const int64_t* query_offsets;  // the same for queries
    const uint8_t* token_mask;     // little-endian bitset of token rows that count, or null
};

// `request` counts documents and queries; an empty or fully masked document never enters the top k.
void maxsim_topk(const Request& request, const MaxSim& input);

// Coded vectors of documents that were chosen for each query: numbers, or codewords of a product quantizer.
struct ChosenDocuments {
    DenseCodes dense;              // `queries` holds the tokens of all queries; `codes` is null for codewords
    LutCodes lut;                  // `tables` unused
    const float* codebook;         // (entries, dim)
    const int64_t* cuts;           // sub-quantizer j has the columns cuts[j] .. cuts[j + 1]
    const uint16_t* scale;         // fp16 a vector, or null
    const uint16_t* shift;         // fp16 a vector, or null
    const float* shift_weight;     // a query token, with shift
    const int64_t* offsets;        // document d owns vectors offsets[d] .. offsets[d + 1]
    const int64_t* query_offsets;  // the same for the tokens of queries
    const int64_t* documents;      // (n_queries, n): documents of each query, ascending; negative ones are none
    int64_t n;
};

// Score chosen documents by MaxSim. `request` counts queries, and the places of `documents` as rows; what comes out are
// documents. An empty document never enters the top k.
void maxsim_chosen(const Request& request, const ChosenDocuments& input);

}  // namespace ragq
