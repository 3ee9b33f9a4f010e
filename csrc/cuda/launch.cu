// The kernels and their launchers: a C interface on addresses, sizes and a stream. A launcher
// returns 0, or an error code with its text in `message`. Loading this library needs no driver.
#include <cuda_runtime.h>
#include <stdio.h>

#include <atomic>

#include "gradient.h"
#ifdef DIINN_HOPPER  // compiled for sm_90a
#include "hopper.h"
#endif
#include "pack.h"
#include "portable.h"
#include "portable_int8.h"

namespace diinn {

template <class Problem>
__global__ void pack_weights(const __grid_constant__ Problem p) {
  const int64_t job = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (job < pack_jobs(p)) pack_job(p, job);
}

template <class T>
__global__ void add_queries(const __grid_constant__ Gradient g) {
  const int64_t job = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (job < sum_jobs(g)) sum_queries<T>(g, job);
}

static_assert(sizeof(Portable<Float16, false, false>::Shared) <= 99 << 10,
              "what a block has on sm_86, 89 and 120");
static_assert(sizeof(PortableInt8<Float16, false>::Shared) <= 99 << 10, "likewise");
static_assert(sizeof(Chain<Float16, false>::Shared) <= 99 << 10, "likewise");
#ifdef DIINN_HOPPER
static_assert(sizeof(Hopper<Float16, false>::Shared) <= 227 << 10, "what a block has on sm_90");
#endif

template <class Kernel, class Problem>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
    block_kernel(const __grid_constant__ Problem p) {
  extern __shared__ __align__(1024) char memory[];
  Kernel(p, *reinterpret_cast<typename Kernel::Shared*>(memory)).run();
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

// A positive number for each device, asked for at the first launch. Threads that come first
// together ask the same and find the same.
class Once {
 public:
  template <class Ask>
  bool get(int device, int* number, const Ask& ask) {
    const bool remembered = device < kDevices;
    if (remembered && (*number = known_[device].load()) > 0) return true;
    if (!ask(number)) return false;
    if (remembered) known_[device].store(*number);
    return true;
  }

 private:
  static constexpr int kDevices = 64;
  std::atomic<int> known_[kDevices] = {};
};

template <class Problem>
class Launch {
 public:
  Launch(const Problem& problem, char* message, int64_t length)
      : p(problem),
        stream_(static_cast<cudaStream_t>(problem.stream)),
        message_(message),
        length_(length) {}

  int forward() {
    if (!pack()) return code_;
    p = with_widened_vectors(p);
    return p.operand == kFloat16 ? forward_form<Float16>() : forward_form<BFloat16>();
  }
  int gradient() {
    if (!pack()) return code_;
    return p.operand == kFloat16 ? gradient_form<Float16>() : gradient_form<BFloat16>();
  }

 private:
  bool pack() {
    if (!check(cudaSetDevice(p.device), "choosing the device")) return false;
    pack_weights<<<blocks_of_256(pack_jobs(p)), 256, 0, stream_>>>(p);
    return check(cudaGetLastError(), "packing the weights");
  }
  static unsigned blocks_of_256(int64_t threads) {
    return static_cast<unsigned>((threads + 255) / 256);
  }

  template <class T>
  int forward_form() {
    return p.modulation ? forward_kernel<T, true>() : forward_kernel<T, false>();
  }
  template <class T, bool kModulation>
  int forward_kernel() {
    if (p.kernel == kHopper) return start_hopper<T, kModulation>();
    if (p.kernel == kIntegers) return start<PortableInt8<T, kModulation>>(tile_count(p));
    return p.kept_s ? start<Portable<T, kModulation, true>>(tile_count(p))
                    : start<Portable<T, kModulation, false>>(tile_count(p));
  }
  template <class T>
  int gradient_form() {
    const int64_t tiles = divide_up(p.queries, kTile);
    if (p.modulation ? start<Chain<T, true>>(tiles) : start<Chain<T, false>>(tiles)) return code_;
    if (p.source) add_queries<T><<<blocks_of_256(sum_jobs(p)), 256, 0, stream_>>>(p);
    check(cudaGetLastError(), "adding the content's gradient");
    return code_;
  }

  template <class Kernel>
  int start(int64_t tiles) {
    constexpr int bytes = sizeof(typename Kernel::Shared);
    const auto kernel = block_kernel<Kernel, Problem>;
    // Asked once: a launch costs the CPU little, and asking may not be allowed while a graph is
    // captured.
    static Once known;
    int processors = 0;
    const bool ready = known.get(p.device, &processors, [&](int* found) {
      return check(cudaDeviceGetAttribute(found, cudaDevAttrMultiProcessorCount, p.device),
                   "asking the device") &&
             check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                   "reserving shared memory");
    });
    if (!ready) return code_;
    const unsigned blocks = static_cast<unsigned>(tiles < processors ? tiles : processors);
    kernel<<<blocks, Kernel::kThreads, bytes, stream_>>>(p);
    check(cudaGetLastError(), "starting the kernel");
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
    static Once known;
    int resident = 0;  // clusters that the device holds at once: more would run in a second wave
    const bool ready = known.get(p.device, &resident, [&](int* found) {
      return check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                   "reserving shared memory") &&
             check(cudaOccupancyMaxActiveClusters(found, kernel, &config), "asking the device");
    });
    if (!ready) return code_;
    const int64_t jobs = divide_up(tile_count(p), Kernel::kTilesAtOnce);
    config.gridDim = static_cast<unsigned>(Kernel::kCluster * (jobs < resident ? jobs : resident));
    check(cudaLaunchKernelEx(&config, kernel, p), "starting the kernel");
    return code_;
#else
    check(cudaErrorInvalidDeviceFunction, "choosing the Hopper kernel, which was not compiled,");
    return code_;
#endif
  }

  bool check(cudaError_t error, const char* doing) {
    if (error != cudaSuccess) {
      code_ = static_cast<int>(error);
      snprintf(message_, static_cast<size_t>(length_), "%s failed: %s", doing,
               cudaGetErrorString(error));
    }
    return error == cudaSuccess;
  }

  Problem p;
  cudaStream_t stream_;
  char* message_;
  int64_t length_;
  int code_ = 0;
};

}  // namespace diinn

extern "C" {

int64_t diinn_decode_bytes() { return sizeof(diinn::Decode); }
int64_t diinn_packed_bytes(const diinn::Decode* d) { return diinn::work_bytes(*d); }

int diinn_forward(const diinn::Decode* d, char* message, int64_t length) {
  return diinn::Launch<diinn::Decode>(*d, message, length).forward();
}

int64_t diinn_gradient_bytes() { return sizeof(diinn::Gradient); }

int diinn_gradient(const diinn::Gradient* g, char* message, int64_t length) {
  return diinn::Launch<diinn::Gradient>(*g, message, length).gradient();
}
}
