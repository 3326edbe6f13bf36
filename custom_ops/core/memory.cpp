#include "core/memory.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace perfonnx {
namespace {

constexpr std::size_t kMostKept = 256 * 1024;  // of a piece

struct Piece {
  AlignedArray<char> memory;
  bool in_use;
};
std::vector<Piece>& kept_pieces() {
  static thread_local std::vector<Piece> pieces;
  return pieces;
}

}  // namespace

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

void* KeptScratch::allocate(std::size_t bytes) {
  if (bytes > kMostKept) return elsewhere_.allocate(bytes);
  std::vector<Piece>& pieces = kept_pieces();
  const auto fits = [bytes](const Piece& piece) { return !piece.in_use && piece.memory.size() >= bytes; };
  auto found = std::find_if(pieces.begin(), pieces.end(), fits);
  if (found == pieces.end()) {
    // In place of one that is too small, so that there are never more than were in use together.
    found = std::find_if(pieces.begin(), pieces.end(), [](const Piece& piece) { return !piece.in_use; });
    AlignedArray<char> memory(bytes);
    if (found == pieces.end()) found = pieces.insert(found, Piece{});
    found->memory = std::move(memory);
  }
  found->in_use = true;
  return found->memory.data();
}

void KeptScratch::release(void* p) noexcept {
  for (Piece& piece : kept_pieces()) {
    if (piece.memory.data() != p) continue;
    piece.in_use = false;
    return;
  }
  elsewhere_.release(p);
}

}  // namespace perfonnx
