"""The machine layer on CUDA: the only functions through which a kernel speaks to the machine.

`convt3d/emulator/host*.py` gives each of them the same meaning on a CPU.
"""

SOURCE = r"""
// Needs nothing but the CUDA headers.
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <pthread.h>

namespace convt3d {

using half_t = __half;
using bfloat16_t = __nv_bfloat16;
constexpr int kWarpSize = 32;

__device__ inline int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ inline int64_t block_index() { return blockIdx.x; }
// Of the thread's warp; the compiler knows that it is the same in all lanes.
__device__ inline int warp_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpSize, 0);
}

// Dynamic shared memory of the block, 16-byte aligned.
__device__ inline void* shared_memory() {
  extern __shared__ __align__(16) unsigned char convt3d_shared[];
  return convt3d_shared;
}

// Every thread of the block must reach the same barrier.
__device__ inline void barrier() { __syncthreads(); }

// The value that lane ^ mask holds; every lane of the warp must take part.
template <typename T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Copies kBytes (4, 8 or 16, both ends so aligned) from global to shared memory, or zeros when not
// valid (the source is then not read). Lands at some time before the async_wait that covers it.
template <int kBytes>
__device__ inline void async_copy(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? kBytes : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(kBytes),
               "r"(bytes)
               : "memory");
}
// Closes this thread's group of copies issued since the last commit.
__device__ inline void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's latest groups have not landed. Other threads see
// the data after a barrier.
template <int kPending>
__device__ inline void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 4, 8 or 16 bytes that are loaded and stored at once.
template <int kCount>
struct alignas(4 * kCount) Words {
  uint32_t word[kCount];
};

// Every lane of the warp must reach the same warp_barrier; orders what they did in shared memory.
__device__ inline void warp_barrier() { __syncwarp(); }

// A signal in shared memory: each round is over when so many threads have arrived. What they did
// before is seen by who waits for that round. Rounds are told apart by their parity, the first has 0;
// to wait for parity 1 of a fresh signal returns at once. After signal_init comes a barrier.
__device__ inline void signal_init(uint64_t* signal, int arrivals) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(signal));
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
__device__ inline void signal_arrive(uint64_t* signal) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(signal));
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(at) : "memory");
}
__device__ inline void signal_wait(uint64_t* signal, int parity) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(signal));
  unsigned over = 0;
  while (!over) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(over)
        : "r"(at), "r"(parity)
        : "memory");
#else
    asm volatile(
        "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(over)
        : "r"(at), "r"(parity)
        : "memory");
#endif
  }
}

// Four matrices of 8 rows of 16 bytes, from shared memory: lane l points to row l % 8 of matrix l / 8,
// and gets of each matrix the word l % 4 of row l / 4.
__device__ inline void load_matrices(Words<4>& to, const void* row) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to.word[0]), "=r"(to.word[1]), "=r"(to.word[2]), "=r"(to.word[3])
               : "r"(at));
}

// Of the bytes of low (0 to 3) and high (4 to 7), those that the digits of `which` name, the lowest first.
__device__ inline uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t which) {
  return __byte_perm(low, high, which);
}

// Transposes a matrix of 8 rows of 8 16-bit numbers: lane l has and gets the word l % 4 of row l / 4.
__device__ inline uint32_t transpose_matrix(uint32_t word) {
  uint32_t transposed;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(word));
  return transposed;
}

// sum (16 x 8) += a (16 x K) times b (K x 8), K being 32 bytes of scalar_t; float is read as TF32. In a
// lane with g = lane / 4 and t = lane % 4, each word holding neighbours in K:
//   sum: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//   a:   words t of rows g and g + 8, then words t + 4 of them        b: words t and t + 4 of column g
template <typename scalar_t>
__device__ inline void multiply_add(float (&sum)[4], const Words<4>& a, uint32_t b0, uint32_t b1);
#define CONVT3D_MULTIPLY_ADD(scalar_t, instruction)                                              \
  template <>                                                                                    \
  __device__ inline void multiply_add<scalar_t>(float (&sum)[4], const Words<4>& a, uint32_t b0, \
                                                uint32_t b1) {                                   \
    asm(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"           \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                 \
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));     \
  }
CONVT3D_MULTIPLY_ADD(half_t, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
CONVT3D_MULTIPLY_ADD(bfloat16_t, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
CONVT3D_MULTIPLY_ADD(float, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
#undef CONVT3D_MULTIPLY_ADD

// ---- products of a warpgroup: compute capability 9.0 only (sm_90a) -----------------------------------

// What a warpgroup's products read lies in shared memory as blocks of 8 rows of 16 bytes, one after the
// other: `next_words` bytes lead to the block of the same rows and the next 16 bytes in K, `next_rows` to
// that of the next 8 rows. A shift by 16 bytes adds 1. Source: PTX ISA, Matrix Descriptor Format.
__device__ inline uint64_t shared_matrix(const void* first, int next_words, int next_rows) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(first));
  return (at & 0x3ffff) >> 4 | uint64_t(next_words >> 4) << 16 | uint64_t(next_rows >> 4) << 32;
}

// sum (64 x kColumns) += a (64 x K) times b (kColumns x K), transposed, K being 32 bytes of scalar_t. All
// warps of a warpgroup must come: 4 whose first is a multiple of 4. In lane l of its w-th warp, with g = l / 4
// and t = l % 4: sum[4 * j + i] is row 16 * w + g + i / 2 * 8, column 8 * j + 2 * t + i % 2.
// Lands at some time before the warpgroup_wait that covers it; until then nobody may touch what it reads
// or sums. Products into the same sums land in order.
template <typename scalar_t, int kColumns>
__device__ inline void warpgroup_multiply(float* sum, uint64_t a, uint64_t b);
#define CONVT3D_SUM_4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define CONVT3D_SUM_8(i) CONVT3D_SUM_4(i), CONVT3D_SUM_4(i + 4)
#define CONVT3D_SUM_16(i) CONVT3D_SUM_8(i), CONVT3D_SUM_8(i + 8)
#define CONVT3D_NAMES_4 "%0, %1, %2, %3"
#define CONVT3D_NAMES_8 CONVT3D_NAMES_4 ", %4, %5, %6, %7"
#define CONVT3D_NAMES_12 CONVT3D_NAMES_8 ", %8, %9, %10, %11"
#define CONVT3D_NAMES_16 CONVT3D_NAMES_12 ", %12, %13, %14, %15"
#define CONVT3D_NAMES_24 CONVT3D_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define CONVT3D_NAMES_32 CONVT3D_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define CONVT3D_WARPGROUP(scalar_t, columns, k, tail, names, operands, ...)               \
  template <>                                                                             \
  __device__ inline void warpgroup_multiply<scalar_t, columns>(float* sum, uint64_t a,    \
                                                               uint64_t b) {              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns k " {" names "}, " operands \
                 ", 1, 1, 1" tail ";"                                                     \
                 : __VA_ARGS__                                                            \
                 : "l"(a), "l"(b));                                                       \
  }
#define CONVT3D_WARPGROUPS(scalar_t, k, tail)                                               \
  CONVT3D_WARPGROUP(scalar_t, 8, k, tail, CONVT3D_NAMES_4, "%4, %5", CONVT3D_SUM_4(0))      \
  CONVT3D_WARPGROUP(scalar_t, 16, k, tail, CONVT3D_NAMES_8, "%8, %9", CONVT3D_SUM_8(0))     \
  CONVT3D_WARPGROUP(scalar_t, 24, k, tail, CONVT3D_NAMES_12, "%12, %13", CONVT3D_SUM_8(0),  \
                    CONVT3D_SUM_4(8))                                                       \
  CONVT3D_WARPGROUP(scalar_t, 32, k, tail, CONVT3D_NAMES_16, "%16, %17", CONVT3D_SUM_16(0)) \
  CONVT3D_WARPGROUP(scalar_t, 48, k, tail, CONVT3D_NAMES_24, "%24, %25", CONVT3D_SUM_16(0), \
                    CONVT3D_SUM_8(16))                                                      \
  CONVT3D_WARPGROUP(scalar_t, 64, k, tail, CONVT3D_NAMES_32, "%32, %33", CONVT3D_SUM_16(0), \
                    CONVT3D_SUM_16(16))
CONVT3D_WARPGROUPS(half_t, "k16.f32.f16.f16", ", 0, 0")
CONVT3D_WARPGROUPS(bfloat16_t, "k16.f32.bf16.bf16", ", 0, 0")
CONVT3D_WARPGROUPS(float, "k8.f32.tf32.tf32", "")
#undef CONVT3D_WARPGROUPS
#undef CONVT3D_WARPGROUP

// Before the first product that adds to sums which were written otherwise.
__device__ inline void warpgroup_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Closes the warpgroup's group of products issued since the last commit.
__device__ inline void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending of the latest groups have not landed; with none left, hands over the sums.
template <int kPending, int kCount>
__device__ inline void warpgroup_wait(float (&sum)[kCount]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  if constexpr (kPending == 0)
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}
// What the thread wrote to shared memory before is there for the products of those whom it signals next.
__device__ inline void publish_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline double to_acc(double value) { return value; }
__device__ inline float to_acc(float value) { return value; }
__device__ inline float to_acc(half_t value) { return __half2float(value); }
__device__ inline float to_acc(bfloat16_t value) { return __bfloat162float(value); }

// Rounds to nearest, ties to even.
template <typename T, typename Acc>
__device__ inline T from_acc(Acc value);
template <>
__device__ inline double from_acc<double, double>(double value) {
  return value;
}
template <>
__device__ inline float from_acc<float, float>(float value) {
  return value;
}
template <>
__device__ inline half_t from_acc<half_t, float>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline bfloat16_t from_acc<bfloat16_t, float>(float value) {
  return __float2bfloat16_rn(value);
}

__device__ inline uint32_t bits_of(float value) { return __float_as_uint(value); }
__device__ inline float float_of(uint32_t bits) { return __uint_as_float(bits); }
// Two numbers, rounded as by from_acc, as one word; the first in its lower half.
template <typename scalar_t>
__device__ inline uint32_t round_pair(float first, float second);
template <>
__device__ inline uint32_t round_pair<half_t>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ inline uint32_t round_pair<bfloat16_t>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

constexpr int kSharedBytesUnasked = 48 * 1024;  // that a block of any kernel may have

// Lets the blocks of a kernel have more, on the current device. Asking takes the driver a while, so that it is asked
// once for a kernel and a device, and again only for more than before: another thread may be about to launch.
inline cudaError_t allow_shared_memory(const void* kernel, int bytes) {
  struct Allowed {
    const void* kernel;
    int device, bytes;
    Allowed* next;
  };
  static Allowed* first = nullptr;
  static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;  // <mutex> would cost every build 0.4 s
  int device;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  pthread_mutex_lock(&turn);
  Allowed* found = first;
  while (found && (found->kernel != kernel || found->device != device)) found = found->next;
  if (!found) found = first = new Allowed{kernel, device, kSharedBytesUnasked, first};
  if (found->bytes < bytes) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error == cudaSuccess) found->bytes = bytes;
  }
  pthread_mutex_unlock(&turn);
  return error;
}

// Launches a grid of `blocks` one-dimensional blocks; returns null, or what went wrong.
template <typename Params>
const char* launch(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes,
                   void* stream, const Params& params) {
  if (blocks < 1 || blocks > 0x7fffffff) return "a grid must have 1 to 2^31 - 1 blocks";
  if (shared_bytes > kSharedBytesUnasked) {
    const cudaError_t error =
        allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes,
           static_cast<cudaStream_t>(stream)>>>(params);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace convt3d
"""
