"""The machine layer on CUDA: the only functions through which a kernel speaks to the machine.

`convt3d/emulator/host.py` gives each of them the same meaning on a CPU.
"""

SOURCE = r"""
// Needs nothing but the CUDA headers.
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

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

// Launches a grid of `blocks` one-dimensional blocks; returns null, or what went wrong.
template <typename Params>
const char* launch(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes,
                   void* stream, const Params& params) {
  if (blocks < 1 || blocks > 0x7fffffff) return "a grid must have 1 to 2^31 - 1 blocks";
  if (shared_bytes > 48 * 1024) {  // above this a kernel must ask
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes,
           static_cast<cudaStream_t>(stream)>>>(params);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace convt3d
"""
