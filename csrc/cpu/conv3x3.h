// 3x3 convolution as gathered rows times packed weights: every pixel is summed in the same order,
// wherever an image is cut.
#pragma once

#include "pixel_tiles.h"

namespace diinn {
namespace DIINN_ISA {

// out rows = sums + bias; rows beyond `count` are padding and not written.
struct StoreRows {
  float* out;
  int64_t count, stride;
  const float* bias;
  void prefetch(int64_t, int64_t) const {}
  DIINN_INLINE void operator()(int64_t row, int64_t panel, const Sums& sums) const {
    for (int64_t r = 0; r < kRows && row + r < count; ++r) {
      float* to = out + (row + r) * stride + panel * kPanel;
      for (int c = 0; c < kPanel; c += kLanes)
        store(to + c, load(sums[r] + c) + load(bias + panel * kPanel + c));
    }
  }
};

static void conv3x3(const Convolution& c) {
  const int64_t stride = c.taps() + 16;
  const int64_t scratch_floats = round_up(most_rows(c) * stride, 16);
  Panels<float> panels;
  panels.pack({c.weight, c.taps(), c.outputs, 1, c.taps(), c.channels}, c.threads);
  Buffer scratch(scratch_floats * c.threads);
  for_tiles(c, [&](const PixelTile& tile, int thread) {
    const float* source = c.padded + tile.image * (c.rows + 2) * (c.columns + 2) * c.channels;
    float* x = scratch.get() + thread * scratch_floats;
    for (int64_t n = 0; n < tile.rows; ++n)
      gather_taps(source, c.columns, c.channels, tile.pixel(n), x + n * stride);
    product(tile.rows, x, stride, panels, StoreRows{tile.out, tile.count, c.outputs, c.bias});
  });
}

}  // namespace DIINN_ISA
}  // namespace diinn
