// 3x3 convolution of an encoder's layer, nearly as exact as float32, on AMX: each number is the sum
// of two of bfloat16, x = high + low, and a product the sum of three: high high + low high + high
// low. The rest, below 2^-16 of a product, is left out; all sums are float32.
//
// A pixel's sums are in an order of their own, whatever else is computed beside it. Numbers beyond
// bfloat16's largest, 3.39e38, give NaN.
#pragma once

#include "gemm.h"

namespace diinn {
namespace DIINN_ISA {

static inline bf16 round_half(float x) {  // to the nearest even
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float widen_half(bf16 half) {
  const uint32_t bits = uint32_t(half) << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

class PairConvolution {
 public:
  explicit PairConvolution(const LayerConvolution& convolution)
      : c(convolution),
        chunks_(c.channels / kChunk),
        line_(2 + (c.columns < kAcross ? round_up(c.columns, kRows) : kAcross)) {
    weights_.reset(c.outputs / kPanel * block() / 2);
    parallel(c.outputs / kPanel, c.threads, [&](int64_t panel, int) { pack(panel); });
    const int64_t across = (c.columns + kAcross - 1) / kAcross;
    const int64_t down = (c.rows + kDown - 1) / kDown;
    Buffer scratch(c.threads * 2 * plane() / 2);
    parallel(across * down, c.threads, [&](int64_t index, int thread) {
      const ProductUnit unit;
      bf16* high = reinterpret_cast<bf16*>(scratch.get() + thread * plane());
      tile(index / across * kDown, index % across * kAcross, high, high + plane());
    });
  }

 private:
  static constexpr int64_t kChunk = kDepth<bf16>;     // channels of one instruction
  static constexpr int64_t kDown = 8, kAcross = 256;  // pixels of a tile
  static_assert(kAcross % kRows == 0, "the last pixels' neighbours lie in the line");

  int64_t block() const { return 9 * chunks_ * 2 * kChunk * kPanel; }  // a panel's numbers
  int64_t plane() const { return (kDown + 2) * line_ * c.channels; }

  // [9][chunks][high, low][kChunk / 2][kPanel][2]
  void pack(int64_t panel) {
    bf16* to = reinterpret_cast<bf16*>(weights_.get()) + panel * block();
    for (int64_t tap = 0; tap < 9; ++tap) {
      for (int64_t chunk = 0; chunk < chunks_; ++chunk, to += 2 * kChunk * kPanel) {
        for (int64_t n = 0; n < kChunk * kPanel; ++n) {
          const int64_t k = chunk * kChunk + n / (2 * kPanel) * 2 + n % 2, column = n / 2 % kPanel;
          const float x = c.weight[((panel * kPanel + column) * c.channels + k) * 9 + tap];
          to[n] = round_half(x);
          to[kChunk * kPanel + n] = round_half(x - widen_half(to[n]));
        }
      }
    }
  }

  void tile(int64_t y0, int64_t x0, bf16* high, bf16* low) const {
    const int64_t rows = c.rows - y0 < kDown ? c.rows - y0 : kDown;
    const int64_t columns = c.columns - x0 < kAcross ? c.columns - x0 : kAcross;
    for (int64_t y = 0; y < rows + 2; ++y) {
      const int64_t at = y * line_ * c.channels;
      split(y0 + y - 1, x0 - 1, high + at, low + at);
    }
    for (int64_t panel = 0; panel < c.outputs / kPanel; ++panel) {
      for (int64_t y = 0; y < rows; ++y) {
        for (int64_t x = 0; x < columns; x += kRows) {
          const int64_t at = (y * line_ + x) * c.channels;
          alignas(64) Sums sums;
          add_taps(panel, high + at, low + at, sums);
          const int64_t count = columns - x < kRows ? columns - x : kRows;
          finish(((y0 + y) * c.columns + x0 + x) * c.outputs + panel * kPanel, panel, count, sums);
        }
      }
    }
  }

  // A row of the image from column x0 on, with zeros outside.
  void split(int64_t y, int64_t x0, bf16* high, bf16* low) const {
    const int64_t numbers = line_ * c.channels;
    int64_t first = x0 < 0 ? -x0 : 0, last = c.columns - x0 < line_ ? c.columns - x0 : line_;
    if (y < 0 || y >= c.rows) first = last = 0;
    const int64_t start = first * c.channels, stop = last * c.channels;
    memset(high, 0, start * sizeof(bf16));
    memset(low, 0, start * sizeof(bf16));
    memset(high + stop, 0, (numbers - stop) * sizeof(bf16));
    memset(low + stop, 0, (numbers - stop) * sizeof(bf16));
    const float* from = c.image + (y * c.columns + x0) * c.channels;
    for (int64_t n = start; n < stop; n += kLanes) {
      const vec x = load(from + n);
      const half_vec rounded = round_halves(x);
      store(reinterpret_cast<float*>(high + n), rounded);
      store(reinterpret_cast<float*>(low + n), round_halves(x - vec(widen(rounded) << 16)));
    }
  }

  static DIINN_INLINE void store(float* to, half_vec v) { memcpy(to, &v, sizeof v); }

  // sums [kRows][kPanel] of kRows pixels from high and low on.
  void add_taps(int64_t panel, const bf16* high, const bf16* low, Sums& sums) const {
    const bf16* weight = reinterpret_cast<const bf16*>(weights_.get()) + panel * block();
    const int64_t pixel = c.channels * int64_t(sizeof(bf16));  // bytes
    constexpr int64_t kWords = kPanel * sizeof(float);
    finish_stores();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t ky = 0; ky < 3; ++ky) {
      for (int64_t k = 0; k < 3 * c.channels; k += kChunk, weight += 2 * kChunk * kPanel) {
        const int64_t at = ky * line_ * c.channels + k;
        const bf16 *left = weight, *right = weight + 2 * kLanes;
        const bf16 *above = high + at, *below = above + 16 * c.channels;
        _tile_loadd(4, above, pixel);
        _tile_loadd(6, left, kWords);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, below, pixel);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, right, kWords);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, low + at, pixel);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, low + at + 16 * c.channels, pixel);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, above, pixel);
        _tile_loadd(6, left + kChunk * kPanel, kWords);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, below, pixel);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, right + kChunk * kPanel, kWords);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, sums[0], kWords);
    _tile_stored(1, sums[0] + kLanes, kWords);
    _tile_stored(2, sums[16], kWords);
    _tile_stored(3, sums[16] + kLanes, kWords);
  }

  // Bias, then relu or the other summand, into `out` from `at` on.
  void finish(int64_t at, int64_t panel, int64_t count, const Sums& sums) const {
    for (int64_t r = 0; r < count; ++r, at += c.outputs) {
      for (int n = 0; n < kPanel; n += kLanes) {
        vec v = load(sums[r] + n) + load(c.bias + panel * kPanel + n);
        if (c.add) v += load(c.add + at + n);
        diinn::DIINN_ISA::store(c.out + at + n, c.rectify ? relu(v) : v);
      }
    }
  }

  const LayerConvolution& c;
  int64_t chunks_, line_;  // line_: pixels of a row of a tile, with those around it
  Buffer weights_;
};

}  // namespace DIINN_ISA
}  // namespace diinn
