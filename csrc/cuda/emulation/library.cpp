// The kernels on the emulated machine, as a shared library for the tests: launch.cu's interface, on
// host memory, and the layouts' functions.
#include "../gradient.h"
#include "../hopper.h"
#include "../pack.h"
#include "../portable.h"
#include "../portable_int8.h"

namespace diinn {

static int emulated_blocks = 2;
static uint64_t emulated_seed = 0;

template <class Kernel, class Problem>
std::string emulate(const Problem& d, int cluster) {
  const auto body = [&](char* memory) {
    Kernel(d, *reinterpret_cast<typename Kernel::Shared*>(memory)).run();
  };
  const int blocks = (emulated_blocks + cluster - 1) / cluster * cluster;
  return Machine().run(blocks, Kernel::kThreads, cluster, sizeof(typename Kernel::Shared),
                       emulated_seed, body);
}

template <class T, bool kModulation>
std::string forward(const Decode& d) {
  if (d.kernel == kHopper)
    return emulate<Hopper<T, kModulation>>(d, Hopper<T, kModulation>::kCluster);
  if (d.kernel == kIntegers) return emulate<PortableInt8<T, kModulation>>(d, 1);
  if (d.kept_s) return emulate<Portable<T, kModulation, true>>(d, 1);
  return emulate<Portable<T, kModulation, false>>(d, 1);
}

template <class T>
std::string forward(const Decode& d) {
  return d.modulation ? forward<T, true>(d) : forward<T, false>(d);
}

template <class T>
std::string gradient(const Gradient& g) {
  std::string error = g.modulation ? emulate<Chain<T, true>>(g, 1) : emulate<Chain<T, false>>(g, 1);
  if (!error.empty() || !g.source) return error;
  return Machine().run(1, 32, 1, 16, 0, [&](char*) {
    for (int64_t job = thread_index(); job < sum_jobs(g); job += 32) sum_queries<T>(g, job);
  });
}

}  // namespace diinn

using namespace diinn;

static int answer(const std::string& error, char* message, int64_t length) {
  snprintf(message, static_cast<size_t>(length), "%s", error.c_str());
  return error.empty() ? 0 : 1;
}

extern "C" {

int64_t diinn_decode_bytes() { return sizeof(Decode); }
int64_t diinn_packed_bytes(const Decode* d) { return work_bytes(*d); }

// How many blocks the next decodes run on, and in which order their warps.
void diinn_emulate_on(int blocks, uint64_t seed) { emulated_blocks = blocks, emulated_seed = seed; }

void diinn_emulate_pack(const Decode* d) {
  for (int64_t job = 0; job < pack_jobs(*d); ++job) pack_job(*d, job);
}

// Of `count` packed integers, which element of the hidden weights each one is.
void diinn_emulate_places(int modulation, int64_t count, int64_t* place) {
  for (int64_t e = 0; e < count; ++e) place[e] = portable_hidden<1>(modulation, e);
}

int diinn_forward(const Decode* given, char* message, int64_t length) {
  diinn_emulate_pack(given);
  const Decode d = with_widened_vectors(*given);
  return answer(d.operand == kFloat16 ? forward<Float16>(d) : forward<BFloat16>(d), message,
                length);
}

int64_t diinn_gradient_bytes() { return sizeof(Gradient); }

int diinn_gradient(const Gradient* g, char* message, int64_t length) {
  for (int64_t job = 0; job < pack_jobs(*g); ++job) pack_job(*g, job);
  return answer(g->operand == kFloat16 ? gradient<Float16>(*g) : gradient<BFloat16>(*g), message,
                length);
}

void diinn_emulate_narrow(const float* from, uint16_t* to, int64_t count, int type) {
  for (int64_t i = 0; i < count; ++i)
    to[i] = type == kFloat16 ? Float16::narrow(from[i]) : BFloat16::narrow(from[i]);
}
void diinn_emulate_widen(const uint16_t* from, float* to, int64_t count, int type) {
  for (int64_t i = 0; i < count; ++i)
    to[i] = type == kFloat16 ? Float16::widen(from[i]) : BFloat16::widen(from[i]);
}
void diinn_emulate_reduce(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = reduce(from[i]);
}

// Where the queries lie: per query of all tiles LR element, output element (-1: none), number, and
// dy, dx.
int64_t diinn_emulate_locate(const Decode* d, int64_t* places, float* offsets) {
  int64_t count = 0;
  for (int64_t tile = 0; tile < tile_count(*d); ++tile) {
    for (int m = 0; m < kTile; ++m, ++count) {
      if (!places) continue;
      const Query query = locate(*d, tile, m);
      const int64_t place[3] = {query.content, query.out, query.number};
      memcpy(places + 3 * count, place, sizeof place);
      offsets[2 * count] = query.dy;
      offsets[2 * count + 1] = query.dx;
    }
  }
  return count;
}

// A small kernel with a mistake, for tests of the emulation: 64 threads reverse 1 KB of copied
// numbers. 0: none, 1: no barrier, 2: a barrier that not all threads reach, 3: copies not waited
// for, 4: a misaligned copy.
int diinn_emulate_mistake(int mistake, uint64_t seed, char* message, int64_t length) {
  alignas(16) static char input[1024 + 16], output[1024];
  for (int i = 0; i < 1024; ++i) input[i] = static_cast<char>(i * 7);
  std::string error = Machine().run(1, 64, 1, 2048, seed, [&](char* memory) {
    const int t = thread_index();
    copy_async(memory + 16 * t, input + 16 * t + (mistake == 4));
    copy_commit();
    if (mistake != 3) copy_wait<0>();
    if (mistake != 1 && (mistake != 2 || t < 63)) sync_block();
    memcpy(output + 16 * t, memory + 16 * (63 - t), 16);
    copy_wait<0>();
  });
  for (int t = 0; t < 64 && error.empty(); ++t) {
    if (memcmp(output + 16 * t, input + 16 * (63 - t), 16)) error = "wrong";
  }
  return answer(error, message, length);
}
}
