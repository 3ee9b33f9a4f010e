// A decode as the launchers take it (diinn_fast/backends/cuda.py mirrors the struct), and the
// launchers' C interface. Plain C types, no framework headers. What is computed: diinn_fast/ops.py,
// forms content and modulation.
#pragma once

#include <stdint.h>

namespace diinn {

constexpr int kWidth = 256;        // hidden width H
constexpr int kMostLayers = 16;    // L
constexpr int kMostChannels = 32;  // of the output

enum Type : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// All strides and offsets count elements and are 64 bits wide. Device pointers; those to source,
// position and weights are 16-byte aligned, and the source's strides are multiples of 8.
struct Decode {
  // Queries: the window [y0, y0 + rows) x [x0, x0 + columns) of the HR grid, or, with an index,
  // rows = 1 and `columns` points per image.
  int64_t batch, lr_h, lr_w, hr_h, hr_w;
  int64_t origin_y, origin_x, grid_rows,
      grid_columns;  // LR pixel where the source begins, and its size
  int64_t y0, x0, rows, columns;
  float scale_y, scale_x,
      ratio;  // float32(lr_h / hr_h), float32(lr_w / hr_w), LR area over HR area
  int32_t layers, channels;
  int32_t operand, output;  // Type: of source, hidden and last; of out
  int32_t modulation;       // form: 0 content, 1 modulation
  int32_t vectors;          // Type: of position and biases as given
  const void* source;       // [batch, grid_rows, grid_columns, L * H]
  int64_t source_image, source_row, source_column;
  // If `vectors` is not float32, the launcher widens position and biases into the work space.
  const float *position, *position_bias;  // [H, 3], [H]
  const void* hidden;        // [L - 1, 2H, H], rows K_i then Q_i; modulation: [L - 1, H, H]
  const float* hidden_bias;  // [L - 1, H]
  const void* last;          // [channels, H]
  const float* last_bias;    // [channels]
  const int64_t* index;      // [batch, N], flattened pixel of the source's grid, or null
  const float* offset;       // [batch, N, 2]: dy, dx
  void* out;
  int64_t out_image, out_channel, out_row, out_column;
  void* packed;  // work space of diinn_packed_bytes() bytes: the weights as the kernel reads them
  // For the backward, queries row by row through the images; else null: sine arguments s,
  // modulation k and q of all layers.
  float* kept_s;  // [L, queries, H]
  void *kept_k, *kept_q;
  int32_t kernel;  // Kernel
  int32_t device;
  void* stream;
};

// kIntegers: 8-bit integers as factors of the hidden products. All weights, `last` too, are then of
// the type `vectors`: hidden is quantised from what was given.
enum Kernel : int32_t { kPortable = 0, kHopper = 1, kIntegers = 2 };

}  // namespace diinn
