// Forward with 8-bit integers as factors of the hidden products: forms content and modulation.
//
// Integers are the hidden weights, by their rows, and each query's q between layers, by its largest
// value; position, content, biases, arguments of the sine, q as it is made and the RGB layer are
// float32. All float32 steps are fused or not as written and in a fixed order: every instruction
// set gives the same bits.
#pragma once

#include "dot.h"  // before the microkernel, which looks for its functions
#include "network.h"
#include "quantise.h"

namespace diinn {
namespace DIINN_ISA {

class ForwardInt8 {
 public:
  ForwardInt8(const Problem& problem, float* out) : p(problem), out_(out) {
    // Rows of a tile: q in both types and one panel stay in the caches; small problems are shared
    // among the threads.
    const int64_t total = p.batch * p.queries(), most = 96;
    rows_ = round_up((total + p.threads - 1) / p.threads, kRows);
    if (rows_ > most) rows_ = most;
    tiles_ = (p.queries() + rows_ - 1) / rows_;

    position_.pack(p.weights[kPosition], p.weights[kPositionBias], p.width, 0, p.ratio);
    const bool paired = p.form == Form::content;
    const int64_t columns = paired ? 2 * p.width : p.width;
    hidden_ = new IntegerPanels[p.layers];
    for (int64_t n = 1; n < p.layers; ++n) {
      const float* weight = p.weights[kHidden] + (n - 1) * columns * p.width;
      const int64_t pair = paired ? p.width : 0;
      hidden_[n].pack(p.width, columns / kPanel, p.threads, false,
                      [&](int64_t panel, int64_t c, float* out) {
                        const float* row = weight + panel_column(panel, c, pair) * p.width;
                        memcpy(out, row, p.width * sizeof(float));
                      });
    }
    // The last row is read in whole units of the depth.
    integers_ = round_up((rows_ * p.width + kDepthUnit) / kPair<Integer>, 16);
    scratch_floats_ = round_up(rows_ * (p.width + p.outputs), 16) + integers_ + 16;
    scratch_.reset(scratch_floats_ * p.threads);
  }
  ForwardInt8(const ForwardInt8&) = delete;
  ForwardInt8& operator=(const ForwardInt8&) = delete;
  ~ForwardInt8() { delete[] hidden_; }

  void run() {
    parallel(p.batch * tiles_, p.threads, [&](int64_t index, int thread) {
      const ProductUnit unit;
      const int64_t first = index % tiles_ * rows_;
      const int64_t count = p.queries() - first < rows_ ? p.queries() - first : rows_;
      tile(index / tiles_, first, count, scratch_.get() + thread * scratch_floats_);
    });
  }

 private:
  // q = relu(content + k sums) * sin(s sums + bias) on paired panels, or q = modulation * sin(sums
  // + bias).
  struct Hidden {
    const float* const* content;
    int64_t offset;  // of the layer's content in a pixel's
    const float* bias;
    const IntegerPanels& weights;
    const Scale* scale;  // of each row
    bool paired;
    float* q;
    int64_t stride;

    DIINN_INLINE int64_t column(int64_t panel) const { return panel * (paired ? kLanes : kPanel); }
    DIINN_INLINE void prefetch(int64_t row, int64_t panel) const {
      for (int r = 0; r < kRows; ++r) __builtin_prefetch(content[row + r] + offset + column(panel));
    }
    DIINN_INLINE void operator()(int64_t row, int64_t panel, const Sums& sums) const {
      const float* unit = weights.units(panel);
      const int64_t j = column(panel);
      for (int r = 0; r < kRows; ++r) {
        const Scale& own = scale[row + r];
        const float* c = content[row + r] + offset + j;
        float* to = q + (row + r) * stride + j;
        const vec left = scaled(sums[r], unit, own);
        const vec right = scaled(sums[r] + kLanes, unit + kLanes, own);
        const vec row_unit = splat(own.unit);
        if (paired) {
          const vec k = relu(fma(left, row_unit, load(c)));
          store(to, k * cheap_sine(fma(right, row_unit, load(bias + j))));
          continue;
        }
        store(to, load(c) * cheap_sine(fma(left, row_unit, load(bias + j))));
        store(to + kLanes,
              load(c + kLanes) * cheap_sine(fma(right, row_unit, load(bias + j + kLanes))));
      }
    }
  };

