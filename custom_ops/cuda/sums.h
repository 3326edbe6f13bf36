// The sums of a product's tile, a slab of both factors at a time.
#pragma once

#include "cuda/epilogue.h"
#include "cuda/packed.h"
#include "cuda/warpgroup.h"

namespace perfonnx::cuda {

// Floats between the rows of sums in shared memory, beside the outputs: stores of fragments then meet all banks.
constexpr int kSumsPad = 8;

// A chunk of floats in shared memory becomes TF32.
__device__ inline void round_chunk(char* chunk) {
  auto* values = reinterpret_cast<Vector<std::uint32_t, 4>*>(chunk);
  Vector<std::uint32_t, 4> rounded = *values;
#pragma unroll
  for (std::uint32_t& bits : rounded.values) bits = round_tf32(bits);
  *values = rounded;
}

// Of a block of kWarpsM x kWarpsN warps, each of which has kM x kN sums, by the tensor cores.
template <typename T, int kWarpsM, int kWarpsN, int kM, int kN>
class TensorSums {
 public:
  using Type = T;
  static constexpr bool kRounds = sizeof(T) == 4;  // floats become TF32
  static constexpr int kRows = kWarpsM * kM;
  static constexpr int kOutputs = kWarpsN * kN;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;

  __device__ explicit TensorSums(int thread)
      : lane_(thread % kWarp),
        row_(thread / kWarp / kWarpsN * kM),
        output_(thread / kWarp % kWarpsN * kN),
        // The rows of fragments differ by multiples of eight: their chunks move alike.
        a_place_(place(row_ + lane_ % 16, lane_ / 16)),
        b_place_(place(output_ + lane_ % 8 + lane_ / 16 * 8, lane_ / 8 % 2)) {
#pragma unroll
    for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) sums_[i][j][k] = 0.0F;
      }
    }
  }

  __device__ void add(const char* a_slab, const char* b_slab) {
    const SharedPlace a_place = shared_place(a_slab);
    const SharedPlace b_place = shared_place(b_slab);
#pragma unroll
    for (int step = 0; step < kChunks / 2; ++step) {
      std::uint32_t a[kM / 16][4];
      std::uint32_t b[kN / 8][2];
#pragma unroll
      for (int i = 0; i < kM / 16; ++i) {
        load_matrices(a[i], a_place + i * 16 * kSlab + (a_place_ ^ (step * 2 * kChunk)));
      }
#pragma unroll
      for (int j = 0; j < kN / 16; ++j) {
        std::uint32_t two[4];
        load_matrices(two, b_place + j * 16 * kSlab + (b_place_ ^ (step * 2 * kChunk)));
        b[2 * j][0] = two[0];
        b[2 * j][1] = two[1];
        b[2 * j + 1][0] = two[2];
        b[2 * j + 1][1] = two[3];
      }
#pragma unroll
      for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) multiply_matrices<T>(sums_[i][j], a[i], b[j]);
      }
    }
  }

  // sums [kRows][kOutputs + kSumsPad]
  __device__ void store(float* sums) const {
#pragma unroll
    for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float* to =
              sums + (row_ + i * 16 + half * 8 + lane_ / 4) * (kOutputs + kSumsPad) + output_ + j * 8 + 2 * (lane_ % 4);
          *reinterpret_cast<Vector<float, 2>*>(to) = {{sums_[i][j][2 * half], sums_[i][j][2 * half + 1]}};
        }
      }
    }
  }

 private:
  int lane_;
  int row_;
  int output_;
  int a_place_;
  int b_place_;
  float sums_[kM / 16][kN / 8][4];
};

// Of a block of kGroups warpgroups, each of which has 64 x kN sums, by products that go on while slabs are brought:
// those of kMostPending slabs when those of the next are begun.
template <typename T, int kGroups, int kN, int kMostPending>
class WarpgroupSums {
 public:
  using Type = T;
  // Floats become TF32 in registers: shared memory has no time to spare for what is read from and written to it.
  static constexpr bool kHolds = sizeof(T) == 4;
  static constexpr int kPending = kMostPending;
  static constexpr int kRows = kGroups * 64;
  static constexpr int kOutputs = kN;
  static constexpr int kThreads = kGroups * kWarpgroup;

