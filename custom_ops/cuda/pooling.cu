#include "cuda/epilogue.h"

namespace perfonnx::cuda {
namespace {

// A thread pools kCount channels of a site.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) pool_kernel(const __grid_constant__ PoolArgs args) {
  const std::int64_t per_row = args.channels / kCount;
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t row = item / per_row;
  if (row >= args.images * args.sites) return;
  const std::int64_t channel = item % per_row * kCount;
  const std::int64_t site = row % args.sites;
  const T* image = static_cast<const T*>(args.rows) + row / args.sites * args.rows_per_image * args.channels + channel;
  // A row -1 is zeros; a NaN, once met, stays the largest.
  float result[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) result[i] = args.average != 0 ? 0.0F : bits_to_float(0xFF800000U);
  const std::int64_t end = args.begin[site + 1];
  for (std::int64_t k = args.begin[site]; k < end; ++k) {
    const std::int32_t from = args.entries[k];
    Vector<T, kCount> x{};
    if (from >= 0) x = *reinterpret_cast<const Vector<T, kCount>*>(image + from * args.channels);
    const float repeats = args.repeats != nullptr ? args.repeats[k] : 1.0F;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float v = widen(x.values[i]);
      if (args.average != 0) {
        result[i] += repeats * v;
      } else {
        result[i] = v > result[i] || v != v ? v : result[i];
      }
    }
  }
  const float divisor = args.average != 0 ? args.divisors[site] : 1.0F;
  Vector<T, kCount> out;
#pragma unroll
  for (int i = 0; i < kCount; ++i) out.values[i] = narrow<T>(result[i] / divisor);
  *reinterpret_cast<Vector<T, kCount>*>(static_cast<T*>(args.out) + row * args.channels + channel) = out;
}

}  // namespace
}  // namespace perfonnx::cuda

using namespace perfonnx::cuda;

int perfonnx_cuda_pool(const PoolArgs* args, void* stream) {
  return with_type_of(args->element, [&](auto value) {
    using T = decltype(value);
    constexpr int kWide = 4;
    const bool wide =
        args->channels % kWide == 0 && aligned(args->rows, kWide * sizeof(T)) && aligned(args->out, kWide * sizeof(T));
    const std::int64_t items = args->images * args->sites * (wide ? args->channels / kWide : args->channels);
    auto* kernel = wide ? pool_kernel<T, kWide> : pool_kernel<T, 1>;
    return launch(kernel, {parts(items, kThreads)}, kThreads, 0, stream, *args);
  });
}
