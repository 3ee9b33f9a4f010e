// The decoder on wgmma, for Hopper (sm_90a): forms content and modulation, forward.
//
// A cluster of 2 blocks takes 4 tiles of 64 queries at a time, one per consumer warpgroup.
// Activations never leave the registers: a chunk of a layer's sums, multiplied out of k and s, is
// in 16 bits the A operand of the next layer (layout.h). Weights, packed in their shared-memory
// layout, come in stages of 16 KB: each block's producer fetches one half of every stage and
// multicasts it to both blocks. The two consumers of a block take turns at the tensor cores, so
// that one has its sines computed while the other's products run.
//
// Barriers: full[i] completes when both halves of stage i have arrived; empty[i] when the four
// consumers of the cluster have read it, after which either producer may overwrite its half in both
// blocks.
#pragma once

#include "network.h"

namespace diinn {

// To be tuned on a device; results do not depend on them.
#ifndef DIINN_CLUSTER
#define DIINN_CLUSTER 2  // 1, 2 or 4 blocks
#endif
#ifndef DIINN_STAGES
#define DIINN_STAGES 12  // at most 13 fit
#endif
#ifndef DIINN_AHEAD
#define DIINN_AHEAD 0  // 1: see take_turn
#endif

template <class T, bool kModulation>
struct Hopper {
  static constexpr int kGroup = 128, kConsumers = 2, kCluster = DIINN_CLUSTER;
  static constexpr int kThreads = kGroup * (1 + kConsumers);
  static constexpr int kStages = DIINN_STAGES;
  static constexpr bool kAhead = DIINN_AHEAD;
  static_assert(kStages >= (kAhead ? 2 : 1) * kBlockStages,
                "with fewer, a consumer would wait for stages for ever");
  static constexpr int kChunks = kModulation ? 2 : 4;  // of a layer, 128 columns each
  static constexpr int kGroups = kModulation ? 2 : 1;  // of 64 outputs, of a chunk
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
  static constexpr int kFirstNamedBarrier = 1;  // 0 is sync_block's

  struct Shared {
    alignas(1024) char stage[kStages][kStageBytes];
    Barrier full[kStages], empty[kStages];
    Query queries[2][kConsumers][kTile];  // of passes of either parity
  };

  // A place in the ring of stages; phase: the parity of the times it has been around.
  struct Ring {
    int stage = 0;
    uint32_t phase = 0;
    DIINN_DEVICE void advance() {
      if (++stage == kStages) stage = 0, phase ^= 1;
    }
  };

  const Decode& d;
  Shared& shared;
  const int rank;    // of this block in its cluster
  const int passes;  // through all weights, of this cluster: the same in both blocks

  DIINN_DEVICE Hopper(const Decode& decode, Shared& memory)
      : d(decode), shared(memory), rank(block_index() % kCluster), passes(count_passes(decode)) {}

  static constexpr int kTilesAtOnce = kCluster * kConsumers;
  static DIINN_DEVICE int count_passes(const Decode& d) {
    const int64_t clusters = block_count() / kCluster, own = block_index() / kCluster;
    const int64_t jobs = divide_up(tile_count(d), kTilesAtOnce);
    return own < jobs ? static_cast<int>(divide_up(jobs - own, clusters)) : 0;
  }
  DIINN_DEVICE int64_t tile_of(int pass, int consumer) const {
    const int64_t job =
        static_cast<int64_t>(pass) * (block_count() / kCluster) + block_index() / kCluster;
    return job * kTilesAtOnce + rank * kConsumers + consumer;
  }

  DIINN_DEVICE void run() {
    if (thread_index() == 0) {
      for (int i = 0; i < kStages; ++i) {
        barrier_init(shared.full[i], 1);
        barrier_init(shared.empty[i], kConsumers * kCluster);
      }
      barrier_init_fence();
    }
    cluster_sync();  // no block may signal the other's barriers before
    const int group = thread_index() / kGroup;
    if (group == 0) {
      registers_down<kProducerRegisters>();
      if (thread_index() == 0) produce();
      sync_warp();  // the cluster's barrier wants whole warps
    } else {
      registers_up<kConsumerRegisters>();
      consume(group - 1);
    }
    cluster_sync();  // no block may end while the other signals its barriers or copies into it
  }

  // -- producer --

