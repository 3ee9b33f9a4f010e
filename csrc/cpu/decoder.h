// The fused DIINN decoder for CPUs: what the kernels compute and how they are called. Plain C++17,
// no framework headers; csrc/cpu/README.md explains the design.
#pragma once

#include <stdint.h>

namespace diinn {

enum class Form { content, modulation, direct };  // as in diinn_fast/ops.py

enum Weight {  // the operator's order; the last two exist with init_q only
  kPosition,
  kPositionBias,
  kHidden,
  kHiddenBias,
  kLast,
  kLastBias,
  kContent,
  kContentBias,
  kFirst,
  kFirstBias,
  kWeights
};

// A decode. All pointers are to contiguous float32 or int64 data (the source may be bfloat16) that
// outlives the call.
struct Problem {
  Form form;
  bool recurrent_k;  // modes 1 and 2 in the direct form: k_i = relu(c_i + K_i k_{i-1}), otherwise r
                     // = q_{i-1}
  int64_t batch, rows, columns;  // LR grid of the source (without the direct form's halo)
  int64_t width, layers, outputs, channels;
  int64_t content_rows;  // of the direct form's content weight: layers * width, in mode 1 width
  int threads;
  const void* source;  // [batch, rows, columns, layers * width], direct: [batch, rows + 2, columns
                       // + 2, channels]
  bool bfloat16;       // the source is bfloat16: for KernelsBf16 alone
  const float* weights[kWeights];
  float ratio;
  // Queries of one image: window_rows * window_columns, or points.
  int64_t window_rows, window_columns;
  const int64_t *row_index,
      *column_index;  // [window_rows], [window_columns]: LR row and column in the source
  const float *row_offset, *column_offset;  // dy, dx
  int64_t points;                           // 0: a window
  const int64_t* point_index;               // [batch, points], flattened LR pixel
  const float* point_offset;                // [batch, points, 2]: dy, dx
  // For KernelsInt8 alone: the largest unit of q that is fine enough, of each hidden layer, and
  // [batch, queries] zeros, of which those beyond become 1; or null.
  const float* limits;
  uint8_t* coarse;

  int64_t queries() const { return points ? points : window_rows * window_columns; }
  bool init_q() const { return weights[kFirst] != nullptr; }
};

// A 3x3 convolution: padded NHWC [batch, rows + 2, columns + 2, channels] by weight [outputs, 9 *
// channels] (columns c * 9 + tap) plus bias [outputs] to [batch, rows, columns, outputs]; outputs a
// multiple of 32.
struct Convolution {
  const float *padded, *weight, *bias;
  float* out;
  int64_t batch, rows, columns, channels, outputs;
  int threads;

  int64_t taps() const { return 9 * channels; }
  int64_t pixels() const { return rows * columns; }
};

// A 3x3 convolution of an encoder, with zeros around the image: [rows, columns, channels] by weight
// [outputs, channels, 3, 3] plus bias [outputs], then relu if `rectify`, or plus `add`, if not
// null, to [rows, columns, outputs]. channels and outputs are multiples of 32; `out` may be `add`.
struct LayerConvolution {
  const float *image, *weight, *bias, *add;
  float* out;
  int64_t rows, columns, channels, outputs;
  bool rectify;
  int threads;
};

// One instruction set's kernels. Outputs are written completely, each element once.
struct Kernels {
  const char* name;
  // out: [batch, outputs, window_rows, window_columns], or [batch, points, outputs].
  void (*forward)(const Problem&, float* out);
  // The source's gradient is zero-filled by the caller, weight_gradients[Weight] are not; null: not
  // needed.
  void (*backward)(const Problem&, const float* grad, float* source_gradient,
                   float* const* weight_gradients);
  void (*conv3x3)(const Convolution&);
  void (*sine)(const float* x, float* sine, float* cosine, int64_t count);
};

// The kernels in bfloat16 (not of the direct form): source and output and their gradients are
// bfloat16, the hidden weights and the backward pass's RGB weights are rounded to it. As Kernels
// otherwise.
struct KernelsBf16 {
  const char* name;
  void (*forward)(const Problem&, uint16_t* out);
  void (*backward)(const Problem&, const uint16_t* grad, uint16_t* source_gradient,
                   float* const* weight_gradients);
  void (*convolve)(const LayerConvolution&);  // null where it would bring nothing
};

// The kernels with 8-bit integers as factors of the projection and of the hidden products (not of
// the direct form), of one instruction set: inputs and outputs are float32, there is no backward
// pass. All give the same bits.
struct KernelsInt8 {
  const char* name;
  const char* base;  // the name of the Kernels of the same CPUs
  void (*forward)(const Problem&, float* out);
  void (*conv3x3)(const Convolution&);
  void (*sine)(const float* x, float* sine, int64_t count);  // as exact as they take it
};
// Of a product, so that none overflows, whatever the numbers; the same of the projection.
constexpr int64_t kMostInt8Terms = 65536, kMostDigitTerms = 1032;

// Every instruction set that was compiled and that this CPU has, best first; ends with null.
const Kernels* const* available_kernels();
const KernelsBf16* const* available_bf16_kernels();
const KernelsInt8* const* available_int8_kernels();

// Calls task(context, index, thread) for every index below count, on up to `threads` threads that
// live for this call only: starting one costs some 15 us against milliseconds of work, and nothing
// is left behind that a fork, the end of the interpreter or a second calling thread could trip
// over. Indices are handed out in order, to whom is free.
void parallel_for(int64_t count, int threads, void (*task)(void*, int64_t, int), void* context);

// 64-byte aligned memory; throws std::bad_alloc.
void* allocate(int64_t bytes);
void release(void*);

}  // namespace diinn
