"""Small kernels that use the machine layer rightly and wrongly, and how to run them on the emulator."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from convt3d import build
from convt3d.emulator import host, host_matrix, runtime, sanitized, watch

SOURCE = r"""
// Needs host_matrix.py.
#include <type_traits>

namespace convt3d {

struct TestParams {
  const void* in;
  void* out;
  int threads;
};
template <typename T>
const T* in(const TestParams& p) {
  return static_cast<const T*>(p.in);
}
template <typename T>
T* out(const TestParams& p) {
  return static_cast<T*>(p.out);
}
template <typename T>
T* shared() {
  return static_cast<T*>(shared_memory());
}

// ---- barriers -----------------------------------------------------------------------------------

// out[t] = in[t - 1], through shared memory. Without the barrier a thread in order still finds it.
template <bool kBarrier>
__global__ void hand_on_kernel(const TestParams p) {
  const int t = thread_index();
  const int64_t first = block_index() * p.threads;
  shared<float>()[t] = in<float>(p)[first + t];
  if (kBarrier) barrier();
  out<float>(p)[first + t] = shared<float>()[t ? t - 1 : 0];
}

// out[round][t] = in[t + 1] + round. Without the second barrier a round may overwrite what the one
// before it has not read.
template <bool kSecondBarrier>
__global__ void rounds_kernel(const TestParams p) {
  const int t = thread_index();
  for (int round = 0; round < 4; ++round) {
    shared<float>()[t] = in<float>(p)[t] + float(round);
    barrier();
    out<float>(p)[round * p.threads + t] = shared<float>()[(t + 1) % p.threads];
    if (kSecondBarrier) barrier();
  }
}

__global__ void half_a_barrier_kernel(const TestParams p) {
  if (thread_index() < p.threads / 2) barrier();
}
__global__ void early_exit_kernel(const TestParams) {
  if (thread_index() == 5) return;
  barrier();
}
// Counts are per thread: no thread may pass more barriers than another.
__global__ void uneven_barriers_kernel(const TestParams) {
  for (int i = 0; i < (thread_index() == 3 ? 2 : 3); ++i) barrier();
}

// ---- shuffles -----------------------------------------------------------------------------------

// out[t] = sum of in over the warp of t.
template <typename T>
__global__ void butterfly_kernel(const TestParams p) {
  T value = in<T>(p)[thread_index()];
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  out<T>(p)[thread_index()] = value;
}
// Warp w exchanges w + 1 times: out[t] = in[t] in odd warps, in[t ^ 1] in even ones.
__global__ void uneven_shuffles_kernel(const TestParams p) {
  float value = in<float>(p)[thread_index()];
  for (int i = 0; i <= thread_index() / kWarpSize; ++i) value = shuffle_xor(value, 1);
  out<float>(p)[thread_index()] = value;
}
__global__ void half_a_shuffle_kernel(const TestParams) {
  if (thread_index() % kWarpSize < kWarpSize / 2) shuffle_xor(1.0f, 1);
}
__global__ void shuffle_or_barrier_kernel(const TestParams) {
  if (thread_index() % 2)
    shuffle_xor(1.0f, 2);
  else
    barrier();
}

// ---- warps ----------------------------------------------------------------------------------------

// out[t] = in[t - 1] within a warp, through shared memory.
template <bool kBarrier>
__global__ void hand_on_in_warp_kernel(const TestParams p) {
  const int t = thread_index();
  shared<float>()[t] = in<float>(p)[t];
  if (kBarrier) warp_barrier();
  out<float>(p)[t] = shared<float>()[t % kWarpSize ? t - 1 : t];
}
__global__ void half_a_warp_barrier_kernel(const TestParams) {
  if (thread_index() % kWarpSize < kWarpSize / 2) warp_barrier();
}
// out[w][lane][i] = what load_matrices gives, from rows that lie in shared memory as in `in`.
__global__ void load_matrices_kernel(const TestParams p) {
  const int t = thread_index();
  Words<4>* rows = reinterpret_cast<Words<4>*>(shared<uint32_t>());
  rows[t] = in<Words<4>>(p)[t];
  barrier();
  Words<4> got;
  load_matrices(got, rows + (p.threads - 1 - t));  // backwards: warps point to each other's
  out<Words<4>>(p)[t] = got;
}
__global__ void load_misaligned_matrices_kernel(const TestParams) {
  Words<4> got;
  load_matrices(got, shared<unsigned char>() + 4);
}
__global__ void transpose_matrix_kernel(const TestParams p) {
  out<uint32_t>(p)[thread_index()] = transpose_matrix(in<uint32_t>(p)[thread_index()]);
}
// in: [thread][4 words of a, 2 of b, 4 sums]; out: [thread][4 sums].
template <typename T>
__global__ void multiply_add_kernel(const TestParams p) {
  const uint32_t* from = in<uint32_t>(p) + 10 * thread_index();
  const Words<4> a = {{from[0], from[1], from[2], from[3]}};
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = float_of(from[6 + i]);
  multiply_add<T>(sum, a, from[4], from[5]);
  for (int i = 0; i < 4; ++i) out<float>(p)[4 * thread_index() + i] = sum[i];
}

enum Warpgroup { kRightProducts, kNoWarpgroupWait, kReusedTooEarly };

// in: a (64 x K), then b (16 x K), both [16 bytes of K][row]; out: [thread][8 sums] of a times b, twice. Each
// operand lies a row off its alignment.
template <typename T, int kVariant>
__global__ void warpgroup_kernel(const TestParams p) {
  unsigned char* a = shared<unsigned char>() + 16;
  unsigned char* b = a + 2 * 64 * 16;
  for (int i = thread_index(); i < 160; i += p.threads)
    reinterpret_cast<Words<4>*>(a)[i] = in<Words<4>>(p)[i];
  publish_to_products();
  barrier();
  float sum[8] = {};
  warpgroup_begin();
  for (int i = 0; i < 2; ++i) {
    warpgroup_multiply<T, 16>(sum, shared_matrix(a, 64 * 16, 128), shared_matrix(b, 16 * 16, 128));
    warpgroup_commit();
  }
  if (kVariant == kReusedTooEarly) {
    warpgroup_wait<1>(sum);
    for (int i = thread_index(); i < 160; i += p.threads)
      reinterpret_cast<Words<4>*>(a)[i] = Words<4>{};
  }
  if (kVariant != kNoWarpgroupWait) warpgroup_wait<0>(sum);
  for (int i = 0; i < 8; ++i) out<float>(p)[8 * thread_index() + i] = sum[i];
}
__global__ void misaligned_shared_matrix_kernel(const TestParams) {
  shared_matrix(shared<unsigned char>() + 8, 1024, 128);
}

// ---- signals --------------------------------------------------------------------------------------

enum Handshake { kWhole, kNoWaitForFull, kNoWaitForEmpty, kOneArrivalShort, kNoWarpBarrier };

// Warp 0 hands the rows of in, one a round, to warp 1 through a ring of two slots:
// out[round][lane] = in[round][lane + 1].
template <Handshake kHandshake>
__global__ void ring_kernel(const TestParams p) {
  constexpr int kRounds = 6, kSlots = 2;
  uint64_t* full = shared<uint64_t>();
  uint64_t* empty = full + kSlots;
  const int slots = 4 * kSlots;  // behind the signals, in floats
  const int lane = thread_index() % kWarpSize;
  if (thread_index() == 0)
    for (int i = 0; i < kSlots; ++i) {
      signal_init(full + i, kHandshake == kOneArrivalShort ? 2 : 1);
      signal_init(empty + i, kWarpSize);
    }
  barrier();
  for (int round = 0; round < kRounds; ++round) {
    const int slot = round % kSlots, parity = round / kSlots % 2;
    const int row = slots + slot * kWarpSize;
    if (warp_index() == 0) {
      if (kHandshake != kNoWaitForEmpty) signal_wait(empty + slot, parity ^ 1);
      shared<float>()[row + lane] = in<float>(p)[round * kWarpSize + lane];
      if (kHandshake != kNoWarpBarrier) warp_barrier();
      if (lane == 0) signal_arrive(full + slot);
    } else {
      if (kHandshake != kNoWaitForFull) signal_wait(full + slot, parity);
      out<float>(p)[round * kWarpSize + lane] = shared<float>()[row + (lane + 1) % kWarpSize];
      signal_arrive(empty + slot);
    }
  }
}
__global__ void misaligned_signal_kernel(const TestParams) {
  signal_init(reinterpret_cast<uint64_t*>(shared<unsigned char>() + 4), 1);
}

// ---- asynchronous copies --------------------------------------------------------------------------

enum Variant { kRight, kNoWait, kWaitsForTooFew, kNoBarrierAfterWait, kNoBarrierBeforeReuse };
constexpr int kChunks = 6;

// out[chunk][t] = in[chunk][t + 1] through two buffers: the copy of the next chunk is in flight
// while this one is read.
template <Variant kVariant>
__global__ void pipeline_kernel(const TestParams p) {
  const int t = thread_index();
  auto issue = [&](int chunk) {
    if (chunk < kChunks)
      async_copy<4>(shared<float>() + chunk % 2 * p.threads + t,
                    in<float>(p) + chunk * p.threads + t, true);
    async_commit();
  };
  issue(0);
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    issue(chunk + 1);
    if (kVariant != kNoWait) async_wait<kVariant == kWaitsForTooFew ? 2 : 1>();
    if (kVariant != kNoBarrierAfterWait) barrier();
    out<float>(p)[chunk * p.threads + t] =
        shared<float>()[chunk % 2 * p.threads + (t + 1) % p.threads];
    if (kVariant != kNoBarrierBeforeReuse) barrier();
  }
  if (kVariant != kNoWait) async_wait<0>();
}

