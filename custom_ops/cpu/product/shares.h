// How the rows and panels of a run are shared out.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "core/parallel.h"
#include "cpu/product/implementation.h"

namespace perfonnx {

// Blocks of whole tiles of rows, and within them parts of the panels: a task each. All of this only moves work around,
// no result depends on it.
class Shares {
 public:
  // `rows` in tiles of `tile` rows, at most `most` tiles in a block.
  Shares(std::int64_t rows, std::int64_t tile, std::int64_t most, std::int64_t panels);

  struct Task {
    std::int64_t first;  // row
    std::int64_t count;
    std::int64_t panel_begin;
    std::int64_t panel_end;
  };
  // Calls function(task) for each of them; they may run at the same time.
  template <typename Function>
  void for_each_task(Context& context, const Function& function) const {
    context.parallel.run(static_cast<std::size_t>(blocks_ * parts_),
                         [&](std::size_t i) { function(task_at(static_cast<std::int64_t>(i))); });
  }

 private:
  Task task_at(std::int64_t i) const noexcept;

  std::int64_t rows_;
  std::int64_t tile_;
  std::int64_t panels_;
  std::int64_t tiles_;
  std::int64_t blocks_ = 0;
  std::int64_t parts_ = 1;  // of the panels
};

// Most tiles of a block that keeps what it reads in the second cache: where inputs are read in place, and where they
// were gathered.
std::int64_t tiles_in_place(const WeightShape& shape, std::int64_t site_tile);
std::int64_t tiles_gathered(const WeightShape& shape, std::int64_t site_tile);

}  // namespace perfonnx
