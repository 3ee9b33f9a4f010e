// Backward: recomputes a tile's activations, then goes through the layers from the last to the first:
//
//   dk_i = dq_i sin(s_i) [k_i > 0],  ds_i = dq_i k_i cos(s_i),  dq_{i-1} = [dk_i | ds_i] W_i,
//   dW_i += [dk_i | ds_i]^T q_{i-1},  dc[LR pixel] += dk_i
//
// Slabs (plan.h) make it deterministic whatever the number of threads.
#pragma once

#include "plan.h"

namespace diinn {
namespace DIINN_ISA {

// What a layer leaves for its backward: q, `by_k` = dq/dk-to-be = sin(s) [k > 0], `by_s` = k cos(s).
struct Layer {
  float *q, *by_k, *by_s, *k;  // k: with recurrent K layers only
};

static DIINN_INLINE void record(const Layer& l, int64_t at, vec own, vec s, bool rectify) {
  vec sn, cs;
  sine_cosine(s, &sn, &cs);
  const vec k = rectify ? relu(own) : own;
  store(l.q + at, k * sn);
  store(l.by_k + at, rectify ? where_positive(k, sn) : sn);
  store(l.by_s + at, k * cs);
}

// As ModulateAndSynthesize, recording.
struct RecordPair {
  const float* const* content;
  int64_t offset;
  const float* bias;
  Layer layer;
  int64_t stride;
  DIINN_INLINE void prefetch(int64_t row, int64_t panel) const {
    for (int r = 0; r < kRows; ++r) __builtin_prefetch(content[row + r] + offset + panel * kLanes);
  }
  DIINN_INLINE void operator()(int64_t row, int64_t panel, const Sums& sums) const {
    const int64_t j = panel * kLanes;
    for (int r = 0; r < kRows; ++r) {
      const vec own = load(content[row + r] + offset + j) + load(sums[r]);
      record(layer, (row + r) * stride + j, own, load(sums[r] + kLanes) + load(bias + j), true);
    }
  }
};

// As Synthesize, recording.
struct RecordSine {
  const float* const* content;  // k from the content, or ...
  int64_t offset;
  const float* k;  // ... from here if not null
  const float* bias;
  Layer layer;
  int64_t stride;
  bool rectify;
  void prefetch(int64_t, int64_t) const {}
  DIINN_INLINE void operator()(int64_t row, int64_t panel, const Sums& sums) const {
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kPanel; c += kLanes) {
        const int64_t j = panel * kPanel + c, at = (row + r) * stride + j;
        const vec own = k ? load(k + at) : load(content[row + r] + offset + j);
        record(layer, at, own, load(sums[r] + c) + load(bias + j), rectify);
      }
    }
  }
};

class Backward {
 public:
  static constexpr int64_t kTile = kMostRows / kRows * kRows;

