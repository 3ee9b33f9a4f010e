// Prints a checksum of the int8 kernels' output for each of many small decodes
// and projections: the same text for every instruction set, or the kernels
// differ. Compiled once per set by tests/run_int8_bits.py, with the set's
// flags.
#define DIINN_ISA tested
#define DIINN_NAME "tested"
#define DIINN_BASE "tested"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "../../csrc/cpu/kernels_int8.h"

namespace diinn {

void parallel_for(int64_t count, int, void (*task)(void*, int64_t, int), void* context) {
  for (int64_t n = 0; n < count; ++n) task(context, n, 0);
}
void* allocate(int64_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }
void release(void* memory) { free(memory); }

}  // namespace diinn

namespace {

using diinn::Form;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class Draw {  // the same numbers everywhere
 public:
  float operator()() {  // in [-1, 1)
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return float(int32_t(state_ >> 40)) * 0x1p-23f - 1.0f;
  }
  int64_t below(int64_t limit) { return int64_t(((*this)() + 1.0f) * 0.5f * float(limit)); }
  std::vector<float> many(int64_t count, float largest) {
    std::vector<float> values(count);
    for (float& value : values) value = (*this)() * largest;
    return values;
  }

 private:
  uint64_t state_ = 1;
};

struct Case {
  Form form;
  int64_t width, layers, outputs, points;
  float weights;       // largest: of 10,000 some sines' arguments are beyond the
                       // polynomial's range
  bool equal = false;  // all weights and activations: the largest sums there are
};

struct Data {
  std::vector<float> source, weights[diinn::kWeights], offset;
  std::vector<int64_t> index;
};

constexpr int64_t kPixels = 12, kBatch = 2;

// Two images of 3 x 4 LR pixels: one pixel's content is zero, one NaN, one
// infinite, one tiny.
Data draw(const Case& c, Draw& random) {
  Data data;
  const int64_t columns = c.form == Form::content ? 2 * c.width : c.width;
  const int64_t all = c.layers * c.width;
  data.source = random.many(kBatch * kPixels * all, 2.0f);
  for (int64_t j = 0; j < all; ++j) data.source[j] = 0;
  data.source[all] = std::numeric_limits<float>::quiet_NaN();
  data.source[2 * all] = kInfinity;
  for (int64_t j = 3 * all; j < 4 * all; ++j) data.source[j] *= 0x1p-120f;
  data.weights[diinn::kPosition] = random.many(3 * c.width, 3.0f);
  data.weights[diinn::kPositionBias] = random.many(c.width, 3.0f);
  data.weights[diinn::kHidden] = random.many((c.layers - 1) * columns * c.width, c.weights);
  data.weights[diinn::kHiddenBias] = random.many((c.layers - 1) * c.width, 1.0f);
  data.weights[diinn::kLast] = random.many(c.outputs * c.width, 1.0f);
  data.weights[diinn::kLastBias] = random.many(c.outputs, 1.0f);
  if (c.equal) {
    for (float& value : data.source) value = 1;
    for (float& value : data.weights[diinn::kPosition]) value = 0;
    for (float& value : data.weights[diinn::kPositionBias]) value = 1.5f;
    for (float& value : data.weights[diinn::kHidden]) value = c.weights;
  }
  for (int64_t n = 0; n < kBatch * c.points; ++n) data.index.push_back(random.below(kPixels));
  data.offset = random.many(2 * kBatch * c.points, 1.0f);
  return data;
}

uint64_t checksum(const std::vector<float>& values) {  // FNV-1a; every NaN counts as the same
  uint64_t sum = 14695981039346656037u;
  for (float value : values) {
    uint32_t bits = 0x7fc00000;
    if (value == value) std::memcpy(&bits, &value, sizeof bits);
    sum = (sum ^ bits) * 1099511628211u;
  }
  return sum;
}

void run(const Case& c, Draw& random) {
  const Data data = draw(c, random);
  diinn::Problem problem{};
  problem.form = c.form;
  problem.batch = kBatch;
  problem.rows = 3;
  problem.columns = 4;
  problem.width = c.width;
  problem.layers = c.layers;
  problem.outputs = c.outputs;
  problem.threads = 1;
  problem.source = data.source.data();
  for (int n = 0; n < diinn::kContent; ++n) problem.weights[n] = data.weights[n].data();
  problem.ratio = 0.25f;
  problem.points = c.points;
  problem.point_index = data.index.data();
  problem.point_offset = data.offset.data();
  std::vector<float> out(kBatch * c.points * c.outputs, -1.0f);
  diinn::kernels_tested()->forward(problem, out.data());
  std::printf("%s width %d layers %d outputs %d points %d weights %g: %016llx\n",
              c.form == Form::content ? "content" : "modulation", int(c.width), int(c.layers),
              int(c.outputs), int(c.points), c.weights,
              static_cast<unsigned long long>(checksum(out)));
}

// Two images of 5 x 6 pixels with a border of zeros around each; one feature is
// NaN, one infinite, one image's last row is tiny.
void convolve(int64_t channels, int64_t outputs, float equal, Draw& random) {
  diinn::Convolution c{};
  c.batch = kBatch;
  c.rows = 5;
  c.columns = 6;
  c.channels = channels;
  c.outputs = outputs;
  c.threads = 1;
  const int64_t row = (c.columns + 2) * channels, image = (c.rows + 2) * row;
  std::vector<float> padded = random.many(kBatch * image, 3.0f);
  std::vector<float> weight = random.many(outputs * c.taps(), 0.1f);
  const std::vector<float> bias = random.many(outputs, 1.0f);
  for (int64_t n = 0; n < kBatch * image; ++n) {
    const int64_t y = n % image / row, x = n % row / channels;
    const bool border = y == 0 || y > c.rows || x == 0 || x > c.columns;
    padded[n] = border ? 0 : equal != 0 ? 1.0f : padded[n];
    if (n > image && y == c.rows) padded[n] *= 0x1p-120f;
  }
  if (equal != 0) {
    for (float& value : weight) value = equal;
  } else {
    padded[row + channels] = std::numeric_limits<float>::quiet_NaN();
    padded[2 * row - channels - 1] = kInfinity;
  }
  std::vector<float> out(kBatch * c.pixels() * outputs, -1.0f);
  c.padded = padded.data();
  c.weight = weight.data();
  c.bias = bias.data();
  c.out = out.data();
  diinn::kernels_tested()->conv3x3(c);
  std::printf("conv3x3 channels %d outputs %d weights %g: %016llx\n", int(channels), int(outputs),
              equal, static_cast<unsigned long long>(checksum(out)));
}

}  // namespace

