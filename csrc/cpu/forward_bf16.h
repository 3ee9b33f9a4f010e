// Forward in bfloat16, for CPUs whose vdpbf16ps adds products of bfloat16 pairs to float32 sums: forms content and
// modulation. The content, the hidden weights and q between layers are bfloat16; everything else, the RGB layer
// included, is float32.
//
// A weight matrix is packed as in gemm.h, but with two consecutive k side by side: panels of [depth / 2][kPanel][2].
#pragma once

#include "network.h"

namespace diinn {
namespace DIINN_ISA {

typedef uint16_t bf16;  // its bits

static DIINN_INLINE __m512bh load_pairs(const void* p) { return (__m512bh)_mm512_loadu_si512(p); }
static DIINN_INLINE __m512bh splat_pair(const bf16* p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}
static DIINN_INLINE vec load(const bf16* p) {
  typedef bf16 halves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
  return vec(__builtin_convertvector(*reinterpret_cast<const halves*>(p), ivec) << 16);
}
static DIINN_INLINE void store(bf16* p, vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}

class PairPanels {
 public:
  // weight [columns, depth]; pair > 0: a panel holds kLanes columns and the kLanes columns `pair` further.
  void pack(const float* weight, int64_t depth, int64_t columns, int64_t pair, int threads) {
    depth_ = depth;
    count_ = columns / kPanel;
    data_.reset(count_ * words());
    parallel(count_, threads, [&](int64_t panel, int) {
      char* to = reinterpret_cast<char*>(data_.get() + panel * words());
      for (int64_t c = 0; c < kPanel; ++c) {
        int64_t n = panel * kPanel + c;
        if (pair) n = panel * kLanes + (c < kLanes ? c : pair + c - kLanes);
        for (int64_t k = 0; k < depth; k += kLanes) {
          bf16 rounded[kLanes];
          store(rounded, load(weight + n * depth + k));
          for (int64_t i = 0; i < kLanes; i += 2) memcpy(to + ((k + i) / 2 * kPanel + c) * 4, rounded + i, 4);
        }
      }
    });
  }
  int64_t depth() const { return depth_; }
  int64_t count() const { return count_; }
  const float* panel(int64_t n) const { return data_.get() + n * words(); }

 private:
  int64_t words() const { return depth_ / 2 * kPanel; }

  Buffer data_;  // a pair in each float's place
  int64_t depth_ = 0, count_ = 0;
};

// sums[r][c] = sum over k of a[r * depth + k] * column c of the panel, pair by pair, in order.
static DIINN_INLINE void pair_microkernel(int64_t depth, const bf16* a, const float* panel, Sums& sums) {
  __m512 total[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = _mm512_setzero_ps();
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; k += 2) {
    const __m512bh left = load_pairs(panel), right = load_pairs(panel + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512bh x = splat_pair(a + r * depth);
      total[r][0] = _mm512_dpbf16_ps(total[r][0], x, left);
      total[r][1] = _mm512_dpbf16_ps(total[r][1], x, right);
    }
    panel += kPanel;
    a += 2;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    store(sums[r], vec(total[r][0]));
    store(sums[r] + kLanes, vec(total[r][1]));
  }
}

class ForwardBf16 {
 public:
  ForwardBf16(const Problem& problem, bf16* out) : p(problem), out_(out) {
    const int64_t total = p.batch * p.queries(), most = 96;
    rows_ = round_up((total + p.threads - 1) / p.threads, kRows);
    if (rows_ > most) rows_ = most;
    tiles_ = (p.queries() + rows_ - 1) / rows_;
    scratch_floats_ = round_up(rows_ * (p.width + p.outputs * kLanes), 16) + 16;
    scratch_.reset(scratch_floats_ * p.threads);
    position_.pack(p.weights[kPosition], p.weights[kPositionBias], p.width, 0, p.ratio);
    const int64_t pair = p.form == Form::modulation ? 0 : p.width, columns = pair + p.width;
    hidden_ = new PairPanels[p.layers];
    for (int64_t n = 1; n < p.layers; ++n) {
      hidden_[n].pack(p.weights[kHidden] + (n - 1) * columns * p.width, p.width, columns, pair, p.threads);
    }
  }
  ForwardBf16(const ForwardBf16&) = delete;
  ForwardBf16& operator=(const ForwardBf16&) = delete;
  ~ForwardBf16() { delete[] hidden_; }

  void run() {
    parallel(p.batch * tiles_, p.threads, [&](int64_t index, int thread) {
      const int64_t first = index % tiles_ * rows_;
      const int64_t count = p.queries() - first < rows_ ? p.queries() - first : rows_;
      tile(index / tiles_, first, count, scratch_.get() + thread * scratch_floats_);
    });
  }

