// From float32 to 8-bit integers, with the bits of csrc/cpu/quantise.h: a row x becomes n = round(x
// * (127 / a)) to the nearest even, in one fused step, with a = max |x|; it stands for n * (a /
// 127). A row with NaN or infinity has the unit NaN; a row that nowhere reaches 2^-100 counts as
// zero.
#pragma once

#include <math.h>

#include "instructions.h"

namespace diinn {

constexpr int kLargest = 127;
constexpr float kLeast = 0x1p-100f;

struct Scale {
  float unit, inverse;  // what 1 stands for; 127 / a
};

// Without the sign the bits of floats are in the order of the floats, NaN the largest.
DIINN_BOTH int32_t magnitude(float x) { return bit_cast<int32_t>(x) & 0x7FFFFFFF; }
DIINN_BOTH int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
DIINN_BOTH int32_t largest_magnitude(const float (&x)[8]) {
  int32_t most = 0;
  DIINN_UNROLL
  for (int i = 0; i < 8; ++i) most = larger(most, magnitude(x[i]));
  return most;
}

// Of the row whose largest magnitude has these bits.
DIINN_BOTH Scale scale_of(int32_t bits) {
  const bool finite = bits < 0x7F800000;
  const float largest = bit_cast<float>(bits);
  if (!finite || largest < kLeast) return {bit_cast<float>(finite ? 0 : 0x7FC00000), 0.0f};
  return {largest / kLargest, kLargest / largest};
}

// Eight integers of a row. The sum with 1.5 * 2^23 has the rounded integer in its last bits.
DIINN_DEVICE void quantise_8(const float (&x)[8], float inverse, uint32_t (&words)[2]) {
  uint32_t n[8];
  DIINN_UNROLL
  for (int i = 0; i < 8; ++i) n[i] = bit_cast<uint32_t>(fmaf(x[i], inverse, 12582912.0f));
  DIINN_UNROLL
  for (int i = 0; i < 2; ++i)
    words[i] = low_bytes(n[4 * i], n[4 * i + 1], n[4 * i + 2], n[4 * i + 3]);
}

}  // namespace diinn
