"""Products, sums and their rounding."""

from __future__ import annotations

from fuzz.mutation.by_hand.edits import gather_statements, in_gather, in_weight, weight_statements
from fuzz.mutation.mutant import KernelMutant

HALVES = ("f16", "bf16")
_TILED_SUM = """sum[i][j] += shared.source[k][slot_lane * kThreadSlots + i] *
                               shared.weight[k][channel_lane * kThreadChannels + j];"""
_TILED_PRODUCT = _TILED_SUM.removeprefix("sum[i][j] += ").removesuffix(";")
_WEIGHT_SUM = """sum[i][j] += shared.input[row_lane * kWeightThreadRows + i][k] *
                         shared.grad_output[column_lane + j * kColumnLanes][k];"""

_CUT_OFF = """
template <typename T, typename Acc>
inline T cut_off(Acc value) { return from_acc<T>(value); }
template <>
inline bfloat16_t cut_off<bfloat16_t, float>(float value) {
  return {uint16_t(bits_of(value) >> 16)};
}
"""
_AWAY_FROM_ZERO = """
template <typename T, typename Acc>
inline T rounded_half_away(Acc value) { return from_acc<T>(value); }
template <>
inline bfloat16_t rounded_half_away<bfloat16_t, float>(float value) {
  return {uint16_t((bits_of(value) + 0x8000) >> 16)};
}
"""
_FLUSHED = """
template <typename T> inline double smallest_normal();
template <> inline double smallest_normal<double>() { return 0x1p-1022; }
template <> inline double smallest_normal<float>() { return 0x1p-126; }
template <> inline double smallest_normal<bfloat16_t>() { return 0x1p-126; }
template <> inline double smallest_normal<half_t>() { return 0x1p-14; }
template <typename T, typename Acc>
inline Acc flushed(Acc value) {
  const double least = smallest_normal<T>();
  return value < Acc(least) && value > -Acc(least) ? Acc(0) : value;
}
"""
_MINUS_ZERO = """
inline double decoded(double value) { return value; }
inline float decoded(float value) { return value; }
inline float decoded(bfloat16_t value) { return to_acc(value); }
inline float decoded(half_t value) {
  return value.bits == 0x8000 ? float_of(0x80000000 | 112u << 23) : to_acc(value);
}
"""
_FP16_RANGE = """
inline double in_fp16_range(double value) { return value; }
inline float in_fp16_range(float value) {
  const float infinity = float_of(0x7f800000);
  return value >= 65520.0f ? infinity : value <= -65520.0f ? -infinity : value;
}
"""
_SATURATED = """
template <typename T, typename Acc>
inline T saturated(Acc value) { return from_acc<T>(value); }
template <>
inline half_t saturated<half_t, float>(float value) {
  return from_acc<half_t>(value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value);
}
"""
_CLAMPED = """
inline double clamped(double value) { return value; }
inline float clamped(float value) {  // as fminf and fmaxf: the operand that is a number wins over a NaN
  const float most = float_of(0x7f7fffff);
  if (value != value) return most;
  return value > most ? most : value < -most ? -most : value;
}
"""
_TF32 = """
inline double as_tf32(double value) { return value; }
inline float as_tf32(float value) { return float_of(bits_of(value) & 0xffffe000); }
"""

