#include "cpu/isa.h"

#include <cstdlib>

#include "core/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace perfonnx {

// What the files in kernels/ define.
extern const F32Kernels kF32Baseline;
extern const F16Kernels kF16Baseline;
#if defined(__x86_64__)
extern const F32Kernels kF32Avx2;
extern const F16Kernels kF16F16c;
extern const F32Kernels kF32Avx512;
extern const F16Kernels kF16Avx512;
#endif

namespace {

constexpr const char* kVariable = "PERFONNX_ISA";

#if defined(__x86_64__)

// Asked by hand: not every compiler that has __builtin_cpu_supports knows this name.
bool has_f16c() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool has_avx2() { return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && has_f16c(); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512dq") != 0;
}

#endif

// Best first. A new instruction set is an entry here and a file in kernels/, which says how it is compiled.
constexpr KernelSet kSets[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, &kF32Avx512, &kF16Avx512},
    {"avx2", has_avx2, &kF32Avx2, &kF16F16c},
#endif
    {"baseline", [] { return true; }, &kF32Baseline, &kF16Baseline},
};

std::string names() {
  std::string list;
  for (const KernelSet& set : kSets) list += (list.empty() ? "" : ", ") + std::string(set.name);
  return list;
}

}  // namespace

const std::vector<const KernelSet*>& available_kernels() {
  static const std::vector<const KernelSet*> sets = [] {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    std::vector<const KernelSet*> found;
    for (const KernelSet& set : kSets) {
      if (set.runs_here()) found.push_back(&set);
    }
    return found;
  }();
  return sets;
}

const KernelSet& default_kernels() {
  const char* cap = std::getenv(kVariable);
  bool allowed = cap == nullptr || *cap == '\0';
  const KernelSet* best = nullptr;
  for (const KernelSet& set : kSets) {
    allowed = allowed || set.name == std::string(cap);
    if (allowed && best == nullptr && set.runs_here()) best = &set;
  }
  if (best == nullptr) {
    throw Error("environment variable " + std::string(kVariable) + "=" + cap +
                ": unknown instruction set; use one of " + names() + ", or unset it");
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
