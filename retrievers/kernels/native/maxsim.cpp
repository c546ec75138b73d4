#include "maxsim.h"

#include <algorithm>
#include <cstring>
#include <memory>

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
        if (n_tokens_ == 0) return;  // the dense loops take at least one query
        std::fill(most_.begin(), most_.end(), kNone);
        const int64_t stop = input_.offsets[document + 1];
        for (int64_t token = input_.offsets[document]; token < stop; token += kChunkTokens)
            take(token, std::min(kChunkTokens, stop - token));
        for (int64_t query = 0; query < request_.n_queries; ++query) {
            float sum = 0;
            for (int64_t t = input_.query_offsets[query]; t < input_.query_offsets[query + 1]; ++t) sum += most_[t];
            const bool counted = most_[0] > kNone;  // a counted token scores against every query token
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

// A product quantizer's codebook, one sub-quantizer after the other, decoded four floats at a time: what is written too
// much is overwritten by the next sub-quantizer, and behind the last there is room.
class Codebook {
  public:
    Codebook(const float* codebook, const int64_t* cuts, const LutCodes& codes, int64_t dim) {
        const int64_t entries = codes.entries();
        packed_.resize(entries * dim + kSlack, 0.0f);
        float* to = packed_.data();
        for (int64_t j = 0; j < codes.m; ++j) {
            const int64_t width = cuts[j + 1] - cuts[j];
            parts_.push_back({to, width});
            for (int64_t e = 0; e < entries; ++e, to += width) std::copy_n(codebook + e * dim + cuts[j], width, to);
        }
    }

    void decode(const LutCodes& codes, int64_t row, float* out) const {
        int64_t j = 0;
        for (const Part& part : parts_) {
            const float* from = part.words + codes.code(row, j++) * part.width;
            for (int64_t at = 0; at < part.width; at += kSlack) std::memcpy(out + at, from + at, kSlack * sizeof(float));
            out += part.width;
        }
    }

    static constexpr int64_t kSlack = 4;

  private:
    struct Part {
        const float* words;
        int64_t width;
    };
    std::vector<float> packed_;
    std::vector<Part> parts_;
};

// One thread's places of the lists of chosen documents.
class ChosenScan {
  public:
    ChosenScan(const Request& request, const ChosenDocuments& input, const Codebook* codebook, const float* queries,
               int64_t padded)
        : request_(request), input_(input), codebook_(codebook), queries_(queries), padded_(padded),
          tile_(kTileRows * padded), factors_(2 * kChunkTokens) {
        int64_t longest = 0;
        for (int64_t a = 0; a < request.n_queries; ++a)
            longest = std::max(longest, input.query_offsets[a + 1] - input.query_offsets[a]);
        most_.resize(longest);
        out_.resize(kChunkTokens * longest);
        const DenseCodes& dense = input.dense;
        run_ = {dense.value, nullptr, dense.stride, 0, dense.dim, dense.levels, nullptr, padded, 0, tile_.data(), out_.data()};
        if (!codebook) return;
        decoded_.resize(kChunkTokens * padded + Codebook::kSlack);
        run_.value = Value::f32;
        run_.codes = reinterpret_cast<const uint8_t*>(decoded_.data());
        run_.stride = padded * static_cast<int64_t>(sizeof(float));
    }

    void score(int64_t query, int64_t document, TopK& best) {
        const int64_t first = input_.query_offsets[query];
        run_.n_queries = input_.query_offsets[query + 1] - first;
        run_.queries = queries_ + first * padded_;
        const int64_t start = input_.offsets[document], stop = input_.offsets[document + 1];
        if (start == stop || run_.n_queries == 0) return;
        std::fill_n(most_.begin(), run_.n_queries, kNone);
        for (int64_t token = start; token < stop; token += kChunkTokens)
            take(token, std::min(kChunkTokens, stop - token), first);
        float sum = 0;
        for (int64_t t = 0; t < run_.n_queries; ++t) sum += most_[t];
        best.push(request_.factors.score(sum, 0, query), document);
    }

  private:
    void take(int64_t first, int64_t n, int64_t query_token) {
        run_.rows = n;
        if (codebook_)
            for (int64_t i = 0; i < n; ++i) codebook_->decode(input_.lut, first + i, decoded_.data() + i * padded_);
        else
            run_.codes = input_.dense.codes + first * run_.stride;
        request_.loops->dense(run_);
        if (input_.scale) rescale(first, n, query_token);
        for (int64_t t = 0; t < run_.n_queries; ++t)
            for (int64_t i = 0; i < n; ++i) most_[t] = std::max(most_[t], out_[t * n + i]);
    }

    void rescale(int64_t first, int64_t n, int64_t query_token) {
        float *scale = factors_.data(), *shift = scale + kChunkTokens;
        for (int64_t i = 0; i < n; ++i) scale[i] = half_to_float(input_.scale[first + i]);
        for (int64_t i = 0; i < n; ++i) shift[i] = input_.shift ? half_to_float(input_.shift[first + i]) : 0;
        for (int64_t t = 0; t < run_.n_queries; ++t) {
            const float weight = input_.shift ? input_.shift_weight[query_token + t] : 0;
            for (int64_t i = 0; i < n; ++i) out_[t * n + i] = scale[i] * out_[t * n + i] + shift[i] * weight;
        }
    }

    const Request& request_;
    const ChosenDocuments& input_;
    const Codebook* codebook_;
    const float* queries_;
    int64_t padded_;
    DenseRun run_;
    std::vector<float> most_, tile_, out_, decoded_, factors_;
};

// Token embeddings of queries, each filled up with zeros to whole vectors.
std::vector<float> padded_queries(const float* queries, int64_t n_tokens, int64_t dim, int64_t padded) {
    std::vector<float> out(n_tokens * padded, 0.0f);
    for (int64_t t = 0; t < n_tokens; ++t) std::copy_n(queries + t * dim, dim, out.data() + t * padded);
    return out;
}

}  // namespace

void maxsim_topk(const Request& request, const MaxSim& input) {
    const int64_t dim = input.tokens.dim, padded = (dim + 15) / 16 * 16;
    const int64_t n_tokens = input.query_offsets[request.n_queries];
    const std::vector<float> queries = padded_queries(input.tokens.queries, n_tokens, dim, padded);
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        Scan scan(request, input, queries.data(), padded, best);
        for (int64_t block = rows.start / 32; 32 * block < rows.stop; ++block)
            for (uint32_t live = rows.live(block); live; live &= live - 1)
                scan.score(32 * block + __builtin_ctz(live));
    });
}

void maxsim_chosen(const Request& request, const ChosenDocuments& input) {
    const int64_t dim = input.dense.dim, padded = (dim + 15) / 16 * 16;
    const int64_t n_tokens = input.query_offsets[request.n_queries];
    const std::vector<float> queries = padded_queries(input.dense.queries, n_tokens, dim, padded);
    std::unique_ptr<Codebook> codebook;
    if (!input.dense.codes) codebook = std::make_unique<Codebook>(input.codebook, input.cuts, input.lut, dim);
    scan_parts(request, [&](const Rows& rows, TopK* best) {
        ChosenScan scan(request, input, codebook.get(), queries.data(), padded);
        for (int64_t query = 0; query < request.n_queries; ++query)
            for (int64_t place = rows.start; place < rows.stop; ++place) {
                const int64_t document = input.documents[query * input.n + place];
                if (document >= 0) scan.score(query, document, best[query]);
            }
    });
}

}  // namespace ragq
