// Memory of the device: of a kernel, and of one run.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/memory.h"
#include "cuda/launch.h"

namespace perfonnx::cuda {

// Throws std::runtime_error for a status other than 0.
inline void check(int status) {
  if (status != 0) throw std::runtime_error("CUDA: " + std::string(perfonnx_cuda_error_text(status)));
}

// What lives as long as a kernel comes from here: memory of the device, 256-byte aligned.
using Memory = std::shared_ptr<Allocator>;

// Bytes of the device that live as long as a kernel, or as what it keeps of an input size.
class DeviceBytes {
 public:
  DeviceBytes() = default;
  // Not initialised. No bytes are no memory.
  DeviceBytes(Memory memory, std::size_t bytes)
      : memory_(std::move(memory)), data_(bytes == 0 ? nullptr : memory_->allocate(bytes)) {}
  // A copy of the host's, in the order of the stream.
  DeviceBytes(Memory memory, const void* from, std::size_t bytes, void* stream)
      : DeviceBytes(std::move(memory), bytes) {
    if (bytes > 0) check(perfonnx_cuda_upload(data_, from, bytes, stream));
  }
  DeviceBytes(DeviceBytes&& other) noexcept
      : memory_(std::move(other.memory_)), data_(std::exchange(other.data_, nullptr)) {}
  DeviceBytes& operator=(DeviceBytes&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    return *this;
  }
  // Whatever runs on the device may still read it.
  ~DeviceBytes() {
    if (data_ == nullptr) return;
    perfonnx_cuda_wait_for_device();
    memory_->release(data_);
  }
  void* data() const noexcept { return data_; }

 private:
  Memory memory_;
  void* data_ = nullptr;
};

// A table, or null where it is empty.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(const Memory& memory, const T* from, std::size_t count, void* stream)
      : bytes_(memory, from, from == nullptr ? 0 : checked_product(count, sizeof(T)), stream) {}
  template <typename Array>
  DeviceArray(const Memory& memory, const Array& from, void* stream)
      : DeviceArray(memory, from.data(), from.size(), stream) {}
  const T* data() const noexcept { return static_cast<const T*>(bytes_.data()); }

 private:
  DeviceBytes bytes_;
};

// What a run has: onnxruntime's stream, how it wants products made, and memory for the time of the run in the stream's
// order.
struct Run {
  void* stream;
  Math math;
  Allocator& scratch;
};

class Scratch {
 public:
  Scratch(const Run& run, std::size_t bytes)
      : allocator_(run.scratch), data_(bytes == 0 ? nullptr : allocator_.allocate(bytes)) {}
  ~Scratch() {
    if (data_ != nullptr) allocator_.release(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const noexcept { return data_; }

 private:
  Allocator& allocator_;
  void* data_;
};

}  // namespace perfonnx::cuda
