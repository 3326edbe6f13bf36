// What kernels use of the device. nvcc makes instructions of it; any other compiler makes plain C++, which runs a
// kernel on the host as it is defined: so the tests see the same indices, copies and barriers without a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/element.h"
#include "cuda/launch.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda/host/blocks.h"
#endif

namespace perfonnx::cuda {

struct Bfloat16 {
  std::uint16_t bits;
};

inline constexpr int kWarp = 32;
inline constexpr int kThreads = 256;  // of a block, where nothing says otherwise

// --- conversions ---------------------------------------------------------------------------------------------------

__device__ inline float bits_to_float(std::uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  float result = 0.0F;
  std::memcpy(&result, &bits, sizeof result);
  return result;
#endif
}

__device__ inline std::uint32_t float_to_bits(float f) {
#ifdef __CUDACC__
  return __float_as_uint(f);
#else
  std::uint32_t bits = 0;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
#endif
}

__device__ inline float widen(float f) { return f; }
__device__ inline float widen(Half h) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(h.bits));
#else
  return to_float(h);
#endif
}
__device__ inline float widen(Bfloat16 b) { return bits_to_float(static_cast<std::uint32_t>(b.bits) << 16); }

// To the nearest, ties to even.
template <typename T>
__device__ T narrow(float f);
template <>
__device__ inline float narrow<float>(float f) {
  return f;
}
template <>
__device__ inline Half narrow<Half>(float f) {
#ifdef __CUDACC__
  return Half{__half_as_ushort(__float2half_rn(f))};
#else
  return to_half(f);
#endif
}
template <>
__device__ inline Bfloat16 narrow<Bfloat16>(float f) {
#ifdef __CUDACC__
  return Bfloat16{__bfloat16_as_ushort(__float2bfloat16_rn(f))};
#else
  const std::uint32_t bits = float_to_bits(f);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return Bfloat16{0x7FFF};
  return Bfloat16{static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16)};
#endif
}

// The nearest TF32, ties away from zero; what is no number or infinite stays that.
__device__ inline std::uint32_t round_tf32(std::uint32_t bits) {
  return (bits & 0x7F800000U) == 0x7F800000U ? bits : bits + 0x1000U;
}

// Of what is no number none of these makes one; `limit` is one.
__device__ inline float larger(float v, float limit) {
#ifdef __CUDACC__
  float result = 0.0F;
  asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(result) : "f"(v), "f"(limit));
  return result;
#else
  return v < limit ? limit : v;
#endif
}
__device__ inline float smaller(float v, float limit) {
#ifdef __CUDACC__
  float result = 0.0F;
  asm("min.NaN.f32 %0, %1, %2;\n" : "=f"(result) : "f"(v), "f"(limit));
  return result;
#else
  return v > limit ? limit : v;
#endif
}

// --- asynchronous copies -------------------------------------------------------------------------------------------

// A place in the block's shared memory, as instructions take it.
#ifdef __CUDACC__
using SharedPlace = std::uint32_t;
#else
using SharedPlace = std::uintptr_t;
#endif

__device__ inline SharedPlace shared_place(const void* pointer) {
#ifdef __CUDACC__
  auto place = static_cast<SharedPlace>(__cvta_generic_to_shared(pointer));
  asm volatile("" : "+r"(place));  // else it is made anew wherever it is needed
  return place;
#else
  return reinterpret_cast<SharedPlace>(pointer);
#endif
}

// A pointer that is not made anew wherever it is needed.
template <typename T>
__device__ inline T* in_registers(T* pointer) {
#ifdef __CUDACC__
  asm volatile("" : "+l"(pointer));
#endif
  return pointer;
}

template <typename T>
__device__ inline T* shared_pointer(SharedPlace place) {
#ifdef __CUDACC__
  return static_cast<T*>(__cvta_shared_to_generic(place));
#else
  return reinterpret_cast<T*>(place);
#endif
}

