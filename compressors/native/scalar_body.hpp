// The loops of scalar.hpp, included once by the file of each instruction set with LANES and NAME (see tiles_body.hpp).
#include <cstring>

#include "scalar.hpp"

namespace ragq {
namespace {

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef std::int32_t Int __attribute__((vector_size(LANES * 4)));

inline Int truncate(Vec v) { return __builtin_convertvector(v, Int); }
inline Vec to_float(Int v) { return __builtin_convertvector(v, Vec); }
inline Vec select(Int condition, Vec a, Vec b) { return condition ? a : b; }
inline Vec clamp(Vec v, float low, float high) {
  v = v > low ? v : Vec{} + low;
  return v < high ? v : Vec{} + high;
}

void load_columns(const float* x, std::size_t rows, std::size_t dim, Vec* columns) {
  for (int l = 0; l < LANES; ++l) {
    const float* row = x + (static_cast<std::size_t>(l) < rows ? l : rows - 1) * dim;
    float* lane = reinterpret_cast<float*>(columns) + l;
    for (std::size_t j = 0; j < dim; ++j) lane[j * LANES] = row[j];
  }
}

void walsh_hadamard(Vec* v, std::size_t length) {
  for (std::size_t half = 1; half < length; half *= 2)
    for (std::size_t start = 0; start < length; start += 2 * half)
      for (std::size_t j = start; j < start + half; ++j) {
        const Vec a = v[j], b = v[j + half];
        v[j] = a + b;
        v[j + half] = a - b;
      }
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(length));
  for (std::size_t j = 0; j < length; ++j) v[j] *= scale;
}

void mix_blocks(Vec* v, std::size_t dim) {
  std::size_t start = 0;
  for (std::size_t length = std::size_t{1} << 40; length > 1; length /= 2) {
    if (!(dim & length)) continue;
    walsh_hadamard(v + start, length);
    start += length;
  }
}

void hadamard(const HadamardSpec& spec, const float* x, std::size_t rows, float* out, float* scratch) {
  const std::size_t dim = spec.dim;
  Vec *now = reinterpret_cast<Vec*>(scratch), *next = now + dim;
  load_columns(x, rows, dim, now);
  for (std::size_t i = 0; i < spec.rounds; ++i) {
    const std::size_t at = (spec.inverse ? spec.rounds - 1 - i : i) * dim;
    if (spec.inverse) {
      mix_blocks(now, dim);
      for (std::size_t j = 0; j < dim; ++j) next[spec.order[at + j]] = now[j] * spec.signs[at + j];
    } else {
      for (std::size_t j = 0; j < dim; ++j) next[j] = now[spec.order[at + j]] * spec.signs[at + j];
      mix_blocks(next, dim);
    }
    Vec* swap = now;
    now = next;
    next = swap;
  }
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < dim; ++j) out[i * dim + j] = reinterpret_cast<const float*>(now + j)[i];
}

inline Vec look_up(const float* table, Int code) {
  Vec v;
  for (int l = 0; l < LANES; ++l) v[l] = table[code[l]];
  return v;
}

// The code of the nearest level: by arithmetic when levels are uniform, else by bisection of the midpoints.
inline Int nearest(const PlanesSpec& spec, int bits, Vec v) {
  const int last = (1 << bits) - 1;
  if (spec.uniform) return truncate(clamp(v + static_cast<float>(1 << (bits - 1)), 0.0f, static_cast<float>(last)));
  const float* edges = spec.edges + (1 << bits) - 2;
  Int code{};
  if (bits <= 4) {
    for (int c = 0; c < last; ++c) code -= v > edges[c];
    return code;
  }
  for (int half = 1 << (bits - 1); half > 0; half /= 2) code += (v > look_up(edges, code + (half - 1))) & half;
  return code;
}

inline Vec value(const PlanesSpec& spec, int bits, Int code) {
  if (spec.uniform) return to_float(code) + 0.5f * (1.0f - static_cast<float>(1 << bits));
  return look_up(spec.levels + (1 << bits) - 2, code);
}

