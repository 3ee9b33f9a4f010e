// From float32 to 8-bit integers and back: rows of a product's input as they are made, the weights,
// and the sums.
//
// A row x becomes n = round(x * (127 / a)) to the nearest even, in one fused step, with a = max
// |x|; it stands for n * (a / 127). A row with NaN or infinity has the scale NaN, so that all that
// comes of it is NaN; a row that nowhere reaches 2^-100 counts as zero.
#pragma once

#include "dot.h"
#include "gemm.h"

namespace diinn {
namespace DIINN_ISA {

struct Scale {
  float unit;           // what 1 stands for
  int32_t offset_sums;  // of the integers, times kWeightOffset
};

static inline int32_t largest_lane(ivec v) {
  int32_t largest = v[0];
  for (int i = 1; i < kLanes; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// Quantises `count` numbers, a multiple of kLanes.
static inline Scale quantise(const float* x, int64_t count, Integer* out) {
  // Without the sign the bits of floats are in the order of the floats, NaN the largest.
  ivec most{};
  for (int64_t j = 0; j < count; j += kLanes) {
    const ivec bits = ivec(load(x + j)) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  const int32_t bits = largest_lane(most);
  float largest;
  memcpy(&largest, &bits, sizeof largest);
  const bool finite = bits < 0x7f800000;
  if (!finite || largest < 0x1p-100f) {
    memset(out, 0, count * sizeof(Integer));
    return {finite ? 0.0f : __builtin_nanf(""), 0};
  }

  // The sum with 1.5 * 2^23 has the rounded integer in its last bits.
  constexpr int32_t kMagicBits = 0x4b400000;
  const vec inverse = splat(kLargest / largest), magic = splat(12582912.0f);
  ivec sum{};
  for (int64_t j = 0; j < count; j += kLanes) {
    const ivec n = ivec(fma(load(x + j), inverse, magic)) - kMagicBits;
    if (kWeightOffset) sum += n;
    store_integers(out + j, n);
  }
  int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += sum[i];
  return {largest / kLargest, total * kWeightOffset};
}

// The microkernel's sums of a row, in columns whose units are given: what they stand for in units
// of the row.
static DIINN_INLINE vec scaled(const float* sums, const float* unit, const Scale& own) {
  const ivec total = ivec(load(sums)) - own.offset_sums;
  return __builtin_convertvector(total, vec) * load(unit);
}

// Panels of columns of weights as integers, each column (an output of the layer) with a scale of
// its own. Columns end on whole vectors of every instruction set, with zeros.
class IntegerPanels {
 public:
  // read(panel, c, out) gives the `depth` weights of column c of a panel.
  template <class Read>
  void pack(int64_t depth, int64_t count, int threads, const Read& read) {
    depth_ = round_up(depth, 16);
    count_ = count;
    data_.reset(count * kPanel * depth_ / kPair<Integer>);
    units_.reset(count * kPanel);
    parallel(count, threads, [&](int64_t panel, int) { pack_panel(panel, read); });
  }
  int64_t depth() const { return depth_; }
  int64_t count() const { return count_; }
  const Integer* panels() const { return reinterpret_cast<const Integer*>(data_.get()); }
  // What 1 stands for, of each column of a panel.
  const float* units(int64_t panel) const { return units_.get() + panel * kPanel; }

 private:
  template <class Read>
  void pack_panel(int64_t panel, const Read& read) {
    const int64_t depth_words = depth_ / kPair<Integer>;
    Buffer exact(depth_), rounded(depth_words);
    Integer* column = reinterpret_cast<Integer*>(rounded.get());
    const Word* words = reinterpret_cast<const Word*>(rounded.get());
    Word* out = reinterpret_cast<Word*>(data_.get()) + panel * depth_words * kPanel;
    memset(exact.get(), 0, depth_ * sizeof(float));
    for (int64_t c = 0; c < kPanel; ++c) {
      read(panel, c, exact.get());
      units_.get()[panel * kPanel + c] = quantise(exact.get(), depth_, column).unit;
      if (kWeightOffset) {
        for (int64_t k = 0; k < depth_; ++k) column[k] = Integer(column[k] + kWeightOffset);
      }
      for (int64_t k = 0; k < depth_words; ++k) out[k * kPanel + c] = words[k];
    }
  }

  Buffer data_, units_;
  int64_t depth_ = 0, count_ = 0;
};

}  // namespace DIINN_ISA
}  // namespace diinn
