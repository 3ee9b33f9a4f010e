// Backward: recomputes a tile's activations, then goes through the layers from the last to the
// first:
//
//   dk_i = dq_i sin(s_i) [k_i > 0],  ds_i = dq_i k_i cos(s_i),  dq_{i-1} = [dk_i | ds_i] W_i,
//   dW_i += [dk_i | ds_i]^T q_{i-1},  dc[LR pixel] += dk_i
//
// The factors of the hidden products, and what is kept for them, are of type T: float, or bf16 (not
// in the direct form). Slabs (plan.h) make it deterministic whatever the number of threads.
#pragma once

#include "plan.h"
#include "record.h"
#include "weight_sums.h"

namespace diinn {
namespace DIINN_ISA {

template <class T>
class Backward {
 public:
  static constexpr int64_t kTile = kMostRows / kRows * kRows;

  Backward(const Problem& problem, const T* grad, T* source_gradient,
           float* const* weight_gradients)
      : p(problem),
        net(problem),
        grad_(grad),
        source_gradient_(source_gradient),
        sums_(problem, weight_gradients, net.hidden_rows),
        plan_(problem, sums_.all()) {
    const int64_t width = p.width;
    last_back_.pack({p.weights[kLast], p.outputs, width, width, 1}, p.threads);
    hidden_back_ = new Panels<T>[2 * p.layers];
    for (int64_t n = 1; n < p.layers; ++n) {
      const float* weight = p.weights[kHidden] + (n - 1) * net.hidden_rows * width;
      if (p.recurrent_k) {
        hidden_back_[p.layers + n].pack({weight, width, width, width, 1}, p.threads);
        hidden_back_[n].pack({weight + width * width, width, width, width, 1}, p.threads);
      } else {
        hidden_back_[n].pack({weight, net.hidden_rows, width, width, 1}, p.threads);
      }
    }
    if (p.form == Form::direct) {
      content_back_.pack(
          {p.weights[kContent], p.content_rows, net.taps, net.taps, 1, 0, p.channels}, p.threads);
      halo_floats_ = source_gradient_ ? 2 * (p.columns + 2) * p.channels : 0;
      halos_.reset(halo_floats_ * plan_.count());
      if (halo_floats_) memset(halos_.get(), 0, halo_floats_ * plan_.count() * sizeof(float));
    }
    if (p.init_q())
      position_back_.pack({p.weights[kPosition], width, net.taps, net.taps, 1, 0, p.channels},
                          p.threads);
    copies_ = 2 * p.threads < plan_.slabs ? 2 * p.threads : plan_.slabs;
    sums_.allocate(copies_);
    scratch_floats_ = lay_out(nullptr, nullptr);
    scratch_.reset(scratch_floats_ * p.threads);
  }
  Backward(const Backward&) = delete;
  Backward& operator=(const Backward&) = delete;
  ~Backward() { delete[] hidden_back_; }

  void run() {
    for (int64_t first = 0; first < plan_.slabs; first += copies_) {
      const int64_t count = plan_.slabs - first < copies_ ? plan_.slabs - first : copies_;
      parallel(count, p.threads, [&](int64_t copy, int thread) {
        const ProductUnit unit;
        Work work;
        lay_out(scratch_.get() + thread * scratch_floats_, &work);
        sums_.start(copy, work.sum);
        for (int64_t n = plan_.first(first + copy); n < plan_.first(first + copy + 1); ++n) {
          segment(plan_[n], halos_.get() + n * halo_floats_, &work);
        }
      });
      sums_.add_copies(count, first == 0);
    }
    sums_.finish();
    if constexpr (kFloat) {
      if (halo_floats_) add_halos();
    }
  }

 private:
  static constexpr bool kFloat = sizeof(T) == sizeof(float);
  static constexpr int64_t kMostLayers = 16;

  struct Work {  // one thread's
    Tile<T> tile;
    float* sum[kWeights];  // this slab's weight gradients, null: not needed
    T *grad, *d, *d_before, *packed;
    float *dk_next, *pixel_sum;
    int64_t pixel;  // whose content's gradient so far is in pixel_sum
    float *x, *modulator, *modulated, *content, *dc, *dx, *dp;  // direct form
    Layer<T> layer[kMostLayers];
  };