// The copy is issued after the last commit: no wait covers it.
__global__ void uncommitted_kernel(const TestParams p) {
  async_commit();
  async_copy<4>(shared<float>() + thread_index(), in<float>(p) + thread_index(), true);
  async_wait<0>();
}

// in[0] copies by a thread, none of which is waited for before the last.
__global__ void many_copies_kernel(const TestParams p) {
  if (thread_index()) return;
  for (int i = 0; i < in<int32_t>(p)[0]; ++i) {
    async_copy<4>(shared<float>(), in<float>(p), true);
    async_commit();
  }
  async_wait<0>();
}

// kBytes of each thread, through shared memory that held ones; zeros where in[0] is not 1.
template <int kBytes>
__global__ void copy_kernel(const TestParams p) {
  const int t = thread_index();
  unsigned char* to = shared<unsigned char>() + t * kBytes;
  std::memset(to, 1, kBytes);
  const bool valid = in<unsigned char>(p)[0] == 1;
  async_copy<kBytes>(to, valid ? in<unsigned char>(p) + t * kBytes : nullptr, valid);
  async_commit();
  async_wait<0>();
  std::memcpy(out<unsigned char>(p) + t * kBytes, to, kBytes);
}

// Off its alignment by in[0] bytes in shared memory, in[1] in global; read if in[2].
__global__ void misaligned_kernel(const TestParams p) {
  if (thread_index()) return;
  const int32_t* off = in<int32_t>(p);
  async_copy<8>(shared<unsigned char>() + off[0], in<unsigned char>(p) + off[1], off[2]);
  async_commit();
  async_wait<0>();
}

