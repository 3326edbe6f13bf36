// Matrix products of a warpgroup: four warps together, on factors in shared memory, while its threads go on. Hopper has
// them and its code alone (sm_90a), which is why a build says that it has code for it: PERFONNX_SM90A.
#pragma once

#include "cuda/device.h"

#if defined(PERFONNX_SM90A) || !defined(__CUDACC__)
#define PERFONNX_WARPGROUPS 1
#endif

namespace perfonnx::cuda {

// Whether the code that is compiled is for a device that has them.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHasWarpgroups = false;
#else
inline constexpr bool kHasWarpgroups = true;
#endif

inline constexpr int kWarpgroup = 4 * kWarp;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// How a factor lies there: rows of 128 bytes whose chunks of 16 are turned by the row, eight rows after the other.
__device__ inline std::uint64_t describe_factor(const char* factor) {
  constexpr std::uint64_t kEightRows = 1024;
  constexpr std::uint64_t kTurned128 = 1;
  const auto address = static_cast<std::uint64_t>(__cvta_generic_to_shared(factor));
  return (address & 0x3FFFF) >> 4 | std::uint64_t{1} << 16 | kEightRows >> 4 << 32 | kTurned128 << 62;
}

// clang-format off
#define PERFONNX_WGMMA_64(SHAPE, REST)                                                                        \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64" SHAPE " {"                                               \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                       \
    "%32, %33, p, 1, 1" REST ";}\n"                                                                            \
    : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]), "+f"(s[7]),         \
      "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]), "+f"(s[14]), "+f"(s[15]),   \
      "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]), "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), \
      "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]), "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31])  \
    : "l"(a), "l"(b), "r"(keep))
#define PERFONNX_WGMMA_128(SHAPE, REST)                                                                       \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128" SHAPE " {"                                              \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                        \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                        \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                       \
    "%64, %65, p, 1, 1" REST ";}\n"                                                                            \
    : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]), "+f"(s[7]),         \
      "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]), "+f"(s[14]), "+f"(s[15]),   \
      "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]), "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), \
      "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]), "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31]), \
      "+f"(s[32]), "+f"(s[33]), "+f"(s[34]), "+f"(s[35]), "+f"(s[36]), "+f"(s[37]), "+f"(s[38]), "+f"(s[39]), \
      "+f"(s[40]), "+f"(s[41]), "+f"(s[42]), "+f"(s[43]), "+f"(s[44]), "+f"(s[45]), "+f"(s[46]), "+f"(s[47]), \
      "+f"(s[48]), "+f"(s[49]), "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]), "+f"(s[54]), "+f"(s[55]), \
      "+f"(s[56]), "+f"(s[57]), "+f"(s[58]), "+f"(s[59]), "+f"(s[60]), "+f"(s[61]), "+f"(s[62]), "+f"(s[63])  \
    : "l"(a), "l"(b), "r"(keep))
#define PERFONNX_WGMMA_256(SHAPE, REST)                                                                       \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %130, 0; wgmma.mma_async.sync.aligned.m64n256" SHAPE " {"                                              \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                        \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                        \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                        \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                        \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                        \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "            \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "       \
    "%128, %129, p, 1, 1" REST ";}\n"                                                                          \
    : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]), "+f"(s[7]),         \
      "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]), "+f"(s[14]), "+f"(s[15]),   \
      "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]), "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), \
      "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]), "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31]), \
      "+f"(s[32]), "+f"(s[33]), "+f"(s[34]), "+f"(s[35]), "+f"(s[36]), "+f"(s[37]), "+f"(s[38]), "+f"(s[39]), \
      "+f"(s[40]), "+f"(s[41]), "+f"(s[42]), "+f"(s[43]), "+f"(s[44]), "+f"(s[45]), "+f"(s[46]), "+f"(s[47]), \
      "+f"(s[48]), "+f"(s[49]), "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]), "+f"(s[54]), "+f"(s[55]), \
      "+f"(s[56]), "+f"(s[57]), "+f"(s[58]), "+f"(s[59]), "+f"(s[60]), "+f"(s[61]), "+f"(s[62]), "+f"(s[63]), \
      "+f"(s[64]), "+f"(s[65]), "+f"(s[66]), "+f"(s[67]), "+f"(s[68]), "+f"(s[69]), "+f"(s[70]), "+f"(s[71]), \
      "+f"(s[72]), "+f"(s[73]), "+f"(s[74]), "+f"(s[75]), "+f"(s[76]), "+f"(s[77]), "+f"(s[78]), "+f"(s[79]), \
      "+f"(s[80]), "+f"(s[81]), "+f"(s[82]), "+f"(s[83]), "+f"(s[84]), "+f"(s[85]), "+f"(s[86]), "+f"(s[87]), \
      "+f"(s[88]), "+f"(s[89]), "+f"(s[90]), "+f"(s[91]), "+f"(s[92]), "+f"(s[93]), "+f"(s[94]), "+f"(s[95]), \
      "+f"(s[96]), "+f"(s[97]), "+f"(s[98]), "+f"(s[99]), "+f"(s[100]), "+f"(s[101]), "+f"(s[102]),           \
      "+f"(s[103]), "+f"(s[104]), "+f"(s[105]), "+f"(s[106]), "+f"(s[107]), "+f"(s[108]), "+f"(s[109]),       \
      "+f"(s[110]), "+f"(s[111]), "+f"(s[112]), "+f"(s[113]), "+f"(s[114]), "+f"(s[115]), "+f"(s[116]),       \
      "+f"(s[117]), "+f"(s[118]), "+f"(s[119]), "+f"(s[120]), "+f"(s[121]), "+f"(s[122]), "+f"(s[123]),       \
      "+f"(s[124]), "+f"(s[125]), "+f"(s[126]), "+f"(s[127])                                                  \
    : "l"(a), "l"(b), "r"(keep))
