#include "cuda/host/blocks.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace perfonnx::cuda::host {
namespace {

constexpr int kLanes = 32;
constexpr std::size_t kStack = 256 * 1024;
constexpr std::size_t kAlignment = 1024;

struct Barrier {
  int expected = 0;
  int arrived = 0;
  std::uint64_t generation = 0;
};

// What a thread has begun, in groups, and does when it waits for them.
class Later {
 public:
  void begin(std::function<void()> work) { open_.push_back(std::move(work)); }
  void commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }
  void wait(int pending) {
    while (groups_.size() > static_cast<std::size_t>(pending)) {
      for (const std::function<void()>& work : groups_.front()) work();
      groups_.pop_front();
    }
  }
  bool pending() const {
    bool any = !open_.empty();
    for (const auto& group : groups_) any = any || !group.empty();
    return any;
  }
  void forget() { groups_.clear(); }

 private:
  std::vector<std::function<void()>> open_;
  std::deque<std::vector<std::function<void()>>> groups_;
};

struct Warp {
  Barrier barrier;
  unsigned char slots[2][kLanes * kLaneBytes];
};

struct Signal {
  int round = 0;
  std::function<void()> copy;  // that it waits for
};

struct Block {
  Index index;
  Barrier barrier;
  std::map<std::uintptr_t, Signal> signals;
  char* shared = nullptr;
  std::vector<Warp> warps;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* fake_stack = nullptr;
  Index index;
  Block* block = nullptr;
  const Barrier* waits_for = nullptr;
  std::uint64_t generation = 0;  // that was current when it began to wait
  std::uint64_t exchanges = 0;
  bool done = false;
  Later copies;
  Later products;
};

// One kernel runs at a time.
struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Block> blocks;  // of the cluster that runs
  Barrier cluster;
  ucontext_t scheduler;
  void* scheduler_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  std::size_t scheduler_size = 0;
  Fiber* current = nullptr;
  const std::function<void()>* thread = nullptr;
};
Machine machine;

// No exception leaves a fiber.
[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "kernel: %s\n", what);
  std::abort();
}

void before_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* bottom,
                   [[maybe_unused]] std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, bottom, size);
#endif
}
void after_switch([[maybe_unused]] void* fake, [[maybe_unused]] const void** bottom,
                  [[maybe_unused]] std::size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, bottom, size);
#endif
}

void to_scheduler() {
  Fiber& fiber = *machine.current;
  before_switch(fiber.done ? nullptr : &fiber.fake_stack, machine.scheduler_bottom, machine.scheduler_size);
  swapcontext(&fiber.context, &machine.scheduler);
  after_switch(fiber.fake_stack, &machine.scheduler_bottom, &machine.scheduler_size);
}

void to_fiber(Fiber& fiber) {
  machine.current = &fiber;
  before_switch(&machine.scheduler_stack, fiber.stack.get(), kStack);
  swapcontext(&machine.scheduler, &fiber.context);
  after_switch(machine.scheduler_stack, nullptr, nullptr);
}

void fiber_main() {
  after_switch(nullptr, &machine.scheduler_bottom, &machine.scheduler_size);
  (*machine.thread)();
  machine.current->done = true;
  to_scheduler();
}

void wait(Barrier& barrier) {
  Fiber& fiber = *machine.current;
  fiber.generation = barrier.generation;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  fiber.waits_for = &barrier;
  to_scheduler();
  fiber.waits_for = nullptr;
}

// The blocks are there; runs `each` threads of every one of them.
void run_cluster(std::size_t each) {
  const std::size_t threads = machine.blocks.size() * each;
  while (machine.fibers.size() < threads) machine.fibers.push_back(std::make_unique<Fiber>());
  machine.cluster = Barrier{static_cast<int>(threads), 0, 0};
  for (std::size_t i = 0; i < threads; ++i) {
    Fiber& fiber = *machine.fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    fiber.index.x = static_cast<unsigned>(i % each);
    fiber.block = &machine.blocks[i / each];
    fiber.done = false;
    fiber.waits_for = nullptr;
    fiber.exchanges = 0;
    ++fiber.block->warps[i % each / kLanes].barrier.expected;
  }
  // Each round from the other end: a result must not depend on who comes first.
  std::size_t left = threads;
  for (bool forward = true; left > 0; forward = !forward) {
    bool moved = false;
    for (std::size_t k = 0; k < threads; ++k) {
      Fiber& fiber = *machine.fibers[forward ? k : threads - 1 - k];
      if (fiber.done || (fiber.waits_for != nullptr && fiber.waits_for->generation == fiber.generation)) continue;
      moved = true;
      to_fiber(fiber);
      if (fiber.done) --left;
    }
    if (!moved) fail("a barrier that some threads do not reach");
  }
  for (std::size_t i = 0; i < threads; ++i) {
    Fiber& fiber = *machine.fibers[i];
    if (fiber.copies.pending() || fiber.products.pending()) fail("a thread ends before what it began");
    fiber.copies.forget();
    fiber.products.forget();
  }
}

}  // namespace

