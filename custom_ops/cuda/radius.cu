// The radius-adaptive convolution of rows: the gate of every site, the centres of all, the rings of those whose gate is
// open. How many they are is known to the device alone: blocks of rings that are not there end at once.
#include "cuda/product.h"

namespace perfonnx::cuda {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::int32_t kCentre = 1;  // taps
constexpr std::int32_t kRing = 8;

struct Gate {
  std::int32_t total;
  std::int32_t sites;
  std::int32_t channels;
  std::int64_t rows_per_image;
  const void* rows;
  const std::int32_t* table;
  const float* weights;
  float bias;
  float* alpha;         // [total]
  std::int32_t* list;   // [total], the open ones in any order
  std::int32_t* count;  // how many they are, from 0 on
};

__global__ void clear_kernel(std::int32_t* count) { *count = 0; }

// A warp looks at one site after the other, up to kWarp of them, and lists the open ones at once.
template <typename T>
__global__ void __launch_bounds__(kThreads) gate_kernel(const __grid_constant__ Gate gate) {
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * (kThreads / kWarp) + thread / kWarp) * kWarp;
  float own = 0.0F;  // alpha of site first + lane
  for (int i = 0; i < kWarp; ++i) {
    const std::int64_t row = first + i;
    if (row >= gate.total) break;  // for the whole warp
    const std::int32_t from = gate.table[row % gate.sites];
    float sum = 0.0F;
    if (from >= 0) {
      const T* x = static_cast<const T*>(gate.rows) +
                   (row / gate.sites * gate.rows_per_image + from) * static_cast<std::int64_t>(gate.channels);
      for (int c = lane; c < gate.channels; c += kWarp) sum += widen(x[c]) * gate.weights[c];
    }
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, mask);
    sum += gate.bias;
    sum = sum < 0.0F ? 0.0F : sum;
    if (lane == i) own = sum > 1.0F ? 1.0F : sum;
  }
  const std::int64_t row = first + lane;
  const bool open = row < gate.total && !(own <= 0.0F);  // also where alpha is NaN, which must not vanish
  if (row < gate.total) gate.alpha[row] = own;
  const unsigned all = __ballot_sync(0xFFFFFFFFU, open);
  std::int32_t at = 0;
  if (lane == 0 && all != 0) at = atomicAdd(gate.count, static_cast<std::int32_t>(__popc(all)));
  at = __shfl_sync(0xFFFFFFFFU, at, 0);
  if (open) gate.list[at + __popc(all & ((1U << lane) - 1U))] = static_cast<std::int32_t>(row);
}

std::size_t whole(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The parts of the scratch memory.
struct Scratch {
  std::size_t alpha = 0;
  std::size_t list;
  std::size_t count;
  std::size_t sums;
  std::size_t bytes;

  explicit Scratch(const RadiusArgs& args) {
    const auto total = static_cast<std::size_t>(args.images * args.sites);
    list = alpha + whole(total * sizeof(float));
    count = list + whole(total * sizeof(std::int32_t));
    sums = count + kAlignment;
    // Floats wait in the output itself.
    const std::size_t waiting = args.element == kFloat ? 0 : total * static_cast<std::size_t>(args.shape.outputs);
    bytes = sums + whole(waiting * sizeof(float));
  }
};

}  // namespace
}  // namespace perfonnx::cuda

using namespace perfonnx::cuda;

std::size_t perfonnx_cuda_radius_scratch(const RadiusArgs* args) { return Scratch(*args).bytes; }

int perfonnx_cuda_radius(const RadiusArgs* args, void* stream) {
  if (!few_enough(*args) || args->shape.taps != kCentre + kRing) return kInvalidValue;
  const Scratch parts_of(*args);
  auto* scratch = static_cast<char*>(args->scratch);
  Product product = product_of(*args);
  if (product.total == 0) return 0;

  Gate gate{};
  gate.total = product.total;
  gate.sites = product.sites.value;
  gate.channels = product.inputs * product.groups;
  gate.rows_per_image = args->rows_per_image;
  gate.rows = args->rows;
  gate.table = args->centre;
  gate.weights = args->alpha_weights;
  gate.bias = args->alpha_bias;
  gate.alpha = reinterpret_cast<float*>(scratch + parts_of.alpha);
  gate.list = reinterpret_cast<std::int32_t*>(scratch + parts_of.list);
  gate.count = reinterpret_cast<std::int32_t*>(scratch + parts_of.count);
  if (const int status = launch(clear_kernel, {1}, 1, 0, stream, gate.count); status != 0) return status;
  const int status = with_type_of(args->element, [&](auto value) {
    return launch(gate_kernel<decltype(value)>, {parts(gate.total, kThreads)}, kThreads, 0, stream, gate);
  });
  if (status != 0) return status;

  product.alpha = gate.alpha;
  product.sums =
      args->element == kFloat ? static_cast<float*>(args->out) : reinterpret_cast<float*>(scratch + parts_of.sums);
  product.ending = Ending::kCentre;
  product.center_gain = args->center_gain;
  product.taps = kCentre;
  product.packed = args->packed_centre;
  product.bias = args->bias;
  product.table = args->centre;
  if (const int done = launch_product(product, args->element, args->math, args->tile, stream); done != 0) return done;

  product.ending = Ending::kRing;
  product.taps = kRing;
  product.packed = args->packed_ring;
  product.bias = args->ring_bias;
  product.table = args->ring;
  product.list = gate.list;
  product.count = gate.count;
  return launch_product(product, args->element, args->math, args->tile, stream);
}
