// 3x3 convolution with 8-bit integers as factors: two of them, digits, for each feature and weight.
//
// Features are quantised around each pixel by the largest of them, so that a pixel has the same
// bits wherever an image is cut; weights by their rows. Of the four products of digits that of the
// two low ones is left out. The sums are exact; bias and units are float32, in fused steps.
#pragma once

#include "dot.h"  // before the microkernel, which looks for its functions
#include "pixel_tiles.h"
#include "quantise.h"

namespace diinn {
namespace DIINN_ISA {

// Words of 16 bits hold a feature whole, which spares the product of the high digits: 128 * high *
// high + low * high = whole * high.
constexpr bool kWhole = sizeof(Integer) == 2;
static_assert(int64_t(kMostDigitTerms) * kLargest * (kDigit * kLargest + kDigit) < int64_t(1) << 31,
              "a sum of kMostDigitTerms products of two digits fits in 32 bits");

// total [rows][kPanel] = the products of high with low digits and of second with high ones.
struct KeepMixed {
  float* total;            // bits of integers
  const FineScale* scale;  // of each row
  void prefetch(int64_t, int64_t) const {}
  DIINN_INLINE void operator()(int64_t row, int64_t, const Sums& sums) const {
    for (int r = 0; r < kRows; ++r) {
      float* to = total + (row + r) * kPanel;
      for (int c = 0; c < kPanel; c += kLanes)
        store(to + c, vec(ivec(load(sums[r] + c)) - scale[row + r].both_offset));
    }
  }
};

// total += 128 * the products of high digits.
struct AddHigh {
  float* total;  // bits of integers
  const FineScale* scale;
  void prefetch(int64_t, int64_t) const {}
  DIINN_INLINE void operator()(int64_t row, int64_t, const Sums& sums) const {
    for (int r = 0; r < kRows; ++r) {
      float* to = total + (row + r) * kPanel;
      for (int c = 0; c < kPanel; c += kLanes) {
        const ivec high = ivec(load(sums[r] + c)) - scale[row + r].high_offset;
        store(to + c, vec(high * kDigit + ivec(load(to + c))));
      }
    }
  }
};

// A tile's pixels, from their digits x [rows][2][depth]; total [rows][kPanel] is room.
static inline void convolve_tile(const Convolution& c, const PixelTile& tile,
                                 const IntegerPanels& weights, const Integer* x,
                                 const FineScale* scale, float* total) {
  const int64_t depth = weights.depth();
  for (int64_t panel = 0; panel < weights.count(); ++panel) {
    const Integer* columns = weights.panel(panel);
    product<false>(tile.rows, 2 * depth, x, 2 * depth, columns, 1, KeepMixed{total, scale});
    if (!kWhole) {
      product<false>(tile.rows, depth, x, 2 * depth, columns + depth * kPanel, 1,
                     AddHigh{total, scale});
    }
    const float *unit = weights.units(panel), *bias = c.bias + panel * kPanel;
    for (int64_t n = 0; n < tile.count; ++n) {
      float* out = tile.out + n * c.outputs + panel * kPanel;
      const vec own = splat(kDigit * scale[n].unit);
      for (int i = 0; i < kPanel; i += kLanes) {
        const vec sum = __builtin_convertvector(ivec(load(total + n * kPanel + i)), vec);
        store(out + i, fma(sum * load(unit + i), own, load(bias + i)));
      }
    }
  }
}

static void conv3x3_int8(const Convolution& c) {
  IntegerPanels weights;
  weights.pack(c.taps(), c.outputs / kPanel, c.threads, true,
               [&](int64_t panel, int64_t column, float* out) {
                 const float* row = c.weight + (panel * kPanel + column) * c.taps();
                 for (int64_t k = 0; k < c.taps(); ++k) out[k] = row[from_tap_major(k, c.channels)];
               });
  // Of each thread: the features around a pixel, sums of a panel, scales, digits.
  const int64_t depth = weights.depth(), rows = most_rows(c), totals = rows * kPanel;
  const int64_t scales = round_up(rows * int64_t(sizeof(FineScale) / 4), 16);
  const int64_t scratch_floats =
      round_up(depth + totals + scales + rows * 2 * depth / kPair<Integer>, 16);
  Buffer scratch(scratch_floats * c.threads);
  for_tiles(c, [&](const PixelTile& tile, int thread) {
    const ProductUnit unit;
    float* features = scratch.get() + thread * scratch_floats;
    float* total = features + depth;
    FineScale* scale = reinterpret_cast<FineScale*>(total + totals);
    Integer* x = reinterpret_cast<Integer*>(total + totals + scales);
    memset(features, 0, depth * sizeof(float));  // beyond the taps it stays zero
    const float* image = c.padded + tile.image * (c.rows + 2) * (c.columns + 2) * c.channels;
    for (int64_t n = 0; n < tile.rows; ++n) {
      gather_taps(image, c.columns, c.channels, tile.pixel(n), features);
      Integer* digits = x + n * 2 * depth;
      scale[n] = quantise_finely<kWhole>(features, depth, digits, digits + depth);
    }
    convolve_tile(c, tile, weights, x, scale, total);
  });
}

}  // namespace DIINN_ISA
}  // namespace diinn
