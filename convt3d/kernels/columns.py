"""Columns: how outputs and inputs of an axis meet, for the kernels that compute all phases of some outputs at once."""

SOURCE = r"""
// Needs params.py.
namespace convt3d {

// Note [Columns]
// Along an axis, output o = u * stride + e for a column u and a phase e in [0, stride). What tap k adds
// to it comes from input i = u + (e + padding - k * dilation) / stride, where that is whole. So every
// phase sees the input through shifts that do not depend on u, and a block that computes all phases of
// some columns needs each input once.

// Columns that are neighbours along W and belong to one thread, or to one lane of a product.
constexpr int kRun = 8;

// The taps of phase e on an axis: tap first + j * step has shift base + j * shift, counted from the
// lowest, j in [0, count).
struct PhaseTaps {
  int32_t count, first, step, base, shift;
};

// What the taps along W do, at compile time: phase e meets tap k at the shift shift(e, k).
template <int kStride_, int kTaps_, int kPadding_, int kDilation_>
struct Along {
  static constexpr bool kFixed = true;
  static constexpr int kStride = kStride_, kTaps = kTaps_;
  static constexpr int kPadding = kPadding_, kDilation = kDilation_;
  // (e + padding - k * dilation), and so many strides that it is not negative.
  __host__ __device__ static constexpr int reach(int e, int k) {
    return e + kPadding + kTaps * kDilation * kStride - k * kDilation;
  }
  __host__ __device__ static constexpr bool meets(int e, int k) {
    return reach(e, k) % kStride == 0;
  }
  __host__ __device__ static constexpr int shift(int e, int k) {  // from the lowest one
    return reach(e, k) / kStride - lowest();
  }
  __host__ __device__ static constexpr int lowest() {
    int least = 1 << 20;
    for (int e = 0; e < kStride; ++e)
      for (int k = 0; k < kTaps; ++k)
        if (meets(e, k) && reach(e, k) / kStride < least) least = reach(e, k) / kStride;
    return least;
  }
  __host__ __device__ static constexpr int span() {
    int most = 0;
    for (int e = 0; e < kStride; ++e)
      for (int k = 0; k < kTaps; ++k)
        if (meets(e, k) && shift(e, k) > most) most = shift(e, k);
    return most;
  }
};
// Any other combination: one phase and one tap at a time.
struct AlongAny {
  static constexpr bool kFixed = false;
  static constexpr int kStride = 1, kTaps = 1;
  __host__ __device__ static constexpr bool meets(int, int) { return true; }
  __host__ __device__ static constexpr int shift(int, int) { return 0; }
  __host__ __device__ static constexpr int span() { return 0; }
};

}  // namespace convt3d
"""