// ---- shared memory and the schedule -----------------------------------------------------------------

// out = what lies in shared memory before anything was written there; then writes zeros.
template <typename T>
__global__ void unwritten_kernel(const TestParams p) {
  const int64_t t = thread_index(), first = block_index() * p.threads;
  out<double>(p)[first + t] = double(to_acc(shared<T>()[t]));
  std::memset(shared<T>() + t, 0, sizeof(T));
}
// out[t] = the float of shared memory at in[t]; each thread writes its own first.
__global__ void gather_shared_kernel(const TestParams p) {
  const int t = thread_index();
  shared<float>()[t] = float(t);
  barrier();
  out<float>(p)[t] = shared<float>()[in<int32_t>(p)[t]];
}
// Writes the byte of shared memory at in[0].
__global__ void overrun_kernel(const TestParams p) {
  if (thread_index() == 0) shared<unsigned char>()[in<int32_t>(p)[0]] = 1;
}
// out[0] counts; out[1...] = block * 10000 + thread in the order in which they ran, three rounds.
__global__ void trace_kernel(const TestParams p) {
  for (int round = 0; round < 3; ++round) {
    int32_t* entry = out<int32_t>(p);
    entry[1 + entry[0]++] = int32_t(block_index()) * 10000 + thread_index();
    barrier();
  }
}

// ---- what only a sanitizer sees -----------------------------------------------------------------

