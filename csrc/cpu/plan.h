// How the backward pass divides its work: into slabs that depend on the problem alone, never on the
// threads.
//
// A slab is a run of LR rows, with all queries that take their content from them. It owns these
// rows of the source's gradient and a copy of all weight gradients; the copies are added in the
// order of the slabs. So nothing is shared while threads run, and every sum has one order. Queries
// are taken in the order of their LR pixels, so that a pixel's gradient is one sum.
#pragma once

#include "network.h"

namespace diinn {
namespace DIINN_ISA {

// LR rows first_row <= row < last_row of one image, and their queries' places in the order of LR
// pixels.
struct Segment {
  int64_t image, first_row, last_row, first_query, last_query;
};

class Plan {
 public:
  static constexpr int64_t kMostSlabs = 16;
  static constexpr int64_t kLeastQueries =
      256;  // of a slab, so that its copy of the weight gradients is worth it
  static constexpr int64_t kSlabBytes = 32 << 20;  // of all copies of the weight gradients

  Plan(const Problem& problem, int64_t weight_floats) : p(problem) {
    const int64_t total = p.batch * p.queries(), fit = kSlabBytes / (4 * weight_floats);
    int64_t wanted = total / kLeastQueries;
    if (wanted > fit) wanted = fit;
    slabs = wanted < 1 ? 1 : wanted > kMostSlabs ? kMostSlabs : wanted;
    row_start_.reset(2 * (p.rows + 1));
    order_.reset(p.points ? 2 * p.batch * p.points : 0);
    segments_.reset((kMostSlabs + p.batch) * int64_t(sizeof(Segment)) / 4);
    int64_t before = 0, slab = -1;
    for (int64_t image = 0; image < p.batch; ++image) {
      if (p.points)
        sort_points(image);
      else if (image == 0)
        find_rows();
      for (int64_t row = 0; row < p.rows; ++row) {
        const int64_t start = row_start()[row], stop = row_start()[row + 1];
        const int64_t own = before * slabs / total < slabs ? before * slabs / total : slabs - 1;
        if (row == 0 || own != slab) segments()[count_++] = {image, row, row, start, start};
        while (slab < own) first_[++slab] = count_ - 1;
        segments()[count_ - 1].last_row = row + 1;
        segments()[count_ - 1].last_query = stop;
        before += stop - start;
      }
    }
    while (slab < slabs) first_[++slab] = count_;
  }

  int64_t slabs;
  int64_t count() const { return count_; }
  const Segment& operator[](int64_t n) const { return segments()[n]; }
  int64_t first(int64_t slab) const { return first_[slab]; }  // segment; first(slabs) is the end

  // The `count` queries of a segment from place `first` on.
  void list(const Segment& segment, int64_t first, int64_t count, int64_t* query) const {
    if (p.points) {
      memcpy(query, all_order() + segment.image * p.points + first, count * sizeof(int64_t));
      return;
    }
    int64_t row = segment.first_row;
    for (int64_t n = 0; n < count; ++n) {
      while (row_start()[row + 1] <= first + n) ++row;
      // The HR rows of an LR row, taken column by column: the LR columns follow one another.
      const int64_t place = first + n - row_start()[row];
      const int64_t lines = (row_start()[row + 1] - row_start()[row]) / p.window_columns;
      query[n] = row_start()[row] + place % lines * p.window_columns + place / lines;
    }
  }

 private:
  int64_t* row_start() const { return reinterpret_cast<int64_t*>(row_start_.get()); }
  int64_t* all_order() const { return reinterpret_cast<int64_t*>(order_.get()); }
  Segment* segments() const { return reinterpret_cast<Segment*>(segments_.get()); }

  void find_rows() {  // a window's rows are in the order of the LR rows already
    int64_t y = 0;
    for (int64_t row = 0; row <= p.rows; ++row) {
      while (y < p.window_rows && p.row_index[y] < row) ++y;
      row_start()[row] = y * p.window_columns;
    }
  }

  void sort_points(int64_t image) {  // stable counting sort by LR pixel
    const int64_t pixels = p.rows * p.columns, *index = p.point_index + image * p.points;
    Buffer buffer(2 * (pixels + 1));
    int64_t* start = reinterpret_cast<int64_t*>(buffer.get());
    memset(start, 0, (pixels + 1) * sizeof(int64_t));
    for (int64_t n = 0; n < p.points; ++n) ++start[index[n] + 1];
    for (int64_t pixel = 0; pixel < pixels; ++pixel) start[pixel + 1] += start[pixel];
    for (int64_t row = 0; row <= p.rows; ++row) row_start()[row] = start[row * p.columns];
    int64_t* to = all_order() + image * p.points;
    for (int64_t n = 0; n < p.points; ++n) to[start[index[n]]++] = n;
  }

  const Problem& p;
  Buffer row_start_, order_, segments_;
  int64_t count_ = 0;
  int64_t first_[kMostSlabs + 1];
};

}  // namespace DIINN_ISA
}  // namespace diinn
