#include "core/memory.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace perfonnx {

void* allocate_aligned(std::size_t bytes) {
  constexpr std::size_t kHugePage = 2 * 1024 * 1024;
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  if (bytes > SIZE_MAX - alignment) throw std::bad_alloc();
  const std::size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* data = nullptr;
  if (posix_memalign(&data, alignment, size) != 0) throw std::bad_alloc();
#if defined(__linux__)
  // A wish: where it is not granted, pages are small. What is left of the last huge page stays in small ones.
  if (bytes >= kHugePage) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return data;
}

}  // namespace perfonnx