  // Divides a thread's scratch memory (work null: only measures it); returns the floats.
  int64_t lay_out(float* base, Work* work) const {
    int64_t used = 0;
    auto floats = [&](int64_t count) {
      float* at = base ? base + used : nullptr;
      used += round_up(count, 16);
      return at;
    };
    auto rows = [&](int64_t stride) { return floats(kTile * stride); };
    auto operands = [&](int64_t count) {
      return reinterpret_cast<T*>(floats((count + kPair<T> - 1) / kPair<T>));
    };
    Work unused;
    Work& w = work ? *work : unused;
    const int64_t tap_rows = p.form == Form::direct ? net.tap_stride : 0, all = p.layers * p.width;
    int64_t most_columns = p.width, most_rows = 2 * p.width;  // of the factors of weight gradients
    if (p.form == Form::direct) {
      if (net.taps > most_columns) most_columns = net.taps;
      if (p.content_rows > most_rows) most_rows = p.content_rows;
      if (net.taps > most_rows) most_rows = net.taps;
    }
    if (p.outputs > most_rows) most_rows = p.outputs;
    w.grad = operands(kTile * net.output_stride);
    w.d = operands(kTile * d_stride());
    w.d_before = operands(kTile * d_stride());
    w.packed = operands(packed_factors<T>(kTile, most_rows, most_columns));
    w.dk_next = rows(p.recurrent_k ? net.row_stride : 0);
    w.pixel_sum = floats(all);
    for (int64_t n = 0; n < p.layers; ++n) {
      w.layer[n].q = operands(kTile * net.row_stride);
      w.layer[n].by_k = operands(kTile * net.row_stride);
      w.layer[n].by_s = operands(kTile * net.row_stride);
      w.layer[n].k = operands(p.recurrent_k ? kTile * net.row_stride : 0);
    }
    w.x = rows(tap_rows);
    w.modulator = rows(p.init_q() ? tap_rows : 0);
    w.modulated = rows(p.init_q() ? tap_rows : 0);
    w.content = rows(tap_rows ? all : 0);
    w.dc = rows(tap_rows ? all : 0);
    w.dx = rows(tap_rows);
    w.dp = rows(p.init_q() ? tap_rows : 0);
    if (!p.init_q()) w.modulated = w.x;
    return used;
  }

  int64_t d_stride() const { return 2 * p.width + 16; }

  void segment(const Segment& segment, float* halo, Work* w) const {
    w->pixel = -1;
    const int64_t total = segment.last_query - segment.first_query,
                  tiles = (total + kTile - 1) / kTile;
    for (int64_t n = 0; n < tiles; ++n) {  // of like sizes
      const int64_t first = total * n / tiles, count = total * (n + 1) / tiles - first;
      plan_.list(segment, segment.first_query + first, count, w->tile.query);
      place(p, segment.image, count, &w->tile);
      tile(segment, halo, w);
    }
  }

  void tile(const Segment& segment, float* halo, Work* w) const {
    const Tile<T>& t = w->tile;
    const int64_t width = p.width, stride = net.row_stride, last = p.layers - 1;
    recompute(segment.image, w);
    load_grad(segment.image, w);
    add_product(t.count, w->grad, net.output_stride, p.outputs, w->layer[last].q, stride, width,
                w->sum[kLast], w->packed);
    add_columns(t.count, w->grad, net.output_stride, p.outputs, w->sum[kLastBias]);
    product(t.rows, w->grad, net.output_stride, last_back_,
            differentiate(w->layer[last], w->d, nullptr));
    for (int64_t n = last;; --n) {
      pass_content(segment.image, n, w);
      if (n == 0) break;
      const T *d = p.form == Form::modulation ? w->d + width : w->d, *q = w->layer[n - 1].q;
      float* sum = w->sum[kHiddenBias];
      add_columns(t.count, w->d + width, d_stride(), width, sum ? sum + (n - 1) * width : nullptr);
      sum = w->sum[kHidden] ? w->sum[kHidden] + (n - 1) * net.hidden_rows * width : nullptr;
      if (p.recurrent_k) {
        add_product(t.count, d, d_stride(), width, w->layer[n - 1].k, stride, width, sum,
                    w->packed);
        add_product(t.count, d + width, d_stride(), width, q, stride, width,
                    sum ? sum + width * width : nullptr, w->packed);
        product(t.rows, d, d_stride(), hidden_back_[p.layers + n], Store{w->dk_next, stride});
        product(t.rows, d + width, d_stride(), hidden_back_[n],
                differentiate(w->layer[n - 1], w->d_before, w->dk_next));
      } else {
        add_product(t.count, d, d_stride(), net.hidden_rows, q, stride, width, sum, w->packed);
        product(t.rows, d, d_stride(), hidden_back_[n],
                differentiate(w->layer[n - 1], w->d_before, nullptr));
      }
      T* swap = w->d;
      w->d = w->d_before;
      w->d_before = swap;
    }
    w->pixel = t.pixel[t.count - 1];
    add_columns(t.count, w->d + width, d_stride(), width, w->sum[kPositionBias]);
    if (!p.init_q()) add_positions(t, p.ratio, w->d + width, d_stride(), width, w->sum[kPosition]);
    if constexpr (kFloat) {
      if (p.form == Form::direct) pass_neighbourhoods(segment, halo, w);
    }
  }

