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

// A factor in shared memory, 16-byte aligned: rows of 128 bytes whose chunks of 16 are turned by the row, eight rows
// after the other. One that lies n bytes behind another is that + n / 16.
using Factor = std::uint64_t;

__device__ inline Factor describe_factor(const char* factor) {
#ifdef __CUDACC__
  constexpr Factor kEightRows = 1024;
  constexpr Factor kTurned128 = 1;
  const auto address = static_cast<Factor>(__cvta_generic_to_shared(factor));
  return (address & 0x3FFFF) >> 4 | Factor{1} << 16 | kEightRows >> 4 << 32 | kTurned128 << 62;
#else
  return reinterpret_cast<std::uintptr_t>(factor) >> 4;
#endif
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// clang-format off
#define PERFONNX_WGMMA_64(SHAPE, REST, FACTORS, KEEP, ...) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " KEEP ", 0; wgmma.mma_async.sync.aligned.m64n64" SHAPE " {"                                               \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                       \
    FACTORS ", p, 1, 1" REST ";}\n"                                                                            \
    : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]), "+f"(s[7]),         \
      "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]), "+f"(s[14]), "+f"(s[15]),   \
      "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]), "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), \
      "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]), "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31])  \
    : __VA_ARGS__, "r"(keep))
#define PERFONNX_WGMMA_128(SHAPE, REST, FACTORS, KEEP, ...) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " KEEP ", 0; wgmma.mma_async.sync.aligned.m64n128" SHAPE " {"                                              \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                        \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                        \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                       \
    FACTORS ", p, 1, 1" REST ";}\n"                                                                            \
    : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]), "+f"(s[7]),         \
      "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]), "+f"(s[14]), "+f"(s[15]),   \
      "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]), "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), \
      "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]), "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31]), \
      "+f"(s[32]), "+f"(s[33]), "+f"(s[34]), "+f"(s[35]), "+f"(s[36]), "+f"(s[37]), "+f"(s[38]), "+f"(s[39]), \
      "+f"(s[40]), "+f"(s[41]), "+f"(s[42]), "+f"(s[43]), "+f"(s[44]), "+f"(s[45]), "+f"(s[46]), "+f"(s[47]), \
      "+f"(s[48]), "+f"(s[49]), "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]), "+f"(s[54]), "+f"(s[55]), \
      "+f"(s[56]), "+f"(s[57]), "+f"(s[58]), "+f"(s[59]), "+f"(s[60]), "+f"(s[61]), "+f"(s[62]), "+f"(s[63])  \
    : __VA_ARGS__, "r"(keep))
#define PERFONNX_WGMMA_256(SHAPE, REST, FACTORS, KEEP, ...) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " KEEP ", 0; wgmma.mma_async.sync.aligned.m64n256" SHAPE " {"                                              \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                        \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                        \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                        \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                        \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                        \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "            \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "       \
    FACTORS ", p, 1, 1" REST ";}\n"                                                                          \
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
    : __VA_ARGS__, "r"(keep))
// clang-format on

__device__ inline void multiply_described(Half /*type*/, float (&s)[32], Factor a, Factor b, int keep) {
  PERFONNX_WGMMA_64("k16.f32.f16.f16", ", 0, 0", "%32, %33", "%34", "l"(a), "l"(b));
}
__device__ inline void multiply_described(Bfloat16 /*type*/, float (&s)[32], Factor a, Factor b, int keep) {
  PERFONNX_WGMMA_64("k16.f32.bf16.bf16", ", 0, 0", "%32, %33", "%34", "l"(a), "l"(b));
}
__device__ inline void multiply_held(float (&s)[32], const std::uint32_t (&a)[4], Factor b, int keep) {
  PERFONNX_WGMMA_64("k8.f32.tf32.tf32", "", "{%32, %33, %34, %35}, %36", "%37", "r"(a[0]), "r"(a[1]), "r"(a[2]),
                    "r"(a[3]), "l"(b));
}
__device__ inline void multiply_described(Half /*type*/, float (&s)[64], Factor a, Factor b, int keep) {
  PERFONNX_WGMMA_128("k16.f32.f16.f16", ", 0, 0", "%64, %65", "%66", "l"(a), "l"(b));
}
__device__ inline void multiply_described(Bfloat16 /*type*/, float (&s)[64], Factor a, Factor b, int keep) {
  PERFONNX_WGMMA_128("k16.f32.bf16.bf16", ", 0, 0", "%64, %65", "%66", "l"(a), "l"(b));
}
__device__ inline void multiply_held(float (&s)[64], const std::uint32_t (&a)[4], Factor b, int keep) {
  PERFONNX_WGMMA_128("k8.f32.tf32.tf32", "", "{%64, %65, %66, %67}, %68", "%69", "r"(a[0]), "r"(a[1]), "r"(a[2]),
                     "r"(a[3]), "l"(b));
}
__device__ inline void multiply_described(Half /*type*/, float (&s)[128], Factor a, Factor b, int keep) {
  PERFONNX_WGMMA_256("k16.f32.f16.f16", ", 0, 0", "%128, %129", "%130", "l"(a), "l"(b));
}
__device__ inline void multiply_described(Bfloat16 /*type*/, float (&s)[128], Factor a, Factor b, int keep) {
  PERFONNX_WGMMA_256("k16.f32.bf16.bf16", ", 0, 0", "%128, %129", "%130", "l"(a), "l"(b));
}
__device__ inline void multiply_held(float (&s)[128], const std::uint32_t (&a)[4], Factor b, int keep) {
  PERFONNX_WGMMA_256("k8.f32.tf32.tf32", "", "{%128, %129, %130, %131}, %132", "%133", "r"(a[0]), "r"(a[1]), "r"(a[2]),
                     "r"(a[3]), "l"(b));
}
#undef PERFONNX_WGMMA_64
#undef PERFONNX_WGMMA_128
#undef PERFONNX_WGMMA_256

