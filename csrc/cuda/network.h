// The network's arithmetic on a thread's numbers: sine, activation, the first layer, the output.
// Used by all kernels.
#pragma once

#include "instructions.h"
#include "queries.h"

namespace diinn {

// x minus the nearest multiple of 2 pi, which is subtracted in two parts (Cody and Waite): the
// first has so few bits that its product is exact. Absolute error 5e-7 for |x| < 1e4, as much as
// the special-function unit's own, and 2.5e-7 for |x| < 1e3. NaN and infinities give NaN.
DIINN_BOTH float reduce(float x) {
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 0.15915494309189535f + round) - round;
  return (x - n * 6.28125f) - n * 1.9353071795864769e-3f;
}
DIINN_DEVICE float sine(float x) { return sine_unit(reduce(x)); }
DIINN_DEVICE float cosine(float x) { return cosine_unit(reduce(x)); }

// 8 numbers of the source: content, or modulation.
DIINN_DEVICE Vector16 load_content(const Decode& d, const Query& query, int layer, int unit) {
  return load_16(static_cast<const uint16_t*>(d.source) + query.content + layer * kWidth + unit);
}
template <class T>
DIINN_DEVICE void unpack_8(const Vector16& v, float (&x)[8]) {
  DIINN_UNROLL
  for (int i = 0; i < 4; ++i) unpack<T>(v.word[i], x[2 * i], x[2 * i + 1]);
}
DIINN_DEVICE void load_floats(const float* from, float (&x)[8]) {
  DIINN_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Vector16 v = load_16(from + 4 * i);
    DIINN_UNROLL
    for (int j = 0; j < 4; ++j) x[4 * i + j] = bit_cast<float>(v.word[j]);
  }
}
template <class T>
DIINN_DEVICE Vector16 pack_8(const float (&x)[8]) {
  return {{pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])}};
}

// What the backward needs of 8 outputs of a layer, from unit `unit`: see Decode.
template <class T>
DIINN_DEVICE void keep_8(const Decode& d, int layer, const Query& query, int unit,
                         const float (&s)[8], const float (&k)[8], const Vector16& q) {
  if (query.out < 0) return;
  const int64_t at = (layer * (d.batch * d.rows * d.columns) + query.number) * kWidth + unit;
  for (int i = 0; i < 2; ++i) {
    Vector16 four;
    for (int j = 0; j < 4; ++j) four.word[j] = bit_cast<uint32_t>(s[4 * i + j]);
    *reinterpret_cast<Vector16*>(d.kept_s + at + 4 * i) = four;
  }
  *reinterpret_cast<Vector16*>(static_cast<uint16_t*>(d.kept_k) + at) = pack_8<T>(k);
  *reinterpret_cast<Vector16*>(static_cast<uint16_t*>(d.kept_q) + at) = q;
}

// q = k sin(s) of 8 outputs, k = relu(content + product) or the given modulation.
template <class T, bool kModulation, bool kKeep>
DIINN_DEVICE Vector16 activate(const Decode& d, int layer, const Query& query, int unit,
                               const Vector16& content, const float (&product)[8],
                               const float (&s)[8]) {
  float k[8], q[8];
  unpack_8<T>(content, k);
  DIINN_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (!kModulation) k[i] = relu(k[i] + product[i]);
    q[i] = k[i] * sine(s[i]);
  }
  const Vector16 packed = pack_8<T>(q);
  if (kKeep) keep_8<T>(d, layer, query, unit, s, k, packed);
  return packed;
}

// The first layer's 8 outputs from `unit`: s = Q_0 (dy, dx, ratio) + b_0 with weights that stay in
// registers while queries pass.
struct FirstLayer {
  float y[8], x[8], constant[8];
  DIINN_DEVICE FirstLayer(const Decode& d, int unit) {
    float position[3][8];
    DIINN_UNROLL
    for (int i = 0; i < 3; ++i) load_floats(d.position + 3 * unit + 8 * i, position[i]);
    load_floats(d.position_bias + unit, constant);
    DIINN_UNROLL
    for (int i = 0; i < 8; ++i) {
      y[i] = position[3 * i / 8][3 * i % 8];
      x[i] = position[(3 * i + 1) / 8][(3 * i + 1) % 8];
      constant[i] = position[(3 * i + 2) / 8][(3 * i + 2) % 8] * d.ratio + constant[i];
    }
  }
  DIINN_DEVICE void arguments(const Query& query, float (&s)[8]) const {
    DIINN_UNROLL
    for (int i = 0; i < 8; ++i) s[i] = query.dy * y[i] + query.dx * x[i] + constant[i];
  }
  template <class T, bool kModulation, bool kKeep>
  DIINN_DEVICE Vector16 run(const Decode& d, const Query& query, int unit) const {
    float s[8], none[8] = {};
    arguments(query, s);
    return activate<T, kModulation, kKeep>(d, 0, query, unit, load_content(d, query, 0, unit), none,
                                           s);
  }
};

// One number of the output, rounded to its type.
DIINN_DEVICE void store_output(const Decode& d, int64_t element, float value) {
  if (d.output == kFloat32) {
    static_cast<float*>(d.out)[element] = value;
  } else {
    const uint32_t both =
        d.output == kFloat16 ? pack<Float16>(value, 0.0f) : pack<BFloat16>(value, 0.0f);
    static_cast<uint16_t*>(d.out)[element] = static_cast<uint16_t>(both);
  }
}

// Channels 8 block to 8 block + 7 of a warp's 16 queries, whose q are A fragments: fragment(step,
// a). low and high are the queries of rows lane / 4 and lane / 4 + 8.
template <class T, class Fragment>
DIINN_DEVICE void write_output(const Decode& d, int block, int lane, const Query& low,
                               const Query& high, Fragment fragment) {
  const uint32_t* last = reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(d.packed) +
                                                           hidden_elements(d));
  last += block * (kWidth / kStep * 64) + lane * 2;
  float sums[4] = {};
  DIINN_UNROLL
  for (int step = 0; step < kWidth / kStep; ++step) {
    uint32_t a[4];
    fragment(step, a);
    multiply<T>(sums, a, last[step * 64], last[step * 64 + 1]);
  }
  DIINN_UNROLL
  for (int v = 0; v < 4; ++v) {
    const int channel = 8 * block + 2 * (lane % 4) + v % 2;
    const int64_t out = v < 2 ? low.out : high.out;
    if (out >= 0 && channel < d.channels)
      store_output(d, out + channel * d.out_channel, sums[v] + d.last_bias[channel]);
  }
}

}  // namespace diinn
