// What the scans share: rows that may be returned, per-row factors, top-k and threads. Baseline instructions only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <vector>

#include "loops.h"

namespace ragq {

constexpr float kNone = -std::numeric_limits<float>::infinity();

inline float half_to_float(uint16_t half) {
    const uint32_t rest = half & 0x7FFFu, sign = uint32_t(half & 0x8000u) << 16;
    // An fp16 exponent moved into place is 112 too small; multiplying by 2^112 also normalises subnormals.
    uint32_t word = rest >= 0x7C00 ? (rest << 13) | 0x7F800000u : rest << 13;
    float size;
    std::memcpy(&size, &word, 4);
    if (rest < 0x7C00) size *= 0x1p112f;
    std::memcpy(&word, &size, 4);
    word |= sign;
    std::memcpy(&size, &word, 4);
    return size;
}

// Ask for the cache line of `p`. GCC takes a function that does nothing else for one without effects and leaves its
// calls out; the empty assembly keeps them.
inline void prefetch(const void* p) {
    __builtin_prefetch(p);
    asm volatile("");
}

// Numbers that start at a cache line, where loads of whole vectors do not straddle two.
template <class T>
struct LineAllocator {
    using value_type = T;
    static constexpr std::align_val_t line{64};

    LineAllocator() = default;
    template <class U>
    LineAllocator(const LineAllocator<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), line)); }
    void deallocate(T* p, size_t) { ::operator delete(p, line); }
    bool operator==(const LineAllocator&) const { return true; }
    bool operator!=(const LineAllocator&) const { return false; }
};
template <class T>
using Aligned = std::vector<T, LineAllocator<T>>;

// Rows [start, stop) of a column of `rows` rows, less those whose bit in the little-endian bitset is 0.
struct Rows {
    int64_t start, stop;
    const uint8_t* mask;  // or null
    int64_t mask_bytes;   // rows beyond the bitset count as 0

    // Bits of the rows of a block of 32 that may be returned.
    uint32_t live(int64_t block) const {
        return !mask && 32 * block >= start && 32 * block + 32 <= stop ? ~uint32_t{0} : live_of_some(block);
    }

  private:
    uint32_t live_of_some(int64_t block) const;
};

// score = scale[row] * raw + shift[row] * shift_weight[query] + bias[query], in this order and without contraction.
struct Factors {
    const uint16_t* scale;      // fp16 a row, or null
    const uint16_t* shift;      // fp16 a row, or null
    const float* shift_weight;  // a query, with shift
    const float* bias;          // a query

    float score(float raw, int64_t row, int64_t query) const {
        if (scale) raw = raw * half_to_float(scale[row]);
        if (shift) raw = raw + shift_weight[query] * half_to_float(shift[row]);
        return raw + bias[query];
    }

    // The most that a row may score whose raw score is at most `slack` more than `raw`; never NaN.
    float most(double raw, double slack, int64_t row, int64_t query) const {
        if (scale) {
            const double mine = half_to_float(scale[row]);
            raw *= mine, slack *= std::abs(mine);
        }
        if (shift) {
            const double mine = shift_weight[query] * half_to_float(shift[row]);
            raw += mine, slack += 1e-6 * std::abs(mine);
        }
        const double sum = raw + bias[query] + slack + 1e-6 * (std::abs(raw) + std::abs(double{bias[query]}));
        return sum < std::numeric_limits<float>::infinity() ? static_cast<float>(sum)
                                                            : std::numeric_limits<float>::infinity();
    }
};

// The best k rows of a query: higher score, then lower row, in whatever order they come.
class TopK {
  public:
    TopK(int64_t k, float above) : k_(k), above_(above), threshold_(above) {}
    int64_t k() const { return k_; }
    // A row that scores less cannot enter; at least -inf, which never enters itself, nor does NaN.
    float threshold() const { return threshold_; }
    void push(float score, int64_t row) {
        if (score >= threshold_) insert(score, row);
    }
    struct Entry {
        float score;
        int64_t row;
    };
    const std::vector<Entry>& entries() const { return heap_; }

  private:
    void insert(float score, int64_t row);
    int64_t k_;
    float above_, threshold_;
    std::vector<Entry> heap_;  // worst first
};

// What every scan is asked for.
struct Request {
    const Loops* loops;
    Rows rows;
    Factors factors;
    int64_t n_queries, k;
    const float* above;  // a query: only rows that score more count, or null
    int threads;
    float* scores;    // out: (n_queries, k), padded with -inf
    int64_t* best;    // out: (n_queries, k), padded with -1
};

// Scan parts of the rows in threads of their own and merge; `scan` gets the rows of a part and one TopK a query.
// The threads end with the call, so a process may fork between calls.
void scan_parts(const Request& request, const std::function<void(const Rows&, TopK*)>& scan);

// Share queries out to `threads` threads, in runs [first, stop).
void each_query_part(int64_t n_queries, int64_t threads, const std::function<void(int64_t first, int64_t stop)>& run);

// Share the queries of a large batch out to threads, which rule out as many rows for a query as one thread would, and
// only what threads are left over share out the rows. `scan` gets the part of the request from query `first` on.
void share_queries(const Request& request, const std::function<void(const Request&, int64_t first)>& scan);

// A raw score is base + step * sum, at most `slack` more.
struct Estimate {
    double base = 0, step = 1, slack = 0;
};

// Scores rows exactly; what a scan of bounds calls for the rows that it could not rule out.
class Rescorer {
  public:
    virtual ~Rescorer() = default;
    // Candidates that are worth scoring at once. Their bytes are asked for when they are found, and arrive meanwhile.
    virtual size_t together() const { return 32; }
    virtual void fetch(int64_t) {}
    virtual void raw(int64_t query, const int64_t* rows, int64_t n, float* out) = 0;
    // Whether there is a closer estimate than the sums of the first pass, which it turns into its own for some rows.
    virtual bool estimates() const { return false; }
    virtual Estimate estimate(int64_t, const int64_t*, int64_t, float*) { return {}; }
};

}  // namespace ragq
