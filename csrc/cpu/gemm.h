// Products of a tile of rows with packed weights.
//
// A weight matrix B [depth, columns] is packed in panels of kPanel columns, each [depth][kPanel]
// contiguous (of bfloat16 [depth / 2][kPanel][2]): one panel stays in the L1 cache while all rows
// of the tile pass. The microkernel keeps kRows x kPanel sums in registers and adds over the depth
// in order, so that a row's result does not depend on the other rows, the tile or the thread.
#pragma once

#include "decoder.h"
#include "simd.h"

namespace diinn {
namespace DIINN_ISA {

static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// The depth of a product of T is a multiple of it, with zeros.
template <class T>
#if defined(DIINN_AMX)
constexpr int64_t kDepth = sizeof(T) < sizeof(float) ? 64 / sizeof(T) : 1;
#else
constexpr int64_t kDepth = kPair<T>;

struct ProductUnit {  // what a thread needs for products: on AMX more
  ProductUnit() {}
};
#endif

class Buffer {  // of floats, 64-byte aligned
 public:
  Buffer() = default;
  explicit Buffer(int64_t count)
      : data_(count ? static_cast<float*>(allocate(count * 4)) : nullptr) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_) release(data_);
  }
  void reset(int64_t count) {
    if (data_) release(data_);
    data_ = nullptr;
    if (count) data_ = static_cast<float*>(allocate(count * 4));
  }
  float* get() const { return data_; }

 private:
  float* data_ = nullptr;
};

// Calls work(index, thread) for every index below count (see parallel_for).
template <class Work>
void parallel(int64_t count, int threads, const Work& work) {
  auto call = [](void* context, int64_t index, int thread) {
    (*static_cast<const Work*>(context))(index, thread);
  };
  parallel_for(count, threads, call, const_cast<Work*>(&work));
}

// Where B's element (k, n) lies: data[k * k_stride + n * n_stride]. Features are gathered tap by
// tap (runs of channels), while weights have columns c * 9 + tap: k_channels or n_channels > 0 says
// that k or n counts tap-major.
struct Operand {
  const float* data;
  int64_t depth, columns;
  int64_t k_stride, n_stride;
  int64_t k_channels = 0, n_channels = 0;
  int64_t pair = 0;  // > 0: a panel holds kLanes columns and the kLanes columns `pair` further
};

static inline int64_t from_tap_major(int64_t index, int64_t channels) {
  return channels ? index % channels * 9 + index / channels : index;
}

// The column of B that is column c of a panel; `pair` as in Operand.
static inline int64_t panel_column(int64_t panel, int64_t c, int64_t pair) {
  if (!pair) return panel * kPanel + c;
  return c < kLanes ? panel * kLanes + c : pair + panel * kLanes + c - kLanes;
}

template <class T>
class Panels {
 public:
  void pack(const Operand& b, int threads) {
    depth_ = round_up(b.depth, kDepth<T>);
    count_ = b.pair ? b.pair / kLanes : round_up(b.columns, kPanel) / kPanel;
    data_.reset(count_ * depth_ * kPanel / kPair<T>);
    T* out = reinterpret_cast<T*>(data_.get());
    parallel(count_, threads,
             [&](int64_t panel, int) { pack_panel(b, panel, out + panel * depth_ * kPanel); });
  }
  int64_t depth() const { return depth_; }
  int64_t count() const { return count_; }
  const T* panels() const { return reinterpret_cast<const T*>(data_.get()); }

 private:
  void pack_panel(const Operand& b, int64_t panel, T* out) const {
    const float* column[kPanel];
    for (int64_t c = 0; c < kPanel; ++c) {
      const int64_t n = panel_column(panel, c, b.pair);
      column[c] = n < b.columns ? b.data + from_tap_major(n, b.n_channels) * b.n_stride : nullptr;
    }
    constexpr int64_t kBlock = 64;  // of the depth: both orders of strides stay in the cache
    alignas(64) float block[kBlock * kPanel];
    for (int64_t start = 0; start < b.depth; start += kBlock) {
      const int64_t count = b.depth - start < kBlock ? b.depth - start : kBlock;
      for (int64_t c = 0; c < kPanel; ++c) {
        for (int64_t k = 0; k < count; ++k) {
          const int64_t from = b.k_channels ? from_tap_major(start + k, b.k_channels) : start + k;
          block[k * kPanel + c] = column[c] ? column[c][from * b.k_stride] : 0;
        }
      }
      if (count % kPair<T>) memset(block + count * kPanel, 0, kPanel * sizeof(float));
      for (int64_t k = 0; k < count; k += kPair<T>, out += kPair<T> * kPanel) {
        const float* const rows[] = {block + k * kPanel, block + (k + 1) * kPanel};
        for (int c = 0; c < kPanel; c += kLanes) store_words(out + kPair<T> * c, rows, c);
      }
    }
    memset(out, 0, (depth_ - round_up(b.depth, kPair<T>)) * kPanel * sizeof(T));
  }

