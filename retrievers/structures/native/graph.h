// A neighbour graph over two-bit sign-magnitude codes: its construction, and best-first search on it.
//
// Jayaram Subramanya et al., "DiskANN", NeurIPS 2019 (the graph and its pruning), over the distance of QuIVer, arXiv
// 2605.02171: coordinates whose signs differ count (1 + strong_a)(1 + strong_b).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ragq {

constexpr uint32_t kNoRow = 0xFFFFFFFF;

// Rows of `words` 64-bit words of signs, then as many of magnitudes.
struct TwoBitCodes {
    const uint64_t* rows;
    int64_t n, words;

    const uint64_t* row(uint32_t i) const { return rows + 2 * words * i; }
};

// Distances of one code to chosen rows.
using Distances = void (*)(const uint64_t* code, const TwoBitCodes& codes, const uint32_t* ids, int64_t n,
                           uint32_t* out);
Distances distances();

// Neighbours of each row, (n, degree), those that are missing `kNoRow` at the end.
struct Links {
    uint32_t* rows;
    int64_t degree;

    uint32_t* row(uint32_t i) const { return rows + degree * i; }
    int64_t count(uint32_t i) const;
};

struct Near {
    uint32_t distance, id;
    bool operator<(const Near& other) const {
        return distance < other.distance || (distance == other.distance && id < other.id);
    }
};

// The rows that a search has seen; emptied at no cost but that of its first use.
class Seen {
  public:
    explicit Seen(int64_t room);
    void clear() { count_ = 0, std::fill(table_.begin(), table_.end(), kNoRow); }
    bool insert(uint32_t id);  // whether it was new

  private:
    void grow();
    std::vector<uint32_t> table_;
    int64_t count_ = 0;
};

// Best-first search from `entry`: the `ef` nearest rows that it comes by, nearest first.
void search(const TwoBitCodes& codes, const Links& links, const uint64_t* query, uint32_t entry, int64_t ef, Seen& seen,
            std::vector<Near>& found);

struct BuildOptions {
    int64_t kept;  // links that a new row starts with
    int64_t ef;
    double alpha;  // a link is dropped when a kept one is this much nearer to its end
};

// Insert the rows order[start] ... order[stop - 1] into a graph of those before them.
void insert_rows(const TwoBitCodes& codes, const Links& links, const uint32_t* order, int64_t start, int64_t stop,
                 const BuildOptions& options);

// Search for queries from order to out (n_queries, ef), -1 where a search came by fewer rows.
void search_all(const TwoBitCodes& codes, const Links& links, const uint64_t* queries, int64_t n_queries,
                uint32_t entry, int64_t ef, int threads, int64_t* out);

}  // namespace ragq