  DIINN_DEVICE void produce() {
    constexpr int half = kStageBytes / kCluster;
    const int64_t stages = static_cast<int64_t>(d.layers - 1) * kChunks * kBlockStages;
    const char* weights = static_cast<const char*>(d.packed) + rank * half;
    Ring ring;
    for (int pass = 0; pass < passes; ++pass) {
      for (int64_t i = 0; i < stages; ++i) {
        barrier_wait(shared.empty[ring.stage], ring.phase ^ 1);  // the first time around, at once
        barrier_arrive_expect(shared.full[ring.stage], kStageBytes);
        copy_multicast(shared.stage[ring.stage] + rank * half, weights + i * kStageBytes, half,
                       shared.full[ring.stage], (1 << kCluster) - 1);
        ring.advance();
      }
    }
  }

  // -- consumers --

  struct Consumer {
    Hopper& block;
    const Decode& d;
    const int index, thread, lane, quad;  // of the consumer; thread: in the warpgroup
    int pass = 0;
    Ring ring;
    Query query[2];  // of the thread's rows
    uint32_t q[kWidth / 4];
    uint32_t done = 0;  // of the q made since the last turn, all bits

    DIINN_DEVICE Consumer(Hopper& owner, int which)
        : block(owner),
          d(owner.d),
          index(which),
          thread(thread_index() % kGroup),
          lane(thread % 32),
          quad(lane % 4) {}

    // First of the 8 outputs `part` (0, 1) that the thread has of the 64 outputs `group`.
    DIINN_DEVICE int unit(int group, int part) const { return 64 * group + 16 * quad + 8 * part; }

    // 8 outputs of a row take the registers in which the next product expects them.
    static DIINN_DEVICE void put(uint32_t (&to)[kWidth / 4], int group, int part, int row,
                                 const Vector16& values) {
      DIINN_UNROLL
      for (int i = 0; i < 4; ++i) to[16 * group + 2 * (4 * part + i) + row] = values.word[i];
    }

    DIINN_DEVICE void first_layer() {
      DIINN_UNROLL
      for (int i = 0; i < kWidth / 32; ++i) {
        const FirstLayer first(d, unit(i / 2, i % 2));
        DIINN_UNROLL
        for (int row = 0; row < 2; ++row) {
          put(q, i / 2, i % 2, row,
              first.template run<T, kModulation, false>(d, query[row], unit(i / 2, i % 2)));
        }
      }
      DIINN_UNROLL
      for (int i = 0; i < kWidth / 4; ++i) done |= q[i];
    }

    // sums = q times the weights of a chunk: 4 stages of 64 k's.
    DIINN_DEVICE void multiply_chunk(float (&sums)[64]) {
      DIINN_UNROLL
      for (int i = 0; i < kBlockStages; ++i) {
        barrier_wait(block.shared.full[ring.stage], ring.phase);
        products_fence();
        const uint64_t weights = matrix_descriptor(shared_address(block.shared.stage[ring.stage]));
        DIINN_UNROLL
        for (int step = 0; step < kStageDepth / kStep; ++step) {
          constexpr int advance = kStep * 2 >> 4;  // of the descriptor's address
          multiply_group<T>(sums, q + 4 * (4 * i + step), weights + advance * step, i + step > 0);
        }
        products_commit();
        ring.advance();
      }
    }

    // The stages that multiply_chunk has read, back to both producers.
    DIINN_DEVICE void release(int stage) {
      if (thread < kBlockStages * kCluster) {
        const int own = stage + thread / kCluster;
        barrier_arrive_at(block.shared.empty[own < kStages ? own : own - kStages],
                          thread % kCluster);
      }
    }

    // q of a chunk's outputs from its sums.
    DIINN_DEVICE void activate_chunk(int layer, int chunk, const float (&sums)[64],
                                     const Vector16 (&content)[kGroups][2][2],
                                     uint32_t (&next)[kWidth / 4]) {
      DIINN_UNROLL
      for (int i = 0; i < 2 * kGroups; ++i) {
        const int g = i / 2, part = i % 2, group = kGroups * chunk + g;
        float bias[8];
        load_floats(d.hidden_bias + (layer - 1) * kWidth + unit(group, part), bias);
        DIINN_UNROLL
        for (int row = 0; row < 2; ++row) {
          float k[8], s[8];
          DIINN_UNROLL
          for (int j = 0; j < 8; ++j) {
            const int at = 4 * (4 * part + j / 2) + 2 * row + j % 2;  // in a group's 32 numbers
            k[j] = kModulation ? 0.0f : sums[at];
            s[j] = sums[(kModulation ? 32 * g : 32) + at] + bias[j];
          }
          put(next, group, part, row,
              activate<T, kModulation, false>(d, layer, query[row], unit(group, part),
                                              content[g][part][row], k, s));
        }
      }
    }

