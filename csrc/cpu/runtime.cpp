// Threads, memory and the choice of instruction set: everything that must not be compiled for a
// particular one.
#include <atomic>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "decoder.h"

namespace diinn {

#ifdef DIINN_X86_VARIANTS
const Kernels* kernels_avx512();
const Kernels* kernels_avx2();
#endif
#ifdef DIINN_AVX512_BF16
const KernelsBf16* kernels_avx512_bf16();
#endif
const Kernels* kernels_portable();

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

const KernelsBf16* kernels_bf16() {
#ifdef DIINN_AVX512_BF16
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bf16")) {
    return kernels_avx512_bf16();
  }
#endif
  return nullptr;
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
