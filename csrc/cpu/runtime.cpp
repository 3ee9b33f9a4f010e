// Threads, memory and the choice of instruction set: everything that must not be compiled for a
// particular one.
#include <atomic>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "decoder.h"

#if defined(DIINN_X86_VARIANTS)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(DIINN_INT8_DOTPROD) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace diinn {

#ifdef DIINN_X86_VARIANTS
const Kernels* kernels_avx512();
const Kernels* kernels_avx2();
#endif
#ifdef DIINN_AMX_BF16
const KernelsBf16* kernels_amx_bf16();
#endif
#ifdef DIINN_AVX512_BF16
const KernelsBf16* kernels_avx512_bf16();
#endif
const Kernels* kernels_portable();
#ifdef DIINN_X86_VARIANTS
const KernelsInt8* kernels_int8_avx2();
#endif
#ifdef DIINN_INT8_AMX
const KernelsInt8* kernels_int8_amx();
#endif
#ifdef DIINN_INT8_AVX512_VNNI
const KernelsInt8* kernels_int8_avx512_vnni();
#endif
#ifdef DIINN_INT8_AVX_VNNI
const KernelsInt8* kernels_int8_avx_vnni();
#endif
#ifdef DIINN_INT8_DOTPROD
const KernelsInt8* kernels_int8_dotprod();
#endif
const KernelsInt8* kernels_int8_portable();

const Kernels* const* available_kernels() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> list;
#ifdef DIINN_X86_VARIANTS
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
      list.push_back(kernels_avx512());
    }
    if (avx2) list.push_back(kernels_avx2());
#endif
    list.push_back(kernels_portable());
    list.push_back(nullptr);
    return list;
  }();
  return found.data();
}

#if defined(DIINN_INT8_AMX) || defined(DIINN_AMX_BF16)
// Whether the CPU has AMX with 8-bit integers and bfloat16, and the system lets this process use
// its registers, for which Linux wants to be asked.
static bool has_amx() {
#ifdef __linux__
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kAll = kBf16 | kTile | kInt8;
  constexpr int kArchReqXcompPerm = 0x1023, kTileData = 18;
  unsigned eax, ebx, ecx, edx;
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16") && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
         (edx & kAll) == kAll && syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const KernelsBf16* const* available_bf16_kernels() {
  static const std::vector<const KernelsBf16*> found = [] {
    std::vector<const KernelsBf16*> list;
#ifdef DIINN_X86_VARIANTS
    __builtin_cpu_init();
#endif
#ifdef DIINN_AMX_BF16
    if (has_amx()) list.push_back(kernels_amx_bf16());
#endif
#ifdef DIINN_AVX512_BF16
    // Intel's vdpbf16ps does half the products of float32's in the same time: without AMX the
    // float32 kernels serve.
    if ((!__builtin_cpu_is("intel") || !list.empty()) && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16")) {
      list.push_back(kernels_avx512_bf16());
    }
#endif
    list.push_back(nullptr);
    return list;
  }();
  return found.data();
}

#ifdef DIINN_INT8_AVX_VNNI
static bool has_avx_vnni() {  // not every compiler's __builtin_cpu_supports knows it
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif

#ifdef DIINN_INT8_DOTPROD
static bool has_dotprod() {
#ifdef __linux__
  return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#else
  return true;  // of macOS: all its CPUs
#endif
}
#endif

const KernelsInt8* const* available_int8_kernels() {
  static const std::vector<const KernelsInt8*> found = [] {
    std::vector<const KernelsInt8*> list;
#ifdef DIINN_X86_VARIANTS
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#ifdef DIINN_INT8_AMX
    if (avx2 && has_amx()) list.push_back(kernels_int8_amx());
#endif
#ifdef DIINN_INT8_AVX512_VNNI
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni")) {
      list.push_back(kernels_int8_avx512_vnni());
    }
#endif
#ifdef DIINN_INT8_AVX_VNNI
    if (avx2 && has_avx_vnni()) list.push_back(kernels_int8_avx_vnni());
#endif
    if (avx2) list.push_back(kernels_int8_avx2());
#endif
#ifdef DIINN_INT8_DOTPROD
    if (has_dotprod()) list.push_back(kernels_int8_dotprod());
#endif
    list.push_back(kernels_int8_portable());
    list.push_back(nullptr);
    return list;
  }();
  return found.data();
}

void parallel_for(int64_t count, int threads, void (*task)(void*, int64_t, int), void* context) {
  std::atomic<int64_t> next{0};
  auto work = [&](int thread) {
    for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;)
      task(context, index, thread);
  };
  std::vector<std::thread> helpers;
  try {
    for (int thread = 1; thread < threads && thread < count; ++thread)
      helpers.emplace_back(work, thread);
  } catch (const std::system_error&) {
    // No more threads to be had: those that run, and this one, do all the work.
  }
  work(0);
  for (std::thread& helper : helpers) helper.join();
}

void* allocate(int64_t bytes) {
  return ::operator new(static_cast<size_t>(bytes), std::align_val_t(64));
}

void release(void* memory) { ::operator delete(memory, std::align_val_t(64)); }

}  // namespace diinn
