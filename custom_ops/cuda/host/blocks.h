// Kernels on the host, for tests: the clusters of a grid one after the other, the threads of a block as fibers that
// take turns at barriers. A copy that is asynchronous on the device is made as late as it may be, when it is waited
// for, and shared memory starts as NaN: what is read too early shows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace perfonnx::cuda::host {

struct Index {
  unsigned x = 0;
};

// Runs thread() for every thread of every block; `cluster` blocks at a time, which see each other's shared memory.
void run_blocks(std::int64_t blocks, int cluster, int threads, std::size_t shared_bytes,
                const std::function<void()>& thread);

// Of the thread that runs:
const Index& thread_index();
const Index& block_index();
int lane();
char* shared_memory();

// Of another block of the cluster, the place that corresponds to one in the block's own shared memory.
const void* in_cluster(const void* place, int rank);

void wait_for_block();
void wait_for_cluster();
void copy_async(void* to, const void* from, bool valid);
void commit_copies();
void wait_copies(int pending);
// Other work that is done when it is waited for.
void begin_later(std::function<void()> work);
void commit_later();
void wait_later(int pending);
// Signals: see warpgroup.h. What copies bring is there when somebody waits for it.
void start_signal(std::uintptr_t signal);
void copy_whole(void* to, const void* from, int bytes, std::uintptr_t signal);
void wait_for_signal(std::uintptr_t signal, int parity);

// Memory that a warp's lanes exchange values through: `mine` becomes that of the calling lane.
const unsigned char* exchange(const void* mine, std::size_t bytes);
inline constexpr std::size_t kLaneBytes = 32;

// What every lane of the warp has; all of them must take part.
template <typename T>
class Lanes {
 public:
  explicit Lanes(const T& mine) : values_(exchange(&mine, sizeof mine)) { static_assert(sizeof(T) <= kLaneBytes); }
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, values_ + static_cast<std::size_t>(lane) * kLaneBytes, sizeof value);
    return value;
  }

 private:
  const unsigned char* values_;
};

}  // namespace perfonnx::cuda::host

// What CUDA C++ has built in.
#define threadIdx (perfonnx::cuda::host::thread_index())
#define blockIdx (perfonnx::cuda::host::block_index())

inline void __syncthreads() { perfonnx::cuda::host::wait_for_block(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const perfonnx::cuda::host::Lanes<T> lanes(value);
  return lanes[perfonnx::cuda::host::lane() ^ mask];
}

template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  const perfonnx::cuda::host::Lanes<T> lanes(value);
  return lanes[from];
}

inline unsigned __ballot_sync(unsigned, bool value) {
  const perfonnx::cuda::host::Lanes<bool> lanes(value);
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (lanes[i] ? 1U : 0U) << i;
  return result;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <typename T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}
