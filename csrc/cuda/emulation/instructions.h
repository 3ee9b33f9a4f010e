// The instructions of instructions.h on a CPU, as the PTX ISA documents them: fragments lane by
// lane, descriptors bit by bit. Sums are float32, added in the order of k.
#pragma once

#include <math.h>

#include "../layout.h"
#include "../platform.h"
#include "machine.h"

namespace diinn {

// -- numbers of 16 bits --

struct Float16 {
  static float widen(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                            : exponent == 0
                                ? ldexpf(static_cast<float>(mantissa), -24)
                                : ldexpf(static_cast<float>(mantissa + 1024), exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
  }
  static uint16_t narrow(float x) {
    const uint16_t sign = static_cast<uint16_t>(bit_cast<uint32_t>(x) >> 16 & 0x8000);
    const float magnitude = fabsf(x);
    if (!(magnitude == magnitude)) return 0x7FFF;
    if (magnitude >= 65520.0f) return sign | 0x7C00;
    int exponent = -14;  // of the last place: 2^(exponent - 10)
    if (magnitude >= ldexpf(1.0f, -14)) exponent = ilogbf(magnitude);
    const int units = static_cast<int>(
        nearbyintf(ldexpf(magnitude, 10 - exponent)));  // half to even, exact before
    return static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + units));
  }
};

struct BFloat16 {
  static float widen(uint16_t bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  static uint16_t narrow(float x) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    if (x != x) return 0x7FFF;
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
};

template <class T>
const float* widened() {  // of all bit patterns
  static const std::vector<float> table = [] {
    std::vector<float> values(1 << 16);
    for (int i = 0; i < 1 << 16; ++i) values[i] = T::widen(static_cast<uint16_t>(i));
    return values;
  }();
  return table.data();
}

template <class T>
uint32_t pack(float low, float high) {
  return T::narrow(low) | static_cast<uint32_t>(T::narrow(high)) << 16;
}
template <class T>
void unpack(uint32_t both, float& low, float& high) {
  low = widened<T>()[both & 0xFFFF];
  high = widened<T>()[both >> 16];
}

inline float sine_unit(float x) { return sinf(x); }
inline float cosine_unit(float x) { return cosf(x); }

inline float relu(float x) { return x < 0.0f ? 0.0f : x; }

inline uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return (a & 0xFF) | (b & 0xFF) << 8 | (c & 0xFF) << 16 | d << 24;
}

inline Vector16 load_16(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16)
    Machine::current_machine()->fail("16-byte load from a crooked address");
  Vector16 v;
  memcpy(&v, from, sizeof v);
  return v;
}

// -- threads --

inline Machine& machine() { return *Machine::current_machine(); }
inline int thread_index() { return machine().fiber().thread; }
inline int block_index() { return machine().block_index(); }
inline int block_count() { return machine().block_count(); }
inline void sync_block() {
  Machine& m = machine();
  m.meet(m.own_block().everyone, m.threads(), 128, nullptr, [](Machine::Meeting&) {});
}
inline uint32_t shared_address(const void* pointer) {
  const ptrdiff_t offset = static_cast<const char*>(pointer) - machine().own_block().shared;
  if (offset < 0 || offset >= static_cast<ptrdiff_t>(machine().shared_bytes()))
    machine().fail("not in shared memory");
  return static_cast<uint32_t>(offset);
}
template <class Work>
void meet_warp(void* contribution, Work work) {
  Machine& m = machine();
  const int thread = thread_index();
  m.meet(m.own_block().warps[thread / 32], 32, thread % 32, contribution, work);
}

inline void sync_warp() {
  meet_warp(nullptr, [](Machine::Meeting&) {});
}

inline uint32_t from_lane(uint32_t own, int lane) {
  struct Lane {
    uint32_t own, taken;
    int from;
  } mine{own, 0, lane};
  meet_warp(&mine, [](Machine::Meeting& meeting) {
    for (int l = 0; l < 32; ++l) {
      Lane& to = *static_cast<Lane*>(meeting.slot[l]);
      to.taken = static_cast<Lane*>(meeting.slot[to.from])->own;
    }
  });
  return mine.taken;
}

// -- portable tensor cores --

