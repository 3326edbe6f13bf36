#include "core/rows.h"

#include <algorithm>

namespace perfonnx {
namespace {

constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();

std::size_t product(const Rows& rows) {
  return checked_product(static_cast<std::size_t>(rows.images * rows.rows), static_cast<std::size_t>(rows.channels));
}

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

std::string MapSize::text() const { return std::to_string(height) + " x " + std::to_string(width); }

const MapSize& MapSize::checked(const char* name) const {
  if (height < 0 || width < 0 || height > kLargest || width > kLargest || (width > 0 && height > kLargest / width)) {
    throw Error("input '" + std::string(name) + "': a map of " + text() +
                " is none of 0 to 2^31 - 1 positions; give its height and width");
  }
  return *this;
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

FloatRows::FloatRows(const Rows& rows, Context& context) : data_(static_cast<const float*>(rows.data)) {
  if (rows.element != Element::kHalf) return;
  const std::size_t count = product(rows);
  copy_.emplace(context, count);
  to_floats(static_cast<const Half*>(rows.data), static_cast<std::int64_t>(count), copy_->data(), context);
  data_ = copy_->data();
}

FloatResult::FloatResult(void* out, Element element, std::int64_t count, Context& context)
    : out_(out), count_(count), data_(static_cast<float*>(out)) {
  if (element != Element::kHalf) return;
  copy_.emplace(context, static_cast<std::size_t>(count));
  data_ = copy_->data();
}

void FloatResult::finish(Context& context) {
  if (copy_) from_floats(data_, count_, static_cast<Half*>(out_), context);
}

}  // namespace perfonnx
