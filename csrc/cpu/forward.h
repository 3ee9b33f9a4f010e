// Forward: tile by tile, activations in the L2 cache, each output written once.
#pragma once

#include "network.h"

namespace diinn {
namespace DIINN_ISA {

// q = relu(content + k sums) * sin(s sums + bias), on paired panels.
struct ModulateAndSynthesize {
  const float* const* content;
  int64_t offset;  // of the layer's content in a pixel's
  const float* bias;
  float* q;
  int64_t stride;
  DIINN_INLINE void prefetch(int64_t row, int64_t panel) const {
    for (int r = 0; r < kRows; ++r) __builtin_prefetch(content[row + r] + offset + panel * kLanes);
  }
  DIINN_INLINE void operator()(int64_t row, int64_t panel, const Sums& sums) const {
    const int64_t j = panel * kLanes;
    const vec b = load(bias + j);
    for (int r = 0; r < kRows; ++r) {
      const vec k = relu(load(content[row + r] + offset + j) + load(sums[r]));
      store(q + (row + r) * stride + j, k * sine(load(sums[r] + kLanes) + b));
    }
  }
};

// q = k * sin(sums + bias), k given.
struct Synthesize {
  const float* const* k;
  int64_t offset;
  const float* bias;
  float* q;
  int64_t stride;
  bool rectify;  // relu(k): the first layer with init_q
  DIINN_INLINE void prefetch(int64_t row, int64_t panel) const {
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kPanel; c += 16)
        __builtin_prefetch(k[row + r] + offset + panel * kPanel + c);
    }
  }
  DIINN_INLINE void operator()(int64_t row, int64_t panel, const Sums& sums) const {
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kPanel; c += kLanes) {
        const int64_t j = panel * kPanel + c;
        const vec own = load(k[row + r] + offset + j);
        store(q + (row + r) * stride + j,
              (rectify ? relu(own) : own) * sine(load(sums[r] + c) + load(bias + j)));
      }
    }
  }
};

class Forward {
 public:
  Forward(const Problem& problem, float* out) : p(problem), net(problem), out_(out) {
    const int64_t total = p.batch * p.queries();
    // Rows of a tile: q (twice) and one panel stay in the caches; small problems are shared among
    // the threads.
    const int64_t most = p.form == Form::direct ? 48 : 96;
    rows_ = round_up((total + p.threads - 1) / p.threads, kRows);
    if (rows_ > most) rows_ = most;
    tiles_ = (p.queries() + rows_ - 1) / rows_;
    const int64_t direct = p.form == Form::direct ? 2 * net.tap_stride + p.layers * p.width : 0;
    scratch_floats_ = round_up(rows_ * (4 * net.row_stride + net.output_stride + direct), 16) + 16;
    scratch_.reset(scratch_floats_ * p.threads);
  }

  void run() {
    parallel(p.batch * tiles_, p.threads, [&](int64_t index, int thread) {
      const int64_t first = index % tiles_ * rows_;
      const int64_t count = p.queries() - first < rows_ ? p.queries() - first : rows_;
      tile(index / tiles_, first, count, scratch_.get() + thread * scratch_floats_);
    });
  }

 private:
  void tile(int64_t image, int64_t first, int64_t count, float* scratch) const {
    Tile<float> t;
    place(p, image, first, count, &t);
    float *q = scratch, *next = q + rows_ * net.row_stride;
    float *k = next + rows_ * net.row_stride, *next_k = k + rows_ * net.row_stride;
    float* rgb = next_k + rows_ * net.row_stride;
    const float *k_rows[kMostRows], *next_k_rows[kMostRows];
    for (int64_t n = 0; n < t.rows; ++n) {
      k_rows[n] = k + n * net.row_stride;
      next_k_rows[n] = next_k + n * net.row_stride;
    }
    float* modulator = rgb + rows_ * net.output_stride;
    if (p.form == Form::direct) {
      float* x = modulator + rows_ * net.tap_stride;
      net.compute_content(image, &t, x, modulator, x, x + rows_ * net.tap_stride);
    }
    first_layer(t, modulator, q, k);
    for (int64_t n = 1; n < p.layers; ++n) {
      const int64_t offset = n * p.width;
      const float* bias = net.hidden_bias(n);
      if (p.form == Form::modulation) {
        product(t.rows, q, net.row_stride, net.hidden[n],
                Synthesize{t.content, offset, bias, next, net.row_stride, false});
      } else if (p.recurrent_k) {
        product(t.rows, k, net.row_stride, net.hidden[p.layers + n],
                Modulate{t.content, offset, next_k, net.row_stride});
        product(t.rows, q, net.row_stride, net.hidden[n],
                Synthesize{next_k_rows, 0, bias, next, net.row_stride, false});
        swap(&k, &next_k);
        for (int64_t r = 0; r < t.rows; ++r) {
          const float* row = k_rows[r];
          k_rows[r] = next_k_rows[r];
          next_k_rows[r] = row;
        }
      } else {
        product(t.rows, q, net.row_stride, net.hidden[n],
                ModulateAndSynthesize{t.content, offset, bias, next, net.row_stride});
      }
      swap(&q, &next);
    }
    product(t.rows, q, net.row_stride, net.last,
            Store{rgb, net.output_stride, net.last_bias.get()});
    write(image, first, count, rgb);
  }

  // q_0 = k_0 * sin(Q_0 p + b_0); also k_0 for recurrent K layers.
  void first_layer(const Tile<float>& t, const float* modulator, float* q, float* k) const {
    if (p.recurrent_k) {
      for (int64_t n = 0; n < t.rows; ++n) {
        for (int64_t j = 0; j < p.width; j += kLanes)
          store(k + n * net.row_stride + j, relu(load(t.content[n] + j)));
      }
    }
    if (p.init_q()) {
      product(t.rows, modulator, net.tap_stride, net.position_product,
              Synthesize{t.content, 0, p.weights[kPositionBias], q, net.row_stride, true});
      return;
    }
    const bool rectify = p.form != Form::modulation;
    for (int64_t n = 0; n < t.rows; ++n) {
      const vec dy = splat(t.dy[n]), dx = splat(t.dx[n]);
      for (int64_t j = 0; j < p.width; j += kLanes) {
        const vec own = load(t.content[n] + j);
        store(q + n * net.row_stride + j,
              (rectify ? relu(own) : own) * sine(net.position(j, dy, dx)));
      }
    }
  }

  void write(int64_t image, int64_t first, int64_t count, const float* rgb) const {
    if (p.points) {
      float* to = out_ + (image * p.points + first) * p.outputs;
      for (int64_t n = 0; n < count; ++n)
        memcpy(to + n * p.outputs, rgb + n * net.output_stride, p.outputs * sizeof(float));
      return;
    }
    for (int64_t o = 0; o < p.outputs; ++o) {
      float* to = out_ + (image * p.outputs + o) * p.queries() + first;
      for (int64_t n = 0; n < count; ++n) to[n] = rgb[n * net.output_stride + o];
    }
  }

  static void swap(float** a, float** b) {
    float* c = *a;
    *a = *b;
    *b = c;
  }

  const Problem& p;
  const Network<float> net;
  float* out_;
  int64_t rows_, tiles_, scratch_floats_;
  Buffer scratch_;
};

static void forward(const Problem& problem, float* out) { Forward(problem, out).run(); }

}  // namespace DIINN_ISA
}  // namespace diinn
