// Weights on their way from global memory to a thread's registers, through a ring in shared memory
// (cp.async). A thread fetches exactly the bytes that it will itself read, so that no barrier is
// needed.
#pragma once

#include "instructions.h"

namespace diinn {

// kPieces: 16 bytes each, of a thread and a step; kWarps per block. Packed weights: [steps, warps,
// pieces, lanes].
template <int kPieces, int kWarps>
struct WeightStream {
  static constexpr int kSlots = 4, kThreads = 32 * kWarps;
  using Ring = Vector16[kSlots][kPieces][kThreads];

  Ring& ring;
  const Vector16* const packed;
  const int64_t steps;  // after which it starts again
  const int thread;
  int64_t ahead = 0;  // the step to fetch next

  DIINN_DEVICE WeightStream(Ring& memory, const void* weights, int64_t count)
      : ring(memory),
        packed(static_cast<const Vector16*>(weights)),
        steps(count),
        thread(thread_index()) {
    DIINN_UNROLL
    for (int slot = 0; slot < kSlots - 1; ++slot) fetch(slot);
  }

  DIINN_DEVICE void fetch(int slot) {
    const Vector16* from = packed + (ahead * kWarps + thread / 32) * kPieces * 32 + thread % 32;
    DIINN_UNROLL
    for (int p = 0; p < kPieces; ++p) copy_async(&ring[slot][p][thread], from + 32 * p);
    copy_commit();
    ahead = ahead + 1 == steps ? 0 : ahead + 1;
  }

  // The next step's weights; slots follow each other. The slot of the previous step, whose numbers
  // are in use, is filled again.
  DIINN_DEVICE void next(int slot, Vector16 (&weights)[kPieces]) {
    copy_wait<kSlots - 2>();
    DIINN_UNROLL
    for (int p = 0; p < kPieces; ++p) weights[p] = ring[slot][p][thread];
    fetch((slot + kSlots - 1) % kSlots);
  }

  DIINN_DEVICE void drain() { copy_wait<0>(); }
};

}  // namespace diinn
