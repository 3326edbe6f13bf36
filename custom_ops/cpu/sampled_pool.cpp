#include <algorithm>

#include "cpu/row_operators.h"

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

SampledPool::SampledPool(const PoolWindow& window, const VirtualMap& map, const std::optional<Indices>& sites,
                         const KernelSet& kernels)
    : kernels_(&kernels),
      average_(window.average),
      in_source_("in_source", map.source, map.size.checked("in_shape").positions()) {
  const ConvGeometry& geometry = window.geometry;
  const MapSize output = window.output_size(map.size);
  const std::vector<std::int32_t> positions = checked_sites(sites, output, 1);
  const auto down_from = [&](std::int32_t site) { return span_of(geometry, 0, site / output.width, map.size.height); };
  const auto across_from = [&](std::int32_t site) { return span_of(geometry, 1, site % output.width, map.size.width); };
  std::int64_t entries = 0;
  for (const std::int32_t site : positions) {
    entries += std::min(down_from(site).count() * across_from(site).count(), kMostEntries);
  }
  if (entries > kMostEntries) {
    throw Error("attribute 'kernel_shape': windows of " + std::to_string(geometry.kernel[0]) + " x " +
                std::to_string(geometry.kernel[1]) + " have " + std::to_string(entries) +
                " taps in all, more than 2^28; split the map");
  }
  begin_.reserve(positions.size() + 1);
  begin_.push_back(0);
  rows_.reserve(static_cast<std::size_t>(entries));
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
        found.push_back(in_source_[static_cast<std::int32_t>(y * map.size.width + x)]);
      }
    }
    sort_rows(found, spare);
    for (std::size_t i = 0; i < found.size();) {
      std::size_t next = i + 1;
      while (next < found.size() && found[next] == found[i]) ++next;
      if (!average_ || found[i] >= 0) {  // zeros add nothing to a sum
        rows_.push_back(found[i]);
        if (average_ && next - i > 1 && !repeated) {  // until here each row was read once
          repeated = true;
          repeats_.assign(rows_.size() - 1, 1.0F);
        }
        if (repeated) repeats_.push_back(static_cast<float>(next - i));
      }
      i = next;
    }
    begin_.push_back(static_cast<std::int64_t>(rows_.size()));
    longest_ = std::max(longest_, begin_.back() - begin_[begin_.size() - 2]);
    if (average_) {
      const std::int64_t divisor =
          window.count_include_pad ? down.padded * across.padded : down.count() * across.count();
      divisors_.push_back(static_cast<float>(std::max<std::int64_t>(divisor, 1)));
    }
  }
  rows_.shrink_to_fit();
}

void SampledPool::check(const Rows& s) const { in_source_.check("S", s); }

void SampledPool::run(const Rows& s, void* r, Context& context) const {
  check(s);
  const std::int64_t total = s.images * sites();
  if (total == 0 || s.channels == 0) return;
  const FloatRows input(s, context);
  FloatResult result(r, s.element, total * s.channels, context);
  const std::vector<float> zero_row(static_cast<std::size_t>(s.channels), 0.0F);

  // With few sites the channels are split too, so that a pool of threads stays busy.
  constexpr std::int64_t kTasks = 64;
  constexpr std::int64_t kChannels = 64;
  const std::int64_t parts = total >= kTasks ? 1 : std::min(ceil_div(s.channels, kChannels), ceil_div(kTasks, total));
  const EvenSplit channels{ceil_div(s.channels, kChannels), parts};
  const EvenSplit tasks{total, std::min(total, kTasks)};
  context.parallel.run(static_cast<std::size_t>(tasks.parts * parts), [&](std::size_t task) {
    const auto number = static_cast<std::int64_t>(task);
    const std::int64_t first = channels.begin(number % parts) * kChannels;
    std::vector<const float*> pointers(static_cast<std::size_t>(longest_));
    PoolArgs args{};
    args.rows = pointers.data();
    args.offset = static_cast<std::size_t>(first);
    args.channels = static_cast<std::size_t>(std::min(s.channels, channels.end(number % parts) * kChannels) - first);
    for (std::int64_t i = tasks.begin(number / parts); i < tasks.end(number / parts); ++i) {
      const float* image = input.data() + i / sites() * s.rows * s.channels;
      const auto site = static_cast<std::size_t>(i % sites());
      const std::int64_t begin = begin_[site];
      args.count = static_cast<std::size_t>(begin_[site + 1] - begin);
      for (std::size_t k = 0; k < args.count; ++k) {
        const std::int32_t row = rows_[static_cast<std::size_t>(begin) + k];
        pointers[k] = row < 0 ? zero_row.data() : image + row * s.channels;
      }
      args.out = result.data() + i * s.channels + first;
      if (average_) {
        args.repeats = repeats_.empty() ? nullptr : repeats_.data() + begin;
        args.divisor = divisors_[site];
        kernels_->f32->average_pool(&args);
      } else {
        kernels_->f32->max_pool(&args);
      }
    }
  });
  result.finish(context);
}

}  // namespace perfonnx