  // The first products define the sums.
  __device__ explicit WarpgroupSums(int thread)
      : first_row_(__shfl_sync(0xFFFFFFFFU, thread / kWarpgroup, 0) * 64),
        own_place_(place(thread / kWarp * 16 + thread % 16, thread % kWarp / 16)) {}

  // Begins the products of a slab. kSet: of those of registers, of which each slab that is pending has one.
  template <int kSet>
  __device__ void begin(SharedPlace a_place, Factor a_slab, Factor b_slab, bool first) {
    static_assert(kSet <= kPending);
    if constexpr (kHolds) {
      const SharedPlace rows = a_place + static_cast<std::uint32_t>(own_place_);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) load_matrices(held_[kSet][step], rows ^ (step * 2 * kChunk));
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (std::uint32_t& bits : held_[kSet][step]) bits = round_tf32(bits);
      }
    }
    const Factor a = a_slab + static_cast<std::uint32_t>(first_row_ * (kSlab / kChunk));
    arrive_for_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if constexpr (kHolds) {
        begin_product(sums_, held_[kSet][step], b_slab + step * 2, !first || step > 0);
      } else {
        begin_product<T>(sums_, a + step * 2, b_slab + step * 2, !first || step > 0);
      }
    }
    commit_products();
  }

  // sums [kRows][kOutputs + kSumsPad]
  __device__ void store(float* sums) const {
    const auto thread = static_cast<int>(threadIdx.x);
    const int lane = thread % kWarp;
    const int row = thread / kWarp * 16 + lane / 4;
#pragma unroll
    for (int k = 0; k < kN / 2; k += 2) {
      float* to = sums + (row + k / 2 % 2 * 8) * (kOutputs + kSumsPad) + k / 4 * 8 + 2 * (lane % 4);
      *reinterpret_cast<Vector<float, 2>*>(to) = {{sums_[k], sums_[k + 1]}};
    }
  }

 private:
  static constexpr int kSteps = kChunks / 2;  // each of 32 bytes of the factors
  int first_row_;                             // of the warpgroup
  int own_place_;                             // of the chunk that the thread gives load_matrices
  std::uint32_t held_[kPending + 1][kSteps][4];
  float sums_[kN / 2];
};

// By plain multiply-adds of floats: kM x kN sums a thread, 8 x 4 threads a warp, whose rows and outputs alternate.
template <int kWarpsM, int kWarpsN, int kM, int kN>
class PlainSums {
 public:
  using Type = float;
  static constexpr bool kRounds = false;
  static constexpr int kRows = kWarpsM * 8 * kM;
  static constexpr int kOutputs = kWarpsN * 4 * kN;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;

  __device__ explicit PlainSums(int thread)
      : row_(thread / kWarp / kWarpsN * 8 + thread % kWarp / 4), output_(thread / kWarp % kWarpsN * 4 + thread % 4) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) sums_[i][j] = 0.0F;
    }
  }

  __device__ void add(const char* a_slab, const char* b_slab) {
#pragma unroll 2
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      Vector<float, 4> a[kM];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        a[i] = *reinterpret_cast<const Vector<float, 4>*>(a_slab + place(row_ + i * 8 * kWarpsM, chunk));
      }
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const auto b = *reinterpret_cast<const Vector<float, 4>*>(b_slab + place(output_ + j * 4 * kWarpsN, chunk));
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int i = 0; i < kM; ++i) sums_[i][j] += a[i].values[k] * b.values[k];
        }
      }
    }
  }

  __device__ void store(float* sums) const {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        sums[(row_ + i * 8 * kWarpsM) * (kOutputs + kSumsPad) + output_ + j * 4 * kWarpsN] = sums_[i][j];
      }
    }
  }

 private:
  int row_;
  int output_;
  float sums_[kM][kN];
};

}  // namespace perfonnx::cuda
