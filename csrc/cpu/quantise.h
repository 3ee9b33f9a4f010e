// From float32 to 8-bit integers and back: rows of a product's input as they are made, the weights,
// and the sums.
//
// A row x becomes n = round(x * (127 / a)) to the nearest even, in one fused step, with a = max
// |x|; it stands for n * (a / 127). Or, finer, n = round(x * (16256 / a)) in two digits: n = 128 *
// high + low, high of -127..127 and low of -64..63. A row with NaN or infinity has the unit NaN, so
// that all that comes of it is NaN; a row that nowhere reaches 2^-100 counts as zero.
#pragma once

#include "dot.h"
#include "gemm.h"

namespace diinn {
namespace DIINN_ISA {

constexpr int kDigit = 128, kFinest = kLargest * kDigit;

// Rows end on whole vectors of every instruction set.
constexpr int64_t kDepthUnit = kDepth<Integer> > 16 ? kDepth<Integer> : 16;

struct Scale {
  float unit;           // what 1 stands for
  int32_t offset_sums;  // of the integers, times kWeightOffset
};

struct FineScale {
  float unit;
  int32_t high_offset, both_offset;  // of the high digits; of these and the second ones
};

// The lanes of a vector of N integers, by halves: as one by `combine(a, b)`.
template <int N>
struct Lanes {
  typedef int32_t type __attribute__((vector_size(4 * N), may_alias));

  template <class Combine>
  static DIINN_INLINE int32_t reduce(type v, const Combine& combine) {
    typename Lanes<N / 2>::type halves[2];
    memcpy(halves, &v, sizeof halves);
    return Lanes<N / 2>::reduce(combine(halves[0], halves[1]), combine);
  }
};
template <>
struct Lanes<1> {
  typedef int32_t type;
  template <class Combine>
  static DIINN_INLINE int32_t reduce(type v, const Combine&) {
    return v;
  }
};

static DIINN_INLINE int32_t largest_lane(ivec v) {
  return Lanes<kLanes>::reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}

static DIINN_INLINE int32_t sum_of_lanes(ivec v) {
  return Lanes<kLanes>::reduce(v, [](auto a, auto b) { return a + b; });
}

// The largest magnitude of `count` numbers, a multiple of kLanes; NaN if one is not finite, 0 if
// none reaches 2^-100.
static inline float magnitude(const float* x, int64_t count) {
  // Without the sign the bits of floats are in the order of the floats, NaN the largest.
  ivec most{};
  for (int64_t j = 0; j < count; j += kLanes) {
    const ivec bits = ivec(load(x + j)) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  const int32_t bits = largest_lane(most);
  float largest;
  memcpy(&largest, &bits, sizeof largest);
  if (bits >= 0x7f800000) return __builtin_nanf("");
  return largest < 0x1p-100f ? 0.0f : largest;
}

// round(x * inverse): the sum with 1.5 * 2^23 has the rounded integer in its last bits.
static DIINN_INLINE ivec rounded(const float* x, vec inverse) {
  constexpr int32_t kMagicBits = 0x4b400000;
  return ivec(fma(load(x), inverse, splat(12582912.0f))) - kMagicBits;
}

// Quantises `count` numbers, a multiple of kLanes.
static inline Scale quantise(const float* x, int64_t count, Integer* out) {
  const float largest = magnitude(x, count);
  if (!(largest > 0)) {
    memset(out, 0, count * sizeof(Integer));
    return {largest, 0};
  }
  const vec inverse = splat(kLargest / largest);
  ivec sum{};
  for (int64_t j = 0; j < count; j += kLanes) {
    const ivec n = rounded(x + j, inverse);
    if (kWeightOffset) sum += n;
    store_integers(out + j, n);
  }
  return {largest / kLargest, sum_of_lanes(sum) * kWeightOffset};
}

// The same in two digits. kWhole: `second` becomes n itself, not its low digit.
template <bool kWhole>
static inline FineScale quantise_finely(const float* x, int64_t count, Integer* high,
                                        Integer* second) {
  const float largest = magnitude(x, count);
  if (!(largest > 0)) {
    memset(high, 0, count * sizeof(Integer));
    memset(second, 0, count * sizeof(Integer));
    return {largest, 0, 0};
  }
  const vec inverse = splat(kFinest / largest);
  ivec high_sum{}, second_sum{};
  for (int64_t j = 0; j < count; j += kLanes) {
    const ivec n = rounded(x + j, inverse);
    const ivec h = (n + kDigit / 2) >> 7;
    const ivec rest = kWhole ? n : n - h * kDigit;
    if (kWeightOffset) {
      high_sum += h;
      second_sum += rest;
    }
    store_integers(high + j, h);
    store_integers(second + j, rest);
  }
  const int32_t own = sum_of_lanes(high_sum) * kWeightOffset;
  return {largest / kFinest, own, own + sum_of_lanes(second_sum) * kWeightOffset};
}

// The microkernel's sums of a row, in columns whose units are given: what they stand for in units
// of the row.
static DIINN_INLINE vec scaled(const float* sums, const float* unit, const Scale& own) {
  const ivec total = ivec(load(sums)) - own.offset_sums;
  return __builtin_convertvector(total, vec) * load(unit);
}

// Panels of columns of weights as integers, each column (an output of the layer) with a unit of its
// own. Columns end on whole vectors of every instruction set, with zeros. Of weights in two digits
// a column has all low digits before the high ones.
class IntegerPanels {
 public:
  // read(panel, c, out) gives the `depth` weights of column c of a panel.
  template <class Read>
  void pack(int64_t depth, int64_t count, int threads, bool finely, const Read& read) {
    depth_ = round_up(depth, kDepthUnit);
    finely_ = finely;
    data_.reset(count * kPanel * words());
    units_.reset(count * kPanel);
    count_ = count;
    parallel(count, threads, [&](int64_t panel, int) { pack_panel(panel, read); });
  }
  int64_t depth() const { return depth_; }  // of a digit
  int64_t count() const { return count_; }
  const Integer* panels() const { return panel(0); }
  const Integer* panel(int64_t n) const {
    return reinterpret_cast<const Integer*>(data_.get() + n * kPanel * words());
  }
  // What 1 stands for, of each column of a panel.
  const float* units(int64_t panel) const { return units_.get() + panel * kPanel; }

 private:
  int64_t integers() const { return finely_ ? 2 * depth_ : depth_; }  // of a column
  int64_t words() const { return integers() / kPair<Integer>; }

  template <class Read>
  void pack_panel(int64_t panel, const Read& read) {
    Buffer exact(depth_), buffer(words());
    Integer* column = reinterpret_cast<Integer*>(buffer.get());
    const Word* from = reinterpret_cast<const Word*>(buffer.get());
    Word* out = reinterpret_cast<Word*>(data_.get()) + panel * words() * kPanel;
    memset(exact.get(), 0, depth_ * sizeof(float));
    for (int64_t c = 0; c < kPanel; ++c) {
      read(panel, c, exact.get());
      float& unit = units_.get()[panel * kPanel + c];
      unit = finely_ ? quantise_finely<false>(exact.get(), depth_, column + depth_, column).unit
                     : quantise(exact.get(), depth_, column).unit;
      if (kWeightOffset) {
        for (int64_t k = 0; k < integers(); ++k) column[k] = Integer(column[k] + kWeightOffset);
      }
      for (int64_t k = 0; k < words(); ++k) out[k * kPanel + c] = from[k];
    }
  }

  Buffer data_, units_;
  int64_t depth_ = 0, count_ = 0;
  bool finely_ = false;
};

}  // namespace DIINN_ISA
}  // namespace diinn