// 16 bytes from global to shared memory, zeros where `valid` is zero; both aligned. Seen by the thread after a wait.
__device__ inline void copy_async(SharedPlace to, const void* from, std::uint32_t valid) {
#ifdef __CUDACC__
  asm volatile(
      "{.reg .pred p;\n"
      "setp.eq.u32 p, %2, 0;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, p;}\n" ::"r"(to),
      "l"(from), "r"(valid)
      : "memory");
#else
  host::copy_async(shared_pointer<void>(to), from, valid != 0);
#endif
}

// Closes a group of copies.
__device__ inline void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
  host::commit_copies();
#endif
}

// Waits until all groups but the latest `kPending` are done.
template <int kPending>
__device__ inline void wait_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#else
  host::wait_copies(kPending);
#endif
}

// --- matrices in a warp --------------------------------------------------------------------------------------------

// Four 8 x 8 matrices of 16-bit elements, whose rows of 16 bytes lie at the addresses that lanes 8 m to 8 m + 7 give
// for matrix m. Lane l gets elements 2 (l % 4) and the next of row l / 4.
__device__ inline void load_matrices(std::uint32_t (&to)[4], SharedPlace row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
#else
  const host::Lanes<SharedPlace> rows(row);
  const int lane = host::lane();
  for (int m = 0; m < 4; ++m) {
    std::memcpy(&to[m], shared_pointer<const char>(rows[8 * m + lane / 4]) + 4 * (lane % 4), 4);
  }
#endif
}

// sum += A B, A [16, 32 bytes] and B [32 bytes, 8] of elements T (float: as TF32), in the fragments that load_matrices
// gives: lane l has sums [l / 4 and + 8][2 (l % 4) and + 1].
template <typename T>
__device__ void multiply_matrices(float (&sum)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);