// out[block][t] = in[block][t + kShift].
template <int kShift>
__global__ void shifted_kernel(const TestParams p) {
  const int64_t i = block_index() * p.threads + thread_index();
  out<float>(p)[i] = in<float>(p)[i + kShift];
}
// out[block][t + kShift] = in[block][t].
template <int kShift>
__global__ void shifted_write_kernel(const TestParams p) {
  const int64_t i = block_index() * p.threads + thread_index();
  out<float>(p)[i + kShift] = in<float>(p)[i];
}
// out[t] = in[t] + 1.
__global__ void increment_kernel(const TestParams p) {
  out<int32_t>(p)[thread_index()] = in<int32_t>(p)[thread_index()] + 1;
}
// out[t] = 1 << in[t].
__global__ void power_kernel(const TestParams p) {
  out<int32_t>(p)[thread_index()] = 1 << in<int32_t>(p)[thread_index()];
}
// out[0] = the float that starts at byte out[0] of in.
__global__ void unaligned_kernel(const TestParams p) {
  if (thread_index()) return;
  const auto offset = int64_t(out<float>(p)[0]);
  out<float>(p)[0] = *reinterpret_cast<const float*>(in<char>(p) + offset);
}
// Every block writes the same elements.
__global__ void same_output_kernel(const TestParams p) {
  out<float>(p)[thread_index()] = in<float>(p)[thread_index()];
}
// Hands shared memory on within a warp, by a shuffle alone: it exchanges a value and orders nothing.
__global__ void ordered_by_shuffle_kernel(const TestParams p) {
  const int t = thread_index();
  shared<float>()[t] = in<float>(p)[t];
  shuffle_xor(1.0f, 1);
  out<float>(p)[t] = shared<float>()[t ^ 1];
}
// Two copies to one place: the second waits for the first.
template <bool kWait>
__global__ void copy_again_kernel(const TestParams p) {
  const int t = thread_index();
  for (int round = 0; round < 2; ++round) {
    async_copy<4>(shared<float>() + t, in<float>(p) + round * p.threads + t, true);
    async_commit();
    if (kWait) async_wait<0>();
    out<float>(p)[round * p.threads + t] = shared<float>()[t];
  }
  async_wait<0>();
}
// Never ends.
__global__ void endless_kernel(const TestParams p) {
  while (*static_cast<const volatile float*>(p.in) != 0) {
  }
}
// Writes where no memory is.
__global__ void wild_kernel(const TestParams) { *reinterpret_cast<volatile float*>(64) = 1; }
// The copy reads past the end of in.
__global__ void copy_past_the_end_kernel(const TestParams p) {
  async_copy<4>(shared<float>() + thread_index(), in<float>(p) + thread_index() + 1, true);
  async_commit();
  async_wait<0>();
}

}  // namespace convt3d

#define EXPORT extern "C" __attribute__((visibility("default")))
// What a launch of one of these is given.
struct TestCall {
  const void* in;
  void* out;
  int64_t blocks;
  int32_t threads, shared_bytes;
};
#define ENTRY(name, ...)                                                              \
  EXPORT const char* name(const TestCall* call, void* schedule) {                     \
    return convt3d::launch(__VA_ARGS__, call->blocks, call->threads, call->shared_bytes, schedule,  \
                           convt3d::TestParams{call->in, call->out, call->threads});                \
  }
