// The kernels and their launchers: a C interface on addresses, sizes and a stream. A launcher returns 0, or an error
// code with its text in `message`. Loading this library needs no driver.
#include <cuda_runtime.h>
#include <stdio.h>

#ifdef DIINN_HOPPER  // compiled for sm_90a
#include "hopper.h"
#endif
#include "portable.h"

namespace diinn {

__global__ void pack_weights(const __grid_constant__ Decode d) {
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (piece < packed_elements(d) / 8) pack_piece(d, piece);
}

static_assert(sizeof(Portable<Float16, false, false>::Shared) <= 99 << 10, "what a block has on sm_86, 89 and 120");
#ifdef DIINN_HOPPER
static_assert(sizeof(Hopper<Float16, false>::Shared) <= 227 << 10, "what a block has on sm_90");
#endif

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1) decode_kernel(const __grid_constant__ Decode d) {
  extern __shared__ __align__(1024) char memory[];
  Kernel(d, *reinterpret_cast<typename Kernel::Shared*>(memory)).run();
}

#ifdef DIINN_HOPPER
template <class Kernel>
__global__ void __cluster_dims__(Kernel::kCluster, 1, 1) __launch_bounds__(Kernel::kThreads, 1)
    decode_clusters(const __grid_constant__ Decode d) {
  extern __shared__ __align__(1024) char memory[];
  if (shared_address(memory) % kGroupBytes != 0) __trap();  // swizzles count from here
  Kernel(d, *reinterpret_cast<typename Kernel::Shared*>(memory)).run();
}
#endif

class Launch {
 public:
  Launch(const Decode& decode, char* message, int64_t length)
      : d(decode), stream_(static_cast<cudaStream_t>(decode.stream)), message_(message), length_(length) {}

  int forward() {
    if (!check(cudaSetDevice(d.device), "choosing the device")) return code_;
    const int64_t pieces = packed_elements(d) / 8;
    pack_weights<<<static_cast<unsigned>((pieces + 255) / 256), 256, 0, stream_>>>(d);
    if (!check(cudaGetLastError(), "packing the weights")) return code_;
    return d.operand == kFloat16 ? forward_form<Float16>() : forward_form<BFloat16>();
  }

 private:
  template <class T>
  int forward_form() {
    return d.modulation ? forward_kept<T, true>() : forward_kept<T, false>();
  }
  template <class T, bool kModulation>
  int forward_kept() {
    if (d.kernel == kHopper) return start_hopper<T, kModulation>();
    return d.kept_s ? start<Portable<T, kModulation, true>>() : start<Portable<T, kModulation, false>>();
  }

  template <class Kernel>
  int start() {
    constexpr int bytes = sizeof(typename Kernel::Shared);
    int processors = 0;
    if (!check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, d.device), "asking the device") ||
        !check(cudaFuncSetAttribute(decode_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               "reserving shared memory")) {
      return code_;
    }
    const int64_t tiles = tile_count(d);
    const unsigned blocks = static_cast<unsigned>(tiles < processors ? tiles : processors);
    decode_kernel<Kernel><<<blocks, Kernel::kThreads, bytes, stream_>>>(d);
    check(cudaGetLastError(), "starting the decode");
    return code_;
  }

  template <class T, bool kModulation>
  int start_hopper() {
#ifdef DIINN_HOPPER
    using Kernel = Hopper<T, kModulation>;
    constexpr int bytes = sizeof(typename Kernel::Shared);
    const auto kernel = decode_clusters<Kernel>;
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = Kernel::kCluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = Kernel::kCluster;
    config.blockDim = Kernel::kThreads;
    config.dynamicSmemBytes = bytes;
    config.stream = stream_;
    config.attrs = &cluster;
    config.numAttrs = 1;
    int resident = 0;  // clusters that the device holds at once: more would run in a second wave
    if (!check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               "reserving shared memory") ||
        !check(cudaOccupancyMaxActiveClusters(&resident, kernel, &config), "asking the device")) {
      return code_;
    }
    const int64_t jobs = divide_up(tile_count(d), Kernel::kTilesAtOnce);
    config.gridDim = static_cast<unsigned>(Kernel::kCluster * (jobs < resident ? jobs : resident));
    check(cudaLaunchKernelEx(&config, kernel, d), "starting the decode");
    return code_;
#else
    check(cudaErrorInvalidDeviceFunction, "choosing the Hopper kernel, which was not compiled,");
    return code_;
#endif
  }

  bool check(cudaError_t error, const char* doing) {
    if (error != cudaSuccess) {
      code_ = static_cast<int>(error);
      snprintf(message_, static_cast<size_t>(length_), "%s failed: %s", doing, cudaGetErrorString(error));
    }
    return error == cudaSuccess;
  }

  const Decode& d;
  cudaStream_t stream_;
  char* message_;
  int64_t length_;
  int code_ = 0;
};

}  // namespace diinn

extern "C" {

int64_t diinn_decode_bytes() { return sizeof(diinn::Decode); }
int64_t diinn_packed_bytes(const diinn::Decode* d) { return 2 * diinn::packed_elements(*d); }

int diinn_forward(const diinn::Decode* d, char* message, int64_t length) {
  return diinn::Launch(*d, message, length).forward();
}
}
