// 3x3 convolution with 8-bit integers as factors.
//
// The channels are in groups, by how large their weights are: where weights are small, trained
// networks have large features. Within a group the weights are quantised by their rows, and the
// features around a pixel by the largest of them: a pixel has the same bits wherever an image is
// cut. The sums are exact; bias and units are float32, added group after group in fused steps.
#pragma once

#include "dot.h"  // before the microkernel, which looks for its functions
#include "pixel_tiles.h"
#include "quantise.h"

namespace diinn {
namespace DIINN_ISA {

// The channels in groups: which are in each, and the features with those of a group together.
class ChannelGroups {
 public:
  explicit ChannelGroups(const Convolution& c)
      : c_(c), count_(c.channels < kMost ? c.channels : kMost) {
    ordered_.reset(c.channels);
    sort_channels();
    // Each group is a padded image of its own, [batch, rows + 2, columns + 2, size(group)].
    const int64_t row = c.columns + 2, pixels = c.batch * (c.rows + 2) * row;
    features_.reset(pixels * c.channels);
    parallel(pixels / row, c.threads, [&](int64_t index, int) {
      for (int64_t n = index * row; n < (index + 1) * row; ++n) {
        const float* from = c.padded + n * c.channels;
        for (int64_t g = 0; g < count_; ++g) {
          float* to = features_.get() + pixels * first(g) + n * size(g);
          for (int64_t k = 0; k < size(g); ++k) to[k] = from[order()[first(g) + k]];
        }
      }
    });
  }
  int64_t count() const { return count_; }
  int64_t size(int64_t group) const { return first(group + 1) - first(group); }
  int64_t most_terms() const { return 9 * ((c_.channels + count_ - 1) / count_); }

  // A group's features around a pixel of an image, tap-major.
  void read_features(int64_t group, int64_t image, int64_t pixel, float* out) const {
    const int64_t pixels = (c_.rows + 2) * (c_.columns + 2);
    const float* images = features_.get() + c_.batch * pixels * first(group);
    gather_taps(images + image * pixels * size(group), c_.columns, size(group), pixel, out);
  }
  // Its weights in an output's row of them, in the same order.
  void read_weights(int64_t group, const float* row, float* out) const {
    const int32_t* channel = order() + first(group);
    for (int64_t tap = 0; tap < 9; ++tap) {
      for (int64_t k = 0; k < size(group); ++k) *out++ = row[channel[k] * 9 + tap];
    }
  }

 private:
  static constexpr int64_t kMost = 4;

  // By the sums of the squares of their weights: in double precision, where the squares are exact,
  // and in order.
  void sort_channels() {
    Buffer buffer(2 * c_.channels);
    double* sum = reinterpret_cast<double*>(buffer.get());
    for (int64_t n = 0; n < c_.channels; ++n) sum[n] = 0;
    const float* weight = c_.weight;
    for (int64_t o = 0; o < c_.outputs; ++o) {
      for (int64_t n = 0; n < c_.channels; ++n) {
        for (int tap = 0; tap < 9; ++tap, ++weight) sum[n] += double(*weight) * double(*weight);
      }
    }
    for (int64_t n = 0; n < c_.channels; ++n) {
      int64_t place = n;
      for (; place > 0 && sum[n] < sum[order()[place - 1]]; --place)
        order()[place] = order()[place - 1];
      order()[place] = int32_t(n);
    }
  }
  int64_t first(int64_t group) const { return group * c_.channels / count_; }
  int32_t* order() const { return reinterpret_cast<int32_t*>(ordered_.get()); }

  const Convolution& c_;
  int64_t count_;
  Buffer ordered_, features_;
};

// total [rows][kPanel] += one group's sums times their units.
struct AddGroup {
  float* total;
  const float* unit;   // of each column
  const Scale* scale;  // of each row, `groups` apart
  int64_t groups;
  void prefetch(int64_t, int64_t) const {}
  DIINN_INLINE void operator()(int64_t row, int64_t, const Sums& sums) const {
    for (int r = 0; r < kRows; ++r) {
      const Scale& own = scale[(row + r) * groups];
      float* to = total + (row + r) * kPanel;
      for (int c = 0; c < kPanel; c += kLanes)
        store(to + c, fma(scaled(sums[r] + c, unit + c, own), splat(own.unit), load(to + c)));
    }
  }
};

// A tile's pixels, from their integers x [rows][groups][depth] with a scale for each group; total
// [rows][kPanel] is room for a panel's outputs.
static inline void convolve_tile(const Convolution& c, const PixelTile& tile,
                                 const IntegerPanels& weights, int64_t groups, const Integer* x,
                                 const Scale* scale, float* total) {
  const int64_t depth = weights.depth();
  for (int64_t panel = 0; panel < c.outputs / kPanel; ++panel) {
    const int64_t first = panel * kPanel;
    for (int64_t n = 0; n < tile.rows; ++n)
      memcpy(total + n * kPanel, c.bias + first, kPanel * sizeof(float));
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t index = panel * groups + g;
      product<false>(tile.rows, depth, x + g * depth, groups * depth,
                     weights.panels() + index * depth * kPanel, 1,
                     AddGroup{total, weights.units(index), scale + g, groups});
    }
    for (int64_t n = 0; n < tile.count; ++n)
      memcpy(tile.out + n * c.outputs + first, total + n * kPanel, kPanel * sizeof(float));
  }
}

static void conv3x3_int8(const Convolution& c) {
  const ChannelGroups groups(c);
  IntegerPanels weights;
  weights.pack(groups.most_terms(), c.outputs / kPanel * groups.count(), c.threads,
               [&](int64_t panel, int64_t column, float* out) {
                 const int64_t n = panel / groups.count() * kPanel + column;
                 groups.read_weights(panel % groups.count(), c.weight + n * c.taps(), out);
               });
  // Of each thread: a group's features around one pixel, the outputs of a panel, scales, integers.
  const int64_t depth = weights.depth(), stride = groups.count() * depth, rows = most_rows(c);
  const int64_t totals = rows * kPanel;
  const int64_t scales = round_up(rows * groups.count() * int64_t(sizeof(Scale) / 4), 16);
  const int64_t scratch_floats = depth + totals + scales + rows * stride / kPair<Integer>;
  Buffer scratch(scratch_floats * c.threads);
  for_tiles(c, [&](const PixelTile& tile, int thread) {
    float* features = scratch.get() + thread * scratch_floats;
    float* total = features + depth;
    Scale* scale = reinterpret_cast<Scale*>(total + totals);
    Integer* x = reinterpret_cast<Integer*>(total + totals + scales);
    for (int64_t g = 0; g < groups.count(); ++g) {
      memset(features, 0, depth * sizeof(float));  // beyond the group's it stays zero
      for (int64_t n = 0; n < tile.rows; ++n) {
        groups.read_features(g, tile.image, tile.pixel(n), features);
        scale[n * groups.count() + g] = quantise(features, depth, x + n * stride + g * depth);
      }
    }
    convolve_tile(c, tile, weights, groups.count(), x, scale, total);
  });
}

}  // namespace DIINN_ISA
}  // namespace diinn