// The destination is NaN from the call on, and filled as late as the waits allow.
inline void copy_async(void* shared, const void* global) {
  if (shared_address(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    machine().fail("crooked copy");
  memset(shared, 0xFF, 16);
  machine().fiber().copies.back().push_back({shared, global});
}
inline void copy_commit() { machine().fiber().copies.emplace_back(); }
template <int kLeft>
void copy_wait() {
  auto& groups = machine().fiber().copies;
  while (groups.size() > kLeft + 1) {
    for (const auto& copy : groups.front()) memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}

inline void load_matrices(uint32_t (&r)[4], const void* row) {
  struct Lane {
    uint32_t* r;
    const char* row;
  } own{r, static_cast<const char*>(row)};
  if (shared_address(row) % 16) machine().fail("crooked ldmatrix");
  meet_warp(&own, [](Machine::Meeting& meeting) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        const char* from = static_cast<Lane*>(meeting.slot[8 * matrix + lane / 4])->row;
        memcpy(&static_cast<Lane*>(meeting.slot[lane])->r[matrix], from + 4 * (lane % 4), 4);
      }
    }
  });
}

// A warp's matrix instruction with kEach k's to a register: unpack(word, numbers) takes it apart.
template <class Sum, int kEach, class Unpack>
void multiply_fragments(Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                        const Unpack& unpack) {
  struct Lane {
    Sum* d;
    const uint32_t* a;
    uint32_t b[2];
  } own{d, a, {b0, b1}};
  constexpr int kDepth = 8 * kEach;
  meet_warp(&own, [&](Machine::Meeting& meeting) {
    Sum matrix_a[16][kDepth], matrix_b[kDepth][8], sums[16][8], numbers[kEach];
    for (int lane = 0; lane < 32; ++lane) {
      const Lane& l = *static_cast<Lane*>(meeting.slot[lane]);
      for (int r = 0; r < 4; ++r) {
        const int k = kEach * (lane % 4 + 4 * (r / 2));
        unpack(l.a[r], &matrix_a[lane / 4 + 8 * (r % 2)][k]);
      }
      for (int r = 0; r < 2; ++r) {
        unpack(l.b[r], numbers);
        const int k = kEach * (lane % 4 + 4 * r);
        for (int e = 0; e < kEach; ++e) matrix_b[k + e][lane / 4] = numbers[e];
      }
      for (int v = 0; v < 4; ++v) sums[lane / 4 + 8 * (v / 2)][2 * (lane % 4) + v % 2] = l.d[v];
    }
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < kDepth; ++k) {
        for (int n = 0; n < 8; ++n) sums[m][n] += matrix_a[m][k] * matrix_b[k][n];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      Sum* to = static_cast<Lane*>(meeting.slot[lane])->d;
      for (int v = 0; v < 4; ++v) to[v] = sums[lane / 4 + 8 * (v / 2)][2 * (lane % 4) + v % 2];
    }
  });
}

template <class T>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_fragments<float, 2>(
      d, a, b0, b1, [](uint32_t both, float* numbers) { unpack<T>(both, numbers[0], numbers[1]); });
}
inline void multiply_integers(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_fragments<int32_t, 4>(d, a, b0, b1, [](uint32_t four, int32_t* numbers) {
    for (int e = 0; e < 4; ++e) numbers[e] = static_cast<int8_t>(four >> 8 * e);
  });
}

// -- Hopper --

template <int kCount>
void registers_down() {}
template <int kCount>
void registers_up() {}

inline void cluster_sync() {
  Machine& m = machine();
  m.meet(m.everywhere, m.threads() * m.cluster(), 128, nullptr, [](Machine::Meeting&) {});
}
inline void named_barrier_sync(int barrier, int threads) {
  Machine& m = machine();
  m.meet(m.own_block().named[barrier], threads, 128, nullptr, [](Machine::Meeting&) {});
}
inline void named_barrier_arrive(int barrier, int threads) {
  Machine::Meeting& meeting = machine().own_block().named[barrier];
  if (++meeting.arrived == threads) {
    meeting.arrived = 0;
    ++meeting.round;
  }
  machine().moved();
}

struct Barrier {
  int32_t count, missing;  // arrivals of a phase
  int64_t bytes;  // expected and not there; below 0 when copies are faster than the expectation
  uint32_t phase;
  void update() {
    if (missing == 0 && bytes == 0) missing = count, phase ^= 1;
  }
  void arrive() {
    if (missing == 0) machine().fail("more arrivals at a barrier than it was made for");
    --missing;
    update();
    machine().moved();
  }
};
inline void barrier_init(Barrier& barrier, int count) { barrier = {count, count, 0, 0}; }
inline void barrier_init_fence() {}
inline void barrier_arrive_expect(Barrier& barrier, int bytes) {
  barrier.bytes += bytes;
  barrier.arrive();
}
template <class V>
V& at_block(V& shared, int rank) {
  Machine& m = machine();
  if (m.ended(rank)) m.fail("a signal to a block that has ended");
  return *reinterpret_cast<V*>(m.block[rank].shared + shared_address(&shared));
}
inline void barrier_arrive_at(Barrier& barrier, int rank) {
  at_block(barrier, rank).arrive();
  machine().dawdle();
}
inline void barrier_wait(Barrier& barrier, uint32_t parity) {
  machine().wait_until([&] { return barrier.phase != parity; });
}

