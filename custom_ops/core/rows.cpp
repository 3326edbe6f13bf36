#include "core/rows.h"

#include <algorithm>
#include <limits>

namespace perfonnx {
namespace {

constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();

}  // namespace

std::string Rows::shape_text() const {
  return "[" + std::to_string(images) + ", " + std::to_string(rows) + ", " + std::to_string(channels) + "]";
}

void Rows::check_size(const char* name) const {
  for (const std::int64_t size : {images, rows, channels}) {
    if (size < 0 || size > kLargest) {
      throw Error("input '" + std::string(name) + "': shape " + shape_text() + " is too large: at most 2^31 - 1 each");
    }
  }
}

RowIndex::RowIndex(const char* name, const std::optional<Indices>& given, std::int64_t count)
    : name_(name), given_(given.has_value()), count_(count) {
  if (!given) return;
  if (given->count != count) {
    throw Error("input '" + std::string(name) + "': " + std::to_string(given->count) + " entries instead of " +
                std::to_string(count));
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t row = given->data[i];
    if (row < -1) {
      throw Error("input '" + std::string(name) + "': [" + std::to_string(i) + "] = " + std::to_string(row) +
                  " is neither -1 nor the number of a row");
    }
    identity_ = identity_ && row == i;
    largest_ = std::max<std::int64_t>(largest_, row);
  }
  if (!identity_) rows_.assign(given->data, given->data + count);
}

void RowIndex::check(const char* name, const Rows& rows) const {
  rows.check_size(name);
  if (given_ ? rows.rows > largest_ : rows.rows == count_) return;
  const std::string shape = "input '" + std::string(name) + "': shape " + rows.shape_text() + " has " +
                            std::to_string(rows.rows) + " rows, but ";
  if (given_) throw Error(shape + name_ + " reads row " + std::to_string(largest_));
  throw Error(shape + "without " + name_ + " there must be " + std::to_string(count_));
}

std::vector<std::int32_t> checked_sites(const std::optional<Indices>& given, const MapSize& map, std::int64_t taps) {
  const std::int64_t positions = map.positions();
  const std::int64_t count = given ? given->count : positions;
  check_entries(given ? "sites" : "in_shape", count, taps);
  std::vector<std::int32_t> sites(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t site = given ? given->data[i] : i;
    if (site < 0 || site >= positions) {
      throw Error("input 'sites': [" + std::to_string(i) + "] = " + std::to_string(site) +
                  " is no position of the output map of " + map.text() + " (0 to " + std::to_string(positions - 1) +
                  ")");
    }
    sites[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(site);
  }
  return sites;
}

}  // namespace perfonnx
