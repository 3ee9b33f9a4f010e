// The decoder on mma.sync with 8-bit integers as factors of the hidden products, for every GPU from
// compute capability 8.0: forms content and modulation, forward.
//
// Integers are the hidden weights, by their rows, and each query's q between layers, by its largest
// value (quantise.h); sums are exact; position, content, biases, arguments of the sine, q as it is
// made and the RGB layer are float32. Queries, outputs and weights are shared among warps and lanes
// as in portable.h, so a thread has 8 outputs of 8 queries: their q stay in its registers, in
// float32, until every warp has said how large its own are.
#pragma once

#include "network.h"
#include "quantise.h"
#include "weight_stream.h"

namespace diinn {

template <class T, bool kModulation>
struct PortableInt8 {
  static constexpr int kThreads = 32 * kPortableWarps;
  static constexpr int kBlocks = kModulation ? 4 : 8;  // of 8 columns, a warp's, as in portable.h
  static constexpr int kSteps = kWidth / 32;           // of a layer
  static constexpr int kRows = kTile / 16;             // blocks of 16 queries
  static constexpr int kOwn = 2 * kRows;               // queries of a thread
  using Stream = WeightStream<kBlocks / 2, kPortableWarps>;

  // Sums begin at the bits of 1.5 * 2^23, so that they are, read as float32, that much more than
  // what was added.
  static constexpr int32_t kStartBits = 0x4B400000;
  static constexpr float kStart = 12582912.0f;
  static_assert(kLargest * kLargest * kWidth < 1 << 22,
                "a float32 holds the largest sum beside it");

  struct Shared {
    char q[kTile * kWidth];  // integers
    typename Stream::Ring ring;
    Query queries[kTile];
    float unit[kTile];  // what 1 stands for in a query's integers
    // What each warp says of a query: the largest magnitude, or its part of an output channel, of
    // which two are under way.
    uint32_t said[2][kTile][kPortableWarps];
  };

  const Decode& d;
  Shared& shared;
  const int thread, lane, warp, unit;  // unit: the first of the thread's 8 outputs
  Stream stream;

  DIINN_DEVICE PortableInt8(const Decode& decode, Shared& memory)
      : d(decode),
        shared(memory),
        thread(thread_index()),
        lane(thread % 32),
        warp(thread / 32),
        unit(32 * warp + 8 * (lane % 4)),
        stream(memory.ring, decode.packed, static_cast<int64_t>(decode.layers - 1) * kSteps) {}

  // The thread's query i of kOwn: sums of block i / 2, numbers 2 * (i % 2) and the next.
  DIINN_DEVICE int row(int i) const { return 16 * (i / 2) + lane / 4 + 8 * (i % 2); }

  DIINN_DEVICE void first_layer(float (&q)[kOwn][8]) {
    const FirstLayer first(d, unit);
    DIINN_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const Query& query = shared.queries[row(i)];
      float s[8], k[8];
      first.arguments(query, s);
      unpack_8<T>(load_content(d, query, 0, unit), k);
      DIINN_UNROLL
      for (int j = 0; j < 8; ++j) q[i][j] = (kModulation ? k[j] : relu(k[j])) * sine(s[j]);
    }
  }

  // The scale of a query, from what all warps have said.
  DIINN_DEVICE Scale scale(int query) const {
    int32_t most = 0;
    DIINN_UNROLL
    for (int w = 0; w < kPortableWarps; ++w)
      most = larger(most, static_cast<int32_t>(shared.said[0][query][w]));
    return scale_of(most);
  }

  // q into shared memory, as integers.
  DIINN_DEVICE void quantise(const float (&q)[kOwn][8]) {
    DIINN_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      int32_t most = largest_magnitude(q[i]);
      DIINN_UNROLL
      for (int apart = 1; apart < 4; apart *= 2)
        most = larger(most, static_cast<int32_t>(from_lane(most, lane ^ apart)));
      if (lane % 4 == 0) shared.said[0][row(i)][warp] = most;
    }
    sync_block();  // everyone has said it, and has read the previous layer's q

