// The operators' steps on the device, as functions with a C interface over raw device pointers.
//
// Every pointer is one to device memory unless it is said to be the host's. Each function puts its work on `stream` (a
// cudaStream_t; null: the default one) and returns at once: it neither waits for the device nor allocates, so that
// calls can be captured into a CUDA graph. It returns a cudaError_t, 0 where all is well. Indices are not checked here:
// tables come from core, which checked them against the model. Every size may be zero. images * sites, images *
// rows_per_image and sites * taps are below 2^31, or the function refuses.
#pragma once

#include <cstddef>
#include <cstdint>

namespace perfonnx::cuda {

// What tensors are made of. Sums are floats for each of them.
enum Element : std::int32_t { kFloat = 0, kHalf = 1, kBfloat16 = 2 };

// How products are made. kStrict: floats as they are. kTensorCores: floats are rounded to TF32, with 10 bits behind the
// point, as onnxruntime's use_tf32 allows. Half and Bfloat16 are exact factors in both.
enum Math : std::int32_t { kStrict = 0, kTensorCores = 1 };

// As core's Activation, opened: min(max(v < 0 ? negative_slope * slopes[channel] * v : v, clip_min), clip_max).
struct Act {
  float negative_slope;
  float clip_min;
  float clip_max;
  const float* slopes;  // one for each channel, or null
};

// The weights of a convolution W [outputs, inputs of a group, taps].
struct WeightShape {
  std::int64_t outputs;
  std::int64_t inputs;
  std::int64_t taps;
  std::int64_t groups;
};

// A convolution of rows, out [images, sites, outputs]: at site p of image n
//   act(bias + sum over taps t and channels c of W[m, c, t] * rows[n, table[p, t], c] + added[n, added_source[p], m]),
// in which row -1 is zeros. All pointers are 16-byte aligned.
struct ProductArgs {
  WeightShape shape;
  Element element;  // of rows, added and out
  Math math;
  std::int64_t images;
  std::int64_t rows_per_image;
  std::int64_t sites;
  const void* rows;                  // [images, rows_per_image, inputs * groups]
  const void* packed;                // by perfonnx_cuda_pack for the same shape, element and math
  const float* bias;                 // [outputs] or null
  const std::int32_t* table;         // [sites, taps], core's RowTable
  const void* added;                 // [images or 1, rows_added, outputs] or null
  const std::int32_t* added_source;  // [sites], -1 adds zeros, or null: row p for site p
  std::int64_t added_images;         // 1: the same for every image
  std::int64_t rows_added;
  Act act;
  void* out;
  // 0: the best that applies. For tests and timings n + 100 s: number n - 1 of the kernels' tiles unless n is 0, and s
  // blocks that share the sums of a tile unless s is 0.
  std::int32_t tile;
};

// The radius-adaptive convolution of rows, out [images, sites, outputs]: with alpha = clip(x . alpha_weights +
// alpha_bias, 0, 1) of the row x under the centre tap
//   act((1 + center_gain * alpha) * centre + bias + alpha * (ring + ring_bias)).
// The ring is computed for the sites whose alpha is above 0 alone (and where it is no number); how many they are stays
// on the device.
struct RadiusArgs {
  WeightShape shape;  // taps: 9
  Element element;
  Math math;
  std::int64_t images;
  std::int64_t rows_per_image;
  std::int64_t sites;
  const void* rows;
  const void* packed_centre;   // by perfonnx_cuda_pack of the centre tap
  const void* packed_ring;     // of the eight others
  const float* bias;           // [outputs] or null
  const float* ring_bias;      // [outputs] or null
  const float* alpha_weights;  // [channels of rows]
  const std::int32_t* centre;  // [sites], core's RadiusTables
  const std::int32_t* ring;    // [sites, 8]
  float alpha_bias;
  float center_gain;
  Act act;
  void* scratch;  // perfonnx_cuda_radius_scratch bytes, for the time of the call on the stream; 256-byte aligned
  void* out;
  std::int32_t tile;  // as in ProductArgs
};

// Packs the weights W [outputs, inputs, all_taps] in the order in which a product reads them.
struct PackArgs {
  WeightShape shape;  // taps: those that are packed
  Element element;    // of the rows that they will meet, which the packed weights have
  Math math;
  std::int64_t all_taps;
  const std::int32_t* taps;  // [shape.taps], which of them, or null: all
  const float* weights;
  void* packed;  // perfonnx_cuda_packed_bytes; 256-byte aligned
};

// Rows of a map: rows [images, count, channels] of x [images, channels, pixels] at pixels sites[i].
struct CompactArgs {
  Element element;
  std::int64_t images;
  std::int64_t channels;
  std::int64_t pixels;
  std::int64_t count;
  const std::int32_t* sites;  // [count] or null: pixel i
  const void* x;
  void* rows;
};

// The map that rows stand for, y [images, channels, positions]: at each position
//   act(sum over k of weight[position, k] * rows[source[position, k]]),
// in which row -1 is zeros; but where all its sources are -1 and there is a fill, the fill as it is.
struct ExpandArgs {
  Element element;
  std::int64_t images;
  std::int64_t rows_per_image;
  std::int64_t channels;
  std::int64_t positions;
  std::int64_t per_position;
  const std::int32_t* source;  // [positions, per_position], core's Interpolation
  const float* weight;         // the same or null
  const float* fill;           // [channels] or null
  Act act;
  const void* rows;  // [images, rows_per_image, channels]
  void* y;
};

// Pooling of rows, out [images, sites, channels]: core's PoolTable.
struct PoolArgs {
  Element element;
  std::int32_t average;
  std::int64_t images;
  std::int64_t rows_per_image;
  std::int64_t channels;
  std::int64_t sites;
  const std::int64_t* begin;    // [sites + 1]
  const std::int32_t* entries;  // rows, -1 = zeros
  const float* repeats;         // of an average; null: once
  const float* divisors;        // of an average, [sites]
  const void* rows;             // [images, rows_per_image, channels]
  void* out;
};

}  // namespace perfonnx::cuda

extern "C" {

std::size_t perfonnx_cuda_packed_bytes(const perfonnx::cuda::WeightShape* shape, std::int32_t element);
int perfonnx_cuda_pack(const perfonnx::cuda::PackArgs* args, void* stream);

int perfonnx_cuda_product(const perfonnx::cuda::ProductArgs* args, void* stream);

std::size_t perfonnx_cuda_radius_scratch(const perfonnx::cuda::RadiusArgs* args);
int perfonnx_cuda_radius(const perfonnx::cuda::RadiusArgs* args, void* stream);

int perfonnx_cuda_compact(const perfonnx::cuda::CompactArgs* args, void* stream);
int perfonnx_cuda_expand(const perfonnx::cuda::ExpandArgs* args, void* stream);
int perfonnx_cuda_pool(const perfonnx::cuda::PoolArgs* args, void* stream);

// The bytes at `from`, on the host, which may change as soon as the function returns if they are not page-locked.
int perfonnx_cuda_upload(void* to, const void* from, std::size_t bytes, void* stream);
int perfonnx_cuda_download(void* to, const void* from, std::size_t bytes, void* stream);  // and back
// These two wait: for all that is on the stream, or on the device.
int perfonnx_cuda_wait(void* stream);
int perfonnx_cuda_wait_for_device();

// What a status says.
const char* perfonnx_cuda_error_text(int status);
}
