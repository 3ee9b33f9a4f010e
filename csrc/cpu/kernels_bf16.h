// One instruction set's bfloat16 kernels: each kernels_*_bf16.cpp includes this once, as kernels.h
// says. DIINN_NAME is that of KernelsBf16.
#include "backward.h"
#include "forward_bf16.h"
#if defined(DIINN_AMX)
#include "conv3x3_pairs.h"
#endif

namespace diinn {
namespace DIINN_ISA {

static void forward(const Problem& problem, bf16* out) { ForwardBf16(problem, out).run(); }
static void backward(const Problem& problem, const bf16* grad, bf16* source_gradient,
                     float* const* weight_gradients) {
  Backward<bf16>(problem, grad, source_gradient, weight_gradients).run();
}

#if defined(DIINN_AMX)
static void convolve(const LayerConvolution& convolution) { PairConvolution{convolution}; }
#else
static constexpr void (*convolve)(const LayerConvolution&) = nullptr;
#endif

}  // namespace DIINN_ISA

#define DIINN_JOIN2(a, b) a##b
#define DIINN_JOIN(a, b) DIINN_JOIN2(a, b)

const KernelsBf16* DIINN_JOIN(kernels_, DIINN_ISA)() {
  static const KernelsBf16 kernels = {DIINN_NAME, DIINN_ISA::forward, DIINN_ISA::backward,
                                      DIINN_ISA::convolve};
  return &kernels;
}

}  // namespace diinn
