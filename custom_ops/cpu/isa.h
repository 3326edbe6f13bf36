// Which of the compiled instruction sets this machine runs.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels/f16.h"
#include "cpu/kernels/f32.h"

namespace perfonnx {

// The kernels of one instruction set, by precision.
struct KernelSet {
  const char* name;
  bool (*runs_here)();  // whether the processor has what it needs, and the operating system saves its registers
  const F32Kernels* f32;
  const F16Kernels* f16;
};

// Those that this machine runs, best first. Never empty.
const std::vector<const KernelSet*>& available_kernels();

// The best one, or a lesser one where the environment variable PERFONNX_ISA names it: the variable is a cap, it cannot
// ask for what the machine lacks. Throws Error for a name that no instruction set has.
const KernelSet& default_kernels();

// By name, for tests. Throws Error for one that this machine does not run.
const KernelSet& kernels_by_name(const std::string& name);

}  // namespace perfonnx