 private:
  // Takes q as it leaves the registers: bfloat16 for the next product, or, of the last layer, into the RGB sums
  // [rows][outputs][kLanes], which are added up across the lanes in the end.
  struct Leave {
    bf16* next;
    float* rgb;
    const Problem& p;
    bool last;
    DIINN_INLINE void operator()(int64_t row, int64_t j, vec q) const {
      if (!last) return store(next + row * p.width + j, q);
      float* sum = rgb + row * p.outputs * kLanes;
      const float* weight = p.weights[kLast] + j;
      for (int64_t o = 0; o < p.outputs; ++o, sum += kLanes, weight += p.width) {
        store(sum, fma(q, load(weight), load(sum)));
      }
    }
  };

  void tile(int64_t image, int64_t first, int64_t count, float* scratch) const {
    Tile t;
    place(p, image, first, count, nullptr, &t);
    const bf16* content[kMostRows];
    for (int64_t n = 0; n < t.rows; ++n) {
      content[n] = p.source_bf16 + (image * p.rows * p.columns + t.pixel[n]) * p.layers * p.width;
    }
    bf16 *q = reinterpret_cast<bf16*>(scratch), *next = q + rows_ * p.width;
    float* rgb = scratch + rows_ * p.width;
    memset(rgb, 0, t.rows * p.outputs * kLanes * sizeof(float));
    first_layer(t, content, Leave{q, rgb, p, p.layers == 1});
    for (int64_t n = 1; n < p.layers; ++n) {
      layer(n, t.rows, content, q, Leave{next, rgb, p, n == p.layers - 1});
      bf16* swap = q;
      q = next;
      next = swap;
    }
    write(image, first, count, rgb);
  }

  // q_0 = k_0 * sin(Q_0 p + b_0)
  void first_layer(const Tile& t, const bf16* const* content, const Leave& leave) const {
    const bool rectify = p.form != Form::modulation;
    for (int64_t n = 0; n < t.rows; ++n) {
      const vec dy = splat(t.dy[n]), dx = splat(t.dx[n]);
      for (int64_t j = 0; j < p.width; j += kLanes) {
        const vec own = load(content[n] + j);
        leave(n, j, (rectify ? relu(own) : own) * sine(position_(j, dy, dx)));
      }
    }
  }

  // q = relu(content + k sums) * sin(s sums + bias) on paired panels, or q = modulation * sin(sums + bias).
  void layer(int64_t n, int64_t rows, const bf16* const* content, const bf16* q, const Leave& leave) const {
    const float* bias = p.weights[kHiddenBias] + (n - 1) * p.width;
    const int64_t offset = n * p.width, depth = hidden_[n].depth();
    const bool paired = p.form != Form::modulation;
    alignas(64) Sums sums;
    for (int64_t panel = 0; panel < hidden_[n].count(); ++panel) {
      const int64_t j = panel * (paired ? kLanes : kPanel);
      for (int64_t row = 0; row < rows; row += kRows) {
        for (int r = 0; r < kRows; ++r) __builtin_prefetch(content[row + r] + offset + j);
        pair_microkernel(depth, q + row * depth, hidden_[n].panel(panel), sums);
        for (int r = 0; r < kRows; ++r) {
          const bf16* own = content[row + r] + offset + j;
          if (paired) {
            leave(row + r, j, relu(load(own) + load(sums[r])) * sine(load(sums[r] + kLanes) + load(bias + j)));
            continue;
          }
          for (int c = 0; c < kPanel; c += kLanes) {
            leave(row + r, j + c, load(own + c) * sine(load(sums[r] + c) + load(bias + j + c)));
          }
        }
      }
    }
  }

  void write(int64_t image, int64_t first, int64_t count, const float* rgb) const {
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t o = 0; o < p.outputs; ++o) {
        float lanes[kLanes];
        store(lanes, load(rgb + (n * p.outputs + o) * kLanes));
        for (int half = kLanes / 2; half; half /= 2) {
          for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
        }
        bf16 rounded[kLanes];
        store(rounded, splat(lanes[0] + p.weights[kLastBias][o]));
        if (p.points) {
          out_[(image * p.points + first + n) * p.outputs + o] = rounded[0];
        } else {
          out_[(image * p.outputs + o) * p.queries() + first + n] = rounded[0];
        }
      }
    }
  }

  const Problem& p;
  bf16* out_;
  int64_t rows_, tiles_, scratch_floats_;
  Buffer scratch_;
  PositionLayer position_;
  PairPanels* hidden_;
};

}  // namespace DIINN_ISA
}  // namespace diinn