  Differentiate<T> differentiate(const Layer<T>& layer, T* d, const float* dk_next) const {
    return {layer, net.row_stride, d, d_stride(), p.width, dk_next};
  }

  // The tile's activations, as forward computes them.
  void recompute(int64_t image, Work* w) const {
    Tile<T>& t = w->tile;
    const int64_t stride = net.row_stride;
    const bool rectify = p.form != Form::modulation;
    if constexpr (kFloat) {
      if (p.form == Form::direct)
        net.compute_content(image, &t, w->x, w->modulator, w->modulated, w->content);
      if (p.recurrent_k) {
        for (int64_t n = 0; n < t.rows; ++n) {
          for (int64_t j = 0; j < p.width; j += kLanes)
            store(w->layer[0].k + n * stride + j, relu(load(t.content[n] + j)));
        }
      }
    }
    if (p.init_q()) {
      product(t.rows, w->modulator, net.tap_stride, net.position_product,
              RecordSine<T>{t.content, 0, nullptr, p.weights[kPositionBias], w->layer[0], stride,
                            true});
    } else {
      for (int64_t n = 0; n < t.rows; ++n) {
        const vec dy = splat(t.dy[n]), dx = splat(t.dx[n]);
        for (int64_t j = 0; j < p.width; j += kLanes)
          record(w->layer[0], n * stride + j, load(t.content[n] + j), net.position(j, dy, dx),
                 rectify);
      }
    }
    for (int64_t n = 1; n < p.layers; ++n) {
      const Layer<T>&layer = w->layer[n], &before = w->layer[n - 1];
      const int64_t offset = n * p.width;
      const float* bias = net.hidden_bias(n);
      if (p.form == Form::modulation) {
        product(t.rows, before.q, stride, net.hidden[n],
                RecordSine<T>{t.content, offset, nullptr, bias, layer, stride, false});
      } else if (p.recurrent_k) {
        if constexpr (kFloat) {
          product(t.rows, before.k, stride, net.hidden[p.layers + n],
                  Modulate{t.content, offset, layer.k, stride});
        }
        product(t.rows, before.q, stride, net.hidden[n],
                RecordSine<T>{nullptr, 0, layer.k, bias, layer, stride, true});
      } else {
        product(t.rows, before.q, stride, net.hidden[n],
                RecordPair<T>{t.content, offset, bias, layer, stride});
      }
    }
  }

  // The content's gradient of layer n: into the source's, whose rows this slab owns, or kept for
  // the direct form.
  void pass_content(int64_t image, int64_t n, Work* w) const {
    const Tile<T>& t = w->tile;
    const int64_t all = p.layers * p.width;
    if (p.form == Form::direct) {
      for (int64_t row = 0; row < t.count; ++row)
        memcpy(w->dc + row * all + n * p.width, w->d + row * d_stride(), p.width * sizeof(T));
      return;
    }
    if (!source_gradient_) return;
    for (int64_t start = 0, stop; start < t.count;
         start = stop) {  // a pixel's queries follow one another
      const int64_t pixel = t.pixel[start];
      for (stop = start + 1; stop < t.count && t.pixel[stop] == pixel;) ++stop;
      T* to = source_gradient_ + (image * p.rows * p.columns + pixel) * all + n * p.width;
      float* pixel_sum = w->pixel_sum + n * p.width;
      for (int64_t j = 0; j < p.width; j += kLanes) {
        vec sum = pixel == w->pixel ? load(pixel_sum + j) : vec{};
        for (int64_t row = start; row < stop; ++row) sum += load(w->d + row * d_stride() + j);
        store(to + j, sum);
        if (stop == t.count) store(pixel_sum + j, sum);
      }
    }
  }

