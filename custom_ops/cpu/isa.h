// Which of the compiled instruction sets this machine runs.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels/f32.h"

namespace perfonnx {

// Kernel sets that this processor and its operating system can run, slowest first. Never empty.
const std::vector<const KernelSet*>& available_kernels();

// The fastest one, or a slower one where the environment variable PERFONNX_ISA (baseline, avx2, avx512) says so: the
// variable is a cap, it cannot ask for what the machine lacks. Throws Error for another value of the variable.
const KernelSet& default_kernels();

// By name, for tests. Throws Error for one that this machine does not run.
const KernelSet& kernels_by_name(const std::string& name);

}  // namespace perfonnx