ENTRY(hand_on, convt3d::hand_on_kernel<true>)
ENTRY(hand_on_without_barrier, convt3d::hand_on_kernel<false>)
ENTRY(rounds, convt3d::rounds_kernel<true>)
ENTRY(rounds_without_second_barrier, convt3d::rounds_kernel<false>)
ENTRY(half_a_barrier, convt3d::half_a_barrier_kernel)
ENTRY(early_exit, convt3d::early_exit_kernel)
ENTRY(uneven_barriers, convt3d::uneven_barriers_kernel)
ENTRY(butterfly_float, convt3d::butterfly_kernel<float>)
ENTRY(butterfly_double, convt3d::butterfly_kernel<double>)
ENTRY(butterfly_int, convt3d::butterfly_kernel<int32_t>)
ENTRY(uneven_shuffles, convt3d::uneven_shuffles_kernel)
ENTRY(half_a_shuffle, convt3d::half_a_shuffle_kernel)
ENTRY(shuffle_or_barrier, convt3d::shuffle_or_barrier_kernel)
ENTRY(hand_on_in_warp, convt3d::hand_on_in_warp_kernel<true>)
ENTRY(hand_on_in_warp_without_barrier, convt3d::hand_on_in_warp_kernel<false>)
ENTRY(half_a_warp_barrier, convt3d::half_a_warp_barrier_kernel)
ENTRY(load_matrices, convt3d::load_matrices_kernel)
ENTRY(load_misaligned_matrices, convt3d::load_misaligned_matrices_kernel)
ENTRY(transpose_matrix, convt3d::transpose_matrix_kernel)
ENTRY(multiply_add_float, convt3d::multiply_add_kernel<float>)
ENTRY(warpgroup_float, (convt3d::warpgroup_kernel<float, convt3d::kRightProducts>))
ENTRY(warpgroup_half, (convt3d::warpgroup_kernel<convt3d::half_t, convt3d::kRightProducts>))
ENTRY(warpgroup_bfloat16, (convt3d::warpgroup_kernel<convt3d::bfloat16_t, convt3d::kRightProducts>))
ENTRY(warpgroup_no_wait, (convt3d::warpgroup_kernel<float, convt3d::kNoWarpgroupWait>))
ENTRY(warpgroup_reused, (convt3d::warpgroup_kernel<float, convt3d::kReusedTooEarly>))
ENTRY(misaligned_shared_matrix, convt3d::misaligned_shared_matrix_kernel)
ENTRY(multiply_add_half, convt3d::multiply_add_kernel<convt3d::half_t>)
ENTRY(multiply_add_bfloat16, convt3d::multiply_add_kernel<convt3d::bfloat16_t>)
ENTRY(ring, convt3d::ring_kernel<convt3d::kWhole>)
ENTRY(ring_no_wait_for_full, convt3d::ring_kernel<convt3d::kNoWaitForFull>)
ENTRY(ring_no_wait_for_empty, convt3d::ring_kernel<convt3d::kNoWaitForEmpty>)
ENTRY(ring_one_arrival_short, convt3d::ring_kernel<convt3d::kOneArrivalShort>)
ENTRY(ring_no_warp_barrier, convt3d::ring_kernel<convt3d::kNoWarpBarrier>)
ENTRY(misaligned_signal, convt3d::misaligned_signal_kernel)
ENTRY(pipeline, convt3d::pipeline_kernel<convt3d::kRight>)
ENTRY(pipeline_no_wait, convt3d::pipeline_kernel<convt3d::kNoWait>)
ENTRY(pipeline_waits_for_too_few, convt3d::pipeline_kernel<convt3d::kWaitsForTooFew>)
ENTRY(pipeline_no_barrier_after_wait, convt3d::pipeline_kernel<convt3d::kNoBarrierAfterWait>)
ENTRY(pipeline_no_barrier_before_reuse, convt3d::pipeline_kernel<convt3d::kNoBarrierBeforeReuse>)
ENTRY(uncommitted, convt3d::uncommitted_kernel)
ENTRY(many_copies, convt3d::many_copies_kernel)
ENTRY(copy4, convt3d::copy_kernel<4>)
ENTRY(copy8, convt3d::copy_kernel<8>)
ENTRY(copy16, convt3d::copy_kernel<16>)
ENTRY(misaligned, convt3d::misaligned_kernel)
ENTRY(unwritten_double, convt3d::unwritten_kernel<double>)
ENTRY(unwritten_float, convt3d::unwritten_kernel<float>)
ENTRY(unwritten_half, convt3d::unwritten_kernel<convt3d::half_t>)
ENTRY(unwritten_bfloat16, convt3d::unwritten_kernel<convt3d::bfloat16_t>)
ENTRY(gather_shared, convt3d::gather_shared_kernel)
ENTRY(overrun, convt3d::overrun_kernel)
ENTRY(trace, convt3d::trace_kernel)
ENTRY(in_place, convt3d::shifted_kernel<0>)
ENTRY(read_past_the_end, convt3d::shifted_kernel<1>)
ENTRY(read_before_the_start, convt3d::shifted_kernel<-1>)
ENTRY(write_past_the_end, convt3d::shifted_write_kernel<1>)
ENTRY(increment, convt3d::increment_kernel)
ENTRY(power, convt3d::power_kernel)
ENTRY(unaligned, convt3d::unaligned_kernel)
ENTRY(same_output, convt3d::same_output_kernel)
ENTRY(ordered_by_shuffle, convt3d::ordered_by_shuffle_kernel)
ENTRY(copy_again, convt3d::copy_again_kernel<true>)
ENTRY(copy_again_without_wait, convt3d::copy_again_kernel<false>)
ENTRY(endless, convt3d::endless_kernel)
ENTRY(wild, convt3d::wild_kernel)
ENTRY(copy_past_the_end, convt3d::copy_past_the_end_kernel)

