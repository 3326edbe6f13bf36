// How the weights of a product are packed.
#pragma once

#include <cstdint>

namespace perfonnx::cuda {

// The factors of a sum, tap by tap, in slabs of so many bytes: [groups][slabs][outputs of a group][kSlab].
inline constexpr int kSlab = 128;

// One input for each output: these are packed [taps][outputs] in floats.
constexpr bool is_depthwise(std::int64_t inputs, std::int64_t groups) { return inputs == 1 && groups > 1; }

}  // namespace perfonnx::cuda
