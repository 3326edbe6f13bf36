#include "core/pooling.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/parallel.h"

namespace perfonnx {
namespace {

// The taps of a window along one axis that lie in [0, size), and how many lie in front of size + pad.
struct Span {
  std::int64_t start;  // where the window starts, may be negative
  std::int64_t begin;
  std::int64_t end;
  std::int64_t padded;

  std::int64_t count() const noexcept { return end > begin ? end - begin : 0; }
};

Span span_of(const ConvGeometry& geometry, int axis, std::int64_t output, std::int64_t size) {
  const std::int64_t dilation = geometry.dilations[axis];
  Span span{output * geometry.strides[axis] - geometry.pads[axis], 0, 0, 0};
  const auto below = [&](std::int64_t limit) {
    return limit <= span.start ? 0 : std::min(geometry.kernel[axis], ceil_div(limit - span.start, dilation));
  };
  span.begin = below(0);
  span.end = below(size);
  span.padded = below(size + geometry.pads[axis + 2]);
  return span;
}

// Sorts rows from -1 up. `spare` is memory of its own.
void sort_rows(std::vector<std::int32_t>& rows, std::vector<std::int32_t>& spare) {
  if (std::is_sorted(rows.begin(), rows.end())) return;  // nothing was interpolated here
  constexpr std::size_t kFew = 64;
  if (rows.size() <= kFew) {
    std::sort(rows.begin(), rows.end());
    return;
  }
  // By digits: a window may hold 2^28 rows.
  constexpr int kBits = 11;
  constexpr std::uint32_t kDigits = 1U << kBits;
  const auto key = [](std::int32_t row) { return static_cast<std::uint32_t>(row) + 1; };
  const std::uint32_t largest = key(*std::max_element(rows.begin(), rows.end()));
  spare.resize(rows.size());
  for (int shift = 0; shift < 32 && largest >> shift > 0; shift += kBits) {
    std::size_t places[kDigits + 1] = {};
    for (const std::int32_t row : rows) ++places[(key(row) >> shift) % kDigits + 1];
    for (std::uint32_t digit = 0; digit < kDigits; ++digit) places[digit + 1] += places[digit];
    for (const std::int32_t row : rows) spare[places[(key(row) >> shift) % kDigits]++] = row;
    rows.swap(spare);
  }
}

std::int64_t output_length(const PoolWindow& window, int axis, std::int64_t size) {
  const ConvGeometry& geometry = window.geometry;
  const std::int64_t before = size + geometry.pads[axis];
  const std::int64_t stride = geometry.strides[axis];
  const std::int64_t room =
      before + geometry.pads[axis + 2] - (geometry.dilations[axis] * (geometry.kernel[axis] - 1) + 1);
  if (room < 0) {
    throw Error("attribute 'kernel_shape': a window of " + std::to_string(geometry.kernel[0]) + " x " +
                std::to_string(geometry.kernel[1]) +
                " with its dilations is larger than the map of in_shape with pads");
  }
  if (!window.ceil_mode) return room / stride + 1;
  const std::int64_t length = ceil_div(room, stride) + 1;
  return (length - 1) * stride >= before ? length - 1 : length;  // a window that starts behind the map is dropped
}

}  // namespace

MapSize PoolWindow::output_size(const MapSize& map) const {
  geometry.checked();
  return MapSize{output_length(*this, 0, map.height), output_length(*this, 1, map.width)}.checked("in_shape");
}

PoolTable make_pool_table(const PoolWindow& window, const MapSize& map, const std::optional<Indices>& sites,
                          const RowIndex& in_source) {
  PoolTable table;
  const ConvGeometry& geometry = window.geometry;
  const MapSize output = window.output_size(map);
  const std::vector<std::int32_t> positions = checked_sites(sites, output, 1);
  const auto down_from = [&](std::int32_t site) { return span_of(geometry, 0, site / output.width, map.height); };
  const auto across_from = [&](std::int32_t site) { return span_of(geometry, 1, site % output.width, map.width); };
  std::int64_t entries = 0;
  for (const std::int32_t site : positions) {
    entries += std::min(down_from(site).count() * across_from(site).count(), kMostEntries);
  }
  if (entries > kMostEntries) {
    throw Error("attribute 'kernel_shape': windows of " + std::to_string(geometry.kernel[0]) + " x " +
                std::to_string(geometry.kernel[1]) + " have " + std::to_string(entries) +
                " taps in all, more than 2^28; split the map");
  }
  table.begin.reserve(positions.size() + 1);
  table.begin.push_back(0);
  table.rows.reserve(static_cast<std::size_t>(entries));
  bool repeated = false;
  std::vector<std::int32_t> found;
  std::vector<std::int32_t> spare;
  for (const std::int32_t site : positions) {
    const Span down = down_from(site);
    const Span across = across_from(site);
    found.clear();
    for (std::int64_t i = down.begin; i < down.end; ++i) {
      const std::int64_t y = down.start + i * geometry.dilations[0];
      for (std::int64_t j = across.begin; j < across.end; ++j) {
        const std::int64_t x = across.start + j * geometry.dilations[1];
        found.push_back(in_source[static_cast<std::int32_t>(y * map.width + x)]);
      }
    }
    sort_rows(found, spare);
    for (std::size_t i = 0; i < found.size();) {
      std::size_t next = i + 1;
      while (next < found.size() && found[next] == found[i]) ++next;
      if (!window.average || found[i] >= 0) {  // zeros add nothing to a sum
        table.rows.push_back(found[i]);
        if (window.average && next - i > 1 && !repeated) {  // until here each row was read once
          repeated = true;
          table.repeats.assign(table.rows.size() - 1, 1.0F);
        }
        if (repeated) table.repeats.push_back(static_cast<float>(next - i));
      }
      i = next;
    }
    table.begin.push_back(static_cast<std::int64_t>(table.rows.size()));
    table.longest = std::max(table.longest, table.begin.back() - table.begin[table.begin.size() - 2]);
    if (window.average) {
      const std::int64_t divisor =
          window.count_include_pad ? down.padded * across.padded : down.count() * across.count();
      table.divisors.push_back(static_cast<float>(std::max<std::int64_t>(divisor, 1)));
    }
  }
  table.rows.shrink_to_fit();
  return table;
}

}  // namespace perfonnx
