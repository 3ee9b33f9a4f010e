// What fills a decode's work space before its kernel starts: weights in the order in which the
// kernel reads them (layout.h), and vectors in float32.
#pragma once

#include "network.h"
#include "quantise.h"

namespace diinn {

// Piece of 8 elements: hidden weights, then the last layer.
DIINN_BOTH void pack_16_bit(const Decode& d, int64_t piece) {
  const uint16_t *hidden = static_cast<const uint16_t*>(d.hidden),
                 *last = static_cast<const uint16_t*>(d.last);
  const bool hopper = d.kernel == kHopper;
  const int64_t boundary = hidden_elements(d);
  uint16_t element[8];
  DIINN_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int64_t e = piece * 8 + i;
    if (e < boundary) {
      element[i] =
          hidden[hopper ? hopper_hidden(d.modulation, e) : portable_hidden<2>(d.modulation, e)];
    } else {
      const int64_t from = packed_last(hopper, d.channels, e - boundary);
      element[i] = from < 0 ? 0 : last[from];
    }
  }
  memcpy(static_cast<char*>(d.packed) + piece * 16, element, 16);
}

// Eight numbers of a tensor of any type.
DIINN_DEVICE void load_8(const void* from, int32_t type, int64_t element, float (&x)[8]) {
  if (type == kFloat32) {
    load_floats(static_cast<const float*>(from) + element, x);
  } else if (const Vector16 v = load_16(static_cast<const uint16_t*>(from) + element);
             type == kFloat16) {
    unpack_8<Float16>(v, x);
  } else {
    unpack_8<BFloat16>(v, x);
  }
}

// Piece of 16 integers, eight of each of two rows. Every thread looks through its whole rows, which
// is less than a launch that leaves their scales somewhere.
DIINN_DEVICE void pack_integers(const Decode& d, int64_t piece) {
  DIINN_UNROLL
  for (int half = 0; half < 2; ++half) {
    // Two registers of four consecutive k's, the second half a step further on.
    const int64_t low = portable_hidden<1>(d.modulation, piece * 16 + 8 * half),
                  high = portable_hidden<1>(d.modulation, piece * 16 + 8 * half + 4);
    const int64_t row = low / kWidth;
    int32_t most = 0;
    float x[8];
    for (int k = 0; k < kWidth; k += 8) {
      load_8(d.hidden, d.vectors, row * kWidth + k, x);
      most = larger(most, largest_magnitude(x));
    }
    const Scale scale = scale_of(most);
    // Of the eight numbers around, the four that are wanted.
    uint32_t words[2], own[2];
    const int64_t from[2] = {low, high};
    DIINN_UNROLL
    for (int i = 0; i < 2; ++i) {
      load_8(d.hidden, d.vectors, from[i] / 8 * 8, x);
      quantise_8(x, scale.inverse, words);
      own[i] = from[i] % 8 ? words[1] : words[0];
    }
    memcpy(static_cast<char*>(d.packed) + piece * 16 + 8 * half, own, 8);
    if (low % kWidth == 0) packed_units(d)[row] = scale.unit;
  }
}

// Element n of last, position, position_bias, hidden_bias and last_bias, one behind the other, in
// float32; last only where it is not packed.
template <class T>
DIINN_DEVICE void widen_vector(const Decode& d, int64_t n) {
  const void* const from[] = {d.last, d.position, d.position_bias, d.hidden_bias, d.last_bias};
  const int64_t lengths[] = {widened_last(d), 3 * kWidth, kWidth, (d.layers - 1) * kWidth,
                             d.channels};
  int64_t i = n;
  DIINN_UNROLL
  for (int vector = 0; vector < 5; ++vector) {
    if (i >= 0 && i < lengths[vector]) {
      float low, high;
      unpack<T>(static_cast<const uint16_t*>(from[vector])[i], low, high);
      widened_vectors(d)[n] = low;
    }
    i -= lengths[vector];
  }
}

// A job is a piece of the packed weights, or one number of the vectors.
DIINN_BOTH int64_t pack_jobs(const Decode& d) { return packed_pieces(d) + vector_elements(d); }
DIINN_DEVICE void pack_job(const Decode& d, int64_t job) {
  const int64_t pieces = packed_pieces(d);
  if (job < pieces) {
    if (d.kernel == kIntegers) {
      pack_integers(d, job);
    } else {
      pack_16_bit(d, job);
    }
  } else if (d.vectors == kFloat16) {
    widen_vector<Float16>(d, job - pieces);
  } else {
    widen_vector<BFloat16>(d, job - pieces);
  }
}
DIINN_BOTH int64_t work_bytes(const Decode& d) { return matrix_bytes(d) + 4 * vector_elements(d); }

}  // namespace diinn
