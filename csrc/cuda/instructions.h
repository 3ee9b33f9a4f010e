// The machine's instructions that C++ has no words for. Everything else in the kernels is ordinary
// C++, and is what the emulation executes; emulation/instructions.h does these few as the PTX ISA
// documents them.
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
DIINN_DEVICE void sync_warp() { __syncwarp(); }

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

DIINN_DEVICE float relu(float x) {  // keeps NaN
  float y;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
  return y;
}

// The lowest bytes of four words, the first one lowest.
DIINN_DEVICE uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// What lane `lane` of the warp passes to its call.
DIINN_DEVICE uint32_t from_lane(uint32_t own, int lane) {
  return __shfl_sync(0xFFFFFFFFu, own, lane);
}

// 16 bytes of global memory that no thread writes during the kernel.
DIINN_DEVICE Vector16 load_16(const void* from) {
  const uint4 v = __ldg(static_cast<const uint4*>(from));
  return {{v.x, v.y, v.z, v.w}};
}

// -- portable tensor cores (sm_80 and up) --

// Global to shared memory, 16 bytes, in the background; groups of copies are waited for in order.
DIINN_DEVICE void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(global)
               : "memory");
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
#define DIINN_MULTIPLY(type, name)                                                     \
  template <>                                                                          \
  DIINN_DEVICE void multiply<type>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, \
                                   uint32_t b1) {                                      \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                         \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));               \
  }
DIINN_MULTIPLY(Float16, "f16")
DIINN_MULTIPLY(BFloat16, "bf16")
#undef DIINN_MULTIPLY

// d += a b for a 16x32, b 32x8, signed 8-bit integers.
DIINN_DEVICE void multiply_integers(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// -- Hopper (sm_90a) --

#ifdef DIINN_HOPPER

// Gives up or takes registers, of every thread of the warpgroup.
template <int kCount>
DIINN_DEVICE void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
DIINN_DEVICE void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

DIINN_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
DIINN_DEVICE void named_barrier_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
DIINN_DEVICE void named_barrier_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Barrier in shared memory: a phase completes when `count` threads have arrived and all expected
// bytes are there.
struct Barrier {
  uint64_t state;
};
DIINN_DEVICE void barrier_init(Barrier& barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(count)
               : "memory");
}
// Makes initialised barriers visible to the cluster and to the copy engine.
DIINN_DEVICE void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DIINN_DEVICE void barrier_arrive_expect(Barrier& barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
      "r"(bytes)
      : "memory");
}
// Arrives at the same barrier of block `rank` of the cluster. What the block has read of a stage,
// products_wait has completed, and it has written nothing: no release at cluster scope, which would
// cost a fence of the whole GPU.
DIINN_DEVICE void barrier_arrive_at(Barrier& barrier, int rank) {
  asm volatile(
      "{.reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1; "
      "mbarrier.arrive.shared::cluster.b64 _, [remote];}" ::"r"(shared_address(&barrier)),
      "r"(rank)
      : "memory");
}
// Waits until the phase of this parity has completed.
DIINN_DEVICE void barrier_wait(Barrier& barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done "
      "bra again;}" ::"r"(shared_address(&barrier)),
      "r"(parity)
      : "memory");
}

// Global memory to the same place in the shared memory of the blocks in `blocks`; signals each
// one's barrier.
DIINN_DEVICE void copy_multicast(void* shared, const void* global, int bytes, Barrier& barrier,
                                 int blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1], %2, [%3], "
      "%4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(&barrier)), "h"(static_cast<uint16_t>(blocks))
      : "memory");
}

// Products of a warpgroup run in the background: fence before the first that uses registers written
// otherwise, commit after the last, wait before their sums are read, their operands overwritten.
DIINN_DEVICE void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DIINN_DEVICE void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
DIINN_DEVICE void products_wait(float (&d)[64]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
                 "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),
                 "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
                 "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
                 "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
                 "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),
                 "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),
                 "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
                 "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),
                 "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]),
                 "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
               :
               : "memory");
}

// d = a b, or d += a b: a 64x16 in registers, b 16x128 in shared memory.
template <class T>
DIINN_DEVICE void multiply_group(float (&d)[64], const uint32_t* a, uint64_t b, bool add);
#define DIINN_MULTIPLY_GROUP(type, name)                                                          \
  template <>                                                                                     \
  DIINN_DEVICE void multiply_group<type>(float (&d)[64], const uint32_t* a, uint64_t b,           \
                                         bool add) {                                              \
    asm volatile(                                                                                 \
        "{.reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." name \
        "." name                                                                                  \
        " {"                                                                                      \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                  \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "        \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "        \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "       \
        "{%64, %65, %66, %67}, %68, p, 1, 1, 0;}"                                                 \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),     \
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), \
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),           \
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]),           \
          "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),           \
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]),           \
          "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),           \
          "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),           \
          "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),           \
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]),           \
          "+f"(d[62]), "+f"(d[63])                                                                \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));        \
  }
DIINN_MULTIPLY_GROUP(Float16, "f16")
DIINN_MULTIPLY_GROUP(BFloat16, "bf16")
#undef DIINN_MULTIPLY_GROUP

#endif  // DIINN_HOPPER

}  // namespace diinn

#endif