// The multiple of each row whose nearest code has the highest cosine with it.
Vec best_scale(const PlanesSpec& spec, const Vec* z, Vec unit) {
  Vec best = Vec{} + spec.scales[0], best_cosine = Vec{} - 1.0f;
  if (spec.n_scales == 1) return best;
  for (std::size_t t = 0; t < spec.n_scales; t += kScalesAtOnce) {
    Vec dot[kScalesAtOnce] = {}, square[kScalesAtOnce] = {};
    for (std::size_t j = 0; j < spec.dim; ++j) {
      const int bits = spec.bits[j];
      const Vec x = z[j] * unit;
      for (std::size_t i = 0; i < kScalesAtOnce; ++i) {
        const Vec v = x * spec.ratios[(t + i) * spec.dim + j];
        const Vec q = value(spec, bits, nearest(spec, bits, v));
        dot[i] += v * q;
        square[i] += q * q;
      }
    }
    for (std::size_t i = 0; i < kScalesAtOnce && t + i < spec.n_scales; ++i) {
      const float scale = spec.scales[t + i];
      const Vec cosine = dot[i] * dot[i] / (square[i] * (scale * scale) + 1e-30f);
      best = select(cosine > best_cosine, Vec{} + scale, best);
      best_cosine = select(cosine > best_cosine, cosine, best_cosine);
    }
  }
  return best;
}

// Sums that say how good a code is: its error is zw - 2 g b + g^2 c with g = zu / a (SAQ's code adjustment, weighted).
struct Sums {
  Vec zu{}, zw{}, a{}, b{}, c{};
};

inline Vec error_of(const Sums& s, Vec a, Vec b, Vec c) {
  const Vec g = s.zu / a;
  return s.zw + g * (g * c - 2.0f * b);
}

Sums sums_of(const PlanesSpec& spec, const Vec* z, const Vec* v) {
  Sums s;
  for (std::size_t j = 0; j < spec.dim; ++j) {
    const Vec uz = z[j] * spec.along[j], wz = z[j] * spec.noise[j];
    s.zu += uz * z[j];
    s.zw += wz * z[j];
    s.a += uz * v[j];
    s.b += wz * v[j];
    s.c += v[j] * v[j] * spec.noise[j];
  }
  return s;
}

// One pass over the coordinates: each moves to the neighbouring level that lowers the error, or stays.
void adjust(const PlanesSpec& spec, const Vec* z, Vec* v, Int* code) {
  Sums s = sums_of(spec, z, v);
  Vec error = error_of(s, s.a, s.b, s.c);
  const int stride = spec.coded ? 2 : 1;  // the last bit belongs to the word
  for (std::size_t j = 0; j < spec.dim && spec.bits[j]; ++j) {
    const int bits = spec.bits[j], last = (1 << bits) - 1;
    const Vec uz = z[j] * spec.along[j], wz = z[j] * spec.noise[j];
    Vec move{}, lowest = error * 0.999999f;
    Int to = code[j];
    for (int side = -stride; side <= stride; side += 2 * stride) {
      Int other = code[j] + side;
      other = (other < 0) | (other > last) ? code[j] : other;
      const Vec delta = value(spec, bits, other) * spec.step[j] - v[j];
      const Vec a = s.a + uz * delta;
      const Vec e = error_of(s, a, s.b + wz * delta, s.c + delta * (2.0f * v[j] + delta) * spec.noise[j]);
      const Int better = (e < lowest) & (a > 0.0f);
      lowest = select(better, e, lowest);
      move = select(better, delta, move);
      to = better ? other : to;
    }
    error = select(move != 0.0f, lowest, error);
    s.a += uz * move;
    s.b += wz * move;
    s.c += move * (2.0f * v[j] + move) * spec.noise[j];
    v[j] += move;
    code[j] = to;
  }
}

// Codes of the coordinates [start, stop) of one segment whose last bits form the word of least error.
void nearest_word(const PlanesSpec& spec, const Vec* z, Vec unit, std::size_t start, std::size_t stop, Int* code) {
  Int other[8];
  Vec odd[8];  // error with last bit 1, less that with last bit 0
  for (std::size_t j = start; j < stop; ++j) {
    const int bits = spec.bits[j], last = (1 << bits) - 1;
    const Vec v = z[j] * unit * (1.0f / spec.step[j]);
    const Int c = nearest(spec, bits, v);
    const Vec gap = v - value(spec, bits, c);
    Int d = gap > 0.0f ? c + 1 : c - 1;  // the neighbour on the row's side has the other last bit
    d = d < 0 ? Int{} + 1 : (d > last ? Int{} + (last - 1) : d);
    const Vec far = v - value(spec, bits, d);
    const Vec more = (far * far - gap * gap) * (spec.noise[j] * spec.step[j] * spec.step[j]);
    odd[j - start] = (c & 1) == 0 ? more : -more;
    code[j] = c;
    other[j - start] = d;
  }
  Vec lowest{};
  Int best{};
  for (int m = 1; m < 16; ++m) {
    Vec error{};
    for (std::size_t j = 0; j < stop - start; ++j)
      if (kWords[m] >> j & 1) error += odd[j];
    best = error < lowest ? Int{} + kWords[m] : best;
    lowest = error < lowest ? error : lowest;
  }
  for (std::size_t j = start; j < stop; ++j) {
    const Int bit = (best >> static_cast<int>(j - start)) & 1;
    code[j] = (code[j] & 1) == bit ? code[j] : other[j - start];
  }
}

