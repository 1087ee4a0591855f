"""The matrix units on a CPU: fragments, and products of a warp or a warpgroup, with the meaning of the PTX manual."""

SOURCE = r"""
// Needs host.py.
namespace convt3d {

inline void load_matrices(Words<4>& to, const void* row) {
  const void* rows[4];
  emulator::exchange_rows(emulator::machine(), row, rows);
  const int word = thread_index() % 4;
  for (int i = 0; i < 4; ++i) to.word[i] = static_cast<const uint32_t*>(rows[i])[word];
}

inline uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t which) {
  const uint64_t bytes = low | uint64_t(high) << 32;
  uint32_t picked = 0;
  for (int i = 0; i < 4; ++i) picked |= uint32_t(bytes >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
  return picked;
}

inline CONVT3D_UNSEEN uint32_t transpose_matrix(uint32_t word) {
  emulator::Machine& m = emulator::machine();
  const int thread = m.current, lane = thread % kWarpSize, first = thread - lane;
  auto& words = m.operands[m.generation[thread] & 1];
  words[thread][0] = word;
  emulator::meet_warp(m, emulator::nothing);
  // Row r of the result is column r: from lanes that have rows 2 * (l % 4) and the next.
  const int row = lane / 4, half = 16 * (row % 2);
  const auto at = [&](int column) {
    return words[first + 4 * column + row / 2][0] >> half & 0xffff;
  };
  return at(lane % 4 * 2) | at(lane % 4 * 2 + 1) << 16;
}

// The word's numbers, as the tensor core reads them: of a float the 13 last bits count for nothing.
template <typename scalar_t>
inline CONVT3D_UNSEEN void unpack(uint32_t word, float* to) {
  to[0] = to_acc(scalar_t{uint16_t(word)});
  to[1] = to_acc(scalar_t{uint16_t(word >> 16)});
}
template <>
inline CONVT3D_UNSEEN void unpack<float>(uint32_t word, float* to) {
  to[0] = float_of(word & 0xffffe000);
}

// The products of the warp that is running, for all its lanes.
template <typename scalar_t>
inline CONVT3D_UNSEEN void multiply_warp(emulator::Machine& m) {
  constexpr int kInWord = sizeof(uint32_t) / sizeof(scalar_t), kK = 8 * kInWord;
  const int first = m.current / kWarpSize * kWarpSize;
  const int parity = (m.generation[m.current] - 1) & 1;
  float left[16][kK], right[kK][8], product[16][8] = {};
  for (int lane = 0; lane < kWarpSize; ++lane)
    for (int i = 0; i < 6; ++i) {
      float number[2];
      unpack<scalar_t>(m.operands[parity][first + lane][i], number);
      const int k = (lane % 4 + (i < 4 ? i / 2 : i - 4) * 4) * kInWord;
      for (int j = 0; j < kInWord; ++j)
        if (i < 4)
          left[lane / 4 + i % 2 * 8][k + j] = number[j];
        else
          right[k + j][lane / 4] = number[j];
    }
  for (int k = 0; k < kK; ++k)
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column)
        product[row][column] += left[row][k] * right[k][column];
  for (int lane = 0; lane < kWarpSize; ++lane)
    for (int i = 0; i < 4; ++i)
      m.products[parity][first + lane][i] = product[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

template <typename scalar_t>
inline CONVT3D_UNSEEN void multiply_add(float (&sum)[4], const Words<4>& a, uint32_t b0,
                                        uint32_t b1) {
  emulator::Machine& m = emulator::machine();
  const int thread = m.current, parity = m.generation[thread] & 1;
  uint32_t* mine = m.operands[parity][thread];
  for (int i = 0; i < 4; ++i) mine[i] = a.word[i];
  mine[4] = b0;
  mine[5] = b1;
  emulator::meet_warp(m, multiply_warp<scalar_t>);
  for (int i = 0; i < 4; ++i) sum[i] += m.products[parity][thread][i];
}

inline CONVT3D_UNSEEN uint64_t shared_matrix(const void* first, int next_words, int next_rows) {
  const auto at = static_cast<const unsigned char*>(first) - emulator::machine().shared;
  if (at % 16 || next_words % 16 || next_rows % 16)
    emulator::fail("a matrix in shared memory is not aligned", 1);
  return uint64_t(at) >> 4 | uint64_t(next_words >> 4) << 16 | uint64_t(next_rows >> 4) << 32;
}

// Row `row` of a matrix in shared memory, its numbers in K one after the other.
template <typename scalar_t>
inline void matrix_row(uint64_t matrix, int row, float* to) {
  constexpr int kInWord = sizeof(uint32_t) / sizeof(scalar_t);
  const int64_t next_words = (matrix >> 16 & 0x3fff) * 16, next_rows = (matrix >> 32 & 0x3fff) * 16;
  const unsigned char* at = static_cast<const unsigned char*>(shared_memory()) +
                            (matrix & 0x3fff) * 16 + row / 8 * next_rows + row % 8 * 16;
  for (int i = 0; i < 8; ++i)
    unpack<scalar_t>(reinterpret_cast<const uint32_t*>(at + i / 4 * next_words)[i % 4],
                     to + i * kInWord);
}

template <typename scalar_t, int kColumns>
inline void land_warpgroup_product(float* sum, uint64_t a, uint64_t b) {
  constexpr int kK = 8 * sizeof(uint32_t) / sizeof(scalar_t);
  const int thread = thread_index() % (4 * kWarpSize), lane = thread % kWarpSize;
  float left[2][kK], right[kK];
  for (int half = 0; half < 2; ++half)
    matrix_row<scalar_t>(a, thread / kWarpSize * 16 + lane / 4 + half * 8, left[half]);
  for (int j = 0; j < kColumns / 8; ++j)
    for (int odd = 0; odd < 2; ++odd) {
      matrix_row<scalar_t>(b, 8 * j + lane % 4 * 2 + odd, right);
      for (int half = 0; half < 2; ++half) {
        float product = 0;
        for (int k = 0; k < kK; ++k) product += left[half][k] * right[k];
        sum[4 * j + 2 * half + odd] += product;
      }
    }
}

template <typename scalar_t, int kColumns>
inline CONVT3D_UNSEEN void warpgroup_multiply(float* sum, uint64_t a, uint64_t b) {
  emulator::Machine& m = emulator::machine();
  emulator::Fiber& fiber = m.fibers[m.current];
  // It may land at any time until its wait: hostile tries at once, and as late as may be.
  const bool is_late = m.mode == emulator::Mode::kHostile && m.random.below(2);
  if (!is_late || fiber.products == emulator::kMaxProducts) {
    emulator::land_products(m, fiber.product_group);
    land_warpgroup_product<scalar_t, kColumns>(sum, a, b);
    return;
  }
  emulator::pending_products[m.current][fiber.products++] = {
      land_warpgroup_product<scalar_t, kColumns>, sum, a, b, fiber.product_group};
}
inline void warpgroup_begin() {}
inline CONVT3D_UNSEEN void warpgroup_commit() {
  emulator::Machine& m = emulator::machine();
  ++m.fibers[m.current].product_group;
}
template <int kPending, int kCount>
inline CONVT3D_UNSEEN void warpgroup_wait(float (&)[kCount]) {
  emulator::Machine& m = emulator::machine();
  emulator::land_products(m, m.fibers[m.current].product_group - 1 - kPending);
}
inline void publish_to_products() {}

}  // namespace convt3d
"""
