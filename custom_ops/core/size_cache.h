// What a kernel makes when an input size is first seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace perfonnx {

// Safe to use from several threads.
template <typename T>
class SizeCache {
 public:
  // What make() gave for this size, the first time or again.
  template <typename Make>
  std::shared_ptr<const T> get(std::int64_t height, std::int64_t width, const Make& make) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Entry& entry : entries_) {
      if (entry.height == height && entry.width == width) return entry.made;
    }
    auto made = std::make_shared<const T>(make());
    if (entries_.size() >= kMost) entries_.erase(entries_.begin());
    entries_.push_back(Entry{height, width, made});
    return made;
  }

 private:
  // A session whose images change size keeps this many; more would be a leak in all but name.
  static constexpr std::size_t kMost = 16;
  struct Entry {
    std::int64_t height;
    std::int64_t width;
    std::shared_ptr<const T> made;
  };
  mutable std::mutex mutex_;
  mutable std::vector<Entry> entries_;
};

}  // namespace perfonnx
