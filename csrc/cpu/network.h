// What forward and backward share: packed weights, tiles of queries, and the first steps of a tile.
#pragma once

#include "gemm.h"

namespace diinn {
namespace DIINN_ISA {

constexpr int64_t kMostRows = 192;  // of a tile

// Up to kMostRows queries of one image, padded to whole kRows by repeating the last one.
template <class T>
struct Tile {
  int64_t count, rows;
  int64_t query[kMostRows];
  int64_t pixel[kMostRows];  // flattened LR pixel
  float dy[kMostRows], dx[kMostRows];
  const T* content[kMostRows];  // [layers * width]: the source's, or computed (direct form)
};

// Places the first `count` of t->query.
template <class T>
static inline void place(const Problem& p, int64_t image, int64_t count, Tile<T>* t) {
  t->count = count;
  t->rows = round_up(count, kRows);
  for (int64_t n = 0; n < t->rows; ++n) {
    const int64_t query = t->query[n] = t->query[n < count ? n : count - 1];
    if (p.points) {
      const int64_t point = image * p.points + query;
      t->pixel[n] = p.point_index[point];
      t->dy[n] = p.point_offset[2 * point];
      t->dx[n] = p.point_offset[2 * point + 1];
    } else {
      const int64_t y = query / p.window_columns, x = query % p.window_columns;
      t->pixel[n] = p.row_index[y] * p.columns + p.column_index[x];
      t->dy[n] = p.row_offset[y];
      t->dx[n] = p.column_offset[x];
    }
    if (p.form != Form::direct) {
      const T* source = static_cast<const T*>(p.source);
      t->content[n] = source + (image * p.rows * p.columns + t->pixel[n]) * p.layers * p.width;
    }
  }
}

// Places `count` queries from `first` on.
template <class T>
static inline void place(const Problem& p, int64_t image, int64_t first, int64_t count,
                         Tile<T>* t) {
  for (int64_t n = 0; n < count; ++n) t->query[n] = first + n;
  place(p, image, count, t);
}

// 3x3 neighbourhood of LR pixel `pixel` of a padded image, tap-major: out[9 * channels].
static inline void gather_taps(const float* padded, int64_t columns, int64_t channels,
                               int64_t pixel, float* out) {
  const int64_t run = 3 * channels;
  const float* from = padded + (pixel / columns * (columns + 2) + pixel % columns) * channels;
  for (int ky = 0; ky < 3; ++ky, from += (columns + 2) * channels)
    memcpy(out + ky * run, from, run * sizeof(float));
}

// A small dense layer of three inputs, transposed and padded: out_j = bias_j + w_j . (dy, dx,
// ratio).
class PositionLayer {
 public:
  void pack(const float* weight, const float* bias, int64_t columns, int64_t channels,
            float ratio) {
    const int64_t stride = round_up(columns, kPanel);
    stride_ = stride;
    ratio_ = ratio;
    data_.reset(4 * stride);
    for (int64_t j = 0; j < stride; ++j) {
      const int64_t from = j < columns ? from_tap_major(j, channels) : 0;
      for (int64_t i = 0; i < 3; ++i)
        data_.get()[i * stride + j] = j < columns ? weight[from * 3 + i] : 0;
      data_.get()[3 * stride + j] = j < columns ? bias[from] : 0;
    }
  }
  DIINN_INLINE vec operator()(int64_t j, vec dy, vec dx) const {
    const float* w = data_.get() + j;
    const vec sum = fma(splat(ratio_), load(w + 2 * stride_), load(w + 3 * stride_));
    return fma(dy, load(w), fma(dx, load(w + stride_), sum));
  }

