#define DIINN_ISA avx512_bf16
#include "backward.h"
#include "forward_bf16.h"

namespace diinn {
namespace DIINN_ISA {

static void forward(const Problem& problem, bf16* out) { ForwardBf16(problem, out).run(); }
static void backward(const Problem& problem, const bf16* grad, bf16* source_gradient,
                     float* const* weight_gradients) {
  Backward<bf16>(problem, grad, source_gradient, weight_gradients).run();
}

}  // namespace DIINN_ISA

const KernelsBf16* kernels_avx512_bf16() {
  static const KernelsBf16 kernels = {avx512_bf16::forward, avx512_bf16::backward};
  return &kernels;
}

}  // namespace diinn
