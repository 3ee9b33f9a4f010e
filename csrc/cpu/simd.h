// Vectors of float32 for the instruction set that this file is compiled for, the sine on them, and
// bfloat16.
//
// Products are fused explicitly (fma) and the compiler may not fuse others (-ffp-contract=off), so
// that the same formula gives the same bits wherever it is inlined.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(DIINN_EMULATED_AMX)  // DIINN_AMX: compilers have not agreed on a name
#define DIINN_AMX
#endif

namespace diinn {
namespace DIINN_ISA {

#if defined(DIINN_LANES)  // any number, in plain C++: other sets' templates where they cannot run
constexpr int kLanes = DIINN_LANES;
#if defined(DIINN_AMX)
constexpr int kRows = 32;
#else
constexpr int kRows = DIINN_LANES == 16 ? 12 : 6;
#endif
#elif defined(DIINN_AMX)
constexpr int kLanes = 16;
constexpr int kRows = 32;
#elif defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 12;  // of the microkernel: 12 x 2 accumulators, 2 vectors of weights and 1 of
                           // input of 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRows = 6;  // 6 x 2 + 2 + 1 of 16 registers
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kRows = 12;
#else
constexpr int kLanes = 4;
constexpr int kRows = 6;
#endif
constexpr int kPanel = 2 * kLanes;  // columns of a weight panel

typedef float vec __attribute__((vector_size(4 * kLanes), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * kLanes), may_alias));
typedef float unaligned_vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

#define DIINN_INLINE inline __attribute__((always_inline))

static DIINN_INLINE vec load(const float* p) { return *reinterpret_cast<const unaligned_vec*>(p); }
static DIINN_INLINE void store(float* p, vec v) { *reinterpret_cast<unaligned_vec*>(p) = v; }
// Not 0 + x, which is no plain broadcast for the compiler: 0 + (-0) is +0. Intel's CPUs have no
// ports to spare for the sum.
static DIINN_INLINE vec splat(float x) {
#if defined(DIINN_LANES)
  return vec{} + x;
#elif defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__)
  return _mm256_set1_ps(x);
#elif defined(__aarch64__)
  return vdupq_n_f32(x);
#else
  return vec{} + x;
#endif
}

// a * b + c, rounded once where DIINN_FUSED is defined. With DIINN_EXACT_FMA that is so everywhere,
// by the C library where the instruction set has no such product.
#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__) || defined(DIINN_EXACT_FMA)
#define DIINN_FUSED
#endif
static DIINN_INLINE vec fma(vec a, vec b, vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__) && !defined(DIINN_LANES)
  return vfmaq_f32(c, a, b);
#elif defined(DIINN_FUSED)
  vec sum;
  for (int i = 0; i < kLanes; ++i) sum[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return sum;
#else
  return a * b + c;
#endif
}

// relu that passes NaN on, as the framework's does.
static DIINN_INLINE vec relu(vec x) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xffff, vec{}, x);  // the second operand where one is NaN
#elif defined(__AVX2__)
  return _mm256_max_ps(vec{}, x);
#else
  return vec(ivec(x) & ~ivec(x < vec{}));
#endif
}

// x where k > 0, else 0.
static DIINN_INLINE vec where_positive(vec k, vec x) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(k, vec{}, _CMP_GT_OQ), x);
#else
  return vec(ivec(k > vec{}) & ivec(x));
#endif
}

#if defined(DIINN_AMX) && !defined(DIINN_EMULATED_AMX)
// Rows become columns. (GCC 12 warns of the functions without a mask.)
static inline void transpose(vec (&m)[kLanes]) {
  constexpr int kAll = 0xffff;
  __m512 pairs[16], quads[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_maskz_unpacklo_ps(kAll, m[i], m[i + 1]);
    pairs[i + 1] = _mm512_maskz_unpackhi_ps(kAll, m[i], m[i + 1]);
  }
  // Of rows i..i+3, quads[i + j] has the columns j, j + 4, j + 8 and j + 12.
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(pairs[i + j]), high = _mm512_castps_pd(pairs[i + j + 2]);
      quads[i + 2 * j] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, low, high));
      quads[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, low, high));
    }
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 even[] = {_mm512_maskz_shuffle_f32x4(kAll, quads[j], quads[4 + j], 0x88),
                           _mm512_maskz_shuffle_f32x4(kAll, quads[8 + j], quads[12 + j], 0x88)};
    const __m512 odd[] = {_mm512_maskz_shuffle_f32x4(kAll, quads[j], quads[4 + j], 0xdd),
                          _mm512_maskz_shuffle_f32x4(kAll, quads[8 + j], quads[12 + j], 0xdd)};
    m[j] = _mm512_maskz_shuffle_f32x4(kAll, even[0], even[1], 0x88);
    m[j + 4] = _mm512_maskz_shuffle_f32x4(kAll, odd[0], odd[1], 0x88);
    m[j + 8] = _mm512_maskz_shuffle_f32x4(kAll, even[0], even[1], 0xdd);
    m[j + 12] = _mm512_maskz_shuffle_f32x4(kAll, odd[0], odd[1], 0xdd);
  }
}
#endif