  Buffer data_;
  int64_t depth_ = 0, count_ = 0;
};

typedef float Sums[kRows][kPanel];

// sums[r][c] = sum over k of a(r, k) * panel(k, c), with row r of a at a + r * stride, or packed as
// by pack_factor.
template <bool kPackedRows, class T>
static DIINN_INLINE void microkernel(int64_t depth, const T* a, int64_t stride, const T* panel,
                                     Sums& sums) {
  constexpr int kWord = kPair<T>;
  vec total[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = vec{};
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; k += kWord) {
    const float* words = reinterpret_cast<const float*>(panel);
    const vec left = load(words), right = load(words + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto x = broadcast(a + r * (kPackedRows ? kWord : stride));
      total[r][0] = add_products<T>(total[r][0], x, left);
      total[r][1] = add_products<T>(total[r][1], x, right);
    }
    panel += kWord * kPanel;
    a += kPackedRows ? kWord * kRows : kWord;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    store(sums[r], total[r][0]);
    store(sums[r] + kLanes, total[r][1]);
  }
}

#if defined(DIINN_AMX)
}  // namespace DIINN_ISA
}  // namespace diinn
#include "amx.h"
namespace diinn {
namespace DIINN_ISA {
#endif

// For each panel and each kRows of the `rows` rows (a multiple of kRows): the microkernel, then
// done(row, panel, sums). done.prefetch(row, panel) comes before, to fetch what done will need.
// depth is a multiple of kDepth. Not inlined, so that the microkernel has all registers.
template <bool kPackedRows, class T, class Epilogue>
static __attribute__((noinline)) void product(int64_t rows, int64_t depth, const T* a,
                                              int64_t stride, const T* panels, int64_t count,
                                              const Epilogue done) {
  alignas(64) Sums sums;
  for (int64_t panel = 0; panel < count; ++panel, panels += depth * kPanel) {
    for (int64_t row = 0; row < rows; row += kRows) {
      done.prefetch(row, panel);
      microkernel<kPackedRows>(depth, a + row * (kPackedRows ? depth : stride), stride, panels,
                               sums);
      done(row, panel, sums);
    }
  }
}

template <class T, class Epilogue>
static inline void product(int64_t rows, const T* a, int64_t stride, const Panels<T>& b,
                           const Epilogue& done) {
  product<false>(rows, b.depth(), a, stride, b.panels(), b.count(), done);
}

// Fetches the kPanel columns from `at` on, to write them if kWrite.
template <bool kWrite, class T>
static DIINN_INLINE void prefetch_columns(const T* at) {
  constexpr int kLine = 64 / sizeof(T);
  for (int c = 0; c < kPanel; c += kLine) __builtin_prefetch(at + c, kWrite);
}

// out[row][panel columns] = sums (+ bias), out padded to whole panels.
struct Store {
  float* out;
  int64_t stride;
  const float* bias = nullptr;  // padded to whole panels
  void prefetch(int64_t, int64_t) const {}
  DIINN_INLINE void operator()(int64_t row, int64_t panel, const Sums& sums) const {
    const float* add = bias ? bias + panel * kPanel : nullptr;
    for (int r = 0; r < kRows; ++r) {
      float* to = out + (row + r) * stride + panel * kPanel;
      for (int c = 0; c < kPanel; c += kLanes)
        store(to + c, add ? load(sums[r] + c) + load(add + c) : load(sums[r] + c));
    }
  }
};

// total [rows, columns] += sums, in plain layout.
struct Add {
  float* total;
  int64_t rows, columns;
  DIINN_INLINE void prefetch(int64_t row, int64_t panel) const {
    const float* to = total + row * columns + panel * kPanel;
    for (int64_t r = 0; r < kRows; ++r)
      prefetch_columns<true>(to + (rows - row > r ? r * columns : 0));
  }
  DIINN_INLINE void operator()(int64_t row, int64_t panel, const Sums& sums) const {
    const int64_t last_row = rows - row < kRows ? rows - row : kRows, first = panel * kPanel;
    const int64_t last_column = columns - first < kPanel ? columns - first : kPanel;
    for (int64_t r = 0; r < last_row; ++r) {
      float* to = total + (row + r) * columns + first;
      if (last_column == kPanel) {
        for (int c = 0; c < kPanel; c += kLanes) store(to + c, load(to + c) + load(sums[r] + c));
      } else {
        for (int64_t c = 0; c < last_column; ++c) to[c] += sums[r][c];
      }
    }
  }
};

}  // namespace DIINN_ISA
}  // namespace diinn
