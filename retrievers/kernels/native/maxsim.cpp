#include "maxsim.h"

#include <algorithm>

namespace ragq {

namespace {

constexpr int64_t kChunkTokens = 64;

// One thread's documents.
class Scan {
  public:
    Scan(const Request& request, const MaxSim& input, const float* queries, int64_t padded, TopK* best)
        : request_(request), input_(input), best_(best), n_tokens_(input.query_offsets[request.n_queries]),
          most_(n_tokens_), tile_(kTileRows * padded), out_(kChunkTokens * n_tokens_) {
        const DenseCodes& tokens = input.tokens;
        run_ = {tokens.value,   nullptr,      tokens.stride, 0,          tokens.dim, tokens.levels, queries,
                padded,         n_tokens_,    tile_.data(),  out_.data()};
    }

    void score(int64_t document) {
        std::fill(most_.begin(), most_.end(), kNone);
        const int64_t stop = input_.offsets[document + 1];
        for (int64_t token = input_.offsets[document]; token < stop; token += kChunkTokens)
            take(token, std::min(kChunkTokens, stop - token));
        for (int64_t query = 0; query < request_.n_queries; ++query) {
            float sum = 0;
            for (int64_t t = input_.query_offsets[query]; t < input_.query_offsets[query + 1]; ++t) sum += most_[t];
            const bool counted = n_tokens_ && most_[0] > kNone;  // a counted token scores against every query token
            if (counted) best_[query].push(request_.factors.score(sum, document, query), document);
        }
    }

  private:
    void take(int64_t first, int64_t n) {
        run_.codes = input_.tokens.codes + first * run_.stride;
        run_.rows = n;
        request_.loops->dense(run_);
        for (int64_t t = 0; t < n_tokens_; ++t)
            for (int64_t i = 0; i < n; ++i)
                if (counts(first + i)) most_[t] = std::max(most_[t], out_[t * n + i]);
    }

    bool counts(int64_t token) const {
        return !input_.token_mask || (input_.token_mask[token / 8] >> (token % 8) & 1);
    }

    const Request& request_;
    const MaxSim& input_;
    TopK* best_;
    int64_t n_tokens_;
    DenseRun run_;
    std::vector<float> most_, tile_, out_;  // most_: best score of each query token so far
};

}  // namespace

void maxsim_topk(const Request& request, const MaxSim& input) {
    const int64_t dim = input.tokens.dim, padded = (dim + 15) / 16 * 16;
    const int64_t n_tokens = input.query_offsets[request.n_queries];
    std::vector<float> queries(n_tokens * padded, 0.0f);
    for (int64_t t = 0; t < n_tokens; ++t)
        std::copy_n(input.tokens.queries + t * dim, dim, queries.data() + t * padded);
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        Scan scan(request, input, queries.data(), padded, best);
        for (int64_t block = rows.start / 32; 32 * block < rows.stop; ++block)
            for (uint32_t live = rows.live(block); live; live &= live - 1)
                scan.score(32 * block + __builtin_ctz(live));
    });
}

}  // namespace ragq
