// Late interaction: a document's score is, summed over the query's tokens, the best score among its own tokens.
#pragma once

#include "dense.h"

namespace ragq {

struct MaxSim {
    DenseCodes tokens;             // token rows of all documents; `queries` holds the tokens of all queries
    const int64_t* offsets;        // document d owns token rows offsets[d] .. offsets[d + 1]
    const int64_t* query_offsets;  // the same for queries
    const uint8_t* token_mask;     // little-endian bitset of token rows that count, or null
};

// `request` counts documents and queries; an empty or fully masked document never enters the top k.
void maxsim_topk(const Request& request, const MaxSim& input);

}  // namespace ragq
