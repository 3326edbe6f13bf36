// Loops whose items may run at the same time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace perfonnx {

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Splits [0, total) evenly into parts; the first sizes are the larger ones by one.
struct EvenSplit {
  std::int64_t total;
  std::int64_t parts;
  std::int64_t begin(std::int64_t i) const noexcept {
    return i * (total / parts) + (i < total % parts ? i : total % parts);
  }
  std::int64_t end(std::int64_t i) const noexcept { return begin(i + 1); }
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

}  // namespace perfonnx
