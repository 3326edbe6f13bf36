// Rows as tensors, and the tables of a model that say which rows and which positions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/element.h"
#include "core/geometry.h"

namespace perfonnx {

// A tensor of rows [images, rows, channels].
struct Rows {
  const void* data = nullptr;
  Element element = Element::kFloat;
  std::int64_t images = 0;
  std::int64_t rows = 0;
  std::int64_t channels = 0;

  std::string shape_text() const;
  // Throws Error, naming the input, for a negative dimension or one so large that products would overflow.
  void check_size(const char* name) const;
};

// A list of a model, not yet checked.
struct Indices {
  const std::int32_t* data = nullptr;
  std::int64_t count = 0;
};

// The map that the rows S stand for: position q shows row source[q] (in_source), or row q where there is none.
struct VirtualMap {
  MapSize size;  // in_shape
  std::optional<Indices> source;
};

// Which row each entry of a table reads.
class RowIndex {
 public:
  // `given` must have `count` entries from -1 up; without it entry i reads row i. Throws Error naming the input `name`.
  RowIndex(const char* name, const std::optional<Indices>& given, std::int64_t count);

  // Throws Error where `rows`, the input `name`, has too few rows for the table -- or, where none was given, another
  // number of rows.
  void check(const char* name, const Rows& rows) const;
  // Null where entry i reads row i.
  const std::int32_t* data() const noexcept { return identity_ ? nullptr : rows_.data(); }
  std::int32_t operator[](std::int32_t entry) const noexcept {
    return identity_ ? entry : rows_[static_cast<std::size_t>(entry)];
  }

 private:
  const char* name_;
  bool given_;
  bool identity_ = true;
  std::int64_t count_;
  std::int64_t largest_ = -1;
  std::vector<std::int32_t> rows_;
};

// Flat positions in a map; without `given` all of them. Each is read through `taps` taps at most: what would need a
// table beyond reason is refused. Throws Error naming the input 'sites'.
std::vector<std::int32_t> checked_sites(const std::optional<Indices>& given, const MapSize& map, std::int64_t taps);

}  // namespace perfonnx
