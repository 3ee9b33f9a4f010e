// Forward in bfloat16, for CPUs that add products of bfloat16 pairs to float32 sums:
// forms content and modulation. The content, the hidden weights and q between layers are bfloat16;
// everything else, the RGB layer included, is float32.
#pragma once

#include "network.h"

namespace diinn {
namespace DIINN_ISA {

class ForwardBf16 {
 public:
  ForwardBf16(const Problem& problem, bf16* out) : p(problem), net(problem), out_(out) {
    const int64_t total = p.batch * p.queries(), most = 96;
    rows_ = round_up((total + p.threads - 1) / p.threads, kRows);
    if (rows_ > most) rows_ = most;
    tiles_ = (p.queries() + rows_ - 1) / rows_;
    scratch_floats_ = round_up(rows_ * (p.width + p.outputs * kLanes), 16) + 16;
    scratch_.reset(scratch_floats_ * p.threads);
  }

  void run() {
    parallel(p.batch * tiles_, p.threads, [&](int64_t index, int thread) {
      const ProductUnit unit;
      const int64_t first = index % tiles_ * rows_;
      const int64_t count = p.queries() - first < rows_ ? p.queries() - first : rows_;
      tile(index / tiles_, first, count, scratch_.get() + thread * scratch_floats_);
    });
  }

 private:
  // Takes q as it leaves the registers: bfloat16 for the next product, or, of the last layer, into
  // the RGB sums [rows][outputs][kLanes], which are added up across the lanes in the end.
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

  // q = relu(content + k sums) * sin(s sums + bias) on paired panels, or q = modulation * sin(sums
  // + bias).
  struct Hidden {
    const bf16* const* content;
    int64_t offset;
    const float* bias;
    bool paired;
    Leave leave;
    DIINN_INLINE int64_t column(int64_t panel) const { return panel * (paired ? kLanes : kPanel); }
    DIINN_INLINE void prefetch(int64_t row, int64_t panel) const {
      for (int r = 0; r < kRows; ++r) __builtin_prefetch(content[row + r] + offset + column(panel));
    }
    DIINN_INLINE void operator()(int64_t row, int64_t panel, const Sums& sums) const {
      const int64_t j = column(panel);
      for (int r = 0; r < kRows; ++r) {
        const bf16* own = content[row + r] + offset + j;
        if (paired) {
          leave(row + r, j,
                relu(load(own) + load(sums[r])) *
                    cheap_sine(load(sums[r] + kLanes) + load(bias + j)));
          continue;
        }
        for (int c = 0; c < kPanel; c += kLanes) {
          leave(row + r, j + c, load(own + c) * cheap_sine(load(sums[r] + c) + load(bias + j + c)));
        }
      }
    }
  };

  void tile(int64_t image, int64_t first, int64_t count, float* scratch) const {
    Tile<bf16> t;
    place(p, image, first, count, &t);
    bf16 *q = reinterpret_cast<bf16*>(scratch), *next = q + rows_ * p.width;
    float* rgb = scratch + rows_ * p.width;
    memset(rgb, 0, t.rows * p.outputs * kLanes * sizeof(float));
    const bool rectify = p.form != Form::modulation;
    first_layer(t, Leave{q, rgb, p, p.layers == 1});
    for (int64_t n = 1; n < p.layers; ++n) {
      product(t.rows, q, p.width, net.hidden[n],
              Hidden{t.content, n * p.width, net.hidden_bias(n), rectify,
                     Leave{next, rgb, p, n == p.layers - 1}});
      bf16* swap = q;
      q = next;
      next = swap;
    }
    write(image, first, count, rgb);
  }

  // q_0 = k_0 * sin(Q_0 p + b_0)
  void first_layer(const Tile<bf16>& t, const Leave& leave) const {
    const bool rectify = p.form != Form::modulation;
    for (int64_t n = 0; n < t.rows; ++n) {
      const vec dy = splat(t.dy[n]), dx = splat(t.dx[n]);
      for (int64_t j = 0; j < p.width; j += kLanes) {
        const vec own = load(t.content[n] + j);
        leave(n, j, (rectify ? relu(own) : own) * cheap_sine(net.position(j, dy, dx)));
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
  const Network<bf16> net;
  bf16* out_;
  int64_t rows_, tiles_, scratch_floats_;
  Buffer scratch_;
};

}  // namespace DIINN_ISA
}  // namespace diinn