  void tile(int64_t image, int64_t first, int64_t count, float* scratch) const {
    Tile<float> t;
    Scale scale[kMostRows];
    place(p, image, first, count, &t);
    Integer* integers = reinterpret_cast<Integer*>(scratch);
    float* q = scratch + integers_;
    float* rgb = q + rows_ * p.width;
    for (int64_t r = 0; r < t.rows; ++r) first_layer(t, r, q + r * p.width);
    for (int64_t n = 1; n < p.layers; ++n) {
      for (int64_t r = 0; r < t.rows; ++r)
        scale[r] = quantise(q + r * p.width, p.width, integers + r * p.width);
      if (p.coarse) mark(image, first, count, scale, p.limits[n - 1]);
      product<false>(t.rows, hidden_[n].depth(), integers, p.width, hidden_[n].panels(),
                     hidden_[n].count(),
                     Hidden{t.content, n * p.width, p.weights[kHiddenBias] + (n - 1) * p.width,
                            hidden_[n], scale, p.form == Form::content, q, p.width});
    }
    for (int64_t r = 0; r < t.count; ++r) last_layer(q + r * p.width, rgb + r * p.outputs);
    write(image, first, count, rgb);
  }

  // Where 1 stands for so much that rounding to integers would show.
  void mark(int64_t image, int64_t first, int64_t count, const Scale* scale, float limit) const {
    uint8_t* coarse = p.coarse + image * p.queries() + first;
    for (int64_t r = 0; r < count; ++r) coarse[r] |= scale[r].unit > limit;
  }

  // q_0 = k_0 * sin(Q_0 p + b_0)
  void first_layer(const Tile<float>& t, int64_t row, float* q) const {
    const bool rectify = p.form == Form::content;
    const vec dy = splat(t.dy[row]), dx = splat(t.dx[row]);
    for (int64_t j = 0; j < p.width; j += kLanes) {
      const vec own = load(t.content[row] + j);
      store(q + j, (rectify ? relu(own) : own) * cheap_sine(position_(j, dy, dx)));
    }
  }

  // Sixteen sums, of every sixteenth column in order, then halved: in whatever vectors.
  void last_layer(const float* q, float* rgb) const {
    constexpr int kSums = 16, kVectors = kSums / kLanes;
    for (int64_t o = 0; o < p.outputs; ++o) {
      const float* weight = p.weights[kLast] + o * p.width;
      vec sum[kVectors] = {};
      for (int64_t j = 0; j < p.width; j += kSums) {
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = j + v * kLanes;
          sum[v] = fma(load(q + at), load(weight + at), sum[v]);
        }
      }
      float sums[kSums];
      for (int v = 0; v < kVectors; ++v) store(sums + v * kLanes, sum[v]);
      for (int half = kSums / 2; half; half /= 2) {
        for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
      }
      rgb[o] = sums[0] + p.weights[kLastBias][o];
    }
  }

  void write(int64_t image, int64_t first, int64_t count, const float* rgb) const {
    if (p.points) {
      float* to = out_ + (image * p.points + first) * p.outputs;
      memcpy(to, rgb, count * p.outputs * sizeof(float));
      return;
    }
    for (int64_t o = 0; o < p.outputs; ++o) {
      float* to = out_ + (image * p.outputs + o) * p.queries() + first;
      for (int64_t n = 0; n < count; ++n) to[n] = rgb[n * p.outputs + o];
    }
  }

  const Problem& p;
  float* out_;
  PositionLayer position_;
  IntegerPanels* hidden_;
  int64_t rows_, tiles_, integers_, scratch_floats_;
  Buffer scratch_;
};

}  // namespace DIINN_ISA
}  // namespace diinn
