// The decoder on mma.sync, for every GPU from compute capability 8.0: forms content and modulation,
// and with kKeep the recomputation of the backward.
//
// A block of 8 warps takes tiles of 64 queries. q [64, 256] lies in shared memory; a layer's [64,
// 512] sums (256 in modulation form) are in registers: warp w has 32 outputs, k and s, of all 64
// queries. So no two warps want the same weights and no two lanes the same fragment
// (weight_stream.h), and barriers stand only where q changes hands.
#pragma once

#include "network.h"
#include "weight_stream.h"

namespace diinn {

template <class T, bool kModulation, bool kKeep>
struct Portable {
  static constexpr int kThreads = 32 * kPortableWarps;
  static constexpr int kBlocks =
      kModulation ? 4 : 8;  // of 8 columns, a warp's: k (content form) and s of 32 outputs
  static constexpr int kSteps = kWidth / kStep;  // of a layer
  static constexpr int kRows = kTile / 16;       // blocks of 16 queries
  using Stream = WeightStream<kBlocks / 2, kPortableWarps>;

  struct Shared {
    char q[kTile * kWidth * 2];
    typename Stream::Ring ring;
    Query queries[kTile];
  };

  const Decode& d;
  Shared& shared;
  const int thread, lane, warp, unit;  // unit: the first of the thread's 8 outputs
  Stream stream;

  DIINN_DEVICE Portable(const Decode& decode, Shared& memory)
      : d(decode),
        shared(memory),
        thread(thread_index()),
        lane(thread % 32),
        warp(thread / 32),
        unit(32 * warp + 8 * (lane % 4)),
        stream(memory.ring, decode.packed, static_cast<int64_t>(decode.layers - 1) * kSteps) {}

  // Query of the thread's row `half` (0: lane / 4, 1: lane / 4 + 8) in block i.
  DIINN_DEVICE int row(int i, int half) const { return 16 * i + lane / 4 + 8 * half; }

  DIINN_DEVICE void set_q(int query, const Vector16& q) {
    *reinterpret_cast<Vector16*>(shared.q + portable_q<2>(query, unit / 8)) = q;
  }
  DIINN_DEVICE void load_q(int i, int step, uint32_t (&a)[4]) const {
    load_matrices(a, shared.q + portable_q<2>(16 * i + lane % 16, 2 * step + lane / 16));
  }

  DIINN_DEVICE void first_layer() {
    const FirstLayer first(d, unit);
    DIINN_UNROLL
    for (int i = 0; i < 2 * kRows; ++i) {
      const int query = row(i / 2, i % 2);
      set_q(query, first.template run<T, kModulation, kKeep>(d, shared.queries[query], unit));
    }
  }

  DIINN_DEVICE void hidden_layer(int layer) {
    float sums[kRows][kBlocks][4] = {};
    DIINN_UNROLL_BY(Stream::kSlots)
    for (int step = 0; step < kSteps; ++step) {
      Vector16 weights[kBlocks / 2];
      stream.next(step % Stream::kSlots, weights);
      DIINN_UNROLL
      for (int i = 0; i < kRows; ++i) {
        uint32_t a[4];
        load_q(i, step, a);
        DIINN_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
          multiply<T>(sums[i][b], a, weights[b / 2].word[b % 2 * 2],
                      weights[b / 2].word[b % 2 * 2 + 1]);
        }
      }
    }
    Vector16 content[2 * kRows];  // on its way while the last products end
    DIINN_UNROLL
    for (int i = 0; i < 2 * kRows; ++i)
      content[i] = load_content(d, shared.queries[row(i / 2, i % 2)], layer, unit);
    sync_block();  // everyone has read q
    float bias[8];
    load_floats(d.hidden_bias + (layer - 1) * kWidth + unit, bias);
    DIINN_UNROLL
    for (int i = 0; i < 2 * kRows; ++i) {
      const int half = i % 2, query = row(i / 2, half);
      float k[8], s[8];
      DIINN_UNROLL
      for (int j = 0; j < 8; ++j) {
        const int block = j / 2, v = 2 * half + j % 2;
        k[j] = kModulation ? 0.0f : sums[i / 2][block][v];
        s[j] = sums[i / 2][kBlocks - 4 + block][v] + bias[j];
      }
      set_q(query, activate<T, kModulation, kKeep>(d, layer, shared.queries[query], unit,
                                                   content[i], k, s));
    }
    sync_block();
  }

  DIINN_DEVICE void output() {
    for (int job = warp; job < kRows * channel_blocks(d.channels); job += kPortableWarps) {
      const int i = job % kRows;
      write_output<T>(d, job / kRows, lane, shared.queries[row(i, 0)], shared.queries[row(i, 1)],
                      [&](int step, uint32_t (&a)[4]) { load_q(i, step, a); });
    }
  }

  DIINN_DEVICE void run() {
    const int64_t tiles = tile_count(d);
    for (int64_t tile = block_index(); tile < tiles; tile += block_count()) {
      if (thread < kTile) shared.queries[thread] = locate(d, tile, thread);
      sync_block();
      first_layer();
      sync_block();
      DIINN_ROLLED
      for (int layer = 1; layer < d.layers; ++layer) hidden_layer(layer);
      if (!kKeep) output();
      sync_block();  // everyone is done with this tile's q and queries
    }
    stream.drain();
  }
};

}  // namespace diinn