#ifdef __CUDACC__
#define PERFONNX_MMA(SHAPE)                                                                                   \
  asm volatile("mma.sync.aligned." SHAPE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n" \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <>
__device__ inline void multiply_matrices<float>(float (&sum)[4], const std::uint32_t (&a)[4],
                                                const std::uint32_t (&b)[2]) {
  PERFONNX_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
template <>
__device__ inline void multiply_matrices<Half>(float (&sum)[4], const std::uint32_t (&a)[4],
                                               const std::uint32_t (&b)[2]) {
  PERFONNX_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
template <>
__device__ inline void multiply_matrices<Bfloat16>(float (&sum)[4], const std::uint32_t (&a)[4],
                                                   const std::uint32_t (&b)[2]) {
  PERFONNX_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
#undef PERFONNX_MMA
#else
// Element `index` of those that a register holds, as the tensor cores read it.
template <typename T>
float element_of_register(std::uint32_t bits, int index) {
  if constexpr (sizeof(T) == 4) {
    return bits_to_float(bits & 0xFFFFE000U);
  } else {
    return widen(T{static_cast<std::uint16_t>(bits >> 16 * index)});
  }
}
template <typename T>
void multiply_matrices(float (&sum)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  struct Fragments {
    std::uint32_t a[4];
    std::uint32_t b[2];
  } mine{};
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const host::Lanes<Fragments> lanes(mine);
  const int lane = host::lane();
  constexpr int kEach = 4 / static_cast<int>(sizeof(T));
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4;
    const int column = 2 * (lane % 4) + i % 2;
    for (int half = 0; half < 2; ++half) {  // of the 32 bytes
      for (int k = 0; k < 4; ++k) {
        for (int e = 0; e < kEach; ++e) {
          sum[i] += element_of_register<T>(lanes[4 * row + k].a[i / 2 + 2 * half], e) *
                    element_of_register<T>(lanes[4 * column + k].b[half], e);
        }
      }
    }
  }
}
#endif

// --- launches ------------------------------------------------------------------------------------------------------

#ifdef __CUDACC__
inline constexpr int kInvalidValue = cudaErrorInvalidValue;
#else
inline constexpr int kInvalidValue = 1;
#endif

// Of the current device.
struct DeviceLimits {
  int multiprocessors;
  std::size_t shared_bytes;  // that a block can have
  int capability;            // 10 * major + minor
};
inline int device_limits(DeviceLimits* limits) {
#ifdef __CUDACC__
  int device = 0;
  int bytes = 0;
  if (const cudaError_t status = cudaGetDevice(&device); status != cudaSuccess) return status;
  if (const cudaError_t status = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
      status != cudaSuccess) {
    return status;
  }
  limits->shared_bytes = static_cast<std::size_t>(bytes);
  int minor = 0;
  if (const cudaError_t status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      status != cudaSuccess) {
    return status;
  }
  if (const cudaError_t status = cudaDeviceGetAttribute(&limits->capability, cudaDevAttrComputeCapabilityMajor, device);
      status != cudaSuccess) {
    return status;
  }
  limits->capability = 10 * limits->capability + minor;
  return cudaDeviceGetAttribute(&limits->multiprocessors, cudaDevAttrMultiProcessorCount, device);
#else
  *limits = {1, 227 * 1024, 90};
  return 0;
#endif
}

inline const char* error_text(int status) {
#ifdef __CUDACC__
  return cudaGetErrorString(static_cast<cudaError_t>(status));
#else
  return status == 0 ? "no error" : "invalid argument";
#endif
}

// Of so much each, the last one perhaps of less.
__host__ __device__ constexpr std::int64_t parts(std::int64_t whole, std::int64_t part) {
  return (whole + part - 1) / part;
}

inline bool aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

// function(T()) for the type T of an element; kInvalidValue for one that nobody knows.
template <typename Function>
int with_type_of(Element element, const Function& function) {
  switch (element) {
    case kFloat:
      return function(float());
    case kHalf:
      return function(Half());
    case kBfloat16:
      return function(Bfloat16());
  }
  return kInvalidValue;
}

// The dynamic shared memory of the block, 1024-byte aligned.
__device__ inline char* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(1024) char memory[];
  return memory;
#else
  return host::shared_memory();
#endif
}

// Blocks of a cluster, which are neighbours in the grid, run at the same time and see each other's shared memory. Only
// Hopper and what comes after it have clusters of more than one block.
inline constexpr int kLargestCluster = 8;

__device__ inline void wait_for_cluster() {
#if !defined(__CUDACC__)
  host::wait_for_cluster();
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;\n" ::: "memory");
#endif
}

// Of block `rank` of the cluster, the place that corresponds to one in the block's own shared memory.
template <typename T>
__device__ inline const T* in_cluster(const T* place, int rank) {
#if !defined(__CUDACC__)
  return static_cast<const T*>(host::in_cluster(place, rank));
#elif __CUDA_ARCH__ >= 900
  const T* result = nullptr;
  asm("mapa.u64 %0, %1, %2;\n" : "=l"(result) : "l"(place), "r"(rank));
  return result;
#else
  return place;
#endif
}

struct Blocks {
  std::int64_t count;
  int cluster = 1;
};

// Runs kernel(args) on a stream; a cudaError_t. No blocks are no work.
template <typename Args>
int launch(void (*kernel)(Args), Blocks blocks, int threads, std::size_t shared_bytes, void* stream, const Args& args) {
  if (blocks.count == 0) return 0;
#ifdef __CUDACC__
  if (shared_bytes > 48 * 1024) {
    const cudaError_t status =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
  }
  if (blocks.count > 0x7FFFFFFF) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks.count));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(blocks.cluster);
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  if (blocks.cluster > 1) {
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, args);
#else
  (void)stream;
  host::run_blocks(blocks.count, blocks.cluster, threads, shared_bytes, [&] { kernel(args); });
  return 0;
#endif
}

}  // namespace perfonnx::cuda
