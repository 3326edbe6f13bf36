// How the weights of a product are packed.
#pragma once

#include "cuda/device.h"

namespace perfonnx::cuda {

// The factors of a sum, ordered by tap and then by channel, come in slabs of so many bytes: [groups][slabs][outputs of
// a group][kSlab], zeros behind the last.
inline constexpr int kSlab = 128;
inline constexpr int kChunk = 16;
inline constexpr int kChunks = kSlab / kChunk;

// Where chunk `chunk` of row `row` of a slab lies, in shared memory and in packed weights: eight rows' chunks lie in
// different banks.
__host__ __device__ constexpr int place(int row, int chunk) {
  return row * kSlab + ((chunk ^ (row % kChunks)) * kChunk);
}

// One input for each output: these are packed [taps][outputs] in floats.
constexpr bool is_depthwise(std::int64_t inputs, std::int64_t groups) { return inputs == 1 && groups > 1; }

}  // namespace perfonnx::cuda
