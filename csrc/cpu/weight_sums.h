// Gradients of the weights: sums over a tile's queries, a copy of all of them for each slab at
// work, and the copies' sum in the order of the slabs. All in float32.
#pragma once

#include "network.h"

namespace diinn {
namespace DIINN_ISA {

// Packs x [count, columns] as a factor of a product along its rows: [columns / kBlock][count /
// kPair][kBlock][kPair], with zeros beyond `columns` and, up to a multiple of kDepth, `count`. May
// read and write some elements further, before what it writes there.
template <int kBlock, class T>
static inline void pack_factor(int64_t count, const T* x, int64_t stride, int64_t columns, T* to) {
  constexpr int kWord = kPair<T>;
  static const T zeros[kBlock + kLanes] = {};
  for (int64_t first = 0; first < columns; first += kBlock) {
    const int64_t own = columns - first < kBlock ? columns - first : kBlock;
    for (int64_t t = 0; t < round_up(count, kDepth<T>); t += kWord, to += kWord * kBlock) {
      const T* rows[kWord];
      for (int i = 0; i < kWord; ++i)
        rows[i] = t + i < count ? x + (t + i) * stride + first : zeros;
      if (own == kBlock) {
        for (int c = 0; c < kBlock; c += kLanes) store_words(to + kWord * c, rows, c);
      } else {
        for (int c = 0; c < kWord * kBlock; ++c)
          to[c] = c / kWord < own ? rows[c % kWord][c / kWord] : T(0);
      }
    }
  }
}

// Packs x as the microkernel's rows.
template <class T>
static inline void pack_rows(int64_t count, const T* x, int64_t stride, int64_t columns, T* to) {
  pack_factor<kRows>(count, x, stride, columns, to);
#if defined(DIINN_AMX)
  // A tile's row has its words side by side: [columns / kRows][count / kDepth][kRows][kDepth].
  constexpr int kWords = int(kDepth<T> / kPair<T>);
  static_assert(kWords == kLanes, "a row of a tile is a vector");
  const int64_t blocks =
      round_up(columns, kRows) / kRows * (round_up(count, kDepth<T>) / kDepth<T>);
  for (int64_t n = 0; n < blocks; ++n, to += kRows * kDepth<T>) {
    float* block = reinterpret_cast<float*>(to);  // [kWords][kRows]
    vec half[2][kWords];
    for (int k = 0; k < kWords; ++k) {
      half[0][k] = load(block + k * kRows);
      half[1][k] = load(block + k * kRows + kLanes);
    }
    for (int h = 0; h < 2; ++h) {
      transpose(half[h]);
      for (int r = 0; r < kLanes; ++r) store(block + (h * kLanes + r) * kWords, half[h][r]);
    }
  }
#endif
}

// sum [rows, columns] += d^T x, with d [count, rows] and x [count, columns]; nothing if sum is
// null. `packed` has room for both factors: packed_factors<T>(count, rows, columns) elements.
template <class T>
static inline void add_product(int64_t count, const T* d, int64_t d_stride, int64_t rows,
                               const T* x, int64_t x_stride, int64_t columns, float* sum,
                               T* packed) {
  if (!sum) return;
  const int64_t depth = round_up(count, kDepth<T>), padded = round_up(rows, kRows);
  T* panels = packed + round_up(padded * depth, 64);
  pack_rows(count, d, d_stride, rows, packed);
  pack_factor<kPanel>(count, x, x_stride, columns, panels);
  product<true>(padded, depth, packed, 0, panels, round_up(columns, kPanel) / kPanel,
                Add{sum, rows, columns});
}

template <class T>
static inline int64_t packed_factors(int64_t count, int64_t rows, int64_t columns) {
  const int64_t depth = round_up(count, kDepth<T>);
  return round_up(round_up(rows, kRows) * depth, 64) + round_up(columns, kPanel) * depth;
}

constexpr int64_t kSumBlock =
    16;  // rows added at a time, and the tile's own sum first: long sums stay accurate

// sum [columns] += the rows of x, whose stride is a multiple of kLanes.
template <class T>
static inline void add_columns(int64_t count, const T* x, int64_t stride, int64_t columns,
                               float* sum) {
  if (!sum) return;
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    vec total{};
    for (int64_t start = 0; start < count; start += kSumBlock) {
      vec block{};
      for (int64_t t = start; t < count && t < start + kSumBlock; ++t)
        block += load(x + t * stride + j);
      total += block;
    }
    store(sum + j, load(sum + j) + total);
  }
  double total[kLanes] = {};  // of the last few, such as RGB
  float lanes[kLanes];
  for (int64_t t = 0; j < columns && t < count; ++t) {
    store(lanes, load(x + t * stride + j));
    for (int64_t c = 0; j + c < columns; ++c) total[c] += lanes[c];
  }
  for (int64_t c = 0; j + c < columns; ++c) sum[j + c] += float(total[c]);
}

// sum [columns, 3] += x^T [dy, dx, ratio].
template <class T>
static inline void add_positions(const Tile<T>& tile, float ratio, const T* x, int64_t stride,
                                 int64_t columns, float* sum) {
  if (!sum) return;
  for (int64_t j = 0; j < columns; j += kLanes) {
    vec total[3] = {};
    for (int64_t start = 0; start < tile.count; start += kSumBlock) {
      vec block[3] = {};
      for (int64_t t = start; t < tile.count && t < start + kSumBlock; ++t) {
        const vec own = load(x + t * stride + j);
        block[0] = fma(own, splat(tile.dy[t]), block[0]);
        block[1] = fma(own, splat(tile.dx[t]), block[1]);
        block[2] = fma(own, splat(ratio), block[2]);
      }
      for (int i = 0; i < 3; ++i) total[i] += block[i];
    }
    float lanes[3][kLanes];
    for (int i = 0; i < 3; ++i) store(lanes[i], total[i]);
    for (int64_t lane = 0; lane < kLanes && j + lane < columns; ++lane) {
      for (int i = 0; i < 3; ++i) sum[(j + lane) * 3 + i] += lanes[i][lane];
    }
  }
}

class WeightSums {
 public:
  // gradients[Weight], null: not needed.
  WeightSums(const Problem& problem, float* const* gradients, int64_t hidden_rows)
      : p(problem), gradients_(gradients) {
    const int64_t width = p.width, taps = 9 * p.channels, first = p.init_q() ? taps : 0;
    const int64_t content = p.form == Form::direct ? p.content_rows * taps : 0;
    const int64_t sizes[kWeights] = {width * (p.init_q() ? taps : 3),
                                     width,
                                     (p.layers - 1) * hidden_rows * width,
                                     (p.layers - 1) * width,
                                     p.outputs * width,
                                     p.outputs,
                                     content,
                                     content ? p.layers * width : 0,
                                     first * 3,
                                     first};
    for (int n = 0; n < kWeights; ++n) {
      all_ += size_[n] = sizes[n];
      offset_[n] = stride_;
      if (gradients[n]) stride_ += round_up(size_[n], 16);
    }
  }

