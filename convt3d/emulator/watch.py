"""What AddressSanitizer and ThreadSanitizer must be told about the emulator: nothing at all in an ordinary build."""

SOURCE = r"""
// Needs the C++17 standard library, and the sanitizer's headers that come with g++.
#include <pthread.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
// Checks a range as compiled code does, and reports it as an access of the caller.
extern "C" void __asan_loadN(uintptr_t address, uintptr_t bytes);
extern "C" void __asan_storeN(uintptr_t address, uintptr_t bytes);
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
// Accesses as compiled code makes them, at a place of the program that is given.
#define CONVT3D_ACCESSES(bytes)                                         \
  extern "C" void __tsan_read##bytes##_pc(void* address, void* caller); \
  extern "C" void __tsan_write##bytes##_pc(void* address, void* caller);
CONVT3D_ACCESSES(4)
CONVT3D_ACCESSES(8)
CONVT3D_ACCESSES(16)
#endif

// Note [Sanitizers]
// AddressSanitizer learns which stack runs, and that nothing but a block's own shared memory may be
// touched around it.
// ThreadSanitizer takes each thread of a block for a thread. It sees what kernels do, and nothing of
// what the machine does (CONVT3D_UNSEEN), which really runs on one thread. What orders two accesses:
//   - the order of the program within a thread;
//   - a barrier, by an object that all threads release and then acquire. Two of them alternate: with
//     one, a thread that is already past the barrier would release into it again, and that edge would
//     hide the write-after-read race of the next round;
//   - the start and the end of a launch.
// A switch orders nothing, nor does a shuffle: the CUDA guide says that __shfl_sync does not imply a
// memory barrier. Nor does the order in which the emulator runs the blocks: each has shared memory of
// its own, mapped afresh so that what is known about the addresses is forgotten, barriers included,
// and thread i of the next block is another fiber than thread i of this one.
// An asynchronous copy is made by the copy engine of its thread, after its issue and in no order with
// what the thread does next. A commit releases what the engine has done, a wait acquires what the
// latest group that it covers had released. Other threads get to see it by a barrier, as in the PTX manual.
#if defined(__SANITIZE_THREAD__)
#define CONVT3D_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define CONVT3D_UNSEEN
#endif

namespace convt3d {
namespace emulator {
namespace watch {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kStackBytes = 256 << 10;  // instrumented code takes more, and so does a report
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr int kMaxPending = 8;  // of an async_wait: more groups are not told apart

// What a sanitizer knows a fiber by, and what it is told:
//   create, adopt                a fiber; the thread that calls
//   before_switch, after_switch  around each change of stacks
//   fence                        all of [start, end) but the shared memory of a block is out of bounds
//   map_anew                     forget what happened in this memory
//   release, acquire             what was done before the one is seen after the other
//   issue, commit, wait          of asynchronous copies
//   copy, clear                  without being seen
#if defined(__SANITIZE_ADDRESS__)

constexpr bool kFencesShared = true;
constexpr bool kTellsBlocksApart = false;

struct Context {
  const void* stack = nullptr;  // its lowest address
  size_t bytes = 0;
};
inline void create(Context& context, const void* stack) { context = {stack, kStackBytes}; }
inline void adopt(Context& context) {
  pthread_attr_t attributes;
  void* stack = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &context.bytes);
  pthread_attr_destroy(&attributes);
  context.stack = stack;
}
inline void before_switch(const Context& to) {
  __sanitizer_start_switch_fiber(nullptr, to.stack, to.bytes);
}
inline void after_switch() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }
inline void fence(const void* start, const void* end, const void* shared, size_t bytes) {
  __asan_poison_memory_region(
      start, size_t(static_cast<const char*>(end) - static_cast<const char*>(start)));
  __asan_unpoison_memory_region(shared, bytes);
}
inline void* map_anew(void* memory, size_t) { return memory; }
inline void release(void*) {}
inline void acquire(void*) {}
// A copy that lands late would be reported where it is waited for.
inline void issue(Context&, void* to, const void* from, int bytes, void*) {
  __asan_storeN(reinterpret_cast<uintptr_t>(to), uintptr_t(bytes));
  if (from) __asan_loadN(reinterpret_cast<uintptr_t>(from), uintptr_t(bytes));
}
inline void commit(Context&, int) {}
inline void wait(Context&, int) {}
inline void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
inline void clear(void* to, size_t bytes) { std::memset(to, 0, bytes); }

#elif defined(__SANITIZE_THREAD__)

constexpr bool kFencesShared = false;
constexpr bool kTellsBlocksApart = true;

struct Context {
  void* fiber = nullptr;
  void* engine = nullptr;         // makes its asynchronous copies; there is none before the first
  int64_t issued = 0;             // only the addresses of these two matter
  int64_t landed[kMaxPending]{};  // of group i at i % kMaxPending
};
inline CONVT3D_UNSEEN void switch_to(void* fiber) {
  __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync);
}
inline CONVT3D_UNSEEN void create(Context& context, const void*) {
  if (!context.fiber) context.fiber = __tsan_create_fiber(0);  // 0.3 ms: it serves every block
}
inline CONVT3D_UNSEEN void adopt(Context& context) { context.fiber = __tsan_get_current_fiber(); }
inline CONVT3D_UNSEEN void before_switch(const Context& to) { switch_to(to.fiber); }
inline CONVT3D_UNSEEN void after_switch() {}
inline CONVT3D_UNSEEN void fence(const void*, const void*, const void*, size_t) {}
inline CONVT3D_UNSEEN void* map_anew(void* memory, size_t bytes) {
  munmap(memory, bytes);  // a mapping on top of the old one would not do
  return mmap(memory, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
inline CONVT3D_UNSEEN void release(void* edge) { __tsan_release(edge); }
inline CONVT3D_UNSEEN void acquire(void* edge) { __tsan_acquire(edge); }
inline CONVT3D_UNSEEN void read(void* from, int bytes, void* caller) {
  if (bytes == 4) __tsan_read4_pc(from, caller);
  if (bytes == 8) __tsan_read8_pc(from, caller);
  if (bytes == 16) __tsan_read16_pc(from, caller);
}
inline CONVT3D_UNSEEN void write(void* to, int bytes, void* caller) {
  if (bytes == 4) __tsan_write4_pc(to, caller);
  if (bytes == 8) __tsan_write8_pc(to, caller);
  if (bytes == 16) __tsan_write16_pc(to, caller);
}
inline CONVT3D_UNSEEN void issue(Context& context, void* to, const void* from, int bytes,
                                 void* caller) {
  if (!context.engine) {
    context.engine = __tsan_create_fiber(0);
    __tsan_set_fiber_name(context.engine, "asynchronous copy");
  }
  release(&context.issued);
  switch_to(context.engine);
  acquire(&context.issued);
  if (from) read(const_cast<void*>(from), bytes, caller);
  write(to, bytes, caller);
  switch_to(context.fiber);
}
inline CONVT3D_UNSEEN void commit(Context& context, int group) {
  if (!context.engine) return;
  switch_to(context.engine);
  release(&context.landed[group % kMaxPending]);
  switch_to(context.fiber);
}
inline CONVT3D_UNSEEN void wait(Context& context, int group) {
  if (context.engine && group >= 0) acquire(&context.landed[group % kMaxPending]);
}
// Byte by byte: what memcpy and memset touch is seen, whoever calls them.
inline CONVT3D_UNSEEN void copy(void* to, const void* from, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    static_cast<volatile char*>(to)[i] = static_cast<const volatile char*>(from)[i];
}
inline CONVT3D_UNSEEN void clear(void* to, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) static_cast<volatile char*>(to)[i] = 0;
}

#else

constexpr bool kFencesShared = false;
constexpr bool kTellsBlocksApart = false;

struct Context {};
inline void create(Context&, const void*) {}
inline void adopt(Context&) {}
inline void before_switch(const Context&) {}
inline void after_switch() {}
inline void fence(const void*, const void*, const void*, size_t) {}
inline void* map_anew(void* memory, size_t) { return memory; }
inline void release(void*) {}
inline void acquire(void*) {}
inline void issue(Context&, void*, const void*, int, void*) {}
inline void commit(Context&, int) {}
inline void wait(Context&, int) {}
inline void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
inline void clear(void* to, size_t bytes) { std::memset(to, 0, bytes); }

#endif

}  // namespace watch
}  // namespace emulator
}  // namespace convt3d
"""