template <typename T>
void widen(const uint16_t* bits, float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = convt3d::to_acc(T{bits[i]});
}
template <typename T>
void round_off(const float* values, uint16_t* bits, int64_t count) {
  for (int64_t i = 0; i < count; ++i) bits[i] = convt3d::from_acc<T>(values[i]).bits;
}
EXPORT void widen_half(const uint16_t* bits, float* values, int64_t count) {
  widen<convt3d::half_t>(bits, values, count);
}
EXPORT void widen_bfloat16(const uint16_t* bits, float* values, int64_t count) {
  widen<convt3d::bfloat16_t>(bits, values, count);
}
EXPORT void round_off_half(const float* values, uint16_t* bits, int64_t count) {
  round_off<convt3d::half_t>(values, bits, count);
}
EXPORT void round_off_bfloat16(const float* values, uint16_t* bits, int64_t count) {
  round_off<convt3d::bfloat16_t>(values, bits, count);
}
"""


class _Call(ctypes.Structure):
    """Mirrors TestCall."""

    _fields_ = [
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("blocks", ctypes.c_int64),
        ("threads", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
    ]


class Kernels:
    """The compiled kernels of SOURCE, each run by its name.

    Args:
        library: as `compile_kernels` makes it.
        sanitizer: "asan" or "tsan", if it was compiled for one.
    """

    def __init__(self, library: Path, sanitizer: str = "") -> None:
        self.path = library
        self.sanitizer = sanitizer
        if not sanitizer:
            self.library = ctypes.CDLL(str(library))

    def run(
        self,
        name: str,
        input: Tensor | None = None,
        output: Tensor | None = None,
        *,
        blocks: int = 1,
        threads: int = 64,
        shared_bytes: int = 1024,
        seed: int | None = None,
    ) -> str:
        """Launches a kernel; returns what went wrong, or "".

        Args:
            input, output: what its p.in and p.out point to.
            seed: of a hostile schedule; None runs the fast one.
        """
        call = _Call(None, None, blocks, threads, shared_bytes)
        tensors = {
            field: tensor
            for field, tensor in (("input", input), ("output", output))
            if tensor is not None
        }
        with runtime.schedule("fast" if seed is None else "hostile", seed or 0):
            if self.sanitizer:
                return self._run_sanitized(name, call, tensors)
            for field, tensor in tensors.items():
                setattr(call, field, tensor.data_ptr())
            entry = getattr(self.library, name)
            entry.restype = ctypes.c_char_p
            error = entry(ctypes.byref(call), ctypes.c_void_p(runtime.current_schedule()))
        return error.decode() if error else ""

    def _run_sanitized(self, name: str, call: _Call, tensors: dict[str, Tensor]) -> str:
        return sanitized.launch(
            self.sanitizer,
            build.sanitizer_runtime(self.sanitizer),
            sanitized.Call(self.path, name, bytes(call), (), runtime.current_schedule()),
            [
                sanitized.Region(
                    field,
                    getattr(_Call, field).offset,
                    tensor.data_ptr(),
                    tensor.numel() * tensor.element_size(),
                )
                for field, tensor in tensors.items()
            ],
        )

    def convert(self, name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the values as one of the conversions gives them."""
        converted = torch.empty(values.shape, dtype=dtype)
        getattr(self.library, name)(
            ctypes.c_void_p(values.data_ptr()),
            ctypes.c_void_p(converted.data_ptr()),
            ctypes.c_int64(values.numel()),
        )
        return converted


def values(count: int) -> Tensor:
    """1, 2, 3, ..."""
    return torch.arange(1.0, count + 1)


def compile_kernels(folder: Path, *more_flags: str, sanitizer: str = "") -> Kernels:
    """Compiles SOURCE as the emulator is compiled, unless the folder holds it already.

    Args:
        folder: where it is kept.
        more_flags: for the compiler.
        sanitizer: "asan" or "tsan", for a library that runs under it.
    """
    modules = (watch, host, host_matrix, sys.modules[__name__])
    text = "\n".join(build._with_line_directive(module) for module in modules)
    flags = ["-std=c++17", "-shared", "-fPIC", *build.HOST_FLAGS]
    if sanitizer:
        flags = [*build.SANITIZER_FLAGS[sanitizer]]
    flags = [*flags, *more_flags]
    key = hashlib.sha256(repr((text, flags)).encode()).hexdigest()[:16]
    library = folder / f"emulator_kernels_{key}.so"
    with open(folder / f"{library.stem}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the run want it too
        if not library.exists():
            source, unfinished = library.with_suffix(".cpp"), library.with_suffix(".part")
            source.write_text(text)
            compiler = os.environ.get("CXX", "g++")
            subprocess.run([compiler, *flags, source, "-o", unfinished], check=True)
            unfinished.rename(library)
    return Kernels(library, sanitizer)
