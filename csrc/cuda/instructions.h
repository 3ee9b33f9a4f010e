// The machine's instructions that C++ has no words for. Everything else in the kernels is ordinary C++, and is what
// the emulation executes; emulation/instructions.h does these few as the PTX ISA documents them.
#pragma once

#include "layout.h"
#include "platform.h"

#ifndef __CUDACC__
#include "emulation/instructions.h"
#else

namespace diinn {

struct Float16 {};  // operand types: 16 bits in memory and registers, two to a 32-bit register
struct BFloat16 {};

DIINN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DIINN_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
DIINN_DEVICE int block_count() { return static_cast<int>(gridDim.x); }
DIINN_DEVICE void sync_block() { __syncthreads(); }

DIINN_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Two float32 rounded to nearest even; the first in the low half.
template <class T>
DIINN_DEVICE uint32_t pack(float low, float high);
template <>
DIINN_DEVICE uint32_t pack<Float16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <>
DIINN_DEVICE uint32_t pack<BFloat16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <class T>
DIINN_DEVICE void unpack(uint32_t both, float& low, float& high);
template <>
DIINN_DEVICE void unpack<Float16>(uint32_t both, float& low, float& high) {
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
      : "=f"(low), "=f"(high)
      : "r"(both));
}
template <>
DIINN_DEVICE void unpack<BFloat16>(uint32_t both, float& low, float& high) {
  low = __uint_as_float(both << 16);
  high = __uint_as_float(both & 0xFFFF0000u);
}

// Special-function unit, for |x| <= pi: absolute error below 5e-7.
DIINN_DEVICE float sine_unit(float x) {
  float y;
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DIINN_DEVICE float cosine_unit(float x) {
  float y;
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 bytes of global memory that no thread writes during the kernel.
DIINN_DEVICE Vector16 load_16(const void* from) {
  const uint4 v = __ldg(static_cast<const uint4*>(from));
  return {{v.x, v.y, v.z, v.w}};
}

// -- portable tensor cores (sm_80 and up)
// ------------------------------------------------------------------------------

// Global to shared memory, 16 bytes, in the background; groups of copies are waited for in order.
DIINN_DEVICE void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
DIINN_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
DIINN_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Four 8x8 matrices: lane l gives the address of row l % 8 of matrix l / 8.
DIINN_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b for a 16x16, b 16x8.
template <class T>
DIINN_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
#define DIINN_MULTIPLY(type, name)                                                                  \
  template <>                                                                                       \
  DIINN_DEVICE void multiply<type>(float(&d)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                      \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                      \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                            \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                            \
  }
DIINN_MULTIPLY(Float16, "f16")
DIINN_MULTIPLY(BFloat16, "bf16")
#undef DIINN_MULTIPLY

}  // namespace diinn

#endif
