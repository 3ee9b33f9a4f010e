// A GPU for tests: every thread of a cluster of blocks is a fiber on one CPU thread, switched only
// inside the emulated instructions. Warps run in a random order (of a given seed), so that a
// missing barrier shows; when no fiber can go on, the run ends with "deadlock". Bulk copies arrive
// at random times.
#pragma once

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace diinn {

class Machine {
 public:
  struct Copy {
    void* to;
    const void* from;
  };
  struct Products {  // wgmma under way
    struct Watched {
      const void* from;
      std::vector<char> bytes;
    };
    float* d = nullptr;
    float sums[64];
    bool fenced = false, committed = false;
    std::vector<Watched> seen;
    void watch(const void* from, size_t count) {
      const char* bytes = static_cast<const char*>(from);
      seen.push_back({from, std::vector<char>(bytes, bytes + count)});
    }
  };
  struct Fiber {
    int thread, rank;  // in its block; of its block in the cluster
    bool started = false, done = false;
    std::vector<std::vector<Copy>> copies{
        1};  // cp.async groups under way; the last one is not committed
    Products products;
    ucontext_t context;
    jmp_buf place;
    char* stack;
  };
  struct Meeting {  // of the threads of a warp, a warpgroup, a block or a cluster
    int arrived = 0;
    uint64_t round = 0;
    void* slot[128];
  };
  struct Block {
    char* shared;
    Meeting everyone, named[16];
    std::vector<Meeting> warps, groups;
  };
  static constexpr size_t kStack = 128 << 10;

  // Runs `kernel` on blocks * threads threads, cluster after cluster; returns what went wrong, or
  // an empty string.
  std::string run(int blocks, int threads, int cluster, size_t shared_bytes, uint64_t seed,
                  const std::function<void(char* shared)>& kernel) {
    blocks_ = blocks, threads_ = threads, cluster_ = cluster, random_ = seed * 2 + 1;
    shared_bytes_ = shared_bytes;
    kernel_ = &kernel;
    error_.clear();
    current_machine() = this;
    std::unique_ptr<char[]> stacks(new char[kStack * threads * cluster]);
    for (int first = 0; first < blocks && error_.empty(); first += cluster) {
      first_block_ = first;
      std::unique_ptr<char[]> memory(new char[shared_bytes * cluster + 1024]);
      char* aligned =
          memory.get() + (1024 - reinterpret_cast<uintptr_t>(memory.get()) % 1024) % 1024;
      memset(aligned, 0xFF, shared_bytes * cluster);  // NaN in every type
      block.assign(cluster, Block());
      for (int r = 0; r < cluster; ++r) {
        block[r].shared = aligned + r * shared_bytes;
        block[r].warps.resize(threads / 32);
        block[r].groups.resize((threads + 127) / 128);
      }
      everywhere = Meeting();
      ended_.assign(cluster, 0);
      fibers_.assign(threads * cluster, Fiber());
      for (int i = 0; i < threads * cluster; ++i) {
        fibers_[i].thread = i % threads, fibers_[i].rank = i / threads;
        fibers_[i].stack = stacks.get() + kStack * i;
      }
      schedule();
      if (error_.empty() && !events_.empty())
        error_ = "a block ended while copies into it were under way";
      for (const Block& one : block) {
        for (const Meeting& barrier : one.named) {
          if (error_.empty() && barrier.arrived)
            error_ = "a block ended with threads counted at a named barrier";
        }
      }
      events_.clear();
    }
    current_machine() = nullptr;
    return error_;
  }

  static Machine*& current_machine() {
    static Machine* machine = nullptr;
    return machine;
  }

  Fiber& fiber() { return *now_; }
  Block& own_block() { return block[now_->rank]; }
  int block_index() const { return first_block_ + now_->rank; }
  int block_count() const { return blocks_; }
  int threads() const { return threads_; }
  int cluster() const { return cluster_; }
  size_t shared_bytes() const { return shared_bytes_; }
  const char* error() const { return error_.c_str(); }

  void yield() {
    if (_setjmp(now_->place) == 0) _longjmp(scheduler_, 1);
  }
  // Now and then a thread is slow to go on after a signal, so that others act on it first.
  void dawdle() {
    for (uint32_t rounds = draw(4) == 0 ? draw(40) : 0; rounds > 0; --rounds) {
      ++progress_;
      yield();
    }
  }
  template <class Condition>
  void wait_until(Condition condition) {
    while (!condition()) yield();
    ++progress_;
  }
  [[noreturn]] void fail(const std::string& text) {
    error_ = text + " (block " + std::to_string(block_index()) + ", thread " +
             std::to_string(now_->thread) + ")";
    _longjmp(scheduler_, 1);
  }
  // The last of `count` to arrive calls work(meeting); all go on afterwards.
  template <class Work>
  void meet(Meeting& meeting, int count, int place, void* contribution, Work work) {
    if (place < 128) meeting.slot[place] = contribution;
    const uint64_t round = meeting.round;
    if (++meeting.arrived == count) {
      work(meeting);
      meeting.arrived = 0;
      ++meeting.round;
      ++progress_;
    } else {
      wait_until([&] { return meeting.round != round; });
    }
  }
  void moved() { ++progress_; }
  bool ended(int rank) const { return ended_[rank] == threads_; }
  void later(std::function<void()> happen) { events_.push_back(std::move(happen)); }
  uint32_t draw(uint32_t below) {
    random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>((random_ >> 33) % below);
  }

  std::vector<Block> block;
  Meeting everywhere;  // of the whole cluster

 private:
  static void enter() {
    Machine* machine = current_machine();
    (*machine->kernel_)(machine->own_block().shared);
    if (machine->now_->copies.size() > 1)
      machine->fail("a thread ended while its copies were under way");
    machine->now_->done = true;
    ++machine->ended_[machine->now_->rank];
    ++machine->progress_;
    _longjmp(machine->scheduler_, 1);
  }

  void resume(Fiber& fiber) {
    now_ = &fiber;
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    setcontext(&fiber.context);
  }

  void schedule() {
    const int warps = threads_ * cluster_ / 32;
    std::vector<int> order(warps);
    for (int i = 0; i < warps; ++i) order[i] = i;
    for (int idle = 0;;) {
      const uint64_t before = progress_;
      bool alive = false;
      for (int i = warps - 1; i > 0; --i) std::swap(order[i], order[draw(i + 1)]);
      for (int w : order) {
        if (idle == 0 && draw(4) == 0) continue;  // a slow warp
        for (int lane = 0; lane < 32; ++lane) {
          Fiber& fiber = fibers_[w * 32 + lane];
          if (!fiber.done) resume(fiber);
          if (!error_.empty()) return;
        }
      }
      for (Fiber& fiber : fibers_) alive = alive || !fiber.done;
      if (!alive) return;
      for (size_t i = 0; i < events_.size();) {
        if (draw(3) == 0 || idle > 0) {
          const std::function<void()> happen = std::move(events_[i]);
          events_.erase(events_.begin() + i);
          happen();
          ++progress_;
          if (!error_.empty()) return;
        } else {
          ++i;
        }
      }
      idle = progress_ == before ? idle + 1 : 0;
      if (idle > 4) {
        error_ = "deadlock:";
        for (Fiber& fiber : fibers_) {
          if (!fiber.done && fiber.thread % 32 == 0) {
            error_ += " block " + std::to_string(first_block_ + fiber.rank) + " warp " +
                      std::to_string(fiber.thread / 32) + " waits;";
          }
        }
        return;
      }
    }
  }

  int blocks_ = 0, threads_ = 0, cluster_ = 1, first_block_ = 0;
  size_t shared_bytes_ = 0;
  uint64_t random_ = 1, progress_ = 0;
  const std::function<void(char*)>* kernel_ = nullptr;
  std::string error_;
  std::vector<int> ended_;  // threads, per block
  std::vector<Fiber> fibers_;
  std::vector<std::function<void()>> events_;  // copies on their way
  Fiber* now_ = nullptr;
  jmp_buf scheduler_;
};

}  // namespace diinn
