// The microkernel on AMX, of 8-bit integers and of bfloat16: one instruction adds, to 16 rows by 16
// columns of sums, 64 bytes of each row times as many of each column. Included by gemm.h.
#pragma once

namespace diinn {
namespace DIINN_ISA {

static_assert(kRows == 32 && kPanel == 32, "two by two tiles of sums");

#if !defined(DIINN_EMULATED_AMX)

// Compilers need not know which memory the instructions on tiles read.
static DIINN_INLINE void finish_stores() { asm volatile("" ::: "memory"); }

// The tile registers of this thread, all of 16 rows of 64 bytes, while it lives: what a thread
// needs for products.
class ProductUnit {
 public:
  ProductUnit() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    finish_stores();
    _tile_loadconfig(&shapes);
  }
  ProductUnit(const ProductUnit&) = delete;
  ProductUnit& operator=(const ProductUnit&) = delete;
  ~ProductUnit() { _tile_release(); }
};

// With integers of 8 bits both factors are signed.
#define DIINN_ADD_TILES(T, sums, a, b) \
  do {                                 \
    if (sizeof(T) == 1)                \
      _tile_dpbssd(sums, a, b);        \
    else                               \
      _tile_dpbf16ps(sums, a, b);      \
  } while (false)

// The rows of `a` are row_bytes apart; after 64 bytes of each row it goes on a_step elements
// further.
template <class T>
static DIINN_INLINE void add_tiles(int64_t depth, const T* a, int64_t row_bytes, int64_t a_step,
                                   const T* panel, Sums& sums) {
  constexpr int64_t kLine = kPanel * sizeof(float);
  finish_stores();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kDepth<T>) {
    _tile_loadd(4, a, row_bytes);
    _tile_loadd(6, panel, kLine);
    DIINN_ADD_TILES(T, 0, 4, 6);
    _tile_loadd(7, panel + kLanes * kPair<T>, kLine);
    DIINN_ADD_TILES(T, 1, 4, 7);
    _tile_loadd(5, reinterpret_cast<const char*>(a) + 16 * row_bytes, row_bytes);
    DIINN_ADD_TILES(T, 2, 5, 6);
    DIINN_ADD_TILES(T, 3, 5, 7);
    a += a_step;
    panel += kDepth<T> * kPanel;
  }
  _tile_stored(0, sums[0], kLine);
  _tile_stored(1, sums[0] + kLanes, kLine);
  _tile_stored(2, sums[16], kLine);
  _tile_stored(3, sums[16] + kLanes, kLine);
}

// Rows are read in whole words of 64 bytes: beyond the depth that counts, where the panel has
// zeros, they may hold any integers.
template <>
DIINN_INLINE void microkernel<false, int8_t>(int64_t depth, const int8_t* a, int64_t stride,
                                             const int8_t* panel, Sums& sums) {
  add_tiles(depth, a, stride, kDepth<int8_t>, panel, sums);
}
template <>
DIINN_INLINE void microkernel<false, bf16>(int64_t depth, const bf16* a, int64_t stride,
                                           const bf16* panel, Sums& sums) {
  add_tiles(depth, a, stride * int64_t(sizeof(bf16)), kDepth<bf16>, panel, sums);
}
template <>
DIINN_INLINE void microkernel<true, bf16>(int64_t depth, const bf16* a, int64_t, const bf16* panel,
                                          Sums& sums) {
  add_tiles(depth, a, 64, kRows * kDepth<bf16>, panel, sums);
}

#else  // DIINN_EMULATED_AMX: the same of integers in plain C++

struct ProductUnit {
  ProductUnit() {}
};

template <>
inline void microkernel<false, int8_t>(int64_t depth, const int8_t* a, int64_t stride,
                                       const int8_t* panel, Sums& sums) {
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kPanel; ++c) {
      int32_t total = 0;
      for (int64_t k = 0; k < depth; ++k)
        total += a[r * stride + k] * panel[(k / 4 * kPanel + c) * 4 + k % 4];
      memcpy(&sums[r][c], &total, sizeof total);
    }
  }
}

#endif

}  // namespace DIINN_ISA
}  // namespace diinn