void run_blocks(std::int64_t blocks, int cluster, int threads, std::size_t shared_bytes,
                const std::function<void()>& thread) {
  static std::mutex one_machine;  // for all threads of the process
  const std::lock_guard<std::mutex> lock(one_machine);
  machine.thread = &thread;
  if (blocks % cluster != 0) fail("clusters that are not whole");
  for (std::int64_t first = 0; first < blocks; first += cluster) {
    machine.blocks.assign(static_cast<std::size_t>(cluster), Block{});
    for (Block& block : machine.blocks) {
      block.index.x = static_cast<unsigned>(first + (&block - machine.blocks.data()));
      block.barrier.expected = threads;
      block.shared = static_cast<char*>(::operator new(shared_bytes, std::align_val_t(kAlignment)));
      std::memset(block.shared, 0xFF, shared_bytes);
      block.warps.resize(static_cast<std::size_t>((threads + kLanes - 1) / kLanes));
    }
    run_cluster(static_cast<std::size_t>(threads));
    for (const Block& block : machine.blocks) ::operator delete(block.shared, std::align_val_t(kAlignment));
  }
}

const Index& thread_index() { return machine.current->index; }
const Index& block_index() { return machine.current->block->index; }
int lane() { return static_cast<int>(machine.current->index.x) % kLanes; }
char* shared_memory() { return machine.current->block->shared; }
const void* in_cluster(const void* place, int rank) {
  return machine.blocks[static_cast<std::size_t>(rank)].shared + (static_cast<const char*>(place) - shared_memory());
}

void wait_for_block() { wait(machine.current->block->barrier); }
void wait_for_cluster() { wait(machine.cluster); }

void copy_async(void* to, const void* from, bool valid) {
  constexpr std::uintptr_t kBytes = 16;
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % kBytes != 0) {
    fail("a copy between places that are not aligned");
  }
  machine.current->copies.begin([to, from, valid] {
    if (valid) {
      std::memcpy(to, from, kBytes);
    } else {
      std::memset(to, 0, kBytes);
    }
  });
}

void commit_copies() { machine.current->copies.commit(); }
void wait_copies(int pending) { machine.current->copies.wait(pending); }

void begin_later(std::function<void()> work) { machine.current->products.begin(std::move(work)); }
void commit_later() { machine.current->products.commit(); }
void wait_later(int pending) { machine.current->products.wait(pending); }

void start_signal(std::uintptr_t signal) { machine.current->block->signals[signal] = Signal{}; }

void copy_whole(void* to, const void* from, int bytes, std::uintptr_t signal) {
  constexpr std::uintptr_t kBytes = 16;
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from) |
       static_cast<std::uintptr_t>(bytes)) %
          kBytes !=
      0) {
    fail("a copy between places that are not aligned");
  }
  Signal& told = machine.current->block->signals.at(signal);
  if (told.copy) fail("a second copy for one round of a signal");
  told.copy = [to, from, bytes] { std::memcpy(to, from, static_cast<std::size_t>(bytes)); };
}

void wait_for_signal(std::uintptr_t signal, int parity) {
  Signal& own = machine.current->block->signals.at(signal);
  constexpr int kMostTurns = 100000;
  for (int turn = 0; own.round % 2 == parity; ++turn) {
    if (turn == kMostTurns) fail("a signal that does not come");
    if (!own.copy) {
      to_scheduler();
      continue;
    }
    own.copy();
    own.copy = nullptr;
    ++own.round;
  }
}

const unsigned char* exchange(const void* mine, std::size_t bytes) {
  Fiber& fiber = *machine.current;
  Warp& warp = fiber.block->warps[fiber.index.x / kLanes];
  // Two sets in turn: while one lane fills the next, others may still read this one.
  unsigned char* slots = warp.slots[fiber.exchanges++ % 2];
  std::memcpy(slots + static_cast<std::size_t>(lane()) * kLaneBytes, mine, bytes);
  wait(warp.barrier);
  return slots;
}

}  // namespace perfonnx::cuda::host
