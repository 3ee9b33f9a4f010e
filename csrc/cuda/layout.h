// Who holds which number: fragments of the matrix instructions, packed weights, swizzled shared
// memory. Host and device.
//
// Both kernels choose the order of a layer's outputs so that relu(k) * sin(s) needs no other
// thread's registers and a thread's outputs are consecutive in memory. A matrix instruction gives a
// thread, of every 8 columns, the two at 2 * (lane % 4); the weights' rows are permuted so that
// these pairs, over the column blocks t, are the outputs pairs * (lane % 4) + 2 t + {0, 1}.
#pragma once

#include "decode.h"
#include "platform.h"

namespace diinn {

// -- fragments --
// mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"), and per
// warp of a warpgroup wgmma.m64nNk16 (its 16 rows): lane = 4 * (row in 8) + quad.
//   A: register r, half e: row lane / 4 + 8 * (r % 2), k = 2 * (lane % 4) + e + 8 * (r / 2)
//   B: register r, half e: column lane / 4, k = 2 * (lane % 4) + e + 8 * r
//   D: number v of column block t: row lane / 4 + 8 * (v / 2), column 8 * t + 2 * (lane % 4) + v %
//   2
//
// D, column block t, by lane (each holds two columns of two rows):
//
//   column   8t   8t+1    8t+2 8t+3    8t+4 8t+5    8t+6 8t+7
//   row 0      lane 0       lane 1       lane 2       lane 3    numbers 0, 1
//   row 1      lane 4       lane 5       lane 6       lane 7
//    ...
//   row 7      lane 28      lane 29      lane 30      lane 31
//   row 8      lane 0       lane 1       lane 2       lane 3    numbers 2, 3
//    ...
//
// Worked: lane 6, block t = 3, number v = 1 is row 6 / 4 = 1, column 8 * 3 + 2 * 2 + 1 = 29. Where
// a warp has 4 blocks, column 29 is output 8 * 2 + 2 * 3 + 1 = 23 (output_of_column(29, 4)): lane
// 6's numbers 0, 1 of blocks 0 to 3 are the outputs 16 to 23 of row 1, one store of 16 bytes.
//
// So numbers 0, 1 of blocks 2j and 2j + 1, then 2, 3 of both, are in 16 bits the A fragment of the
// k's 16j to 16j + 15.

//
// mma.m16n8k32 on 8-bit integers is the same with four k's to a register, k = 4 * (lane % 4) + e +
// 16 * r, and sums of 32 bits.

constexpr int kStep = 16;  // k's of a matrix instruction

// Output that stands in column n (of 8 * blocks) when a thread's pairs are made consecutive.
DIINN_BOTH int output_of_column(int n, int blocks) {
  return 2 * blocks * (n % 8 / 2) + 2 * (n / 8) + n % 2;
}

// -- shared memory --

// 128-byte swizzle: bits 4 to 6 of an address are xor-ed with bits 7 to 9. An involution.
DIINN_BOTH uint32_t swizzle_128(uint32_t address) { return address ^ (address >> 3 & 0x70); }

// Byte of 16-byte piece `piece` of a query's q, numbers of kBytes bytes, in the portable kernels'
// shared memory: 8 queries' pieces of one number lie in 8 different bank groups, so that ldmatrix
// and the epilogue's stores do not collide.
template <int kBytes>
DIINN_BOTH uint32_t portable_q(int query, int piece) {
  return static_cast<uint32_t>(query * (kBytes * kWidth) + (piece ^ (query & 7)) * 16);
}

// Shared-memory matrix descriptor of wgmma (PTX ISA, "Matrix descriptor") for a K-major operand in
// 128-byte swizzle: rows of 128 bytes (64 k's), groups of 8 rows 1024 bytes apart. k advances by
// adding bytes to the address.
constexpr uint32_t kGroupBytes = 1024;
DIINN_BOTH uint64_t matrix_descriptor(uint32_t shared_address) {
  const uint64_t start = (shared_address & 0x3FFFF) >> 4;
  const uint64_t leading = 1;  // not used by swizzled K-major layouts
  const uint64_t stride = kGroupBytes >> 4;
  const uint64_t swizzle = 1;  // 128 bytes
  return start | leading << 16 | stride << 32 | swizzle << 62;
}

// -- packed weights --
// Both functions tell from which element of `hidden` element e of the packed weights comes.

// Portable kernels: steps of 32 bytes of k's in the order of use; per step a warp's part, 16-byte
// pieces of 32 lanes, each the B fragments of two column blocks. Warp w makes outputs 32 w to 32 w
// + 31: in content form its blocks 0 to 3 are their k columns and 4 to 7 the s columns, in
// modulation form 0 to 3 are s.
constexpr int kPortableWarps = 8;
template <int kBytes>  // of an element
DIINN_BOTH int64_t portable_hidden(bool modulation, int64_t e) {
  constexpr int kEach = 4 / kBytes, kSteps = kWidth * kBytes / 32;  // of a register, of a layer
  const int64_t word = e / kEach;
  const int pieces = modulation ? 2 : 4, part = word % 4, lane = word / 4 % 32,
            piece = word / 128 % pieces;
  const int warp = word / (128 * pieces) % kPortableWarps;
  const int64_t step = word / (128 * pieces * kPortableWarps);
  const int block = 2 * piece + part / 2;
  const int64_t k = kEach * (step % kSteps * 8 + 4 * (part % 2) + lane % 4) + e % kEach;
  const int64_t layer = step / kSteps;
  const int output = 32 * warp + output_of_column(8 * (block % 4) + lane / 4, 4);
  const int64_t row =
      modulation ? layer * kWidth + output : layer * 2 * kWidth + block / 4 * kWidth + output;
  return row * kWidth + k;
}

// Hopper kernel: stages of 128 columns x 64 k's, 16 KB, swizzled as they lie in shared memory; per
// layer, chunks of outputs, and per chunk four stages. A chunk's columns are in content form [64 k
// | 64 s] of the same 64 outputs, in modulation form s of 2 x 64 outputs.
constexpr int kStageColumns = 128, kStageDepth = 64, kStageBytes = kStageColumns * kStageDepth * 2;
constexpr int kBlockStages = kWidth / kStageDepth;  // stages of a chunk

// The activation behind the k-th input column: q stays in the registers that the previous layer's
// sums were in.
DIINN_BOTH int hopper_input(int k) { return k / 64 * 64 + output_of_column(k % 64, 8); }

DIINN_BOTH int64_t hopper_hidden(bool modulation, int64_t e) {
  const int64_t stage = e / (kStageColumns * kStageDepth);
  const uint32_t byte = swizzle_128(static_cast<uint32_t>(e % (kStageColumns * kStageDepth)) * 2);
  const int column = byte / 128,
            k = byte % 128 / 2 + static_cast<int>(stage % kBlockStages) * kStageDepth;
  const int chunks = modulation ? 2 : 4;
  const int64_t chunk = stage / kBlockStages % chunks, layer = stage / kBlockStages / chunks;
  const int64_t group = modulation ? 2 * chunk + column / 64 : chunk;  // of 64 outputs
  const int64_t output = 64 * group + output_of_column(column % 64, 8);
  const int64_t row =
      modulation ? layer * kWidth + output : (2 * layer + column / 64) * kWidth + output;
  return row * kWidth + hopper_input(k);
}

// The last layer's B fragments [channels / 8, 16 steps, 32 lanes, 2 registers]: element of `last`,
// or -1 for a zero.
DIINN_BOTH int64_t packed_last(bool hopper, int channels, int64_t e) {
  const int half = e % 2, part = e / 2 % 2, lane = e / 4 % 32, step = e / 128 % (kWidth / kStep);
  const int channel = static_cast<int>(e / (128 * (kWidth / kStep))) * 8 + lane / 4;
  const int k = step * kStep + 8 * part + 2 * (lane % 4) + half;
  return channel < channels ? channel * kWidth + (hopper ? hopper_input(k) : k) : -1;
}

DIINN_BOTH int64_t hidden_rows(const Decode& d) {  // of all layers
  return static_cast<int64_t>(d.layers - 1) * (d.modulation ? 1 : 2) * kWidth;
}
DIINN_BOTH int64_t hidden_elements(const Decode& d) { return hidden_rows(d) * kWidth; }
DIINN_BOTH int channel_blocks(int channels) { return (channels + 7) / 8; }

// Pieces of 16 bytes: hidden and last, or as integers hidden alone. Behind integers comes what 1
// stands for in each row.
DIINN_BOTH int64_t packed_pieces(const Decode& d) {
  if (d.kernel == kIntegers) return hidden_elements(d) / 16;
  return (hidden_elements(d) + channel_blocks(d.channels) * 8 * kWidth) / 8;
}
DIINN_BOTH float* packed_units(const Decode& d) {
  return reinterpret_cast<float*>(static_cast<char*>(d.packed) + 16 * packed_pieces(d));
}
DIINN_BOTH int64_t matrix_bytes(const Decode& d) {
  return 16 * packed_pieces(d) + (d.kernel == kIntegers ? 4 * hidden_rows(d) : 0);
}

// Behind them, if they are given in 16 bit, in float32: last, unless it is packed, then position
// and biases.
DIINN_BOTH int64_t widened_last(const Decode& d) {
  return d.kernel == kIntegers ? d.channels * kWidth : 0;
}
DIINN_BOTH int64_t vector_elements(const Decode& d) {
  return d.vectors == kFloat32 ? 0 : widened_last(d) + (3 + d.layers) * kWidth + d.channels;
}
DIINN_BOTH float* widened_vectors(const Decode& d) {
  return reinterpret_cast<float*>(static_cast<char*>(d.packed) + matrix_bytes(d));
}

// The decode as the kernels see it, when the work space is filled.
DIINN_BOTH Decode with_widened_vectors(Decode d) {
  if (d.vectors == kFloat32) return d;
  float* const last = widened_vectors(d);
  if (d.kernel == kIntegers) d.last = last;
  d.position = last + widened_last(d);
  d.position_bias = d.position + 3 * kWidth;
  d.hidden_bias = d.position_bias + kWidth;
  d.last_bias = d.hidden_bias + (d.layers - 1) * kWidth;
  d.vectors = kFloat32;
  return d;
}

}  // namespace diinn
