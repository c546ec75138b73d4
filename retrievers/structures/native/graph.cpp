#include "graph.h"

#include <exception>
#include <thread>

namespace ragq {

namespace {

// Words known at compile time for the usual sizes; 0: any number.
template <int Words>
[[gnu::always_inline]] inline uint32_t distance(const uint64_t* a, const uint64_t* b, int64_t words) {
    const int64_t n = Words ? Words : words;
    uint64_t sum = 0;
    for (int64_t w = 0; w < n; ++w) {
        const uint64_t differ = a[w] ^ b[w], strong_a = differ & a[n + w], strong_b = differ & b[n + w];
        sum += __builtin_popcountll(differ) + __builtin_popcountll(strong_a) + __builtin_popcountll(strong_b) +
               __builtin_popcountll(strong_a & strong_b);
    }
    return static_cast<uint32_t>(sum);
}

template <int Words>
[[gnu::always_inline]] inline void all_distances(const uint64_t* code, const TwoBitCodes& codes, const uint32_t* ids,
                                                 int64_t n, uint32_t* out) {
    for (int64_t i = 0; i < n; ++i)
        for (int64_t word = 0; word < 2 * codes.words; word += 8) __builtin_prefetch(codes.row(ids[i]) + word);
    for (int64_t i = 0; i < n; ++i) out[i] = distance<Words>(code, codes.row(ids[i]), codes.words);
}

[[gnu::always_inline]] inline void by_width(const uint64_t* code, const TwoBitCodes& codes, const uint32_t* ids,
                                            int64_t n, uint32_t* out) {
    switch (codes.words) {
        case 6: return all_distances<6>(code, codes, ids, n, out);
        case 12: return all_distances<12>(code, codes, ids, n, out);
        case 16: return all_distances<16>(code, codes, ids, n, out);
        default: return all_distances<0>(code, codes, ids, n, out);
    }
}

void distances_baseline(const uint64_t* code, const TwoBitCodes& codes, const uint32_t* ids, int64_t n, uint32_t* out) {
    by_width(code, codes, ids, n, out);
}

#if defined(__x86_64__)
__attribute__((target("popcnt"))) void distances_popcnt(const uint64_t* code, const TwoBitCodes& codes,
                                                        const uint32_t* ids, int64_t n, uint32_t* out) {
    by_width(code, codes, ids, n, out);
}
#endif

constexpr int kCopies = 4;  // links to rows of the same code as the row itself or as another link: more would lead nowhere

// Of candidates, nearest first, those that no kept one makes needless: c stays iff D(c, row) <= alpha D(c, kept).
void prune(const TwoBitCodes& codes, const std::vector<Near>& candidates, int64_t most, double alpha,
           std::vector<uint32_t>& kept) {
    std::vector<uint32_t> between(most);
    kept.clear();
    int copies = 0;
    for (const Near& c : candidates) {
        if (static_cast<int64_t>(kept.size()) == most) return;
        distances()(codes.row(c.id), codes, kept.data(), static_cast<int64_t>(kept.size()), between.data());
        bool needed = true, copy = c.distance == 0;
        for (size_t i = 0; i < kept.size() && needed; ++i) {
            needed = c.distance <= alpha * between[i];
            copy |= between[i] == 0;
        }
        if (needed && copies + copy <= kCopies) {
            copies += copy;
            kept.push_back(c.id);
        }
    }
}

void set_links(const Links& links, uint32_t row, const std::vector<uint32_t>& ids) {
    std::copy(ids.begin(), ids.end(), links.row(row));
    std::fill(links.row(row) + ids.size(), links.row(row) + links.degree, kNoRow);
}

// Link `row` to `other`; a full row is pruned to what a new one starts with, so that it has room again.
void add_link(const TwoBitCodes& codes, const Links& links, uint32_t row, uint32_t other,
              const BuildOptions& options) {
    const int64_t count = links.count(row);
    uint32_t* ids = links.row(row);
    if (std::find(ids, ids + count, other) != ids + count) return;
    if (count < links.degree) {
        ids[count] = other;
        return;
    }
    std::vector<uint32_t> all(ids, ids + count), measured(count + 1), kept;
    all.push_back(other);
    distances()(codes.row(row), codes, all.data(), count + 1, measured.data());
    std::vector<Near> candidates;
    for (int64_t i = 0; i <= count; ++i) candidates.push_back({measured[i], all[i]});
    std::sort(candidates.begin(), candidates.end());
    prune(codes, candidates, options.kept, options.alpha, kept);
    set_links(links, row, kept);
}

}  // namespace

Distances distances() {
#if defined(__x86_64__)
    static const Distances best = __builtin_cpu_supports("popcnt") ? distances_popcnt : distances_baseline;
    return best;
#else
    return distances_baseline;
#endif
}

int64_t Links::count(uint32_t i) const { return std::find(row(i), row(i) + degree, kNoRow) - row(i); }

Seen::Seen(int64_t room) {
    size_t size = 64;
    while (static_cast<int64_t>(size) < 2 * room) size *= 2;
    table_.assign(size, kNoRow);
}

bool Seen::insert(uint32_t id) {
    if (2 * count_ >= static_cast<int64_t>(table_.size())) grow();
    const size_t mask = table_.size() - 1;
    size_t at = id * uint64_t{0x9E3779B97F4A7C15} >> 32 & mask;
    while (table_[at] != kNoRow) {
        if (table_[at] == id) return false;
        at = (at + 1) & mask;
    }
    table_[at] = id;
    ++count_;
    return true;
}

void Seen::grow() {
    std::vector<uint32_t> old(2 * table_.size(), kNoRow);
    old.swap(table_);
    count_ = 0;
    for (const uint32_t id : old)
        if (id != kNoRow) insert(id);
}

void search(const TwoBitCodes& codes, const Links& links, const uint64_t* query, uint32_t entry, int64_t ef, Seen& seen,
            std::vector<Near>& found) {
    std::vector<uint32_t> fresh(links.degree), measured(links.degree);
    std::vector<bool> expanded{false};
    seen.clear();
    seen.insert(entry);
    distances()(query, codes, &entry, 1, measured.data());
    found.assign(1, {measured[0], entry});
    for (size_t next = 0; next < found.size();) {
        if (expanded[next]) {
            ++next;
            continue;
        }
        expanded[next] = true;
        int64_t n = 0;
        const uint32_t* ids = links.row(found[next].id);
        for (int64_t i = 0; i < links.degree && ids[i] != kNoRow; ++i)
            if (seen.insert(ids[i])) fresh[n++] = ids[i];
        distances()(query, codes, fresh.data(), n, measured.data());
        for (int64_t i = 0; i < n; ++i) {
            const Near near = {measured[i], fresh[i]};
            if (static_cast<int64_t>(found.size()) == ef && !(near < found.back())) continue;
            const auto at = std::lower_bound(found.begin(), found.end(), near) - found.begin();
            if (static_cast<int64_t>(found.size()) == ef) found.pop_back(), expanded.pop_back();
            found.insert(found.begin() + at, near);
            expanded.insert(expanded.begin() + at, false);
            next = std::min(next, static_cast<size_t>(at));
        }
    }
}

void insert_rows(const TwoBitCodes& codes, const Links& links, const uint32_t* order, int64_t start, int64_t stop,
                 const BuildOptions& options) {
    Seen seen(options.ef * links.degree / 2);
    std::vector<Near> found;
    std::vector<uint32_t> kept;
    for (int64_t i = std::max<int64_t>(start, 1); i < stop; ++i) {  // the first row has nobody to be linked to
        const uint32_t row = order[i];
        search(codes, links, codes.row(row), order[0], options.ef, seen, found);
        prune(codes, found, options.kept, options.alpha, kept);
        set_links(links, row, kept);
        for (const uint32_t other : kept) add_link(codes, links, other, row, options);
    }
}

void search_all(const TwoBitCodes& codes, const Links& links, const uint64_t* queries, int64_t n_queries,
                uint32_t entry, int64_t ef, int threads, int64_t* out) {
    const auto run = [&](int64_t first, int64_t stop) {
        Seen seen(std::min(codes.n, ef * links.degree / 2));
        std::vector<Near> found;
        for (int64_t query = first; query < stop; ++query) {
            search(codes, links, queries + 2 * codes.words * query, entry, ef, seen, found);
            for (int64_t i = 0; i < ef; ++i)
                out[query * ef + i] = i < static_cast<int64_t>(found.size()) ? int64_t{found[i].id} : -1;
        }
    };
    const int64_t n = std::max<int64_t>(1, std::min<int64_t>(threads, n_queries));
    std::vector<std::thread> others;  // they end with the call, so that a process may fork between calls
    for (int64_t i = 1; i < n; ++i) {
        const int64_t first = n_queries * i / n, stop = n_queries * (i + 1) / n;
        try {
            others.emplace_back(run, first, stop);
        } catch (const std::exception&) {  // no more threads to be had: do it here
            run(first, stop);
        }
    }
    run(0, n_queries / n);
    for (std::thread& thread : others) thread.join();
}

}  // namespace ragq
