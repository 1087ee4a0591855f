"""The machine layer on a CPU: what `convt3d/kernels/primitives.py` is on CUDA, with the meaning of the PTX manual."""

SOURCE = r"""
// Needs the C++17 standard library. x86-64 switches stacks in a few instructions, others by ucontext.
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <vector>
#if !defined(__x86_64__) || defined(CONVT3D_UCONTEXT)
#define CONVT3D_UCONTEXT 1
#include <ucontext.h>
#endif

#define __global__ static
#define __device__
#define __host__
#define __launch_bounds__(...)

namespace convt3d {

// ---- 16-bit floating point ----------------------------------------------------------------------

struct half_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline double to_acc(double value) { return value; }
inline float to_acc(float value) { return value; }
inline float to_acc(bfloat16_t value) { return float_of(uint32_t(value.bits) << 16); }
inline float to_acc(half_t value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t magnitude = value.bits & 0x7fff;
  if (magnitude < 0x0400) return float_of(sign | bits_of(float(magnitude) * 0x1p-24f));
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | magnitude << 13);
  return float_of(sign | ((magnitude << 13) + (112u << 23)));
}

// Rounds to nearest, ties to even.
template <typename T, typename Acc>
inline T from_acc(Acc value);
template <>
inline double from_acc<double, double>(double value) {
  return value;
}
template <>
inline float from_acc<float, float>(float value) {
  return value;
}
template <>
inline bfloat16_t from_acc<bfloat16_t, float>(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t(bits >> 16 | 0x0040)};  // quiet NaN
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline half_t from_acc<half_t, float>(float value) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00 | (magnitude >> 13 & 0x1ff))};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 rounds to infinity
  if (magnitude < 0x38800000)  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24
    return {uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)))};
  return {uint16_t(sign | ((magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13))};
}

// ---- the schedule ---------------------------------------------------------------------------------

constexpr int kWarpSize = 32;

namespace emulator {

enum class Mode { kFast = 0, kHostile = 1 };
enum class State { kReady, kAtBarrier, kAtShuffle, kDone };

constexpr int kMaxThreads = 1024;
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kMaxSharedBytes = 163 << 10;  // of a block at compute capability 8.0
constexpr size_t kSharedGuardBytes = 256;
constexpr unsigned char kSharedGuard = 0xA5;

struct PendingCopy {
  void* to;
  const void* from;
  int bytes;
  bool valid;
  bool landed;
  int group;
};

struct Fiber {
#ifdef CONVT3D_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer;
#endif
  State state;
  int open_group;  // number of the group that the next commit closes
  std::vector<PendingCopy> copies;
};

// xorshift64*: schedules need to be repeatable, not good random numbers.
struct Random {
  uint64_t state;
  uint32_t below(uint32_t bound) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return uint32_t((state * 0x2545F4914F6CDD1Dull >> 32) * bound >> 32);
  }
};

struct Machine {
  Mode mode = Mode::kFast;
  Random random{1};
  Fiber fibers[kMaxThreads];
  char* stacks = nullptr;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  int threads = 0;
  int order[kMaxThreads];  // position in the schedule -> thread
  int place[kMaxThreads];  // thread -> position
  int current = 0;         // running thread
  int64_t block = 0;
  int waiting = 0;  // threads at the block's barrier
  int done = 0;
  int shuffling[kMaxThreads / kWarpSize];  // lanes of a warp at its shuffle
  int generation[kMaxThreads];             // shuffles a lane has passed: alternates two buffers
  unsigned char exchange[2][kMaxThreads][8];
  char error[256] = "";
  void (*body)(const void*) = nullptr;
  const void* params = nullptr;
#ifdef CONVT3D_UCONTEXT
  ucontext_t scheduler;
#else
  void* scheduler = nullptr;
#endif
};

// One for all: a launch holds the lock, so that threads take turns. (A machine a thread would cost an
// address look-up at every barrier.)
static Machine the_machine;
static std::mutex machine_lock;
// A fork waits for the launch that is running, else the child would wait for a lock that nobody holds.
static const int at_fork = pthread_atfork(
    [] { machine_lock.lock(); }, [] { machine_lock.unlock(); }, [] { machine_lock.unlock(); });
inline Machine& machine() { return the_machine; }

#ifdef CONVT3D_UCONTEXT
inline void switch_to(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
inline void leave(Machine& m, Fiber& from) { swapcontext(&from.context, &m.scheduler); }
inline void enter(Machine& m, Fiber& to) { swapcontext(&m.scheduler, &to.context); }
inline void prepare(Fiber& fiber, char* stack, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}
#else
extern "C" void convt3d_switch_stack(void** save, void* load);
// Saves the callee-saved registers of the System V ABI and swaps stacks.
asm(R"(
.text
.local convt3d_switch_stack
.type convt3d_switch_stack, @function
convt3d_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
inline void switch_to(Fiber& from, Fiber& to) {
  convt3d_switch_stack(&from.stack_pointer, to.stack_pointer);
}
inline void leave(Machine& m, Fiber& from) {
  convt3d_switch_stack(&from.stack_pointer, m.scheduler);
}
inline void enter(Machine& m, Fiber& to) { convt3d_switch_stack(&m.scheduler, to.stack_pointer); }
inline void prepare(Fiber& fiber, char* stack, void (*entry)()) {
  auto top = reinterpret_cast<uintptr_t>(stack + kStackBytes - 64) & ~uintptr_t(15);
  void** slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;  // the return address of an entry that never returns
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--slot = nullptr;
  fiber.stack_pointer = slot;
}
#endif

// Stops the block with an error; the caller never runs again.
[[noreturn]] inline void fail(const char* message, int count) {
  Machine& m = machine();
  std::snprintf(m.error, sizeof m.error, "emulator: %s (%d of %d threads; block %lld, thread %d)",
                message, count, m.threads, static_cast<long long>(m.block), m.current);
  leave(m, m.fibers[m.current]);
  __builtin_unreachable();
}

// Hostile: shuffles warps as wholes, or all threads, by a coin.
inline void reorder(Machine& m) {
  const int unit = m.random.below(2) ? kWarpSize : 1;
  const int units = m.threads / unit;
  int shuffled[kMaxThreads];
  for (int i = 0; i < units; ++i) shuffled[i] = i;
  for (int i = units - 1; i > 0; --i) std::swap(shuffled[i], shuffled[m.random.below(i + 1)]);
  for (int i = 0; i < m.threads; ++i) m.order[i] = shuffled[i / unit] * unit + i % unit;
  for (int i = 0; i < m.threads; ++i) m.place[m.order[i]] = i;
}

// Runs the next thread that can run; returns when this one is its turn again.
inline void yield() {
  Machine& m = machine();
  const int from = m.current;
  int at = m.place[from];
  for (int tried = 0; tried < m.threads; ++tried) {
    if (++at == m.threads) at = 0;
    const int to = m.order[at];
    if (m.fibers[to].state != State::kReady) continue;
    if (to == from) return;
    m.current = to;
    switch_to(m.fibers[from], m.fibers[to]);
    return;
  }
  if (m.done == m.threads) leave(m, m.fibers[from]);
  int shuffling = 0;
  for (int i = 0; i < m.threads; ++i) shuffling += m.fibers[i].state == State::kAtShuffle;
  if (shuffling) fail("a shuffle was reached by only part of a warp", shuffling);
  fail("a barrier was reached by only part of the block", m.waiting);
}

inline void fiber_main() {
  Machine& m = machine();
  m.body(m.params);
  machine().fibers[machine().current].state = State::kDone;
  ++machine().done;
  yield();
  __builtin_unreachable();
}

inline void land(PendingCopy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  if (copy.valid)
    std::memcpy(copy.to, copy.from, size_t(copy.bytes));
  else
    std::memset(copy.to, 0, size_t(copy.bytes));
}

inline void run_block(Machine& m) {
  if (m.mode == Mode::kHostile) std::memset(m.shared, 0xFF, m.shared_bytes);  // NaN in every type
  std::memset(m.shared + m.shared_bytes, kSharedGuard, kSharedGuardBytes);
  m.waiting = m.done = 0;
  std::fill(m.shuffling, m.shuffling + kMaxThreads / kWarpSize, 0);
  for (int i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fibers[i];
    prepare(fiber, m.stacks + size_t(i) * kStackBytes, fiber_main);
    fiber.state = State::kReady;
    fiber.open_group = 0;
    fiber.copies.clear();
    m.generation[i] = 0;
    m.order[i] = m.place[i] = i;
  }
  if (m.mode == Mode::kHostile) reorder(m);
  m.current = m.order[0];
  enter(m, m.fibers[m.current]);
  if (m.error[0]) return;
  for (int i = 0; i < m.threads; ++i)
    if (!m.fibers[i].copies.empty()) {
      std::snprintf(m.error, sizeof m.error,
                    "emulator: thread %d of block %lld left %zu asynchronous copies without a wait",
                    i, static_cast<long long>(m.block), m.fibers[i].copies.size());
      return;
    }
  for (size_t i = 0; i < kSharedGuardBytes; ++i)
    if (m.shared[m.shared_bytes + i] != kSharedGuard) {
      std::snprintf(m.error, sizeof m.error,
                    "emulator: block %lld wrote %zu bytes past the end of its shared memory",
                    static_cast<long long>(m.block), i + 1);
      return;
    }
}

inline bool allocate(Machine& m) {
  if (m.stacks) return true;
  const size_t stack_bytes = kMaxThreads * kStackBytes;
  void* stacks = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  void* shared = mmap(nullptr, kMaxSharedBytes + kSharedGuardBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stacks == MAP_FAILED || shared == MAP_FAILED) return false;
  m.stacks = static_cast<char*>(stacks);
  m.shared = static_cast<unsigned char*>(shared);
  return true;
}

}  // namespace emulator

// ---- what kernels call --------------------------------------------------------------------------

inline int thread_index() { return emulator::machine().current; }
inline int64_t block_index() { return emulator::machine().block; }
inline void* shared_memory() { return emulator::machine().shared; }

inline void barrier() {
  emulator::Machine& m = emulator::machine();
  m.fibers[m.current].state = emulator::State::kAtBarrier;
  if (++m.waiting < m.threads) {
    emulator::yield();
    return;
  }
  m.waiting = 0;
  for (int i = 0; i < m.threads; ++i) m.fibers[i].state = emulator::State::kReady;
  if (m.mode == emulator::Mode::kFast) return;
  emulator::reorder(m);
  const int from = m.current;
  m.current = m.order[0];
  if (m.current != from) emulator::switch_to(m.fibers[from], m.fibers[m.current]);
}

template <typename T>
inline T shuffle_xor(T value, int mask) {
  static_assert(sizeof(T) <= 8, "a lane exchanges at most 8 bytes");
  emulator::Machine& m = emulator::machine();
  const int thread = m.current, warp = thread / kWarpSize;
  auto& buffer = m.exchange[m.generation[thread]++ & 1];
  std::memcpy(buffer[thread], &value, sizeof value);
  m.fibers[thread].state = emulator::State::kAtShuffle;
  if (++m.shuffling[warp] < kWarpSize) {
    emulator::yield();
  } else {
    m.shuffling[warp] = 0;
    for (int i = 0; i < kWarpSize; ++i)
      m.fibers[warp * kWarpSize + i].state = emulator::State::kReady;
  }
  T other;
  std::memcpy(&other, buffer[thread ^ mask], sizeof other);
  return other;
}

template <int kBytes>
inline void async_copy(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulator::Machine& m = emulator::machine();
  if (reinterpret_cast<uintptr_t>(shared) % kBytes ||
      (valid && reinterpret_cast<uintptr_t>(global) % kBytes))
    emulator::fail("an asynchronous copy is not aligned to its size", 1);
  emulator::Fiber& fiber = m.fibers[m.current];
  fiber.copies.push_back({shared, global, kBytes, valid, false, fiber.open_group});
  // A copy may land at any time until its wait: hostile tries at once, and as late as may be.
  const bool early = m.mode == emulator::Mode::kHostile && m.random.below(2);
  if (early) emulator::land(fiber.copies.back());
}
inline void async_commit() {
  emulator::Machine& m = emulator::machine();
  ++m.fibers[m.current].open_group;
}
template <int kPending>
inline void async_wait() {
  emulator::Machine& m = emulator::machine();
  emulator::Fiber& fiber = m.fibers[m.current];
  size_t landed = 0;
  while (landed < fiber.copies.size() && fiber.copies[landed].group < fiber.open_group - kPending)
    emulator::land(fiber.copies[landed++]);
  fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + long(landed));
}

// Runs the blocks one after the other; returns null, or what went wrong. In the place of a stream
// comes the schedule: bit 0 is the mode, the bits above it the seed.
template <typename Params>
const char* launch(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes,
                   void* schedule, const Params& params) {
  const std::lock_guard<std::mutex> turn(emulator::machine_lock);
  emulator::Machine& m = emulator::machine();
  m.mode = static_cast<emulator::Mode>(reinterpret_cast<uintptr_t>(schedule) & 1);
  m.random.state = ((reinterpret_cast<uintptr_t>(schedule) >> 1) + 1) * 0x9E3779B97F4A7C15ull | 1;
  if (blocks < 1 || blocks > 0x7fffffff) return "a grid must have 1 to 2^31 - 1 blocks";
  if (threads < 1 || threads > emulator::kMaxThreads || threads % kWarpSize)
    return "emulator: a block must be whole warps, at most 1024 threads";
  if (size_t(shared_bytes) > emulator::kMaxSharedBytes) return "too much shared memory for a block";
  if (!emulator::allocate(m)) return "emulator: no memory for the stacks of a block";
  struct Call {
    void (*kernel)(Params);
    const Params* params;
  } call{kernel, &params};
  m.body = [](const void* call) {
    static_cast<const Call*>(call)->kernel(*static_cast<const Call*>(call)->params);
  };
  m.params = &call;
  m.threads = threads;
  m.shared_bytes = size_t(shared_bytes);
  m.error[0] = 0;
  // Hostile: blocks run backwards or forwards.
  const bool backwards = m.mode == emulator::Mode::kHostile && m.random.below(2);
  for (int64_t i = 0; i < blocks; ++i) {
    m.block = backwards ? blocks - 1 - i : i;
    emulator::run_block(m);
    if (m.error[0]) return m.error;
  }
  return nullptr;
}

}  // namespace convt3d
"""