#endif

#ifndef __CUDACC__
// As products read it.
template <typename T>
float element_of_factor(Factor factor, int row, int index) {
  const auto address = static_cast<std::uintptr_t>(factor << 4) + static_cast<std::uintptr_t>(row) * 128 +
                       static_cast<std::uintptr_t>(index) * sizeof(T);
  T value;
  std::memcpy(&value, reinterpret_cast<const char*>(address ^ (address >> 7 & 7U) << 4), sizeof value);
  if constexpr (sizeof(T) == 4) {
    return bits_to_float(float_to_bits(value) & 0xFFFFE000U);
  } else {
    return widen(value);
  }
}
#endif

// sums = A B, or sums += A B to keep what they are, begun: A [64, 32 bytes] and B [2 * kCount, 32 bytes] of elements T
// lie in shared memory, in rows of 128 bytes whose chunk c lies at place c ^ (row % 8). Thread t has, of columns 8 j +
// 2 (t % 4) and the next, sums 4 j and the next in row t / 4 + 8 (t / 32) and the two after them 8 rows below. The sums
// and the factors must not be touched before a wait.
template <typename T, int kCount>
__device__ inline void begin_product(float (&sums)[kCount], Factor a, Factor b, bool keep) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  multiply_described(T(), sums, a, b, keep ? 1 : 0);
#elif !defined(__CUDACC__)
  host::begin_later([sums = &sums[0], a, b, keep] {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int first = static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * 16 + lane / 4;
    for (int i = 0; i < kCount; ++i) {
      if (!keep) sums[i] = 0.0F;
      for (int k = 0; k < 32 / static_cast<int>(sizeof(T)); ++k) {
        sums[i] += element_of_factor<T>(a, first + i / 2 % 2 * 8, k) *
                   element_of_factor<T>(b, i / 4 * 8 + lane % 4 * 2 + i % 2, k);
      }
    }
  });
#endif
}

// The same for floats as TF32, where each warp holds its 16 rows of A in the fragments that load_matrices gives.
template <int kCount>
__device__ inline void begin_product(float (&sums)[kCount], const std::uint32_t (&a)[4], Factor b, bool keep) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  multiply_held(sums, a, b, keep ? 1 : 0);
#elif !defined(__CUDACC__)
  const host::Lanes<const std::uint32_t*> lanes(&a[0]);
  struct Held {
    const std::uint32_t* lane[4];  // of the row
  } held{};
  const int lane = host::lane();
  for (int k = 0; k < 4; ++k) held.lane[k] = lanes[lane / 4 * 4 + k];
  host::begin_later([sums = &sums[0], held, b, keep, lane] {
    for (int i = 0; i < kCount; ++i) {
      if (!keep) sums[i] = 0.0F;
      for (int k = 0; k < 8; ++k) {
        sums[i] += element_of_register<float>(held.lane[k % 4][i / 2 % 2 + k / 4 * 2], 0) *
                   element_of_factor<float>(b, i / 4 * 8 + lane % 4 * 2 + i % 2, k);
      }
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

// --- copies that signal --------------------------------------------------------------------------------------------

// A barrier in shared memory that a thread and copies arrive at. Round n of it is over when the thread and the bytes
// that it announced have arrived; it is then round n + 1, and a wait for the parity of n passes.
struct alignas(8) Signal {
  std::uint64_t state;
};

// By one thread, in front of a barrier of the block.
__device__ inline void start_signal(SharedPlace signal) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n" ::"r"(signal) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
#elif !defined(__CUDACC__)
  host::start_signal(signal);
#endif
}

// Whole chunks of 16 bytes from global to shared memory, which are announced and arrive at the signal. By a whole warp,
// which chooses one of its lanes.
__device__ inline void copy_whole(SharedPlace to, const void* from, int bytes, SharedPlace signal) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{.reg .pred p;\n"
      "elect.sync _|p, 0xFFFFFFFF;\n"
      "@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%3], %2;\n"
      "@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];}\n" ::"r"(to),
      "l"(from), "r"(bytes), "r"(signal)
      : "memory");
#elif !defined(__CUDACC__)
  if (host::lane() == 0) host::copy_whole(shared_pointer<void>(to), from, bytes, signal);
#endif
}

// Until the round of this parity is over.
__device__ inline void wait_for_signal(SharedPlace signal, int parity) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{.reg .pred p;\n"
      "wait_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra wait_%=;}\n" ::"r"(signal),
      "r"(parity)
      : "memory");
#elif !defined(__CUDACC__)
  host::wait_for_signal(signal, parity);
#endif
}

}  // namespace perfonnx::cuda
