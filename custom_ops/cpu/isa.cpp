#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#include "core/common.h"

namespace perfonnx {
namespace {

constexpr const char* kVariable = "PERFONNX_ISA";
constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

int level(const char* name) {
  for (int i = 0; i < 3; ++i) {
    if (std::strcmp(name, kNames[i]) == 0) return i;
  }
  return -1;
}

std::vector<const KernelSet*> detect() {
  std::vector<const KernelSet*> sets{&kKernelsBaseline};
#if defined(__x86_64__)
  __builtin_cpu_init();  // asks the operating system too whether it saves the registers
  if (__builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0) {
    sets.push_back(&kKernelsAvx2);
    if (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
        __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512dq") != 0) {
      sets.push_back(&kKernelsAvx512);
    }
  }
#endif
  return sets;
}

}  // namespace

const std::vector<const KernelSet*>& available_kernels() {
  static const std::vector<const KernelSet*> sets = detect();
  return sets;
}

const KernelSet& default_kernels() {
  const char* cap = std::getenv(kVariable);
  int most = 2;
  if (cap != nullptr && *cap != '\0') {
    most = level(cap);
    if (most < 0) {
      throw Error("environment variable " + std::string(kVariable) + "=" + cap +
                  ": unknown instruction set; use baseline, avx2 or avx512, or unset it");
    }
  }
  const KernelSet* best = available_kernels().front();
  for (const KernelSet* set : available_kernels()) {
    if (level(set->name) <= most) best = set;
  }
  return *best;
}

const KernelSet& kernels_by_name(const std::string& name) {
  for (const KernelSet* set : available_kernels()) {
    if (name == set->name) return *set;
  }
  throw Error("instruction set '" + name + "' is not available on this machine");
}

}  // namespace perfonnx