    DIINN_DEVICE void hidden_layer(int layer) {
      uint32_t next[kWidth / 4];
      DIINN_UNROLL
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        float sums[64];
        const int stage = ring.stage;
        take_turn(layer, chunk);
        multiply_chunk(sums);
        give_turn(layer, chunk);
        // While the products run, and while registers are free: the next pass's queries.
        if (chunk == 0 && layer == d.layers - 1) locate_queries(pass + 1);
        Vector16 content[kGroups][2][2];  // on its way during the products
        DIINN_UNROLL
        for (int i = 0; i < 4 * kGroups; ++i) {
          const int group = kGroups * chunk + i / 4;
          content[i / 4][i / 2 % 2][i % 2] =
              load_content(d, query[i % 2], layer, unit(group, i / 2 % 2));
        }
        products_wait(sums);
        release(stage);
        activate_chunk(layer, chunk, sums, content, next);
        DIINN_UNROLL
        for (int i = 0; i < 16 * kGroups; ++i) done |= next[16 * kGroups * chunk + i];
      }
      DIINN_UNROLL
      for (int i = 0; i < kWidth / 4; ++i) q[i] = next[i];
    }

    // The tensor cores take products in the order of issue: consumer 0's chunk, then consumer 1's,
    // and so on. With kAhead consumer 0 begins a pass with two chunks and consumer 1 ends it with
    // two, so that each has more time for what lies between its passes. The barrier's number
    // depends, as far as the compiler can tell, on the q made since the last turn: else it would
    // sink the sines among the next products, which would wait for them and need more registers
    // than there are.
    DIINN_DEVICE void take_turn(int layer, int chunk) {
      const bool has_it =
          index == 0 ? layer == 1 && chunk == 1 : layer == d.layers - 1 && chunk == kChunks - 1;
      const int zero = static_cast<int>(done & static_cast<uint32_t>(d.batch >> 62));
      if (!kAhead || !has_it)
        named_barrier_sync(kFirstNamedBarrier + index + zero, kGroup * kConsumers);
      done = 0;
    }
    DIINN_DEVICE void give_turn(int layer, int chunk) {
      const bool keeps_it =
          index == 0 ? layer == 1 && chunk == 0 : layer == d.layers - 1 && chunk == kChunks - 2;
      const bool pass_ends = layer == d.layers - 1 && chunk == kChunks - 1;
      const bool nobody_is_left = index == 1 && pass_ends && pass == block.passes - 1;
      if (!(kAhead && keeps_it) && !nobody_is_left) {
        named_barrier_arrive(kFirstNamedBarrier + 1 - index, kGroup * kConsumers);
      }
    }

    // A warp's 16 queries, one per lane; none but this warp reads them.
    DIINN_DEVICE void locate_queries(int of_pass) {
      const int m = thread / 32 * 16 + lane;
      if (lane < 16)
        block.shared.queries[of_pass % 2][index][m] = locate(d, block.tile_of(of_pass, index), m);
      sync_warp();
    }
    // The thread's rows lane / 4 and lane / 4 + 8 of its warp.
    DIINN_DEVICE const Query& located(int row) const {
      return block.shared.queries[pass % 2][index][thread / 32 * 16 + lane / 4 + 8 * row];
    }

    DIINN_DEVICE void run() {
      if (index == 1 && block.passes > 0)
        named_barrier_arrive(kFirstNamedBarrier, kGroup * kConsumers);
      locate_queries(0);
      for (; pass < block.passes; ++pass) {
        query[0] = located(0), query[1] = located(1);
        first_layer();
        DIINN_ROLLED
        for (int layer = 1; layer < d.layers; ++layer) hidden_layer(layer);
        DIINN_ROLLED
        for (int channels = 0; channels < channel_blocks(d.channels); ++channels) {
          write_output<T>(d, channels, lane, located(0), located(1),
                          [&](int step, uint32_t (&a)[4]) {
                            DIINN_UNROLL
                            for (int i = 0; i < 4; ++i) a[i] = q[4 * step + i];
                          });
        }
      }
    }
  };

  DIINN_DEVICE void consume(int index) { Consumer(*this, index).run(); }
};

}  // namespace diinn
