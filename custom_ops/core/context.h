// What the engine needs from its surroundings for the time of one run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/memory.h"
#include "core/parallel.h"

namespace perfonnx {

struct Context {
  ParallelFor& parallel;
  Allocator& allocator;
};

// Scratch memory for the time of one run.
template <typename T>
class Scratch {
 public:
  Scratch(Context& context, std::size_t size)
      : allocator_(&context.allocator),
        data_(static_cast<T*>(allocator_->allocate(checked_product(size == 0 ? 1 : size, sizeof(T))))) {}
  ~Scratch() { allocator_->release(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  T& operator[](std::size_t i) noexcept { return data_[i]; }

 private:
  Allocator* allocator_;
  T* data_;
};

// Runs item(i) for every i in [0, count), many items to a task: for items too small to be tasks of their own.
template <typename Item>
void for_each_item(Context& context, std::int64_t count, const Item& item) {
  constexpr std::int64_t kTasks = 64;
  const EvenSplit split{count, count < kTasks ? count : kTasks};
  context.parallel.run(static_cast<std::size_t>(split.parts), [&](std::size_t task) {
    const auto part = static_cast<std::int64_t>(task);
    for (std::int64_t i = split.begin(part); i < split.end(part); ++i) item(i);
  });
}

// Runs item(i, inside) for every i in [0, count), each as one task: `inside` has no threads to share out among, and its
// memory is that thread's own.
template <typename Item>
void for_each_alone(Context& context, std::int64_t count, const Item& item) {
  context.parallel.run(static_cast<std::size_t>(count), [&](std::size_t task) {
    SerialFor serial;
    KeptScratch scratch(context.allocator);
    Context inside{serial, scratch};
    item(static_cast<std::int64_t>(task), inside);
  });
}

}  // namespace perfonnx