// Whether some |x| exceeds the limit or is NaN.
static DIINN_INLINE bool any_beyond(vec x, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(_mm512_abs_ps(x), splat(limit), _CMP_NLE_UQ) != 0;
#else
  const vec magnitude = vec(ivec(x) & 0x7fffffff);
  const ivec inside = ivec(magnitude <= splat(limit));
#if defined(__AVX2__)
  return _mm256_movemask_ps(vec(inside)) != 0xff;
#else
  int64_t words[kLanes / 2];
  memcpy(words, &inside, sizeof words);
  int64_t all = -1;
  for (int64_t word : words) all &= word;
  return all != -1;
#endif
#endif
}

// Sine and cosine of x. With n = round(x / pi) and r = x - n pi in [-pi/2, pi/2] (Cody-Waite: pi in
// parts whose products with n are exact, or fused), sin x = (-1)^n (r + r^3 P(r^2)) and cos x =
// (-1)^n (1 + r^2 Q(r^2)); P and Q are minimax polynomials (Remez) of relative error 4.8e-9
// and 2.5e-10. For |x| <= 10,000 both are within 1.4e-7 of the exact value (2e-7 without fused
// products); larger, infinite and NaN arguments take the C library's functions.
constexpr float kSineRange = 1e4f;

static DIINN_INLINE vec reduce(vec x, ivec* sign) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: the sum's last bit is a unit
  const vec shifted = fma(x, splat(0x1.45f306p-2f), splat(magic));
  *sign = ivec(shifted) << 31;
  const vec n = shifted - magic;
#if defined(DIINN_FUSED)
  vec r = fma(n, splat(-0x1.921fb6p+1f), x);
  r = fma(n, splat(0x1.777a5cp-24f), r);
  return fma(n, splat(0x1.ee59dap-49f), r);
#else
  vec r = x - n * splat(0x1.92p+1f);
  r = r - n * splat(0x1.fb4p-11f);
  r = r - n * splat(0x1.444p-23f);
  return r - n * splat(0x1.68c234p-38f);
#endif
}

static DIINN_INLINE vec sine_polynomial(vec r, vec z) {
  vec p = fma(splat(2.608914428e-06f), z, splat(-1.981110545e-04f));
  p = fma(p, z, splat(8.333087899e-03f));
  p = fma(p, z, splat(-1.666666120e-01f));
  return fma(r * z, p, r);
}

static DIINN_INLINE vec cosine_polynomial(vec z) {
  vec p = fma(splat(-2.607692124e-07f), z, splat(2.476187547e-05f));
  p = fma(p, z, splat(-1.388840377e-03f));
  p = fma(p, z, splat(4.166664183e-02f));
  p = fma(p, z, splat(-0.5f));
  return fma(p, z, splat(1.0f));
}

// The function of the lanes of x beyond kSineRange, and `near` of the others: one by one, so that
// no lane depends on which others share its vector.
static __attribute__((noinline)) vec beyond(vec x, vec near, double (*function)(double)) {
  for (int i = 0; i < kLanes; ++i) {
    if (!(fabsf(x[i]) <= kSineRange)) near[i] = float(function(x[i]));
  }
  return near;
}

static DIINN_INLINE vec sine(vec x) {
  ivec sign;
  const vec r = reduce(x, &sign);
  const vec near = vec(ivec(sine_polynomial(r, r * r)) ^ sign);
  if (__builtin_expect(any_beyond(x, kSineRange), 0)) return beyond(x, near, sin);
  return near;
}