 private:
  Buffer data_;
  int64_t stride_ = 0;
  float ratio_ = 0;
};

// The weights as the forward pass takes them, and the steps before the first hidden product. In T
// are the factors of the hidden products; the direct form is for float alone.
template <class T>
class Network {
 public:
  explicit Network(const Problem& problem) : p(problem), taps(9 * problem.channels) {
    const int64_t width = p.width, k_rows = p.form == Form::modulation ? 0 : width;
    tap_stride =
        round_up(taps, kPanel) + 16;  // the 16 keep the rows of a tile off the same cache sets
    row_stride = width + 16;
    output_stride = round_up(p.outputs, kPanel);
    hidden_rows = k_rows + width;
    if (p.init_q()) {
      first.pack(p.weights[kFirst], p.weights[kFirstBias], taps, p.channels, p.ratio);
      position_product.pack({p.weights[kPosition], taps, width, 1, taps, p.channels}, p.threads);
    } else {
      position.pack(p.weights[kPosition], p.weights[kPositionBias], width, 0, p.ratio);
    }
    if (p.form == Form::direct) {
      content.pack({p.weights[kContent], taps, p.content_rows, 1, taps, p.channels}, p.threads);
    }
    hidden = new Panels<T>[2 * p.layers];
    for (int64_t n = 1; n < p.layers; ++n) {
      const float* weight = p.weights[kHidden] + (n - 1) * hidden_rows * width;
      Operand b{weight, width, hidden_rows, 1, width};
      if (p.recurrent_k) {
        hidden[p.layers + n].pack({weight, width, width, 1, width}, p.threads);
        b = {weight + width * width, width, width, 1, width};
      } else if (k_rows) {
        b.pair = width;
      }
      hidden[n].pack(b, p.threads);
    }
    last.pack({p.weights[kLast], width, p.outputs, 1, width}, p.threads);
    last_bias.reset(output_stride);
    for (int64_t j = 0; j < output_stride; ++j)
      last_bias.get()[j] = j < p.outputs ? p.weights[kLastBias][j] : 0;
  }
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;
  ~Network() { delete[] hidden; }

  const float* hidden_bias(int64_t n) const { return p.weights[kHiddenBias] + (n - 1) * p.width; }

  // Direct form: computes each row's content into `out` [rows, layers * width]. `x` [rows,
  // tap_stride] receives the gathered neighbourhoods; with init_q `modulator` the p' and
  // `modulated` x * p' (it may be x itself).
  void compute_content(int64_t image, Tile<T>* tile, float* x, float* modulator, float* modulated,
                       float* out) const {
    const float* padded =
        static_cast<const float*>(p.source) + image * (p.rows + 2) * (p.columns + 2) * p.channels;
    for (int64_t n = 0; n < tile->rows; ++n) {
      float* row = x + n * tap_stride;
      gather_taps(padded, p.columns, p.channels, tile->pixel[n], row);
      memset(row + taps, 0, (tap_stride - taps) * sizeof(float));
      if (p.init_q()) {
        const vec dy = splat(tile->dy[n]), dx = splat(tile->dx[n]);
        for (int64_t j = 0; j < taps; j += kLanes) {
          const vec m = sine(first(j, dy, dx));
          store(modulator + n * tap_stride + j, m);
          store(modulated + n * tap_stride + j, load(row + j) * m);
        }
      }
    }
    const int64_t stride = p.layers * p.width, computed = p.content_rows;
    const float* bias = p.weights[kContentBias];
    product(tile->rows, p.init_q() ? modulated : x, tap_stride, content, Store{out, stride, bias});
    for (int64_t n = 0; n < tile->rows; ++n) {  // mode 1: only the first layer sees the content
      memcpy(out + n * stride + computed, bias + computed, (stride - computed) * sizeof(float));
      tile->content[n] = out + n * stride;
    }
  }

  const Problem& p;
  const int64_t taps;
  int64_t tap_stride, row_stride, output_stride, hidden_rows;
  PositionLayer position, first;
  Panels<float> position_product, content, last;
  Panels<T>* hidden;  // [n]: K_n and Q_n in pairs, or Q_n alone; then [layers + n]: K_n alone
                      // (recurrent_k)
  Buffer last_bias;
};

// k = relu(content + sums), of recurrent K layers.
struct Modulate {
  const float* const* content;  // + layer offset
  int64_t offset;
  float* k;
  int64_t stride;
  void prefetch(int64_t, int64_t) const {}
  DIINN_INLINE void operator()(int64_t row, int64_t panel, const Sums& sums) const {
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kPanel; c += kLanes) {
        const int64_t j = panel * kPanel + c;
        store(k + (row + r) * stride + j,
              relu(load(content[row + r] + offset + j) + load(sums[r] + c)));
      }
    }
  }
};

}  // namespace DIINN_ISA
}  // namespace diinn
