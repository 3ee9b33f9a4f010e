// One instruction set's int8 kernels: each kernels_int8_*.cpp includes this once, as kernels.h
// says. DIINN_NAME and DIINN_BASE are those of KernelsInt8.
#include "conv3x3_int8.h"
#include "forward_int8.h"

namespace diinn {
namespace DIINN_ISA {

static void forward_int8(const Problem& problem, float* out) { ForwardInt8(problem, out).run(); }

static void sine_array(const float* x, float* s, int64_t count) {
  float lanes[kLanes];
  for (int64_t start = 0; start < count; start += kLanes) {
    const int64_t n = count - start < kLanes ? count - start : kLanes;
    memset(lanes, 0, sizeof lanes);
    memcpy(lanes, x + start, n * sizeof(float));
    store(lanes, cheap_sine(load(lanes)));
    memcpy(s + start, lanes, n * sizeof(float));
  }
}

}  // namespace DIINN_ISA

#define DIINN_JOIN2(a, b) a##b
#define DIINN_JOIN(a, b) DIINN_JOIN2(a, b)

const KernelsInt8* DIINN_JOIN(kernels_, DIINN_ISA)() {
  static const KernelsInt8 kernels = {DIINN_NAME, DIINN_BASE, DIINN_ISA::forward_int8,
                                      DIINN_ISA::conv3x3_int8, DIINN_ISA::sine_array};
  return &kernels;
}

}  // namespace diinn
