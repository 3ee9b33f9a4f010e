// One instruction set's kernels: each kernels_*.cpp includes this once, compiled for that set.
// Everything here lives in a namespace of its own and instantiates nothing of the standard library,
// so that no function compiled for one instruction set can stand in for another's at link time.
#include "backward.h"
#include "conv3x3.h"
#include "forward.h"

namespace diinn {
namespace DIINN_ISA {

static void backward(const Problem& problem, const float* grad, float* source_gradient,
                     float* const* weight_gradients) {
  Backward<float>(problem, grad, source_gradient, weight_gradients).run();
}

static void sine_array(const float* x, float* s, float* c, int64_t count) {
  float lanes[kLanes];
  for (int64_t start = 0; start < count; start += kLanes) {
    const int64_t n = count - start < kLanes ? count - start : kLanes;
    memset(lanes, 0, sizeof lanes);
    memcpy(lanes, x + start, n * sizeof(float));
    vec both_sine, both_cosine;
    sine_cosine(load(lanes), &both_sine, &both_cosine);
    const vec only_sine = sine(load(lanes));
    store(lanes, only_sine);
    memcpy(s + start, lanes, n * sizeof(float));
    store(lanes, both_cosine);
    memcpy(c + start, lanes, n * sizeof(float));
  }
}

}  // namespace DIINN_ISA

#define DIINN_JOIN2(a, b) a##b
#define DIINN_JOIN(a, b) DIINN_JOIN2(a, b)
#define DIINN_TEXT2(a) #a
#define DIINN_TEXT(a) DIINN_TEXT2(a)

const Kernels* DIINN_JOIN(kernels_, DIINN_ISA)() {
  static const Kernels kernels = {DIINN_TEXT(DIINN_ISA), DIINN_ISA::forward, DIINN_ISA::backward,
                                  DIINN_ISA::conv3x3, DIINN_ISA::sine_array};
  return &kernels;
}

}  // namespace diinn
