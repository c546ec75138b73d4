// The inner loops that every instruction set provides, as plain functions over runs of rows.
//
// Files compiled for a wide instruction set hold nothing but these loops: no allocation, no standard containers and no
// inline library functions, whose shared copies the linker could otherwise pick from such a file and run on a processor
// that lacks the instructions. Thresholds, top-k and threads live in the baseline files.
#pragma once

#include <cstdint>

namespace ragq {

constexpr int64_t kBlockRows = 32;
constexpr int kMaxQueries = 8;    // queries that one call of a lut loop scans together
constexpr int kMaxEntry = 63;     // largest rounded table entry: four of them fit a byte
constexpr int64_t kTileRows = 16; // rows that the dense loop decodes at once

// Consecutive blocks of 32 rows; byte r of group j of a block holds codes 2j and 2j + 1 of row r in its nibbles.
struct LutRun {
    const uint8_t* codes;   // 4-bit codes, or the high nibbles of 8-bit ones
    const uint8_t* low;     // low nibbles of 8-bit codes
    int64_t pairs;          // 32-byte groups a block
    int64_t blocks;
    const uint16_t* scale;  // fp16 factors of the first row on, or null
    const uint16_t* shift;
    int64_t group;          // plane: triples of bytes of a row whose entries add up to at most 255
    int folds;              // plane: -1, or the sum of a row is the mean of those of 2^folds groups
    uint8_t* scratch;       // lut8, plane: room for scratch_bytes(blocks, pairs)
    bool fresh;             // plane: the scratch does not hold these codes yet
};

// Room for the byte codes of blocks in pairs, which lut8 and plane sum for one query after the other.
constexpr int64_t scratch_bytes(int64_t blocks, int64_t pairs) { return (blocks + 1) / 2 * 64 * 2 * (pairs + 2); }

// A plane's tables for three bytes, 24 dimensions: 64 entries each for the first six bits of every byte, and for the
// last two bits of all three.
constexpr int64_t kTripleTable = 256;

// A query's rounded tables and the rows it still wants.
struct LutQuery {
    // lut4: `Loops::copies` of each 16-byte table; lut8: 256 bytes a sub-quantizer; plane: see `kTripleTable`
    const uint8_t* tables;
    uint32_t threshold;     // without a scale in the run: a row is hit when its sum of entries is at least this
    float base, step;       // with one: raw score = base + step * sum, at most `slack` more
    float slack;
    float shift_weight;
    float floor;            // a row is hit unless its bound is below this
    uint32_t* hits;         // out: one word of 32 row bits a block
    uint16_t* sums;         // out: 32 sums a block, those of blocks without hits left out
    bool all_sums = false;  // but not here: many blocks have hits and many have none, which is hard to foresee
};

struct HammingQuery {
    const uint8_t* code;
    int64_t limit;          // a row is hit when at most this many bits differ
    uint32_t* hits;
};

enum class Value : int { f32, f16, bf16, i8, e4m3, e5m2, affine, levels16, levels };

// Rows of one number a dimension.
struct DenseRun {
    Value value;
    const uint8_t* codes;
    int64_t stride;         // bytes from row to row
    int64_t rows, dim;
    const float* levels;    // affine: slope and offset; levels16, levels: the value of each byte
    const float* queries;   // padded with zeros to `padded` floats each
    int64_t padded;         // a multiple of 16
    int64_t n_queries;
    float* tile;            // room for kTileRows * padded floats
    float* out;             // raw scores, (n_queries, rows)
};

// A query in 16-bit words, and in the bytes that they are: word = 256 * high + low. Padded with zeros.
struct WordQuery {
    const int16_t* words;
    const int8_t *high, *low;
    int32_t sum;            // of the words
};

struct Loops {
    const char* name;
    int copies;  // how often a 16-byte table is repeated for lut4; 2: tables of two pairs are interleaved
    bool whole_bytes;  // lut8 keeps a table in registers: looking at the high nibbles first gains less
    void (*lut4)(const LutRun&, const LutQuery*, int n_queries);
    void (*lut8)(const LutRun&, const LutQuery*, int n_queries);
    // One bit a dimension, six at once; null where there is no instruction for it: `lut4` does, too.
    void (*plane)(const LutRun&, const LutQuery*, int n_queries);
    void (*hamming)(const uint8_t* codes, int64_t width, int64_t rows, const HammingQuery*, int n_queries);
    void (*dense)(const DenseRun&);
    // Rows of signed bytes times a query, whose products must add up in 32 bits; returns the largest sum.
    int32_t (*dots_i8)(const uint8_t* codes, int64_t stride, int64_t rows, int64_t dim, const WordQuery&, int32_t* out);
    void (*join_planes)(const uint8_t* const* planes, int64_t width, int bits, uint8_t* codes);
    // The sum of the weights of the bits that are set in `n` rows of bits, `widths` bytes each; 64 weights for each 8
    // bytes of a row, also for the last ones.
    int32_t (*weigh_bits)(const uint8_t* const* bits, const int64_t* widths, int n, const int8_t* weights);
};

extern const Loops loops_scalar;
#if defined(__x86_64__)
extern const Loops loops_avx2;
extern const Loops loops_avx512;
#elif defined(__aarch64__)
extern const Loops loops_neon;
#endif

}  // namespace ragq
