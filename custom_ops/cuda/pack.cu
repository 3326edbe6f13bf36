#include "cuda/packed.h"

namespace perfonnx::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ PackArgs args) {
  const std::int64_t per_slab = kSlab / static_cast<int>(sizeof(T));
  const std::int64_t outputs = args.shape.outputs / args.shape.groups;
  const std::int64_t factors = args.shape.taps * args.shape.inputs;
  const std::int64_t slabs = (factors + per_slab - 1) / per_slab;
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= args.shape.groups * slabs * outputs * per_slab) return;
  const std::int64_t slab = item / (per_slab * outputs) % slabs;
  const std::int64_t row = item / per_slab % outputs;
  const std::int64_t output = item / (per_slab * outputs * slabs) * outputs + row;
  const int per_chunk = kChunk / static_cast<int>(sizeof(T));
  const std::int64_t in_slab = (item % per_slab / per_chunk ^ row % kChunks) * per_chunk + item % per_chunk;
  const std::int64_t factor = slab * per_slab + in_slab;
  float value = 0.0F;
  if (factor < factors) {
    const std::int64_t channel = factor % args.shape.inputs;
    const std::int64_t tap = factor / args.shape.inputs;
    const std::int64_t from = args.taps != nullptr ? args.taps[tap] : tap;
    value = args.weights[(output * args.shape.inputs + channel) * args.all_taps + from];
  }
  if (sizeof(T) == 4 && args.math == kTensorCores) value = bits_to_float(round_tf32(float_to_bits(value)));
  static_cast<T*>(args.packed)[item] = narrow<T>(value);
}

// Packed [taps][outputs], floats that hold values of T.
template <typename T>
__global__ void __launch_bounds__(kThreads) pack_depthwise_kernel(const __grid_constant__ PackArgs args) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= args.shape.taps * args.shape.outputs) return;
  const std::int64_t tap = item / args.shape.outputs;
  const std::int64_t from = args.taps != nullptr ? args.taps[tap] : tap;
  const float value = args.weights[item % args.shape.outputs * args.all_taps + from];
  static_cast<float*>(args.packed)[item] = widen(narrow<T>(value));
}

std::int64_t packed_elements(const WeightShape& shape, std::int64_t element_bytes) {
  const std::int64_t per_slab = kSlab / element_bytes;
  return (shape.taps * shape.inputs + per_slab - 1) / per_slab * per_slab * shape.outputs;
}

}  // namespace

}  // namespace perfonnx::cuda

using namespace perfonnx::cuda;

std::size_t perfonnx_cuda_packed_bytes(const WeightShape* shape, std::int32_t element) {
  if (is_depthwise(shape->inputs, shape->groups)) {
    return static_cast<std::size_t>(shape->taps * shape->outputs) * sizeof(float);
  }
  const std::int64_t bytes = element == kFloat ? 4 : 2;
  return static_cast<std::size_t>(packed_elements(*shape, bytes) * bytes);
}

int perfonnx_cuda_pack(const PackArgs* args, void* stream) {
  return with_type_of(args->element, [&](auto value) {
    using T = decltype(value);
    const bool depthwise = is_depthwise(args->shape.inputs, args->shape.groups);
    const std::int64_t items = depthwise ? args->shape.taps * args->shape.outputs
                                         : packed_elements(args->shape, static_cast<std::int64_t>(sizeof(T)));
    auto* kernel = depthwise ? pack_depthwise_kernel<T> : pack_kernel<T>;
    return launch(kernel, {parts(items, kThreads)}, kThreads, 0, stream, *args);
  });
}
