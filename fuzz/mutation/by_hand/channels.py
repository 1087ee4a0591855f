"""Channels, groups and the bias."""

from __future__ import annotations

from fuzz.mutation.by_hand.edits import gather_statements, in_gather, in_weight
from fuzz.mutation.mutant import KernelMutant

_DIRECT_PRODUCTS = """for (index_t c = 0; c < source_channels; ++c) {
          sum += to_acc(*from) * to_acc(*by);
          from += static_cast<index_t>(p.source.channel);
          by += static_cast<index_t>(p.weight_source);
        }"""

MUTANTS = (
    KernelMutant(
        "weight_without_the_input_channel",
        "every input channel is multiplied by the weight of the first",
        (in_gather("(first_k + k) * static_cast<index_t>(p.weight_source)", "index_t(0)"),),
    ),
    KernelMutant(
        "groups_ignored",
        "every output channel gathers from the first group, as in XNNPACK#1951; KernelBench#157 lost groups too",
        (
            in_gather(
                "channel / per_group",
                "index_t(0)",
                within="const index_t group = channel / per_group;",
            ),
        ),
    ),
    KernelMutant(
        "wrong_group_offset",
        "a group's source starts at as many channels as a group has of the other kind",
        (
            in_gather(
                "group * source_channels * static_cast<index_t>(p.source.channel)",
                "group * channels * static_cast<index_t>(p.source.channel)",
                within="group * source_channels * static_cast<index_t>(p.source.channel);\n"
                "  const scalar_t* weight = static_cast<const scalar_t*>(p.weight_data) +\n",
            ),
        ),
    ),
    KernelMutant(
        "depthwise_channels_interleaved",
        "a depthwise path of its own with the channels of a group in the wrong order, as in tt-metal#45856",
        (
            in_gather(
                "channel / per_group",
                "(source_channels == 1 ? channel % static_cast<index_t>(p.groups) : channel / per_group)",
                within="const index_t group = channel / per_group;",
            ),
            in_gather(
                "(channel - group * per_group)",
                "(source_channels == 1 ? channel / static_cast<index_t>(p.groups) : "
                "channel - group * per_group)",
            ),
        ),
    ),
    KernelMutant(
        "results_of_groups_interleaved",
        "oneDNN#352: channels come out as g1f1 g2f1 g1f2 g2f2",
        (
            in_gather(
                "(group * channels + first_channel)",
                "(first_channel * static_cast<index_t>(p.groups) + group)",
            ),
            in_gather(
                "c * static_cast<index_t>(p.destination.channel)",
                "c * static_cast<index_t>(p.groups * p.destination.channel)",
            ),
        ),
    ),
    KernelMutant(
        "group_missing_in_grad_weight_only",
        "forward and grad_input are right; every group's weights get the gradient from the first group's outputs",
        (
            in_weight(
                "group * out_channels * static_cast<index_t>(p.grad_output.channel)", "index_t(0)"
            ),
        ),
    ),
    KernelMutant(
        "grad_weight_stored_to_the_first_group",
        "the offset of a group is missing where grad_weight is stored",
        (in_weight("group * static_cast<index_t>(p.in_channels) + ci", "ci"),),
    ),
    KernelMutant(
        "bias_of_the_wrong_group",
        "the bias is indexed within the group: Tengine#5",
        (
            in_gather(
                "group * channels + c", "c", within="bias_at<scalar_t>(p, group * channels + c)"
            ),
        ),
    ),
    KernelMutant(
        "bias_indexed_by_the_batch",
        "onnx2c#7: the bias is indexed along the wrong dimension",
        (
            in_gather(
                "bias_at<scalar_t>(p, channel)", "bias_at<scalar_t>(p, int64_t(n % channels))"
            ),
        ),
    ),
    KernelMutant(
        "bias_read_with_stride_zero",
        "the bias of the first channel is added to all",
        (in_gather("channel * p.bias_stride", "channel * 0"),),
    ),
    KernelMutant(
        "bias_added_once_per_tap",
        "the accumulator starts from the bias for each tap, not once",
        (
            gather_statements(
                _DIRECT_PRODUCTS,
                "if (p.bias_data) sum += bias_at<scalar_t>(p, channel);\n" + _DIRECT_PRODUCTS,
            ),
            gather_statements("if (p.bias_data) sum += bias_at<scalar_t>(p, channel);", ""),
        ),
    ),
    KernelMutant(
        "no_bias_where_no_tap_reaches",
        "a phase without a tap, or output padding, is filled with zeros and not with the bias: ncnn#1122",
        (
            in_gather(
                "p.bias_data && c < channels",
                "p.bias_data && c < channels && taps_d * taps_h * phase_w.taps > 0",
            ),
        ),
    ),
)