  // Of all weights, needed or not: what the plan takes, which must not depend on what is needed.
  int64_t all() const { return all_; }

  void allocate(int64_t copies) { copies_.reset(stride_ * (1 + copies)); }

  // Zeroes a copy, and says where each weight's sums are in it (null: not needed).
  void start(int64_t copy, float** sums) const {
    float* at = copies_.get() + (1 + copy) * stride_;
    if (stride_) memset(at, 0, stride_ * sizeof(float));
    for (int n = 0; n < kWeights; ++n) sums[n] = gradients_[n] ? at + offset_[n] : nullptr;
  }

  // Adds the first `count` copies in order to the total, which starts as zero if `fresh`.
  void add_copies(int64_t count, bool fresh) const {
    constexpr int64_t kBlock = 1 << 14;
    parallel((stride_ + kBlock - 1) / kBlock, p.threads, [&](int64_t index, int) {
      const int64_t stop = (index + 1) * kBlock < stride_ ? (index + 1) * kBlock : stride_;
      for (int64_t n = index * kBlock; n < stop; n += kLanes) {
        float* to = copies_.get() + n;
        vec total = fresh ? vec{} : load(to);
        for (int64_t copy = 1; copy <= count; ++copy) total += load(to + copy * stride_);
        store(to, total);
      }
    });
  }

  // The gradients from the total; columns (or, in the first sine layer, rows) back from tap-major
  // order.
  void finish() const {
    for (int weight = 0; weight < kWeights; ++weight) {
      float* to = gradients_[weight];
      if (!to) continue;
      const float* from = copies_.get() + offset_[weight];
      const bool columns = weight == kContent || (weight == kPosition && p.init_q());
      const bool rows = weight == kFirst || weight == kFirstBias;
      const int64_t line = columns ? 9 * p.channels : weight == kFirst ? 3 : 1;
      if (!columns && !rows) {
        memcpy(to, from, size_[weight] * sizeof(float));
        continue;
      }
      for (int64_t n = 0; n < size_[weight] / line; ++n) {
        float* row = to + (rows ? from_tap_major(n, p.channels) : n) * line;
        for (int64_t j = 0; j < line; ++j)
          row[columns ? from_tap_major(j, p.channels) : j] = *from++;
      }
    }
  }

 private:
  const Problem& p;
  float* const* gradients_;
  int64_t size_[kWeights], offset_[kWeights], stride_ = 0, all_ = 0;
  Buffer copies_;
};

}  // namespace DIINN_ISA
}  // namespace diinn
