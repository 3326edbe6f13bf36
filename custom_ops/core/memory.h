// Memory: of a kernel, and of one run.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace perfonnx {

inline constexpr std::size_t kAlignment = 64;

// a * b, or std::bad_alloc where that is no size any memory has.
inline std::size_t checked_product(std::size_t a, std::size_t b) {
  std::size_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) throw std::bad_alloc();
  return result;
}

// At least `bytes`, 64-byte aligned, to be freed by AlignedDelete. Much memory lies in huge pages where these are
// granted: reading packed weights once from end to end would miss the translation of every small one, and small ones
// lie anywhere, so that some sets of a cache are asked for more than others.
void* allocate_aligned(std::size_t bytes);

struct AlignedDelete {
  void operator()(void* p) const noexcept { std::free(p); }
};

// Memory that lives as long as a kernel: 64-byte aligned, not initialised.
template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(std::size_t size)
      : data_(static_cast<T*>(allocate_aligned(checked_product(size == 0 ? 1 : size, sizeof(T))))), size_(size) {}
  T* data() noexcept { return data_.get(); }
  const T* data() const noexcept { return data_.get(); }
  std::size_t size() const noexcept { return size_; }
  T& operator[](std::size_t i) noexcept { return data_.get()[i]; }
  const T& operator[](std::size_t i) const noexcept { return data_.get()[i]; }

 private:
  std::unique_ptr<T, AlignedDelete> data_;
  std::size_t size_ = 0;
};

// Where the scratch memory of one run comes from. Must return 64-byte aligned memory or throw std::bad_alloc.
class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* p) noexcept = 0;
};

class HeapAllocator final : public Allocator {
 public:
  void* allocate(std::size_t bytes) override { return allocate_aligned(bytes); }
  void release(void* p) noexcept override { AlignedDelete{}(p); }
};

// Scratch memory that a thread keeps from one task to the next, so that it stays in the caches near its processor,
// where memory that goes from hand to hand would come from another's. What is large comes from elsewhere.
class KeptScratch final : public Allocator {
 public:
  explicit KeptScratch(Allocator& elsewhere) : elsewhere_(elsewhere) {}
  void* allocate(std::size_t bytes) override;
  void release(void* p) noexcept override;

 private:
  Allocator& elsewhere_;
};

}  // namespace perfonnx
