// Backward of the decode, between the recomputed forward (Portable with kKeep) and the framework's
// weight products.
//
// Of a slab of queries, from dq of the last layer: per layer, last to first, with q = k sin(s), k =
// relu(a),
//   dk = dq sin(s) [k > 0],  ds = dq k cos(s),  dq_prev = [dk | ds] [K; Q]
// (modulation form: k is given, not rectified, and dq_prev = ds Q). [dk | ds] of all layers goes to
// memory once; dq never does. Then SumQueries adds dk into the content's gradient: one thread owns
// 8 units of an LR pixel and goes through its queries in order, so that no atomics are needed and
// every run gives the same bits.
#pragma once

#include "network.h"
#include "weight_stream.h"

namespace diinn {

// One slab: some queries of some images, which they count through, row by row
// (diinn_fast/backends/_cuda.py mirrors the struct).
struct Gradient {
  int64_t queries;
  int32_t layers, operand, modulation, device;
  void* stream;
  const void* hidden;   // as in Decode
  void* packed;         // work space, of the size of `hidden`
  const float* kept_s;  // [L, queries, H], as Portable kept them
  const void* kept_k;   // [L, queries, H]
  const float* dq;      // [queries, H], of the last layer
  void* both;           // [L, queries, 2H]: dk, ds
  // The content's gradient, null if not needed. In each image LR pixel (first_row + a, first_column
  // + b) owns the slab's rows row_start[a] to row_start[a + 1] and columns alike; an image's part
  // of the slab is `columns` wide.
  float* source;  // [images, grid_rows, grid_columns, L * H], added to
  const int64_t *row_start, *column_start;
  int64_t images, down, across, columns, first_row, first_column, grid_rows, grid_columns;
};

// From which element of `hidden` element e of the packed weights comes: as portable_hidden, but k's
// are the rows of [K; Q] and columns its inputs, and layers come last to first.
DIINN_BOTH int64_t gradient_hidden(const Gradient& g, int64_t e) {
  const int half = e % 2, part = e / 2 % 4, lane = e / 8 % 32, piece = e / 256 % 2,
            warp = e / 512 % kPortableWarps;
  const int rows = g.modulation ? kWidth : 2 * kWidth, steps = rows / kStep;
  const int64_t step = e / (512 * kPortableWarps), layer = g.layers - 2 - step / steps;
  const int64_t row = step % steps * kStep + 8 * (part % 2) + 2 * (lane % 4) + half;
  const int input = 32 * warp + output_of_column(8 * (2 * piece + part / 2) + lane / 4, 4);
  return (layer * rows + row) * kWidth + input;
}
DIINN_BOTH int64_t hidden_elements(const Gradient& g) {
  return static_cast<int64_t>(g.layers - 1) * (g.modulation ? 1 : 2) * kWidth * kWidth;
}
DIINN_BOTH void pack_piece(const Gradient& g, int64_t piece) {
  uint16_t element[8];
  DIINN_UNROLL
  for (int i = 0; i < 8; ++i) {
    element[i] = static_cast<const uint16_t*>(g.hidden)[gradient_hidden(g, piece * 8 + i)];
  }
  memcpy(static_cast<char*>(g.packed) + piece * 16, element, 16);
}
DIINN_BOTH int64_t pack_jobs(const Gradient& g) { return hidden_elements(g) / 8; }
DIINN_BOTH void pack_job(const Gradient& g, int64_t job) { pack_piece(g, job); }

template <class T, bool kModulation>
struct Chain {
  static constexpr int kThreads = 32 * kPortableWarps;
  static constexpr int kTerms = kModulation ? kWidth : 2 * kWidth;  // of a product's sums
  static constexpr int kSteps = kTerms / kStep;
  static constexpr int kBlocks = 4;  // of 8 columns, a warp's
  static constexpr int kRows = kTile / 16;
  using Stream = WeightStream<kBlocks / 2, kPortableWarps>;

  struct Shared {
    char both[kTile * kTerms * 2];
    typename Stream::Ring ring;
  };

  const Gradient& g;
  Shared& shared;
  const int thread, lane, warp, unit;  // unit: the first of the thread's 8
  Stream stream;

  DIINN_DEVICE Chain(const Gradient& gradient, Shared& memory)
      : g(gradient),
        shared(memory),
        thread(thread_index()),
        lane(thread % 32),
        warp(thread / 32),
        unit(32 * warp + 8 * (lane % 4)),
        stream(memory.ring, gradient.packed, static_cast<int64_t>(gradient.layers - 1) * kSteps) {}

  DIINN_DEVICE char* piece(int query, int number) const {
    return shared.both + query * (2 * kTerms) + (number ^ (query & 7)) * 16;
  }