#if defined(DIINN_FUSED)
// Sine for the 16- and 8-bit modes: pi in two parts, a polynomial of three terms, of the least
// absolute error (Remez, 8.9e-7). For |x| <= 10,000 it is within 1.1e-6 of the exact value, a
// thousandth of what bfloat16 rounds off; other arguments as in sine().
static DIINN_INLINE vec cheap_sine(vec x) {
  const float magic = 12582912.0f;  // as in reduce()
  const vec shifted = fma(x, splat(0x1.45f306p-2f), splat(magic));
  const vec n = shifted - magic;
  vec r = fma(n, splat(-0x1.921fb6p+1f), x);
  r = fma(n, splat(0x1.777a5cp-24f), r);
  const vec z = r * r;
  vec p = fma(splat(-1.849217952e-04f), z, splat(8.312365972e-03f));
  p = fma(p, z, splat(-1.666568071e-01f));
  const vec near = vec(ivec(fma(r * z, p, r)) ^ ivec(shifted) << 31);
  if (__builtin_expect(any_beyond(x, kSineRange), 0)) return beyond(x, near, sin);
  return near;
}
#endif

static DIINN_INLINE void sine_cosine(vec x, vec* s, vec* c) {
  ivec sign;
  const vec r = reduce(x, &sign), z = r * r;
  *s = vec(ivec(sine_polynomial(r, z)) ^ sign);
  *c = vec(ivec(cosine_polynomial(z)) ^ sign);
  if (__builtin_expect(any_beyond(x, kSineRange), 0)) {
    *s = beyond(x, *s, sin);
    *c = beyond(x, *c, cos);
  }
}

// Elements of products are float, or bf16 (its bits), of which vdpbf16ps adds two products at once
// to a float32 sum: so two consecutive k of an operand lie side by side, in one 32-bit word.
typedef uint16_t bf16;
template <class T>
constexpr int kPair = int(sizeof(float) / sizeof(T));  // elements of a word

static DIINN_INLINE vec broadcast(const float* word) { return splat(*word); }
template <class T>
vec add_products(vec sum, vec x, vec w);
template <>
DIINN_INLINE vec add_products<float>(vec sum, vec x, vec w) {
  return fma(x, w, sum);
}
// A vector of words: element i of each is from row i.
static DIINN_INLINE void store_words(float* out, const float* const* rows, int64_t c) {
  store(out, load(rows[0] + c));
}

#if defined(__AVX512BF16__)
typedef bf16 half_vec __attribute__((vector_size(2 * kLanes), may_alias));
typedef bf16 unaligned_half_vec __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

static DIINN_INLINE half_vec load_halves(const bf16* p) {
  return *reinterpret_cast<const unaligned_half_vec*>(p);
}
static DIINN_INLINE half_vec round_halves(vec v) { return half_vec(_mm512_cvtneps_pbh(v)); }
static DIINN_INLINE ivec widen(half_vec v) { return __builtin_convertvector(v, ivec); }

static DIINN_INLINE vec load(const bf16* p) { return vec(widen(load_halves(p)) << 16); }
static DIINN_INLINE void store(bf16* p, vec v) {
  *reinterpret_cast<unaligned_half_vec*>(p) = round_halves(v);
}
static DIINN_INLINE vec broadcast(const bf16* word) {
  int32_t bits;
  memcpy(&bits, word, sizeof bits);
  return vec(ivec{} + bits);
}
template <>
DIINN_INLINE vec add_products<bf16>(vec sum, vec x, vec w) {
  return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
}
static DIINN_INLINE void store_words(bf16* out, half_vec even, half_vec odd) {
  store(reinterpret_cast<float*>(out), vec(widen(even) | widen(odd) << 16));
}
static DIINN_INLINE void store_words(bf16* out, const float* const* rows, int64_t c) {
  store_words(out, round_halves(load(rows[0] + c)), round_halves(load(rows[1] + c)));
}
static DIINN_INLINE void store_words(bf16* out, const bf16* const* rows, int64_t c) {
  store_words(out, load_halves(rows[0] + c), load_halves(rows[1] + c));
}
#endif

}  // namespace DIINN_ISA
}  // namespace diinn
