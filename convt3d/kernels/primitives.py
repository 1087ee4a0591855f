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