  Backward(const Problem& problem, const float* grad, float* const* gradients)
      : p(problem), net(problem), grad_(grad), gradients_(gradients), plan_(problem, measure_weights()) {
    const int64_t width = p.width;
    last_back_.pack({p.weights[kLast], p.outputs, width, width, 1}, p.threads);
    hidden_back_ = new Panels[2 * p.layers];
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
      content_back_.pack({p.weights[kContent], p.content_rows, net.taps, net.taps, 1, 0, p.channels}, p.threads);
      halo_floats_ = gradients_[0] ? 2 * (p.columns + 2) * p.channels : 0;
      halos_.reset(halo_floats_ * plan_.count());
      if (halo_floats_) memset(halos_.get(), 0, halo_floats_ * plan_.count() * sizeof(float));
    }
    if (p.init_q()) position_back_.pack({p.weights[kPosition], width, net.taps, net.taps, 1, 0, p.channels}, p.threads);
    for (int n = 0; n < kWeights; ++n) {
      offset_[n] = sum_floats_;
      if (gradients_[1 + n]) sum_floats_ += round_up(size_[n], 16);
    }
    sums_.reset(sum_floats_ * plan_.slabs);
    scratch_floats_ = lay_out(nullptr, nullptr);
    scratch_.reset(scratch_floats_ * p.threads);
  }
  Backward(const Backward&) = delete;
  Backward& operator=(const Backward&) = delete;
  ~Backward() { delete[] hidden_back_; }

  void run() {
    parallel(plan_.slabs, p.threads, [&](int64_t slab, int thread) {
      float* sums = sums_.get() + slab * sum_floats_;
      if (sum_floats_) memset(sums, 0, sum_floats_ * sizeof(float));
      Work work;
      lay_out(scratch_.get() + thread * scratch_floats_, &work);
      for (int n = 0; n < kWeights; ++n) work.sum[n] = gradients_[1 + n] ? sums + offset_[n] : nullptr;
      for (int64_t n = plan_.first(slab); n < plan_.first(slab + 1); ++n) {
        const Segment& segment = plan_[n];
        for (int64_t q = segment.first_query; q < segment.last_query; q += kTile) {
          const int64_t count = segment.last_query - q < kTile ? segment.last_query - q : kTile;
          place(p, segment.image, q, count, plan_.order(segment.image), &work.tile);
          tile(segment, halos_.get() + n * halo_floats_, q, &work);
        }
      }
    });
    for (int n = 0; n < kWeights; ++n) {
      if (gradients_[1 + n]) add_slabs(n);
    }
    if (halo_floats_) add_halos();
  }

 private:
  struct Work {  // one thread's
    Tile tile;
    float* sum[kWeights];  // this slab's weight gradients, null: not needed
    float *grad, *dq, *dk_next, *d, *packed_d, *packed_x, *position;
    float *x, *modulator, *modulated, *content, *dc, *dx, *dp;  // direct form
    Layer layer[16];
  };
  static constexpr int64_t kMostLayers = 16;

  // Sizes of all weights; returns their sum, needed or not, so that the plan does not depend on what is needed.
  int64_t measure_weights() {
    const int64_t width = p.width, taps = net.taps, first = p.init_q() ? taps : 0;
    const int64_t content = p.form == Form::direct ? p.content_rows * taps : 0;
    const int64_t sizes[kWeights] = {width * (p.init_q() ? taps : 3),
                                     width,
                                     (p.layers - 1) * net.hidden_rows * width,
                                     (p.layers - 1) * width,
                                     p.outputs * width,
                                     p.outputs,
                                     content,
                                     content ? p.layers * width : 0,
                                     first * 3,
                                     first};
    int64_t total = 0;
    for (int n = 0; n < kWeights; ++n) total += size_[n] = sizes[n];
    return total;
  }

  // Divides a thread's scratch memory (work null: only measures it); returns the floats.
  int64_t lay_out(float* base, Work* work) const {
    int64_t used = 0;
    auto take = [&](int64_t stride) {
      float* at = base ? base + used : nullptr;
      used += round_up(kTile * stride, 16);
      return at;
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
    w.grad = take(net.output_stride);
    w.dq = take(net.row_stride);
    w.dk_next = take(p.recurrent_k ? net.row_stride : 0);
    w.d = take(d_stride());
    w.position = take(4);
    w.packed_d = take(round_up(most_rows, kRows));
    w.packed_x = take(round_up(most_columns, kPanel));
    for (int64_t n = 0; n < p.layers; ++n) {
      w.layer[n].q = take(net.row_stride);
      w.layer[n].by_k = take(net.row_stride);
      w.layer[n].by_s = take(net.row_stride);
      w.layer[n].k = take(p.recurrent_k ? net.row_stride : 0);
    }
    w.x = take(tap_rows);
    w.modulator = take(p.init_q() ? tap_rows : 0);
    w.modulated = take(p.init_q() ? tap_rows : 0);
    w.content = take(tap_rows ? all : 0);
    w.dc = take(tap_rows ? all : 0);
    w.dx = take(tap_rows);
    w.dp = take(p.init_q() ? tap_rows : 0);
    if (!p.init_q()) w.modulated = w.x;
    return used;
  }

  int64_t d_stride() const { return 2 * p.width + 16; }

  // The tile's activations, as forward computes them.
  void recompute(int64_t image, Work* w) const {
    Tile& t = w->tile;
    const int64_t stride = net.row_stride;
    if (p.form == Form::direct) net.compute_content(image, &t, w->x, w->modulator, w->modulated, w->content);
    if (p.recurrent_k) {
      for (int64_t n = 0; n < t.rows; ++n) {
        for (int64_t j = 0; j < p.width; j += kLanes)
          store(w->layer[0].k + n * stride + j, relu(load(t.content[n] + j)));
      }
    }
    const bool rectify = p.form != Form::modulation;
    if (p.init_q()) {
      product(t.rows, w->modulator, net.tap_stride, net.position_product,
              RecordSine{t.content, 0, nullptr, p.weights[kPositionBias], w->layer[0], stride, true});
    } else {
      for (int64_t n = 0; n < t.rows; ++n) {
        const vec dy = splat(t.dy[n]), dx = splat(t.dx[n]);
        for (int64_t j = 0; j < p.width; j += kLanes)
          record(w->layer[0], n * stride + j, load(t.content[n] + j), net.position(j, dy, dx), rectify);
      }
    }
    for (int64_t n = 1; n < p.layers; ++n) {
      const Layer &layer = w->layer[n], &before = w->layer[n - 1];
      const int64_t offset = n * p.width;
      const float* bias = net.hidden_bias(n);
      if (p.form == Form::modulation) {
        product(t.rows, before.q, stride, net.hidden[n],
                RecordSine{t.content, offset, nullptr, bias, layer, stride, false});
      } else if (p.recurrent_k) {
        product(t.rows, before.k, stride, net.hidden[p.layers + n], Modulate{t.content, offset, layer.k, stride});
        product(t.rows, before.q, stride, net.hidden[n], RecordSine{nullptr, 0, layer.k, bias, layer, stride, true});
      } else {
        product(t.rows, before.q, stride, net.hidden[n], RecordPair{t.content, offset, bias, layer, stride});
      }
    }
  }

  void tile(const Segment& segment, float* halo, int64_t first, Work* w) const {
    const Tile& t = w->tile;
    const int64_t width = p.width, stride = net.row_stride;
    recompute(segment.image, w);
    load_grad(segment.image, first, w);
    pack_rows(t.count, w->grad, net.output_stride, p.outputs, w);
    add_product(w->layer[p.layers - 1].q, stride, width, p.outputs, w->sum[kLast], t.count, w);
    add_columns(t.count, w->grad, net.output_stride, p.outputs, w->sum[kLastBias]);
    product(t.rows, w->grad, net.output_stride, last_back_, Store{w->dq, stride});
    for (int64_t n = p.layers - 1; n >= 0; --n) {
      differentiate(w->layer[n], n < p.layers - 1, w);
      pass_content(segment.image, n, w);
      if (n == 0) break;
      float* sum = w->sum[kHiddenBias];
      add_columns(t.count, w->d + width, d_stride(), width, sum ? sum + (n - 1) * width : nullptr);
      sum = w->sum[kHidden] ? w->sum[kHidden] + (n - 1) * net.hidden_rows * width : nullptr;
      const float* q = w->layer[n - 1].q;
      if (p.recurrent_k) {
        pack_rows(t.count, w->d, d_stride(), width, w);
        add_product(w->layer[n - 1].k, stride, width, width, sum, t.count, w);
        pack_rows(t.count, w->d + width, d_stride(), width, w);
        add_product(q, stride, width, width, sum ? sum + width * width : nullptr, t.count, w);
        product(t.rows, w->d, d_stride(), hidden_back_[p.layers + n], Store{w->dk_next, stride});
        product(t.rows, w->d + width, d_stride(), hidden_back_[n], Store{w->dq, stride});
      } else {
        const float* d = p.form == Form::modulation ? w->d + width : w->d;
        if (sum) pack_rows(t.count, d, d_stride(), net.hidden_rows, w);
        add_product(q, stride, width, net.hidden_rows, sum, t.count, w);
        product(t.rows, d, d_stride(), hidden_back_[n], Store{w->dq, stride});
      }
    }
    add_columns(t.count, w->d + width, d_stride(), width, w->sum[kPositionBias]);
    if (w->sum[kPosition]) {
      pack_rows(t.count, w->d + width, d_stride(), width, w);
      if (p.init_q()) {
        add_product(w->modulator, net.tap_stride, net.taps, width, w->sum[kPosition], t.count, w);
      } else {
        place_positions(w);
        add_product(w->position, 4, 3, width, w->sum[kPosition], t.count, w);
      }
    }
    if (p.form == Form::direct) pass_neighbourhoods(segment, halo, w);
  }

  // d = [dk | ds] of a layer from dq (and with recurrent K layers, from the gradient of k_{i+1}).
  void differentiate(const Layer& layer, bool inner, Work* w) const {
    for (int64_t t = 0; t < w->tile.rows; ++t) {
      float* d = w->d + t * d_stride();
      for (int64_t j = 0; j < p.width; j += kLanes) {
        const int64_t at = t * net.row_stride + j;
        const vec dq = load(w->dq + at);
        vec dk = dq * load(layer.by_k + at);
        if (p.recurrent_k && inner) dk += where_positive(load(layer.k + at), load(w->dk_next + at));
        store(d + j, dk);
        store(d + p.width + j, dq * load(layer.by_s + at));
      }
    }
  }

  // The content's gradient of layer n: into the source's, whose rows this slab owns, or kept for the direct form.
  void pass_content(int64_t image, int64_t n, Work* w) const {
    const int64_t all = p.layers * p.width;
    if (p.form != Form::direct && !gradients_[0]) return;
    for (int64_t t = 0; t < w->tile.count; ++t) {
      const float* dk = w->d + t * d_stride();
      if (p.form == Form::direct) {
        memcpy(w->dc + t * all + n * p.width, dk, p.width * sizeof(float));
        continue;
      }
      float* to = gradients_[0] + (image * p.rows * p.columns + w->tile.pixel[t]) * all + n * p.width;
      for (int64_t j = 0; j < p.width; j += kLanes) store(to + j, load(to + j) + load(dk + j));
    }
  }

  // Direct form: from the content's gradient to its weights, the extra sine layer, and the features.
  void pass_neighbourhoods(const Segment& segment, float* halo, Work* w) const {
    const Tile& t = w->tile;
    const int64_t all = p.layers * p.width, taps = net.taps, stride = net.tap_stride;
    for (int64_t n = t.count; n < t.rows; ++n) memset(w->dc + n * all, 0, all * sizeof(float));
    add_columns(t.count, w->dc, all, all, w->sum[kContentBias]);
    if (w->sum[kContent]) {
      pack_rows(t.count, w->dc, all, p.content_rows, w);
      add_product(w->modulated, stride, taps, p.content_rows, w->sum[kContent], t.count, w);
    }
    const bool need_first = w->sum[kFirst] || w->sum[kFirstBias];
    if (!gradients_[0] && !need_first) return;
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
      if (w->sum[kFirst]) {
        pack_rows(t.count, w->dp, stride, taps, w);
        place_positions(w);
        add_product(w->position, 4, 3, taps, w->sum[kFirst], t.count, w);
      }
      add_columns(t.count, w->dp, stride, taps, w->sum[kFirstBias]);
    }
    if (!gradients_[0]) return;
    const int64_t run = 3 * p.channels, line = (p.columns + 2) * p.channels;
    float* image = gradients_[0] + segment.image * (p.rows + 2) * line;
    for (int64_t n = 0; n < t.count; ++n) {
      float* dx = w->dx + n * stride;
      if (p.init_q()) {
        for (int64_t j = 0; j < taps; j += kLanes) store(dx + j, load(dx + j) * load(w->modulator + n * stride + j));
      }
      const int64_t row = t.pixel[n] / p.columns, column = t.pixel[n] % p.columns;
      for (int64_t ky = 0; ky < 3; ++ky, dx += run) {
        const int64_t y = row + ky;
        float* to =
            (y < segment.last_row ? image + y * line : halo + (y - segment.last_row) * line) + column * p.channels;
        for (int64_t j = 0; j < run; ++j) to[j] += dx[j];
      }
    }
  }

  // The outputs' gradient of the tile [rows, output_stride], zero in the padding.
  void load_grad(int64_t image, int64_t first, Work* w) const {
    memset(w->grad, 0, w->tile.rows * net.output_stride * sizeof(float));
    const int64_t* order = plan_.order(image);
    for (int64_t n = 0; n < w->tile.count; ++n) {
      for (int64_t o = 0; o < p.outputs; ++o) {
        const int64_t query = order ? order[first + n] : first + n;
        w->grad[n * net.output_stride + o] = p.points ? grad_[(image * p.points + query) * p.outputs + o]
                                                      : grad_[(image * p.outputs + o) * p.queries() + query];
      }
    }
  }

  void place_positions(Work* w) const {
    for (int64_t n = 0; n < w->tile.count; ++n) {
      float* to = w->position + 4 * n;
      to[0] = w->tile.dy[n];
      to[1] = w->tile.dx[n];
      to[2] = p.ratio;
    }
  }

  // Packs d [count, rows] as the left factor of add_product: [rows / kRows][count][kRows].
  static void pack_rows(int64_t count, const float* d, int64_t stride, int64_t rows, Work* w) {
    for (int64_t block = 0; block * kRows < rows; ++block) {
      float* to = w->packed_d + block * count * kRows;
      const float* from = d + block * kRows;
      if (rows - block * kRows >= kRows) {
        for (int64_t t = 0; t < count; ++t) memcpy(to + t * kRows, from + t * stride, kRows * sizeof(float));
      } else {
        for (int64_t t = 0; t < count; ++t) {
          for (int64_t r = 0; r < kRows; ++r) to[t * kRows + r] = block * kRows + r < rows ? from[t * stride + r] : 0;
        }
      }
    }
  }

  // sum [rows, columns] += packed_d^T x, with x [count, columns]; nothing if sum is null.
  static void add_product(const float* x, int64_t stride, int64_t columns, int64_t rows, float* sum, int64_t count,
                          Work* w) {
    if (!sum) return;
    const int64_t panels = round_up(columns, kPanel) / kPanel;
    for (int64_t panel = 0; panel < panels; ++panel) {
      float* to = w->packed_x + panel * count * kPanel;
      const float* from = x + panel * kPanel;
      const int64_t n = columns - panel * kPanel < kPanel ? columns - panel * kPanel : kPanel;
      for (int64_t t = 0; t < count; ++t) {
        if (n == kPanel) {
          for (int c = 0; c < kPanel; c += kLanes) store(to + t * kPanel + c, load(from + t * stride + c));
        } else {
          for (int64_t c = 0; c < kPanel; ++c) to[t * kPanel + c] = c < n ? from[t * stride + c] : 0;
        }
      }
    }
    product<true>(round_up(rows, kRows), count, w->packed_d, 0, w->packed_x, panels, Add{sum, rows, columns});
  }

  // sum [columns] += the rows of x; 16 rows at a time, and the tile's own sum first, so that long sums stay accurate.
  static void add_columns(int64_t count, const float* x, int64_t stride, int64_t columns, float* sum) {
    if (!sum) return;
    constexpr int64_t kBlock = 16;
    int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      vec total{};
      for (int64_t start = 0; start < count; start += kBlock) {
        vec block{};
        for (int64_t t = start; t < count && t < start + kBlock; ++t) block += load(x + t * stride + j);
        total += block;
      }
      store(sum + j, load(sum + j) + total);
    }
    for (; j < columns; ++j) {
      double total = 0;
      for (int64_t t = 0; t < count; ++t) total += x[t * stride + j];
      sum[j] += float(total);
    }
  }

  // gradient = the slabs' sums in order; columns (or, in the first sine layer, rows) back from tap-major order.
  void add_slabs(int weight) {
    const int64_t taps = net.taps;
    const bool columns = weight == kContent || (weight == kPosition && p.init_q());
    const bool rows = weight == kFirst || weight == kFirstBias;
    const int64_t line = columns ? taps : weight == kFirst ? 3 : 1, lines = size_[weight] / line;
    constexpr int64_t kBlock = 1 << 14;
    const int64_t step = kBlock / line < 1 ? 1 : kBlock / line;
    parallel((lines + step - 1) / step, p.threads, [&](int64_t index, int) {
      const int64_t stop = (index + 1) * step < lines ? (index + 1) * step : lines;
      for (int64_t n = index * step; n < stop; ++n) {
        float* to = gradients_[1 + weight] + (rows ? from_tap_major(n, p.channels) : n) * line;
        for (int64_t j = 0; j < line; ++j) {
          float total = 0;
          const float* from = sums_.get() + offset_[weight] + n * line + j;
          for (int64_t slab = 0; slab < plan_.slabs; ++slab) total += from[slab * sum_floats_];
          to[columns ? from_tap_major(j, p.channels) : j] = total;
        }
      }
    });
  }

  void add_halos() {
    const int64_t line = (p.columns + 2) * p.channels;
    for (int64_t n = 0; n < plan_.count(); ++n) {
      float* to = gradients_[0] + (plan_[n].image * (p.rows + 2) + plan_[n].last_row) * line;
      const float* from = halos_.get() + n * halo_floats_;
      for (int64_t j = 0; j < halo_floats_; ++j) to[j] += from[j];
    }
  }

  const Problem& p;
  const Network net;
  const float* grad_;
  float* const* gradients_;
  int64_t size_[kWeights], offset_[kWeights], sum_floats_ = 0, scratch_floats_ = 0, halo_floats_ = 0;
  Plan plan_;
  Panels last_back_, content_back_, position_back_;
  Panels* hidden_back_ = nullptr;
  Buffer sums_, scratch_, halos_;
};

static void backward(const Problem& problem, const float* grad, float* const* gradients) {
  Backward(problem, grad, gradients).run();
}

}  // namespace DIINN_ISA
}  // namespace diinn