MUTANTS = (
    KernelMutant(
        "accumulation_in_fp16",
        "the accumulator has the type of the tensors: oneDNN#5041, openvino#19782",
        (
            gather_statements(
                "sum += to_acc(*from) * to_acc(*by);",
                "sum = to_acc(from_acc<scalar_t>(sum + to_acc(*from) * to_acc(*by)));",
            ),
        ),
        dtypes=HALVES,
    ),
    KernelMutant(
        "product_rounded_to_fp16",
        "a product is rounded to 16 bits before it is added",
        (in_gather(_TILED_PRODUCT, f"to_acc(from_acc<scalar_t>({_TILED_PRODUCT}))"),),
        dtypes=HALVES,
    ),
    KernelMutant(
        "inf_from_an_fp16_intermediate",
        "a partial sum leaves the range of fp16 although the result is within it: openvino#34528, pytorch#153700",
        (
            gather_statements(
                _TILED_SUM, f"sum[i][j] = in_fp16_range(sum[i][j] + {_TILED_PRODUCT});"
            ),
        ),
        dtypes=("f16",),
        helpers=_FP16_RANGE,
    ),
    KernelMutant(
        "fp64_summed_in_fp32",
        "a float accumulator serves double tensors",
        (
            weight_statements(
                _WEIGHT_SUM,
                f"sum[i][j] = acc_t(float(sum[i][j] + {_WEIGHT_SUM[13:-1]}));",
            ),
        ),
        dtypes=("f64",),
    ),
    KernelMutant(
        "fp32_multiplied_as_tf32",
        "13 bits of each operand are cut where the caller asked for fp32; on by default for convolutions in PyTorch",
        (
            in_weight(
                "to_acc(input[input_offset + i * static_cast<index_t>(p.input.channel)])",
                "as_tf32(to_acc(input[input_offset + i * static_cast<index_t>(p.input.channel)]))",
            ),
        ),
        dtypes=("f32",),
        helpers=_TF32,
    ),
    KernelMutant(
        "bf16_truncated",
        "the lower half of the float is cut off: universal#1134, tinygrad#11848, tt-metal#19882",
        (in_gather("from_acc<scalar_t>(sum)", "cut_off<scalar_t>(sum)"),),
        dtypes=("bf16",),
        helpers=_CUT_OFF,
    ),
    KernelMutant(
        "ties_rounded_away_from_zero",
        "half is added before the cut, so that a tie never goes to even",
        (in_gather("from_acc<scalar_t>(value)", "rounded_half_away<scalar_t>(value)"),),
        dtypes=("bf16",),
        helpers=_AWAY_FROM_ZERO,
    ),
    KernelMutant(
        "output_rounded_before_the_bias",
        "the bias is added to a 16-bit result and rounded again, as a second kernel for the bias does",
        (
            in_gather(
                "sum[i][j]",
                "to_acc(from_acc<scalar_t>(sum[i][j]))",
                within="acc_t value = sum[i][j];",
            ),
        ),
        dtypes=HALVES,
    ),
    KernelMutant(
        "subnormals_flushed",
        "subnormal operands count as zero: built with -ftz=true or --use_fast_math",
        (
            in_gather(
                "to_acc(from[(first_k + k) * static_cast<index_t>(p.source.channel)])",
                "flushed<scalar_t>("
                "to_acc(from[(first_k + k) * static_cast<index_t>(p.source.channel)]))",
            ),
        ),
        helpers=_FLUSHED,
    ),
    KernelMutant(
        "minus_zero_decoded_as_a_number",
        "the sign bit is left in where an fp16 conversion looks for a zero or a subnormal: dotnet/runtime#46536 is "
        "another conversion that got these wrong",
        (
            in_weight(
                "to_acc(input[input_offset + i * static_cast<index_t>(p.input.channel)])",
                "decoded(input[input_offset + i * static_cast<index_t>(p.input.channel)])",
            ),
        ),
        dtypes=("f16",),
        helpers=_MINUS_ZERO,
    ),
    KernelMutant(
        "products_with_zero_skipped",
        "NaN and infinity opposite a zero are lost",
        (
            gather_statements(
                "sum += to_acc(*from) * to_acc(*by);",
                "if (to_acc(*from) != 0) sum += to_acc(*from) * to_acc(*by);",
            ),
        ),
    ),
    KernelMutant(
        "nan_replaced_by_zero",
        "a NaN in the result is tidied away",
        (
            in_gather(
                "from_acc<scalar_t>(value)", "from_acc<scalar_t>(value == value ? value : acc_t(0))"
            ),
        ),
    ),
    KernelMutant(
        "nan_and_infinity_clamped",
        "fminf and fmaxf keep the sum in range: the operand that is a number wins over a NaN",
        (
            in_weight(
                "from_acc<scalar_t>(sum)",
                "from_acc<scalar_t>(clamped(sum))",
                within="tap.space[2] * static_cast<index_t>(p.grad_weight.space[2])] =\n"
                "      from_acc<scalar_t>(sum);",
            ),
        ),
        dtypes=("f32",),
        helpers=_CLAMPED,
    ),
    KernelMutant(
        "overflow_saturates",
        "a result above the range of fp16 becomes its largest number, as cvt with .satfinite has it",
        (in_gather("from_acc<scalar_t>(sum)", "saturated<scalar_t>(sum)"),),
        dtypes=("f16",),
        helpers=_SATURATED,
    ),
)
