// Small things that every part of the engine uses: memory, parallel loops, activation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace perfonnx {

// What is wrong with a model's constants or with a tensor at run time, in one line. The glue adds the node's name.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

inline constexpr std::size_t kAlignment = 64;

// a * b, or std::bad_alloc where that is no size any memory has.
inline std::size_t checked_product(std::size_t a, std::size_t b) {
  std::size_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) throw std::bad_alloc();
  return result;
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct AlignedDelete {
  void operator()(void* p) const noexcept { ::operator delete(p, std::align_val_t(kAlignment)); }
};

// Memory that lives as long as a kernel: 64-byte aligned, not initialised.
template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(std::size_t size)
      : data_(static_cast<T*>(
            ::operator new(checked_product(size == 0 ? 1 : size, sizeof(T)), std::align_val_t(kAlignment)))),
        size_(size) {}
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
  void* allocate(std::size_t bytes) override { return ::operator new(bytes, std::align_val_t(kAlignment)); }
  void release(void* p) noexcept override { AlignedDelete{}(p); }
};

// Runs task(i) for every i in [0, count), in any order and on any thread, and returns when all are done. A task that
// throws does not stop the others; the first exception is rethrown by the caller of run.
class ParallelFor {
 public:
  virtual ~ParallelFor() = default;
  virtual void run(std::size_t count, const std::function<void(std::size_t)>& task) = 0;
};

class SerialFor final : public ParallelFor {
 public:
  void run(std::size_t count, const std::function<void(std::size_t)>& task) override {
    for (std::size_t i = 0; i < count; ++i) task(i);
  }
};

// So many equal tasks keep a pool of threads busy to the end. An operator is not told how many threads onnxruntime has;
// they are as many as the processors that the process may use, unless somebody asked for fewer.
inline std::int64_t wanted_tasks() {
  static const std::int64_t tasks = [] {
#if defined(__linux__)
    cpu_set_t usable;
    if (sched_getaffinity(0, sizeof(usable), &usable) == 0) return std::max<std::int64_t>(CPU_COUNT(&usable), 1);
#endif
    return std::max<std::int64_t>(std::thread::hardware_concurrency(), 1);
  }();
  return tasks;
}

// What the engine needs from its surroundings for the time of one run.
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

// act(v) = min(max(v < 0 ? negative_slope * slope * v : v, clip_min), clip_max). NaN stays NaN. With a slope of zero a
// negative infinity becomes zero, as in Relu.
struct Activation {
  float negative_slope = 1.0F;
  float clip_min = -std::numeric_limits<float>::max();
  float clip_max = std::numeric_limits<float>::max();
  std::vector<float> slopes;  // one for each output channel, which negative_slope multiplies; empty: all 1

  // As the kernels take it, negative_slope multiplied into the slopes. The largest finite bounds stand for no bound: an
  // infinity passes, as it would without this operator.
  Activation opened() const {
    constexpr float kLargest = std::numeric_limits<float>::max();
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    Activation result{
        negative_slope, clip_min <= -kLargest ? -kInfinity : clip_min, clip_max >= kLargest ? kInfinity : clip_max, {}};
    if (std::any_of(slopes.begin(), slopes.end(), [](float slope) { return slope != 1.0F; })) {
      result.slopes = slopes;
      for (float& slope : result.slopes) slope *= negative_slope;
      result.negative_slope = 1.0F;
    }
    return result;
  }
  bool is_identity() const {
    const Activation open = opened();
    return open.slopes.empty() && open.negative_slope == 1.0F &&
           open.clip_min == -std::numeric_limits<float>::infinity() &&
           open.clip_max == std::numeric_limits<float>::infinity();
  }
  const float* slopes_or_null() const noexcept { return slopes.empty() ? nullptr : slopes.data(); }
  // Of an opened activation.
  float operator()(float v, std::int64_t channel) const noexcept {
    const float slope = slopes.empty() ? negative_slope : slopes[static_cast<std::size_t>(channel)];
    if (v < 0.0F) v = slope == 0.0F ? 0.0F : v * slope;
    v = v < clip_min ? clip_min : v;
    return v > clip_max ? clip_max : v;
  }
};

// Splits [0, total) evenly into parts; the first sizes are the larger ones by one.
struct EvenSplit {
  std::int64_t total;
  std::int64_t parts;
  std::int64_t begin(std::int64_t i) const noexcept {
    return i * (total / parts) + (i < total % parts ? i : total % parts);
  }
  std::int64_t end(std::int64_t i) const noexcept { return begin(i + 1); }
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

}  // namespace perfonnx