// The destination is NaN from the call on; each block has its copy at a time of its own.
inline void copy_multicast(void* shared, const void* global, int bytes, Barrier& barrier,
                           int blocks) {
  if (shared_address(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16 || bytes % 16) {
    machine().fail("crooked bulk copy");
  }
  for (int rank = 0; rank < machine().cluster(); ++rank) {
    if (!(blocks >> rank & 1)) continue;
    char* to = &at_block(*static_cast<char*>(shared), rank);
    Barrier* signal = &at_block(barrier, rank);
    memset(to, 0xFF, bytes);
    machine().later([=] {
      memcpy(to, global, bytes);
      signal->bytes -= bytes;
      signal->update();
    });
  }
}

// A warpgroup's products are computed at once from what shared memory holds then, but appear in the
// registers, which are NaN meanwhile, only at the wait; by then neither the weights nor the
// operands may have changed.
inline void products_fence() { machine().fiber().products.fenced = true; }
inline void products_commit() { machine().fiber().products.committed = true; }
inline void products_wait(float (&d)[64]) {
  Machine::Products& own = machine().fiber().products;
  if (own.d != d || !own.committed) machine().fail("a wait for products that were not committed");
  for (const auto& seen : own.seen) {
    if (memcmp(seen.from, seen.bytes.data(), seen.bytes.size()))
      machine().fail("operands overwritten during products");
  }
  memcpy(d, own.sums, sizeof own.sums);
  own = Machine::Products();
}

template <class T>
void multiply_group(float (&d)[64], const uint32_t* a, uint64_t descriptor, bool add) {
  struct Lane {
    float* sums;
    const uint32_t* a;
  };
  Machine& m = machine();
  Machine::Products& own = m.fiber().products;
  if (!own.fenced) m.fail("products without a fence");
  if (own.d != nullptr && own.d != d) m.fail("two sets of sums at once");
  if (own.d == nullptr) memcpy(own.sums, d, sizeof own.sums);
  own.d = d, own.committed = false;
  if (!add) memset(own.sums, 0, sizeof own.sums);
  memset(d, 0xFF, sizeof d);
  own.watch(a, 16);
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0)
    m.fail("a descriptor of another layout");
  const uint32_t start = (descriptor & 0x3FFF) << 4, stride = (descriptor >> 32 & 0x3FFF) << 4;
  const char* memory = m.own_block().shared;
  if (m.fiber().thread % 128 == 0) {
    for (int group = 0; group < 16; ++group)
      own.watch(memory + (start & ~127u) + group * stride, 1024);
  }
  Lane lane{own.sums, a};
  const int thread = m.fiber().thread;
  m.meet(m.own_block().groups[thread / 128], 128, thread % 128, &lane,
         [=](Machine::Meeting& meeting) {
           static float matrix_a[64][16], matrix_b[16][128], sums[64][128];
           const auto row = [](int t) { return t / 32 * 16 + t % 32 / 4; };
           for (int t = 0; t < 128; ++t) {
             const Lane& l = *static_cast<Lane*>(meeting.slot[t]);
             for (int r = 0; r < 4; ++r) {
               float* to = &matrix_a[row(t) + 8 * (r % 2)][2 * (t % 4) + 8 * (r / 2)];
               unpack<T>(l.a[r], to[0], to[1]);
             }
             for (int v = 0; v < 64; ++v)
               sums[row(t) + 8 * (v / 2 % 2)][8 * (v / 4) + 2 * (t % 4) + v % 2] = l.sums[v];
           }
           for (int n = 0; n < 128; ++n) {
             for (int k = 0; k < 16; ++k) {
               const uint32_t plain = start + n / 8 * stride + n % 8 * 128 + 2 * k;
               uint16_t bits;
               memcpy(&bits, memory + (plain ^ (plain >> 7 & 7) << 4), 2);
               matrix_b[k][n] = widened<T>()[bits];
             }
           }
           for (int i = 0; i < 64; ++i) {
             for (int k = 0; k < 16; ++k) {
               for (int n = 0; n < 128; ++n) sums[i][n] += matrix_a[i][k] * matrix_b[k][n];
             }
           }
           for (int t = 0; t < 128; ++t) {
             float* to = static_cast<Lane*>(meeting.slot[t])->sums;
             for (int v = 0; v < 64; ++v)
               to[v] = sums[row(t) + 8 * (v / 2 % 2)][8 * (v / 4) + 2 * (t % 4) + v % 2];
           }
         });
}

}  // namespace diinn
