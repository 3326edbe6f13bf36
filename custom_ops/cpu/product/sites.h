// The sites of a run: what each reads, and how they lie in lines.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/product/implementation.h"

namespace perfonnx {

class Sites {
 public:
  Sites(const ProductRun& run, const WeightShape& shape) : run_(run), shape_(shape) {}

  // The row that is added to a row of the output.
  const float* added_row(std::int64_t row) const {
    const std::int64_t number = site_number(row);
    const std::int64_t site = number % run_.table.sites;
    const std::int64_t from = run_.added->source != nullptr ? run_.added->source[site] : site;
    if (from < 0) return run_.added->zero_row;
    const std::int64_t image = run_.added->images == 1 ? 0 : number / run_.table.sites;
    return run_.added->data + (image * run_.added->rows_per_image + from) * shape_.outputs;
  }

  // Rows to add to `count` rows of the output from `first` on; empty where nothing is added.
  std::vector<const float*> added_rows(std::int64_t first, std::int64_t count) const {
    std::vector<const float*> rows(static_cast<std::size_t>(run_.added != nullptr ? count : 0));
    for (std::size_t p = 0; p < rows.size(); ++p) rows[p] = added_row(first + static_cast<std::int64_t>(p));
    return rows;
  }

  // Calls visit(p, image, rows) for each of `count` sites: its image and its row of the table.
  template <typename Visit>
  void for_each_site(std::int64_t first, std::int64_t count, const Visit& visit) const {
    const std::int64_t image_size = run_.input.rows_per_image * shape_.input_channels();
    if (run_.list != nullptr) {
      for (std::int64_t p = 0; p < count; ++p) {
        const std::int64_t number = run_.list->numbers[first + p];
        visit(p, run_.input.data + number / run_.table.sites * image_size,
              run_.table.rows + number % run_.table.sites * run_.table.taps);
      }
      return;
    }
    const float* image = run_.input.data + first / run_.table.sites * image_size;
    std::int64_t site = first % run_.table.sites;
    for (std::int64_t p = 0; p < count; ++p, ++site) {
      if (site == run_.table.sites) {
        site = 0;
        image += image_size;
      }
      visit(p, image, run_.table.rows + site * run_.table.taps);
    }
  }

  // [taps][count] pointers to the rows that a tile of sites reads.
  void fill_pointers(std::int64_t first, std::int64_t count, const float** pointers) const {
    const std::int64_t channels = shape_.input_channels();
    for_each_site(first, count, [&](std::int64_t p, const float* image, const std::int32_t* rows) {
      for (std::int64_t t = 0; t < run_.table.taps; ++t) {
        pointers[t * count + p] =
            rows[t] < 0 ? run_.input.zero_row : image + (rows[t] - run_.input.first_row) * channels;
      }
    });
  }

  // Walks along the sites of a table and through its runs.
  class Runs {
   public:
    Runs(const ProductRun& run, std::int64_t row) : of_(run) {
      const RowTableView& table = of_.table;
      if (of_.list != nullptr || table.runs->empty()) return;
      site_ = table.first + row % table.sites;
      run_ = std::upper_bound(table.runs->begin(), table.runs->end(), site_,
                              [](std::int64_t site, const SiteRun& next) { return site < next.begin; }) -
             1;
    }
    // How many of `count` rows of the output from `row` on, which do not lie in front of those asked for before, are
    // sites of one run of one image; and the step from one to the next.
    std::int64_t length(std::int64_t row, std::int64_t count, std::int64_t* step) {
      *step = 0;
      const RowTableView& table = of_.table;
      if (of_.list != nullptr || table.runs->empty()) return 1;
      const std::int64_t in_image = row % table.sites;
      const std::int64_t site = table.first + in_image;
      if (site < site_) run_ = table.runs->begin();  // another image
      site_ = site;
      while (run_ + 1 != table.runs->end() && run_[1].begin <= site) ++run_;
      *step = run_->step;
      const std::int64_t end = run_ + 1 != table.runs->end() ? run_[1].begin : table.first + table.sites;
      return std::min({count, end - site, table.sites - in_image});
    }

   private:
    const ProductRun& of_;
    std::int64_t site_ = 0;
    std::vector<SiteRun>::const_iterator run_;
  };

  // What the sites of a run from this one on read, a segment for each tap, or, where `merge`, for each number of taps
  // that lie behind each other. Returns the number of segments.
  std::int64_t fill_segments(std::int64_t row, std::int64_t step, bool merge, Segment* segments) const {
    const std::int64_t channels = shape_.input_channels();
    const auto inputs = static_cast<std::size_t>(shape_.inputs);
    std::int64_t count = 0;
    for_each_site(row, 1, [&](std::int64_t, const float* image, const std::int32_t* rows) {
      for (std::int64_t t = 0; t < run_.table.taps; ++t) {
        if (merge && t > 0 && rows[t - 1] >= 0 && rows[t] == rows[t - 1] + 1) {
          segments[count - 1].inputs += inputs;
        } else if (rows[t] < 0) {
          segments[count++] = {run_.input.zero_row, 0, inputs, 0};
        } else {
          segments[count++] = {image + (rows[t] - run_.input.first_row) * channels, step * channels, inputs, 0};
        }
      }
    });
    return count;
  }

  // The last segment that moves on: what it reads, the others have not read yet.
  static std::size_t newest(const Segment* segments, std::int64_t count) {
    for (std::int64_t i = count; i-- > 0;) {
      if (segments[i].stride != 0) return static_cast<std::size_t>(i);
    }
    return static_cast<std::size_t>(count);
  }

 private:
  // Image and site of an output row, as image * sites + site.
  std::int64_t site_number(std::int64_t row) const { return run_.list != nullptr ? run_.list->numbers[row] : row; }

  const ProductRun& run_;
  const WeightShape& shape_;
};

}  // namespace perfonnx