int main() {
  Draw random;
  for (Form form : {Form::content, Form::modulation}) {
    for (int64_t width : {32, 96, 256, 1024}) {
      for (int64_t points : {1, 13, 100}) {
        if (width * points > 4000 && width != 256) continue;
        run({form, width, 2 + points % 3, points == 13 ? 27 : 3, points, 0.2f}, random);
      }
    }
    run({form, 64, 3, 3, 50, 1e4f}, random);
    run({form, 64, 3, 3, 50, kInfinity}, random);
    run({form, 1024, 2, 3, 3, 0.01f, true}, random);
    run({form, 1024, 2, 3, 3, -0.01f, true}, random);
  }
  for (int64_t channels : {1, 5, 64}) convolve(channels, 96, 0, random);
  convolve(1000, 32, 0.01f, random);
  convolve(1000, 32, -0.01f, random);
  std::vector<float> x = random.many(4096, 1e4f), sine(x.size());
  x.insert(x.end(), {0.0f, -0.0f, 1e-30f, 1e5f, -3e38f, kInfinity, -kInfinity});
  sine.resize(x.size());
  diinn::kernels_tested()->sine(x.data(), sine.data(), int64_t(x.size()));
  std::printf("sine: %016llx\n", static_cast<unsigned long long>(checksum(sine)));
}