// clang-format on

__device__ inline void multiply_described(float /*type*/, float (&s)[32], std::uint64_t a, std::uint64_t b, int keep) {
  PERFONNX_WGMMA_64("k8.f32.tf32.tf32", "");
}
__device__ inline void multiply_described(Half /*type*/, float (&s)[32], std::uint64_t a, std::uint64_t b, int keep) {
  PERFONNX_WGMMA_64("k16.f32.f16.f16", ", 0, 0");
}
__device__ inline void multiply_described(Bfloat16 /*type*/, float (&s)[32], std::uint64_t a, std::uint64_t b,
                                          int keep) {
  PERFONNX_WGMMA_64("k16.f32.bf16.bf16", ", 0, 0");
}
__device__ inline void multiply_described(float /*type*/, float (&s)[64], std::uint64_t a, std::uint64_t b, int keep) {
  PERFONNX_WGMMA_128("k8.f32.tf32.tf32", "");
}
__device__ inline void multiply_described(Half /*type*/, float (&s)[64], std::uint64_t a, std::uint64_t b, int keep) {
  PERFONNX_WGMMA_128("k16.f32.f16.f16", ", 0, 0");
}
__device__ inline void multiply_described(Bfloat16 /*type*/, float (&s)[64], std::uint64_t a, std::uint64_t b,
                                          int keep) {
  PERFONNX_WGMMA_128("k16.f32.bf16.bf16", ", 0, 0");
}
__device__ inline void multiply_described(float /*type*/, float (&s)[128], std::uint64_t a, std::uint64_t b, int keep) {
  PERFONNX_WGMMA_256("k8.f32.tf32.tf32", "");
}
__device__ inline void multiply_described(Half /*type*/, float (&s)[128], std::uint64_t a, std::uint64_t b, int keep) {
  PERFONNX_WGMMA_256("k16.f32.f16.f16", ", 0, 0");
}
__device__ inline void multiply_described(Bfloat16 /*type*/, float (&s)[128], std::uint64_t a, std::uint64_t b,
                                          int keep) {
  PERFONNX_WGMMA_256("k16.f32.bf16.bf16", ", 0, 0");
}
#undef PERFONNX_WGMMA_64
#undef PERFONNX_WGMMA_128
#undef PERFONNX_WGMMA_256

#endif

// sums = A B, or sums += A B to keep what they are, begun: A [64, 32 bytes] and B [2 * kCount, 32 bytes] of elements T
// (float: as TF32, what lies behind its bits is cut off) start at `a` and `b`, in rows of 128 bytes whose chunk c lies
// at place c ^ (row % 8). Thread t has, of columns 8 j + 2 (t % 4) and the next, sums 4 j and the next in row t / 4 + 8
// (t / 32) and the two after them 8 rows below. The sums and the factors must not be touched before a wait.
template <typename T, int kCount>
__device__ inline void begin_product(float (&sums)[kCount], const char* a, const char* b, bool keep) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  multiply_described(T(), sums, describe_factor(a), describe_factor(b), keep ? 1 : 0);
#elif !defined(__CUDACC__)
  host::begin_later([sums = &sums[0], a, b, keep] {
    constexpr int kElements = 32 / static_cast<int>(sizeof(T));
    const auto element = [](const char* factor, int row, int index) {
      const auto address = reinterpret_cast<std::uintptr_t>(factor) + static_cast<std::uintptr_t>(row) * 128 +
                           static_cast<std::uintptr_t>(index) * sizeof(T);
      T value;
      std::memcpy(&value, reinterpret_cast<const char*>(address ^ (address >> 7 & 7U) << 4), sizeof value);
      if constexpr (sizeof(T) == 4) {
        return bits_to_float(float_to_bits(value) & 0xFFFFE000U);
      } else {
        return widen(value);
      }
    };
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
    for (int i = 0; i < kCount; ++i) {
      const int row = thread / kWarp * 16 + thread % kWarp / 4 + i / 2 % 2 * 8;
      const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      if (!keep) sums[i] = 0.0F;
      for (int k = 0; k < kElements; ++k) sums[i] += element(a, row, k) * element(b, column, k);
    }
  });
#endif
}

// What ordinary stores and asynchronous copies put into shared memory, and the calling thread knows to be there, is
// seen by products that begin later.
__device__ inline void show_to_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

// In front of the first product that uses sums.
__device__ inline void arrive_for_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}

// Closes a group of products.
__device__ inline void commit_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#elif !defined(__CUDACC__)
  host::commit_later();
#endif
}

// Waits until all groups but the latest kPending are done.
template <int kPending>
__device__ inline void wait_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
#elif !defined(__CUDACC__)
  host::wait_later(kPending);
#endif
}

}  // namespace perfonnx::cuda
