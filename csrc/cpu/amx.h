// Products of 8-bit integers on AMX: of 16 rows by 16 columns with 64 products each in one
// instruction, all factors signed. What the other sets have in the microkernel of gemm.h.
#pragma once

#include "dot.h"
#include "gemm.h"

#if defined(DIINN_AMX)

namespace diinn {
namespace DIINN_ISA {

static_assert(kRows == 32 && kPanel == 32, "two by two tiles of sums");

#if defined(__AMX_INT8__)

// The tile registers of this thread, all of 16 rows of 64 bytes, while it lives.
class ProductUnit {
 public:
  ProductUnit() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    _tile_loadconfig(&shapes);
  }
  ProductUnit(const ProductUnit&) = delete;
  ProductUnit& operator=(const ProductUnit&) = delete;
  ~ProductUnit() { _tile_release(); }
};

// Needs a ProductUnit. Of a and of the panel it reads whole words of 64 factors: beyond the depth
// that counts, the panel has zeros and the rows of a may have any integers.
template <>
DIINN_INLINE void microkernel<false, Integer>(int64_t depth, const Integer* a, int64_t stride,
                                              const Integer* panel, Sums& sums) {
  constexpr int64_t kLine = kPanel * sizeof(Word);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kDepthUnit) {
    _tile_loadd(4, a, stride);
    _tile_loadd(6, panel, kLine);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, panel + kLanes * sizeof(Word), kLine);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(5, a + 16 * stride, stride);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
    a += kDepthUnit;
    panel += kDepthUnit * kPanel;
  }
  _tile_stored(0, sums[0], kLine);
  _tile_stored(1, sums[0] + kLanes, kLine);
  _tile_stored(2, sums[16], kLine);
  _tile_stored(3, sums[16] + kLanes, kLine);
}

#else  // DIINN_EMULATED_AMX: the same in plain C++

struct ProductUnit {
  ProductUnit() {}
};

template <>
inline void microkernel<false, Integer>(int64_t depth, const Integer* a, int64_t stride,
                                        const Integer* panel, Sums& sums) {
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kPanel; ++c) {
      int32_t total = 0;
      for (int64_t k = 0; k < depth; ++k) {
        const Integer* word = panel + (k / 4 * kPanel + c) * sizeof(Word);
        total += a[r * stride + k] * word[k % 4];
      }
      memcpy(&sums[r][c], &total, sizeof total);
    }
  }
}

#endif

}  // namespace DIINN_ISA
}  // namespace diinn

#endif
