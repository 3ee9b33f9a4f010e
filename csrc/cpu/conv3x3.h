// 3x3 convolution as gathered rows times packed weights: every pixel is summed in the same order,
// wherever an image is cut.
#pragma once

#include "network.h"

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

static void conv3x3(const float* padded, const float* weight, const float* bias, float* out,
                    int64_t batch, int64_t rows, int64_t columns, int64_t channels,
                    int64_t out_channels, int threads) {
  const int64_t taps = 9 * channels, stride = taps + 16, pixels = rows * columns;
  int64_t tile = round_up((batch * pixels + threads - 1) / threads, kRows);
  if (tile > 96) tile = 96;
  const int64_t tiles = (pixels + tile - 1) / tile, scratch_floats = round_up(tile * stride, 16);
  Panels<float> panels;
  panels.pack({weight, taps, out_channels, 1, taps, channels}, threads);
  Buffer scratch(scratch_floats * threads);
  parallel(batch * tiles, threads, [&](int64_t index, int thread) {
    const int64_t image = index / tiles, first = index % tiles * tile;
    const int64_t count = pixels - first < tile ? pixels - first : tile, last = first + count - 1;
    const float* source = padded + image * (rows + 2) * (columns + 2) * channels;
    float* x = scratch.get() + thread * scratch_floats;
    for (int64_t n = 0; n < round_up(count, kRows); ++n) {
      gather_taps(source, columns, channels, first + n < last ? first + n : last, x + n * stride);
    }
    product(round_up(count, kRows), x, stride, panels,
            StoreRows{out + (image * pixels + first) * out_channels, count, out_channels, bias});
  });
}

}  // namespace DIINN_ISA
}  // namespace diinn
