"""The machine layer on a CPU: what `convt3d/kernels/primitives.py` is on CUDA, with the meaning of the PTX manual."""

SOURCE = r"""
// Needs watch.py. x86-64 switches stacks in a few instructions, others by ucontext.
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
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

template <typename scalar_t>
inline uint32_t round_pair(float first, float second) {
  return from_acc<scalar_t>(first).bits | uint32_t(from_acc<scalar_t>(second).bits) << 16;
}

// ---- the schedule ---------------------------------------------------------------------------------

constexpr int kWarpSize = 32;

namespace emulator {

enum class Mode { kFast = 0, kHostile = 1 };
enum class State { kReady, kAtBarrier, kAtShuffle, kAtSignal, kDone };

constexpr int kMaxThreads = 1024;
constexpr size_t kStackBytes = watch::kStackBytes;
constexpr int kMaxCopies = 256;                // of a thread that have not been waited for
constexpr int kMaxProducts = 256;              // of a warpgroup, likewise
constexpr size_t kMaxSharedBytes = 163 << 10;  // of a block at compute capability 8.0
constexpr size_t kSharedGuardBytes = 256;      // before and behind it
constexpr size_t kMappedBytes = kMaxSharedBytes + 2 * kSharedGuardBytes;
constexpr unsigned char kSharedGuard = 0xA5;

struct PendingCopy {
  void* to;
  const void* from;
  int bytes;
  bool valid;
  bool landed;
  int group;
};

// A thread's share of a warpgroup's product.
struct PendingProduct {
  void (*land)(float* sum, uint64_t a, uint64_t b);
  float* sum;
  uint64_t a, b;
  int group;
};

#ifdef CONVT3D_UCONTEXT
using Stack = ucontext_t;
#else
using Stack = void*;  // where it is left
#endif

struct Fiber {
  Stack stack;
  watch::Context* context;
  State state;
  int open_group;      // number of the group that the next commit closes
  int copies;          // that have not been waited for
  int product_group;   // as open_group, of the warpgroup's products
  int products;        // that have not landed
  const void* signal;  // that it waits for
};

// What a signal's 8 bytes hold.
struct Signal {
  uint16_t arrivals, pending;
  uint32_t round;
};

// xorshift64*: schedules need to be repeatable, not good random numbers.
struct Random {
  uint64_t state;
  CONVT3D_UNSEEN uint32_t below(uint32_t bound) {
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
  watch::Context contexts[kMaxThreads];  // each with a stack of its own
  watch::Context caller;                 // of the launch
  char* stacks = nullptr;
  unsigned char* mapped = nullptr;  // guard, shared memory, guard
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  int threads = 0;
  int order[kMaxThreads];  // position in the schedule -> thread
  int place[kMaxThreads];  // thread -> position
  int current = 0;         // running thread
  int64_t block = 0;
  int waiting = 0;   // threads at the block's barrier
  int barriers = 0;  // that the block has passed
  int done = 0;
  int shuffling[kMaxThreads / kWarpSize];  // lanes of a warp at its shuffle
  int generation[kMaxThreads];             // shuffles a lane has passed: alternates two buffers
  unsigned char exchange[2][kMaxThreads][8];
  const void* rows[2][kMaxThreads];      // of load_matrices
  uint32_t operands[2][kMaxThreads][6];  // of multiply_add
  float products[2][kMaxThreads][4];
  int64_t launch_start = 0, launch_end = 0;  // edges for watch::release and acquire
  char error[256] = "";
  void (*body)(const void*) = nullptr;
  const void* params = nullptr;
  Stack scheduler{};
};

// One for all: a launch holds the lock, so that threads take turns. (A machine a thread would cost an
// address look-up at every barrier.)
static Machine the_machine;
static PendingCopy pending_copies[kMaxThreads][kMaxCopies];  // by thread, in order of issue
static PendingProduct pending_products[kMaxThreads][kMaxProducts];
static std::mutex machine_lock;
// A fork waits for the launch that is running, else the child would wait for a lock that nobody holds.
static const int at_fork = pthread_atfork(
    [] { machine_lock.lock(); }, [] { machine_lock.unlock(); }, [] { machine_lock.unlock(); });
inline CONVT3D_UNSEEN Machine& machine() { return the_machine; }

#ifdef CONVT3D_UCONTEXT
inline CONVT3D_UNSEEN void swap_stacks(Stack& from, Stack& to) { swapcontext(&from, &to); }
inline CONVT3D_UNSEEN void prepare(Stack& stack, char* memory, void (*entry)()) {
  getcontext(&stack);
  stack.uc_stack.ss_sp = memory;
  stack.uc_stack.ss_size = kStackBytes;
  stack.uc_link = nullptr;
  makecontext(&stack, entry, 0);
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
inline CONVT3D_UNSEEN void swap_stacks(Stack& from, Stack& to) { convt3d_switch_stack(&from, to); }
inline CONVT3D_UNSEEN void prepare(Stack& stack, char* memory, void (*entry)()) {
  auto top = reinterpret_cast<uintptr_t>(memory + kStackBytes - 64) & ~uintptr_t(15);
  void** slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;  // the return address of an entry that never returns
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--slot = nullptr;
  stack = slot;
}
#endif
inline CONVT3D_UNSEEN void switch_to(Fiber& from, Fiber& to) {
  watch::before_switch(*to.context);
  swap_stacks(from.stack, to.stack);
  watch::after_switch();
}
inline CONVT3D_UNSEEN void leave(Machine& m, Fiber& from) {
  watch::before_switch(m.caller);
  swap_stacks(from.stack, m.scheduler);
}
inline CONVT3D_UNSEEN void enter(Machine& m, Fiber& to) {
  watch::before_switch(*to.context);
  swap_stacks(m.scheduler, to.stack);
  watch::after_switch();
}

// Stops the block with an error; the caller never runs again.
[[noreturn]] inline CONVT3D_UNSEEN void fail(const char* message, int count) {
  Machine& m = machine();
  std::snprintf(m.error, sizeof m.error, "emulator: %s (%d of %d threads; block %lld, thread %d)",
                message, count, m.threads, static_cast<long long>(m.block), m.current);
  watch::release(&m.launch_end);
  leave(m, m.fibers[m.current]);
  __builtin_unreachable();
}

// Hostile: shuffles warps as wholes, or all threads, by a coin.
inline CONVT3D_UNSEEN void reorder(Machine& m) {
  const int unit = m.random.below(2) ? kWarpSize : 1;
  const int units = m.threads / unit;
  int shuffled[kMaxThreads];
  for (int i = 0; i < units; ++i) shuffled[i] = i;
  for (int i = units - 1; i > 0; --i) std::swap(shuffled[i], shuffled[m.random.below(i + 1)]);
  for (int i = 0; i < m.threads; ++i) m.order[i] = shuffled[i / unit] * unit + i % unit;
  for (int i = 0; i < m.threads; ++i) m.place[m.order[i]] = i;
}

// Runs the next thread that can run; returns when this one is its turn again.
inline CONVT3D_UNSEEN void yield() {
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
  if (shuffling) fail("a warp operation was reached by only part of a warp", shuffling);
  for (int i = 0; i < m.threads; ++i)
    if (m.fibers[i].state == State::kAtSignal) fail("threads wait for a signal that none gives", 1);
  fail("a barrier was reached by only part of the block", m.waiting);
}

// The last thread of the block to come goes on first, or in hostile mode whoever comes first now.
inline CONVT3D_UNSEEN void await_block(Machine& m) {
  m.fibers[m.current].state = State::kAtBarrier;
  if (++m.waiting < m.threads) {
    yield();
    return;
  }
  m.waiting = 0;
  ++m.barriers;
  for (int i = 0; i < m.threads; ++i) m.fibers[i].state = State::kReady;
  if (m.mode == Mode::kFast) return;
  reorder(m);
  const int from = m.current;
  m.current = m.order[0];
  if (m.current != from) switch_to(m.fibers[from], m.fibers[m.current]);
}

inline CONVT3D_UNSEEN void nothing(Machine&) {}

// All lanes of a warp come, the last of them does something for all, then all go on.
template <typename Last>
inline CONVT3D_UNSEEN void meet_warp(Machine& m, const Last& last) {
  const int thread = m.current, warp = thread / kWarpSize;
  ++m.generation[thread];
  m.fibers[thread].state = State::kAtShuffle;
  if (++m.shuffling[warp] < kWarpSize) {
    yield();
    return;
  }
  last(m);
  m.shuffling[warp] = 0;
  for (int i = 0; i < kWarpSize; ++i) m.fibers[warp * kWarpSize + i].state = State::kReady;
}

// Tells the warp which row of load_matrices this lane points to; gets the rows that it reads.
inline CONVT3D_UNSEEN void exchange_rows(Machine& m, const void* row, const void* (&rows)[4]) {
  const int thread = m.current, lane = thread % kWarpSize;
  auto& offered = m.rows[m.generation[thread] & 1];
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("a row of a matrix is not aligned", 1);
  offered[thread] = row;
  meet_warp(m, nothing);
  for (int i = 0; i < 4; ++i) rows[i] = offered[thread - lane + 8 * i + lane / 4];
}

inline CONVT3D_UNSEEN void fiber_main() {
  watch::after_switch();
  Machine& m = machine();
  watch::acquire(&m.launch_start);
  m.body(m.params);
  watch::release(&m.launch_end);
  m.fibers[m.current].state = State::kDone;
  ++m.done;
  yield();
  __builtin_unreachable();
}

inline CONVT3D_UNSEEN void land(PendingCopy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  if (copy.valid)
    watch::copy(copy.to, copy.from, size_t(copy.bytes));
  else
    watch::clear(copy.to, size_t(copy.bytes));
}

// Lands the thread's products, oldest first, but for those of the groups after `last`.
inline CONVT3D_UNSEEN void land_products(Machine& m, int last) {
  Fiber& fiber = m.fibers[m.current];
  PendingProduct* products = pending_products[m.current];
  int landed = 0;
  for (; landed < fiber.products && products[landed].group <= last; ++landed)
    products[landed].land(products[landed].sum, products[landed].a, products[landed].b);
  for (int i = landed; i < fiber.products; ++i) products[i - landed] = products[i];
  fiber.products -= landed;
}

inline CONVT3D_UNSEEN void run_block(Machine& m) {
  m.mapped = static_cast<unsigned char*>(watch::map_anew(m.mapped, kMappedBytes));
  m.shared = m.mapped + kSharedGuardBytes;
  if (watch::kFencesShared)
    watch::fence(m.mapped, m.mapped + kMappedBytes, m.shared, m.shared_bytes);
  else
    std::memset(m.shared + m.shared_bytes, kSharedGuard, kSharedGuardBytes);
  if (m.mode == Mode::kHostile) std::memset(m.shared, 0xFF, m.shared_bytes);  // NaN in every type
  m.waiting = m.barriers = m.done = 0;
  std::fill(m.shuffling, m.shuffling + kMaxThreads / kWarpSize, 0);
  for (int i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fibers[i];
    const int slot = watch::kTellsBlocksApart ? int((i + m.block) % m.threads) : i;
    fiber.context = &m.contexts[slot];
    prepare(fiber.stack, m.stacks + size_t(slot) * kStackBytes, fiber_main);
    fiber.state = State::kReady;
    fiber.open_group = 0;
    fiber.copies = 0;
    fiber.product_group = fiber.products = 0;
    m.generation[i] = 0;
    m.order[i] = m.place[i] = i;
  }
  if (m.mode == Mode::kHostile) reorder(m);
  m.current = m.order[0];
  watch::release(&m.launch_start);
  enter(m, m.fibers[m.current]);
  if (m.error[0]) return;
  for (int i = 0; i < m.threads; ++i)
    if (m.fibers[i].copies) {
      std::snprintf(m.error, sizeof m.error,
                    "emulator: thread %d of block %lld left %d asynchronous copies without a wait",
                    i, static_cast<long long>(m.block), m.fibers[i].copies);
      return;
    }
  for (int i = 0; i < m.threads; ++i)
    if (m.fibers[i].products) {
      std::snprintf(m.error, sizeof m.error,
                    "emulator: thread %d of block %lld left %d products without a wait", i,
                    static_cast<long long>(m.block), m.fibers[i].products);
      return;
    }
  if (watch::kFencesShared) return;
  for (size_t i = 0; i < kSharedGuardBytes; ++i)
    if (m.shared[m.shared_bytes + i] != kSharedGuard) {
      std::snprintf(m.error, sizeof m.error,
                    "emulator: block %lld wrote %zu bytes past the end of its shared memory",
                    static_cast<long long>(m.block), i + 1);
      return;
    }
}

inline CONVT3D_UNSEEN bool allocate(Machine& m) {
  if (m.stacks) return true;
  const size_t stack_bytes = kMaxThreads * kStackBytes;
  void* stacks = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  void* mapped =
      mmap(nullptr, kMappedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stacks == MAP_FAILED || mapped == MAP_FAILED) return false;
  m.stacks = static_cast<char*>(stacks);
  m.mapped = static_cast<unsigned char*>(mapped);
  return true;
}

}  // namespace emulator

// ---- what kernels call --------------------------------------------------------------------------

inline CONVT3D_UNSEEN int thread_index() { return emulator::machine().current; }
inline CONVT3D_UNSEEN int warp_index() { return emulator::machine().current / kWarpSize; }
inline CONVT3D_UNSEEN int64_t block_index() { return emulator::machine().block; }
inline CONVT3D_UNSEEN void* shared_memory() { return emulator::machine().shared; }

inline CONVT3D_UNSEEN void barrier() {
  emulator::Machine& m = emulator::machine();
  void* edge = m.mapped + 8 * (m.barriers & 1);
  emulator::watch::release(edge);
  emulator::await_block(m);
  emulator::watch::acquire(edge);
}

template <typename T>
inline CONVT3D_UNSEEN T shuffle_xor(T value, int mask) {
  static_assert(sizeof(T) <= 8, "a lane exchanges at most 8 bytes");
  emulator::Machine& m = emulator::machine();
  const int thread = m.current;
  auto& buffer = m.exchange[m.generation[thread] & 1];
  std::memcpy(buffer[thread], &value, sizeof value);
  emulator::meet_warp(m, emulator::nothing);
  T other;
  std::memcpy(&other, buffer[thread ^ mask], sizeof other);
  return other;
}

template <int kCount>
struct alignas(4 * kCount) Words {
  uint32_t word[kCount];
};

inline CONVT3D_UNSEEN void warp_barrier() {
  emulator::Machine& m = emulator::machine();
  void* edge = &m.exchange[m.generation[m.current] & 1][m.current / kWarpSize * kWarpSize];
  emulator::watch::release(edge);
  emulator::meet_warp(m, emulator::nothing);
  emulator::watch::acquire(edge);
}

inline CONVT3D_UNSEEN void signal_init(uint64_t* signal, int arrivals) {
  if (reinterpret_cast<uintptr_t>(signal) % 8) emulator::fail("a signal is not aligned", 1);
  const emulator::Signal fresh{uint16_t(arrivals), uint16_t(arrivals), 0};
  std::memcpy(signal, &fresh, sizeof fresh);
}
inline CONVT3D_UNSEEN void signal_arrive(uint64_t* signal) {
  emulator::Machine& m = emulator::machine();
  emulator::Signal now;
  std::memcpy(&now, signal, sizeof now);
  emulator::watch::release(reinterpret_cast<char*>(signal) + 4 * (now.round & 1));
  const bool is_over = --now.pending == 0;
  if (is_over) {
    now.pending = now.arrivals;
    ++now.round;
  }
  std::memcpy(signal, &now, sizeof now);
  if (!is_over) return;
  for (int i = 0; i < m.threads; ++i)
    if (m.fibers[i].state == emulator::State::kAtSignal && m.fibers[i].signal == signal)
      m.fibers[i].state = emulator::State::kReady;
}
inline CONVT3D_UNSEEN void signal_wait(uint64_t* signal, int parity) {
  emulator::Machine& m = emulator::machine();
  emulator::Signal now;
  std::memcpy(&now, signal, sizeof now);
  while (int(now.round & 1) == parity) {
    emulator::Fiber& fiber = m.fibers[m.current];
    fiber.state = emulator::State::kAtSignal;
    fiber.signal = signal;
    emulator::yield();
    std::memcpy(&now, signal, sizeof now);
  }
  emulator::watch::acquire(reinterpret_cast<char*>(signal) + 4 * parity);
}

template <int kBytes>
inline CONVT3D_UNSEEN void async_copy(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulator::Machine& m = emulator::machine();
  if (reinterpret_cast<uintptr_t>(shared) % kBytes ||
      (valid && reinterpret_cast<uintptr_t>(global) % kBytes))
    emulator::fail("an asynchronous copy is not aligned to its size", 1);
  emulator::Fiber& fiber = m.fibers[m.current];
  if (fiber.copies == emulator::kMaxCopies)
    emulator::fail("more asynchronous copies than the emulator holds wait to land", 1);
  emulator::PendingCopy& copy = emulator::pending_copies[m.current][fiber.copies++];
  copy = {shared, global, kBytes, valid, false, fiber.open_group};
  emulator::watch::issue(*fiber.context, shared, valid ? global : nullptr, kBytes,
                         __builtin_return_address(0));
  // A copy may land at any time until its wait: hostile tries at once, and as late as may be.
  if (m.mode == emulator::Mode::kHostile && m.random.below(2)) emulator::land(copy);
}
inline CONVT3D_UNSEEN void async_commit() {
  emulator::Machine& m = emulator::machine();
  emulator::Fiber& fiber = m.fibers[m.current];
  emulator::watch::commit(*fiber.context, fiber.open_group++);
}
template <int kPending>
inline CONVT3D_UNSEEN void async_wait() {
  static_assert(kPending < emulator::watch::kMaxPending, "the emulator tells fewer groups apart");
  emulator::Machine& m = emulator::machine();
  emulator::Fiber& fiber = m.fibers[m.current];
  emulator::PendingCopy* copies = emulator::pending_copies[m.current];
  const int last = fiber.open_group - 1 - kPending;  // group that must have landed
  int landed = 0;
  while (landed < fiber.copies && copies[landed].group <= last) emulator::land(copies[landed++]);
  for (int i = landed; i < fiber.copies; ++i) copies[i - landed] = copies[i];
  fiber.copies -= landed;
  emulator::watch::wait(*fiber.context, last);
}

// Runs the blocks one after the other; returns null, or what went wrong. In the place of a stream
// comes the schedule: bit 0 is the mode, the bits above it the seed.
template <typename Params>
CONVT3D_UNSEEN const char* launch(void (*kernel)(Params), int64_t blocks, int threads,
                                  int shared_bytes, void* schedule, const Params& params) {
  const std::lock_guard<std::mutex> turn(emulator::machine_lock);
  emulator::Machine& m = emulator::machine();
  m.mode = static_cast<emulator::Mode>(reinterpret_cast<uintptr_t>(schedule) & 1);
  m.random.state = ((reinterpret_cast<uintptr_t>(schedule) >> 1) + 1) * 0x9E3779B97F4A7C15ull | 1;
  if (blocks < 1 || blocks > 0x7fffffff) return "a grid must have 1 to 2^31 - 1 blocks";
  if (threads < 1 || threads > emulator::kMaxThreads || threads % kWarpSize)
    return "a block must be whole warps, at most 1024 threads";
  if (size_t(shared_bytes) > emulator::kMaxSharedBytes) return "too much shared memory for a block";
  if (!emulator::allocate(m)) return "no memory for the stacks of a block";
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
  emulator::watch::adopt(m.caller);
  for (int i = 0; i < threads; ++i)
    emulator::watch::create(m.contexts[i], m.stacks + size_t(i) * emulator::kStackBytes);
  // Hostile: blocks run backwards or forwards.
  const bool backwards = m.mode == emulator::Mode::kHostile && m.random.below(2);
  for (int64_t i = 0; i < blocks; ++i) {
    m.block = backwards ? blocks - 1 - i : i;
    emulator::run_block(m);
    if (m.error[0]) break;
  }
  emulator::watch::acquire(&m.launch_end);
  return m.error[0] ? m.error : nullptr;
}

}  // namespace convt3d
"""
