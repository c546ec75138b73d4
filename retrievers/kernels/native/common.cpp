#include "common.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <thread>

namespace ragq {

uint32_t Rows::live_of_some(int64_t block) const {
    const int64_t first = block * kBlockRows;
    uint32_t bits = ~uint32_t{0};
    if (first < start) bits = start - first >= 32 ? 0 : bits << (start - first);
    if (stop < first + 32) bits = stop <= first ? 0 : bits & (~uint32_t{0} >> (first + 32 - stop));
    if (mask && bits) {
        uint32_t word = 0;
        const int64_t n = std::clamp<int64_t>(mask_bytes - 4 * block, 0, 4);
        for (int64_t i = 0; i < n; ++i) word |= uint32_t{mask[4 * block + i]} << (8 * i);
        bits &= word;
    }
    return bits;
}

namespace {
bool better(const TopK::Entry& a, const TopK::Entry& b) {
    return a.score > b.score || (a.score == b.score && a.row < b.row);
}

struct Part {
    Rows rows;
    std::vector<TopK> best;
};

void merge(const Request& request, const std::vector<Part>& parts, int64_t query) {
    std::vector<TopK::Entry> all;
    for (const Part& part : parts) {
        const auto& entries = part.best[query].entries();
        all.insert(all.end(), entries.begin(), entries.end());
    }
    const int64_t n = std::min<int64_t>(request.k, all.size());
    std::partial_sort(all.begin(), all.begin() + n, all.end(), better);
    float* scores = request.scores + query * request.k;
    int64_t* rows = request.best + query * request.k;
    for (int64_t i = 0; i < request.k; ++i) {
        scores[i] = i < n ? all[i].score : kNone;
        rows[i] = i < n ? all[i].row : -1;
    }
}

// Do tasks 0 .. n - 1, each in a thread of its own, the first in this one.
void in_threads(int64_t n, const std::function<void(int64_t)>& task) {
    std::vector<std::exception_ptr> errors(n);
    const auto run = [&](int64_t i) {
        try {
            task(i);
        } catch (...) {
            errors[i] = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    for (int64_t i = 1; i < n; ++i) {
        try {
            threads.emplace_back(run, i);
        } catch (const std::exception&) {  // no more threads to be had: do it here
            run(i);
        }
    }
    run(0);
    for (std::thread& thread : threads) thread.join();
    for (const std::exception_ptr& error : errors)
        if (error) std::rethrow_exception(error);
}
}  // namespace

void TopK::insert(float score, int64_t row) {
    if (k_ == 0 || !(score > above_)) return;
    if (static_cast<int64_t>(heap_.size()) == k_) {
        if (!better({score, row}, heap_.front())) return;
        std::pop_heap(heap_.begin(), heap_.end(), better);
        heap_.back() = {score, row};
    } else {
        heap_.push_back({score, row});
    }
    std::push_heap(heap_.begin(), heap_.end(), better);
    if (static_cast<int64_t>(heap_.size()) == k_) threshold_ = heap_.front().score;
}

void scan_parts(const Request& request, const std::function<void(const Rows&, TopK*)>& scan) {
    constexpr int64_t align = 2 * kBlockRows, least = 4096;  // rows times queries that are worth a thread
    const int64_t first = request.rows.start / align * align;
    const int64_t units = (request.rows.stop - first + align - 1) / align;
    const int64_t work = (request.rows.stop - request.rows.start) * request.n_queries / least;
    const int64_t n = std::max<int64_t>(1, std::min<int64_t>({request.threads, units, work}));
    std::vector<Part> parts;
    for (int64_t i = 0; i < n; ++i) {
        Rows rows = request.rows;
        rows.start = std::max(rows.start, first + units * i / n * align);
        rows.stop = std::min(rows.stop, first + units * (i + 1) / n * align);
        parts.push_back({rows, {}});
        for (int64_t query = 0; query < request.n_queries; ++query)
            parts.back().best.emplace_back(request.k, request.above ? request.above[query] : kNone);
    }
    in_threads(n, [&](int64_t i) { scan(parts[i].rows, parts[i].best.data()); });
    for (int64_t query = 0; query < request.n_queries; ++query) merge(request, parts, query);
}

void each_query_part(int64_t n_queries, int64_t threads, const std::function<void(int64_t, int64_t)>& run) {
    const int64_t n = std::max<int64_t>(1, std::min(threads, n_queries));
    in_threads(n, [&](int64_t i) { run(n_queries * i / n, n_queries * (i + 1) / n); });
}

void share_queries(const Request& request, const std::function<void(const Request&, int64_t first)>& scan) {
    constexpr int64_t least = 16;  // queries of a thread, which share the reading of the codes
    const int64_t n = std::max<int64_t>(1, std::min<int64_t>(request.threads, request.n_queries / least));
    each_query_part(request.n_queries, n, [&](int64_t first, int64_t stop) {
        Request part = request;
        part.n_queries = stop - first;
        part.threads = static_cast<int>(request.threads / n);
        part.factors.bias += first;
        if (part.factors.shift_weight) part.factors.shift_weight += first;
        if (part.above) part.above += first;
        part.scores += first * request.k, part.best += first * request.k;
        scan(part, first);
    });
}

}  // namespace ragq