  // [dk | ds] of 8 units of a query, from their dq; surplus queries of the last tile have zeros.
  DIINN_DEVICE void split(int layer, int64_t tile, int query, const float (&dq)[8]) {
    const int64_t number = tile * kTile + query, at = (layer * g.queries + number) * kWidth + unit;
    float dk[8] = {}, ds[8] = {};
    if (number < g.queries) {
      float s[8], k[8];
      load_floats(g.kept_s + at, s);
      unpack_8<T>(load_16(static_cast<const uint16_t*>(g.kept_k) + at), k);
      DIINN_UNROLL
      for (int i = 0; i < 8; ++i) {
        dk[i] = kModulation || k[i] > 0.0f ? dq[i] * sine(s[i]) : 0.0f;
        ds[i] = dq[i] * k[i] * cosine(s[i]);
      }
    }
    const Vector16 packed_dk = pack_8<T>(dk), packed_ds = pack_8<T>(ds);
    if (!kModulation) *reinterpret_cast<Vector16*>(piece(query, unit / 8)) = packed_dk;
    *reinterpret_cast<Vector16*>(piece(query, (kTerms - kWidth + unit) / 8)) = packed_ds;
    if (number < g.queries) {
      uint16_t* to =
          static_cast<uint16_t*>(g.both) + (layer * g.queries + number) * (2 * kWidth) + unit;
      *reinterpret_cast<Vector16*>(to) = packed_dk;
      *reinterpret_cast<Vector16*>(to + kWidth) = packed_ds;
    }
  }

  DIINN_DEVICE int row(int i, int half) const { return 16 * i + lane / 4 + 8 * half; }

  DIINN_DEVICE void run() {
    const int64_t tiles = divide_up(g.queries, kTile);
    for (int64_t tile = block_index(); tile < tiles; tile += block_count()) {
      DIINN_UNROLL
      for (int i = 0; i < 2 * kRows; ++i) {
        const int64_t number = tile * kTile + row(i / 2, i % 2);
        float dq[8] = {};
        if (number < g.queries) load_floats(g.dq + number * kWidth + unit, dq);
        split(g.layers - 1, tile, row(i / 2, i % 2), dq);
      }
      DIINN_ROLLED
      for (int layer = g.layers - 2; layer >= 0; --layer) {
        sync_block();  // everyone's dk and ds are there
        float sums[kRows][kBlocks][4] = {};
        DIINN_UNROLL_BY(Stream::kSlots)
        for (int step = 0; step < kSteps; ++step) {
          Vector16 weights[kBlocks / 2];
          stream.next(step % Stream::kSlots, weights);
          DIINN_UNROLL
          for (int i = 0; i < kRows; ++i) {
            uint32_t a[4];
            load_matrices(a, piece(16 * i + lane % 16, 2 * step + lane / 16));
            DIINN_UNROLL
            for (int b = 0; b < kBlocks; ++b) {
              multiply<T>(sums[i][b], a, weights[b / 2].word[b % 2 * 2],
                          weights[b / 2].word[b % 2 * 2 + 1]);
            }
          }
        }
        sync_block();  // everyone has read them
        DIINN_UNROLL
        for (int i = 0; i < 2 * kRows; ++i) {
          float dq[8];
          DIINN_UNROLL
          for (int j = 0; j < 8; ++j) dq[j] = sums[i / 2][j / 2][2 * (i % 2) + j % 2];
          split(layer, tile, row(i / 2, i % 2), dq);
        }
      }
      sync_block();  // before the next tile's dk and ds
    }
    stream.drain();
  }
};

// source += the sum of dk over each LR pixel's queries, 8 units of one LR pixel per call.
template <class T>
DIINN_DEVICE void sum_queries(const Gradient& g, int64_t job) {
  const int64_t each = g.layers * (kWidth / 8), pixel = job / each, unit = job % each * 8;
  const int64_t b = pixel % g.across, a = pixel / g.across % g.down;
  const int64_t image = pixel / g.across / g.down, layer = unit / kWidth;
  const int64_t first = layer * g.queries + image * (g.queries / g.images);
  float sums[8] = {};
  for (int64_t y = g.row_start[a]; y < g.row_start[a + 1]; ++y) {
    for (int64_t x = g.column_start[b]; x < g.column_start[b + 1]; ++x) {
      const int64_t at = (first + y * g.columns + x) * (2 * kWidth) + unit % kWidth;
      float dk[8];
      unpack_8<T>(load_16(static_cast<const uint16_t*>(g.both) + at), dk);
      DIINN_UNROLL
      for (int i = 0; i < 8; ++i) sums[i] += dk[i];
    }
  }
  const int64_t row = image * g.grid_rows + g.first_row + a;
  float* to = g.source + (row * g.grid_columns + g.first_column + b) * (g.layers * kWidth) + unit;
  DIINN_UNROLL
  for (int i = 0; i < 8; ++i) to[i] += sums[i];
}
DIINN_BOTH int64_t sum_jobs(const Gradient& g) {
  return g.images * g.down * g.across * g.layers * (kWidth / 8);
}

}  // namespace diinn
