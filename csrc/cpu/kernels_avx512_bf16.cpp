#define DIINN_ISA avx512_bf16
#include "forward_bf16.h"

namespace diinn {

void forward_avx512_bf16(const Problem& problem, uint16_t* out) { avx512_bf16::ForwardBf16(problem, out).run(); }

}  // namespace diinn
