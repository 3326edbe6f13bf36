#include <algorithm>
#include <vector>

#include "cpu/row_operators.h"

namespace perfonnx {

SampledPool::SampledPool(const PoolWindow& window, const VirtualMap& map, const std::optional<Indices>& sites,
                         const KernelSet& kernels)
    : kernels_(kernels),
      average_(window.average),
      in_source_("in_source", map.source, map.size.checked("in_shape").positions()),
      table_(make_pool_table(window, map.size, sites, in_source_)) {}

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
    std::vector<const float*> pointers(static_cast<std::size_t>(table_.longest));
    PoolArgs args{};
    args.rows = pointers.data();
    args.offset = static_cast<std::size_t>(first);
    args.channels = static_cast<std::size_t>(std::min(s.channels, channels.end(number % parts) * kChannels) - first);
    for (std::int64_t i = tasks.begin(number / parts); i < tasks.end(number / parts); ++i) {
      const float* image = input.data() + i / sites() * s.rows * s.channels;
      const auto site = static_cast<std::size_t>(i % sites());
      const std::int64_t begin = table_.begin[site];
      args.count = static_cast<std::size_t>(table_.begin[site + 1] - begin);
      for (std::size_t k = 0; k < args.count; ++k) {
        const std::int32_t row = table_.rows[static_cast<std::size_t>(begin) + k];
        pointers[k] = row < 0 ? zero_row.data() : image + row * s.channels;
      }
      args.out = result.data() + i * s.channels + first;
      if (average_) {
        args.repeats = table_.repeats.empty() ? nullptr : table_.repeats.data() + begin;
        args.divisor = table_.divisors[site];
        kernels_.f32->average_pool(&args);
      } else {
        kernels_.f32->max_pool(&args);
      }
    }
  });
  result.finish(context);
}

}  // namespace perfonnx