  // Direct form: from the content's gradient to its weights, the extra sine layer, and the
  // features.
  void pass_neighbourhoods(const Segment& segment, float* halo, Work* w) const {
    const Tile<T>& t = w->tile;
    const int64_t all = p.layers * p.width, taps = net.taps, stride = net.tap_stride;
    for (int64_t n = t.count; n < t.rows; ++n) memset(w->dc + n * all, 0, all * sizeof(float));
    add_columns(t.count, w->dc, all, all, w->sum[kContentBias]);
    add_product(t.count, w->dc, all, p.content_rows, w->modulated, stride, taps, w->sum[kContent],
                w->packed);
    if (p.init_q())
      add_product(t.count, w->d + p.width, d_stride(), p.width, w->modulator, stride, taps,
                  w->sum[kPosition], w->packed);
    const bool need_first = w->sum[kFirst] || w->sum[kFirstBias];
    if (!source_gradient_ && !need_first) return;
    product(t.rows, w->dc, all, content_back_, Store{w->dx, stride});
    if (need_first) {
      product(t.rows, w->d + p.width, d_stride(), position_back_, Store{w->dp, stride});
      for (int64_t n = 0; n < t.count; ++n) {
        const vec dy = splat(t.dy[n]), dx = splat(t.dx[n]);
        for (int64_t j = 0; j < taps; j += kLanes) {
          const int64_t at = n * stride + j;
          vec sn, cs;
          sine_cosine(net.first(j, dy, dx), &sn, &cs);
          store(w->dp + at, fma(load(w->dx + at), load(w->x + at), load(w->dp + at)) * cs);
        }
      }
      add_positions(t, p.ratio, w->dp, stride, taps, w->sum[kFirst]);
      add_columns(t.count, w->dp, stride, taps, w->sum[kFirstBias]);
    }
    if (!source_gradient_) return;
    const int64_t run = 3 * p.channels, line = (p.columns + 2) * p.channels;
    float* image = source_gradient_ + segment.image * (p.rows + 2) * line;
    for (int64_t n = 0; n < t.count; ++n) {
      float* dx = w->dx + n * stride;
      if (p.init_q()) {
        for (int64_t j = 0; j < taps; j += kLanes)
          store(dx + j, load(dx + j) * load(w->modulator + n * stride + j));
      }
      const int64_t row = t.pixel[n] / p.columns, column = t.pixel[n] % p.columns;
      for (int64_t ky = 0; ky < 3; ++ky, dx += run) {
        const int64_t y = row + ky;
        float* to =
            (y < segment.last_row ? image + y * line : halo + (y - segment.last_row) * line) +
            column * p.channels;
        for (int64_t j = 0; j < run; ++j) to[j] += dx[j];
      }
    }
  }

  // The outputs' gradient of the tile [rows, output_stride], zero in the padding.
  void load_grad(int64_t image, Work* w) const {
    const Tile<T>& t = w->tile;
    memset(w->grad, 0, t.rows * net.output_stride * sizeof(T));
    for (int64_t n = 0; n < t.count; ++n) {
      for (int64_t o = 0; o < p.outputs; ++o) {
        w->grad[n * net.output_stride + o] =
            p.points ? grad_[(image * p.points + t.query[n]) * p.outputs + o]
                     : grad_[(image * p.outputs + o) * p.queries() + t.query[n]];
      }
    }
  }

  void add_halos() {
    const int64_t line = (p.columns + 2) * p.channels;
    for (int64_t n = 0; n < plan_.count(); ++n) {
      float* to = source_gradient_ + (plan_[n].image * (p.rows + 2) + plan_[n].last_row) * line;
      const float* from = halos_.get() + n * halo_floats_;
      for (int64_t j = 0; j < halo_floats_; ++j) to[j] += from[j];
    }
  }

  const Problem& p;
  const Network<T> net;
  const T* grad_;
  T* source_gradient_;
  WeightSums sums_;
  const Plan plan_;
  int64_t copies_ = 0, scratch_floats_ = 0, halo_floats_ = 0;
  Panels<T> last_back_;
  Panels<T>* hidden_back_ = nullptr;
  Panels<float> content_back_, position_back_;
  Buffer scratch_, halos_;
};

}  // namespace DIINN_ISA
}  // namespace diinn
