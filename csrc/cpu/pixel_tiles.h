// What the 3x3 convolutions of float32 and of 8-bit integers share: tiles of pixels.
#pragma once

#include "network.h"

namespace diinn {
namespace DIINN_ISA {

// Pixels of one image, padded to whole kRows by repeating the last one.
struct PixelTile {
  int64_t image, first, count, rows;
  float* out;  // of the first pixel

  int64_t pixel(int64_t row) const { return first + (row < count ? row : count - 1); }
};

// Rows of a tile: small images are shared among the threads.
static inline int64_t most_rows(const Convolution& c) {
  const int64_t most = 96;
  const int64_t share = round_up((c.batch * c.pixels() + c.threads - 1) / c.threads, kRows);
  return share < most ? share : most;
}

// Calls work(tile, thread) for all pixels.
template <class Work>
void for_tiles(const Convolution& c, const Work& work) {
  const int64_t rows = most_rows(c), tiles = (c.pixels() + rows - 1) / rows;
  parallel(c.batch * tiles, c.threads, [&](int64_t index, int thread) {
    const int64_t image = index / tiles, first = index % tiles * rows;
    const int64_t count = c.pixels() - first < rows ? c.pixels() - first : rows;
    work(PixelTile{image, first, count, round_up(count, kRows),
                   c.out + (image * c.pixels() + first) * c.outputs},
         thread);
  });
}

}  // namespace DIINN_ISA
}  // namespace diinn
