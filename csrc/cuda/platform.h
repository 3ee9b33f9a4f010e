// One source for two machines: nvcc compiles the kernels for a GPU, any C++17 compiler compiles the
// same text for the emulation (emulation/), which executes it thread by thread.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define DIINN_DEVICE __device__ __forceinline__
#define DIINN_BOTH __host__ __device__ __forceinline__
#define DIINN_UNROLL _Pragma("unroll")
#define DIINN_UNROLL_BY(n) DIINN_PRAGMA(unroll n)
#define DIINN_PRAGMA(text) _Pragma(#text)
#define DIINN_ROLLED _Pragma("unroll 1")
#else
#define DIINN_DEVICE inline
#define DIINN_BOTH inline
#define DIINN_UNROLL
#define DIINN_UNROLL_BY(n)
#define DIINN_ROLLED
#endif

namespace diinn {

struct alignas(16) Vector16 {  // 16 bytes: the widest load and store of a thread
  uint32_t word[4];
};

template <class To, class From>
DIINN_BOTH To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bits are copied");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace diinn