void store_planes(const PlanesSpec& spec, const Int* code, std::size_t rows, std::uint8_t* codes) {
  std::size_t at = 0;
  for (int p = 0; p < spec.bits[0] - spec.coded; ++p) {
    std::size_t covered = 0;
    while (covered < spec.dim && spec.bits[covered] > p + spec.coded) ++covered;
    for (std::size_t start = 0; start < covered; start += 8, ++at) {
      Int byte{};
      for (std::size_t j = start; j < covered && j < start + 8; ++j)
        byte |= ((code[j] >> (spec.bits[j] - 1 - p)) & 1) << static_cast<int>(j - start);
      for (std::size_t i = 0; i < rows; ++i) codes[i * spec.width + at] = static_cast<std::uint8_t>(byte[i]);
    }
  }
  if (!spec.coded) return;
  std::size_t live = 0;
  while (live < spec.dim && spec.bits[live]) ++live;
  for (std::size_t start = 0; start < live; start += 16, ++at) {  // two words a byte, the first in the low nibble
    Int byte{};
    for (std::size_t half = 0; half < 16; half += 8)
      for (std::size_t j = start + half; j < live && j < start + half + 4; ++j)
        byte |= (code[j] & 1) << static_cast<int>(j - start - half / 2);
    for (std::size_t i = 0; i < rows; ++i) codes[i * spec.width + at] = static_cast<std::uint8_t>(byte[i]);
  }
}

// Multiplies each row by a power of two that brings its largest number near 1, so that no square leaves the range of a
// float, and no other bit changes; returns the powers.
Vec shrink_rows(Vec* z, std::size_t dim) {
  Vec largest{};
  for (std::size_t j = 0; j < dim; ++j) {
    const Vec size = z[j] < 0.0f ? -z[j] : z[j];
    largest = size > largest ? size : largest;
  }
  Vec powers = Vec{} + 1.0f;
  for (int l = 0; l < LANES; ++l) {
    int exponent = 0;
    if (largest[l] > 0) (void)__builtin_frexpf(largest[l], &exponent);
    powers[l] = __builtin_ldexpf(1.0f, exponent > 126 ? -126 : exponent < -126 ? 126 : -exponent);
  }
  for (std::size_t j = 0; j < dim; ++j) z[j] *= powers;
  return powers;
}

void planes(const PlanesSpec& spec, const float* x, std::size_t rows, std::uint8_t* codes, float* factor,
            float* scratch) {
  const std::size_t dim = spec.dim;
  Vec *z = reinterpret_cast<Vec*>(scratch), *v = z + dim;
  Int* code = reinterpret_cast<Int*>(v + dim);
  load_columns(x, rows, dim, z);
  const Vec shrink = shrink_rows(z, dim);
  Vec unit = 1.0f / shrink;
  if (spec.normalise) {
    Vec square{};
    for (std::size_t j = 0; j < dim; ++j) square += z[j] * z[j];
    for (int l = 0; l < LANES; ++l) unit[l] = square[l] > 0 ? 1.0f / __builtin_sqrtf(square[l]) : 0.0f;
  }
  unit *= best_scale(spec, z, unit);
  std::size_t live = 0;
  while (live < dim && spec.bits[live]) ++live;
  for (std::size_t j = live; j < dim; ++j) code[j] = Int{};
  if (spec.coded) {
    for (std::size_t j = 0; j < live; j += 8) nearest_word(spec, z, unit, j, j + 8 < live ? j + 8 : live, code);
  } else {
    for (std::size_t j = 0; j < live; ++j)
      code[j] = nearest(spec, spec.bits[j], z[j] * unit * (1.0f / spec.step[j]));
  }
  for (std::size_t j = 0; j < dim; ++j) {
    const int bits = spec.bits[j];
    v[j] = bits ? value(spec, bits, code[j]) * spec.step[j] : Vec{};
  }
  for (int round = 0; round < spec.rounds; ++round) adjust(spec, z, v, code);
  const Sums s = sums_of(spec, z, v);
  for (std::size_t i = 0; i < rows; ++i) factor[i] = s.a[i] > 0 ? s.zu[i] / s.a[i] / shrink[i] : 0.0f;
  store_planes(spec, code, rows, codes);
}

}  // namespace

extern const ScalarKernels NAME;
const ScalarKernels NAME = {LANES, hadamard, planes};

}  // namespace ragq