    // Four lanes have the same queries: each divides for two of them.
    float inverse[2];
    DIINN_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int query = row(2 * (lane % 4) + half);
      const Scale own = scale(query);
      inverse[half] = own.inverse;
      if (warp == 0) shared.unit[query] = own.unit;
    }
    DIINN_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const uint32_t bits = from_lane(bit_cast<uint32_t>(inverse[i % 2]), lane / 4 * 4 + i / 2);
      uint32_t words[2];
      quantise_8(q[i], bit_cast<float>(bits), words);
      char* const to = shared.q + portable_q<1>(row(i), unit / 16) + unit % 16;
      memcpy(__builtin_assume_aligned(to, 8), words, 8);
    }
    sync_block();
  }

  // What a sum stands for in units of the query, from the unit of its row of weights.
  DIINN_DEVICE float scaled(int32_t sum, float row_unit) const {
    return (bit_cast<float>(sum) - kStart) * row_unit;
  }

  DIINN_DEVICE void hidden_layer(int layer, float (&q)[kOwn][8]) {
    int32_t sums[kRows][kBlocks][4];
    DIINN_UNROLL
    for (int n = 0; n < kRows * kBlocks * 4; ++n)
      sums[n / (kBlocks * 4)][n / 4 % kBlocks][n % 4] = kStartBits;
    DIINN_UNROLL_BY(Stream::kSlots)
    for (int step = 0; step < kSteps; ++step) {
      Vector16 weights[kBlocks / 2];
      stream.next(step % Stream::kSlots, weights);
      DIINN_UNROLL
      for (int i = 0; i < kRows; ++i) {
        uint32_t a[4];
        load_matrices(a, shared.q + portable_q<1>(16 * i + lane % 16, 2 * step + lane / 16));
        DIINN_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
          multiply_integers(sums[i][b], a, weights[b / 2].word[b % 2 * 2],
                            weights[b / 2].word[b % 2 * 2 + 1]);
        }
      }
    }
    Vector16 content[kOwn];  // on its way while the last products end
    DIINN_UNROLL
    for (int i = 0; i < kOwn; ++i)
      content[i] = load_content(d, shared.queries[row(i)], layer, unit);
    const float* const units = packed_units(d) + (layer - 1) * kBlocks * 64 + unit;
    float bias[8], k_unit[8], s_unit[8];
    load_floats(d.hidden_bias + (layer - 1) * kWidth + unit, bias);
    load_floats(units, k_unit);
    load_floats(units + (kBlocks - 4) * 64, s_unit);
    DIINN_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const float own = shared.unit[row(i)];
      float k[8];
      unpack_8<T>(content[i], k);
      DIINN_UNROLL
      for (int j = 0; j < 8; ++j) {
        const int block = j / 2, v = 2 * (i % 2) + j % 2;
        if (!kModulation) k[j] = relu(fmaf(scaled(sums[i / 2][block][v], k_unit[j]), own, k[j]));
        const float s = scaled(sums[i / 2][kBlocks - 4 + block][v], s_unit[j]);
        q[i][j] = k[j] * sine(fmaf(s, own, bias[j]));
      }
    }
  }

  // Channel by channel: a lane's part, those of four lanes, those of all warps.
  DIINN_DEVICE void output(const float (&q)[kOwn][8]) {
    DIINN_ROLLED
    for (int channel = 0; channel < d.channels; ++channel) {
      auto& said = shared.said[channel % 2];
      float last[8];
      load_floats(static_cast<const float*>(d.last) + channel * kWidth + unit, last);
      DIINN_UNROLL
      for (int i = 0; i < kOwn; ++i) {
        float sum = 0.0f;
        DIINN_UNROLL
        for (int j = 0; j < 8; ++j) sum = fmaf(q[i][j], last[j], sum);
        DIINN_UNROLL
        for (int apart = 1; apart < 4; apart *= 2)
          sum += bit_cast<float>(from_lane(bit_cast<uint32_t>(sum), lane ^ apart));
        if (lane % 4 == 0) said[row(i)][warp] = bit_cast<uint32_t>(sum);
      }
      sync_block();  // everyone has said it, and has read what was said of the previous channel
      if (thread >= kTile || shared.queries[thread].out < 0) continue;
      float sum = d.last_bias[channel];
      DIINN_UNROLL
      for (int w = 0; w < kPortableWarps; ++w) sum += bit_cast<float>(said[thread][w]);
      store_output(d, shared.queries[thread].out + channel * d.out_channel, sum);
    }
  }

  DIINN_DEVICE void run() {
    const int64_t tiles = tile_count(d);
    for (int64_t tile = block_index(); tile < tiles; tile += block_count()) {
      if (thread < kTile) shared.queries[thread] = locate(d, tile, thread);
      sync_block();
      float q[kOwn][8];
      first_layer(q);
      DIINN_ROLLED
      for (int layer = 1; layer < d.layers; ++layer) {
        quantise(q);
        hidden_layer(layer, q);
      }
      output(q);
      sync_block();  // everyone is done with this tile's queries
    }
    stream.drain();
  }
};

}  // namespace diinn
