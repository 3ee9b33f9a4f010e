// Where a query lies: its LR pixel, local coordinate and place in the output. The formulas of
// diinn_fast/geometry.py, to the bit. Host and device.
#pragma once

#include "decode.h"
#include "platform.h"

namespace diinn {

// A tile is 64 queries of one image: 8 x 8 pixels of the window, which share LR pixels, or 64
// points.
constexpr int kTile = 64, kTileSide = 8;

struct Query {
  int64_t content;  // element of the source where its LR pixel begins
  int64_t
      out;  // element of the output, -1: none (past the edge; such a query repeats its neighbour)
  int64_t number;  // through the images, row by row
  float dy, dx;
};

DIINN_BOTH int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

DIINN_BOTH int64_t tiles_per_image(const Decode& d) {
  return d.index ? divide_up(d.columns, kTile)
                 : divide_up(d.rows, kTileSide) * divide_up(d.columns, kTileSide);
}
DIINN_BOTH int64_t tile_count(const Decode& d) { return d.batch * tiles_per_image(d); }

// LR index of an HR position along one axis: float32 throughout.
DIINN_BOTH int64_t nearest(int64_t position, float scale, int64_t n_in) {
  const int64_t index = static_cast<int64_t>((static_cast<float>(position) + 0.5f) * scale);
  return index < n_in ? index : n_in - 1;
}

// Local coordinate in LR half-pixels: numerator in int64, one rounding, one IEEE division.
DIINN_BOTH float local(int64_t position, int64_t index, int64_t n_in, int64_t n_out) {
  return static_cast<float>((2 * position + 1) * n_in - (2 * index + 1) * n_out) /
         static_cast<float>(n_out);
}

// Query m of a tile; a tile past the last one has queries without output.
DIINN_BOTH Query locate(const Decode& d, int64_t tile, int m) {
  const int64_t each = tiles_per_image(d), total = d.batch * each;
  bool exists = tile < total;
  tile = exists ? tile : total - 1;
  const int64_t image = tile / each;
  tile -= image * each;
  Query query;
  int64_t row, column;
  if (d.index) {
    int64_t n = tile * kTile + m;
    exists = exists && n < d.columns;
    n = n < d.columns ? n : d.columns - 1;
    const int64_t at = image * d.columns + n, pixel = d.index[at];
    const bool inside = pixel >= 0 && pixel < d.grid_rows * d.grid_columns;
    row = inside ? pixel / d.grid_columns : 0;
    column = inside ? pixel % d.grid_columns : 0;
    // An index outside the source gives NaN, not another pixel.
    query.dy = inside ? d.offset[2 * at] : bit_cast<float>(0x7FC00000u);
    query.dx = d.offset[2 * at + 1];
    query.number = at;
    query.out = image * d.out_image + n * d.out_column;
  } else {
    const int64_t across = divide_up(d.columns, kTileSide);
    int64_t y = tile / across * kTileSide + m / kTileSide,
            x = tile % across * kTileSide + m % kTileSide;
    exists = exists && y < d.rows && x < d.columns;
    y = y < d.rows ? y : d.rows - 1;
    x = x < d.columns ? x : d.columns - 1;
    query.number = (image * d.rows + y) * d.columns + x;
    query.out = image * d.out_image + y * d.out_row + x * d.out_column;
    y += d.y0;
    x += d.x0;
    const int64_t i = nearest(y, d.scale_y, d.lr_h), j = nearest(x, d.scale_x, d.lr_w);
    query.dy = local(y, i, d.lr_h, d.hr_h);
    query.dx = local(x, j, d.lr_w, d.hr_w);
    row = i - d.origin_y;
    column = j - d.origin_x;
  }
  query.content = image * d.source_image + row * d.source_row + column * d.source_column;
  query.out = exists ? query.out : -1;
  return query;
}

}  // namespace diinn
