// What the backward pass keeps of a tile's layers, and the epilogues that make it and use it.
#pragma once

#include "network.h"

namespace diinn {
namespace DIINN_ISA {

// Rows of q, and of what dq is multiplied by to give dk and ds: `by_k` = sin(s) [k > 0], `by_s` = k
// cos(s).
template <class T>
struct Layer {
  T *q, *by_k, *by_s, *k;  // k: with recurrent K layers only
};

template <class T>
static DIINN_INLINE void record(const Layer<T>& l, int64_t at, vec own, vec s, bool rectify) {
  vec sn, cs;
  sine_cosine(s, &sn, &cs);
  const vec k = rectify ? relu(own) : own;
  store(l.q + at, k * sn);
  store(l.by_k + at, rectify ? where_positive(k, sn) : sn);
  store(l.by_s + at, k * cs);
}

// As ModulateAndSynthesize, recording.
template <class T>
struct RecordPair {
  const T* const* content;
  int64_t offset;
  const float* bias;
  Layer<T> layer;
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
template <class T>
struct RecordSine {
  const T* const* content;  // k from the content, or ...
  int64_t offset;
  const T* k;  // ... from here if not null
  const float* bias;
  Layer<T> layer;
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

// Rows of d = [dk | ds] of a layer from dq, the sums; `dk_next`, if not null, is the gradient of k
// through k_{i+1}.
template <class T>
struct Differentiate {
  Layer<T> layer;
  int64_t stride;
  T* d;
  int64_t d_stride, width;
  const float* dk_next;
  DIINN_INLINE void prefetch(int64_t row, int64_t panel) const {
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = (row + r) * stride + panel * kPanel;
      prefetch_columns<false>(layer.by_k + at);
      prefetch_columns<false>(layer.by_s + at);
    }
  }
  DIINN_INLINE void operator()(int64_t row, int64_t panel, const Sums& sums) const {
    for (int r = 0; r < kRows; ++r) {
      T* to = d + (row + r) * d_stride;
      for (int c = 0; c < kPanel; c += kLanes) {
        const int64_t j = panel * kPanel + c, at = (row + r) * stride + j;
        const vec dq = load(sums[r] + c);
        vec dk = dq * load(layer.by_k + at);
        if (dk_next) dk += where_positive(load(layer.k + at), load(dk_next + at));
        store(to + j, dk);
        store(to + width + j, dq * load(layer.by_s + at));
      }
    }
  }
};

}  // namespace DIINN_ISA
}  // namespace diinn
