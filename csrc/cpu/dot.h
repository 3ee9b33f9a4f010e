// Products of 8-bit integers with exact 32-bit sums, for the instruction set that this file is
// compiled for: what the microkernel of gemm.h needs of an element type.
//
// Integers are in -127..127, several consecutive k of an operand side by side in a 32-bit word. A
// sum of n products is at most n * 127 * 255, which is below 2^31 up to n = kMostInt8Terms:
// whatever the numbers, none overflows, and the sums have the same bits in any order.
#pragma once

#include "decoder.h"
#include "simd.h"

namespace diinn {
namespace DIINN_ISA {

// vpdpbusd multiplies unsigned by signed bytes: the weights are stored with kWeightOffset added,
// and the sum of the other factors times it is taken off afterwards. vpmaddwd, plain AVX2's best,
// takes two 16-bit words.
#if defined(DIINN_AMX)
typedef int8_t Integer;
constexpr int kWeightOffset = 0;
#elif defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(DIINN_EMULATED_VNNI)
typedef int8_t Integer;
constexpr int kWeightOffset = 128;
#elif defined(__AVX2__)
typedef int16_t Integer;
constexpr int kWeightOffset = 0;
#else
typedef int8_t Integer;
constexpr int kWeightOffset = 0;
#endif
constexpr int kLargest = 127;
static_assert(int64_t(kMostInt8Terms) * kLargest * (kLargest + kWeightOffset) < int64_t(1) << 31,
              "a sum of kMostInt8Terms products fits in 32 bits");

typedef int32_t Word __attribute__((may_alias, aligned(4)));

#if defined(DIINN_AMX)
// amx.h
#elif defined(__AVX512VNNI__)
// The broadcast is folded into the instruction, which spares registers. By the intrinsic GCC 12
// keeps half of the sums in memory.
typedef const Word* Factor;
static DIINN_INLINE Factor broadcast(const Integer* word) {
  return reinterpret_cast<const Word*>(word);
}
template <class T>
vec add_products(vec sum, Factor x, vec w);
template <>
DIINN_INLINE vec add_products<Integer>(vec sum, Factor x, vec w) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*x));
  return sum;
}
#else
static DIINN_INLINE vec broadcast(const Integer* word) {
  return vec(ivec{} + *reinterpret_cast<const Word*>(word));
}
template <>
DIINN_INLINE vec add_products<Integer>(vec sum, vec x, vec w) {
#if defined(__AVXVNNI__)
  return vec(_mm256_dpbusd_avx_epi32(__m256i(sum), __m256i(w), __m256i(x)));
#elif defined(__AVX2__)
  vec total = vec(ivec(sum) + ivec(_mm256_madd_epi16(__m256i(x), __m256i(w))));
  asm volatile("" : "+x"(total));  // one after the other: else GCC 12 may keep the sums in memory
  return total;
#elif defined(__ARM_FEATURE_DOTPROD) && !defined(DIINN_LANES)
  return vec(vdotq_s32(int32x4_t(sum), int8x16_t(w), int8x16_t(x)));
#else
  ivec total = ivec(sum);
  for (int shift = 24; shift >= 0; shift -= 8) {
    const ivec weight = ivec(w) << shift >> 24;  // a signed byte
    const ivec factor = ivec(x) << shift >> 24;
    total += (kWeightOffset ? weight & 0xff : weight) * factor;
  }
  return vec(total);
#endif
}
#endif

// Stores a vector of integers in -127..127.
static DIINN_INLINE void store_integers(Integer* out, ivec v) {
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(__AVXVNNI__)
  const __m256i pairs = _mm256_packs_epi32(__m256i(v), __m256i(v));
  const __m128i low = _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), low);
#else
  typedef Integer Integers __attribute__((vector_size(sizeof(Integer) * kLanes), may_alias));
  const Integers narrow = __builtin_convertvector(v, Integers);
  memcpy(out, &narrow, sizeof narrow);
#endif
}

}  // namespace DIINN_ISA
}  // namespace diinn
