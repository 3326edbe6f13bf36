#include "core/memory.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace perfonnx {

void* allocate_aligned(std::size_t bytes) {
  void* const data = ::operator new(bytes, std::align_val_t(kAlignment));
#if defined(__linux__)
  constexpr std::uintptr_t kHugePage = 2 * 1024 * 1024;
  const auto first = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (first + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t end = (first + bytes) / kHugePage * kHugePage;
  // A wish: where it is not granted, pages are small.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return data;
}

}  // namespace perfonnx
