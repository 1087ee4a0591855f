"""Names of the kernels that are easily taken for one another: what a hand may write in the place of another."""

from __future__ import annotations

# Local names that are easily taken for one another.
ALIKE = (
    ("channels", "source_channels"),
    ("in_channels", "out_channels"),
    ("per_group", "group"),
    ("first_row", "first_column"),
    ("first_column", "first_channel"),
    ("slot_lane", "channel_lane"),
    ("row_lane", "column_lane"),
    ("used_slots", "used_channels"),
    ("used_rows", "used_columns"),
    ("rows", "columns"),
    ("tile_rows", "tile_columns"),
    ("lane", "warp"),
    ("ci", "co"),
)
# Members that are easily taken for one another; of the others the next of the same type is tried.
LIKE_MEMBERS = {
    ("Axis", "stride"): ("dilation", "kernel_size"),
    ("Axis", "dilation"): ("stride", "padding"),
    ("Axis", "input_size"): ("output_size",),
    ("Axis", "output_size"): ("input_size",),
    ("Axis", "kernel_size"): ("stride", "dilation"),
    ("Axis", "padding"): ("dilation", "gcd"),
    ("Axis", "gcd"): ("stride", "dilation"),
    ("Axis", "tap_step"): ("stride", "gcd"),
    ("Axis", "dilation_inverse"): ("dilation", "tap_step"),
    ("GatherParams", "weight_group"): ("weight_source", "weight_destination"),
    ("GatherParams", "weight_source"): ("weight_destination", "weight_group"),
    ("GatherParams", "weight_destination"): ("weight_source", "weight_group"),
    ("GatherParams", "source_channels"): ("destination_channels", "groups"),
    ("GatherParams", "destination_channels"): ("source_channels", "groups"),
    ("GatherParams", "batch"): ("groups",),
    ("GatherParams", "groups"): ("batch", "source_channels"),
    ("GatherParams", "tile_rows"): ("tile_columns",),
    ("GatherParams", "tile_columns"): ("tile_rows",),
    ("WeightParams", "batch"): ("groups",),
    ("WeightParams", "groups"): ("batch", "splits"),
    ("WeightParams", "in_channels"): ("out_channels", "groups"),
    ("WeightParams", "out_channels"): ("in_channels", "groups"),
    ("WeightParams", "splits"): ("groups", "batch"),
    ("WeightParams", "want_weight"): ("want_bias",),
    ("WeightParams", "want_bias"): ("want_weight",),
    ("Phase", "first"): ("first_tap", "base"),
    ("Phase", "step"): ("tap_step", "source_step"),
    ("Phase", "first_tap"): ("first", "tap_step"),
    ("Phase", "tap_step"): ("step", "source_tap_step"),
    ("Phase", "taps"): ("tap_step", "step"),
    ("Phase", "base"): ("first", "first_tap"),
    ("Phase", "source_step"): ("step", "source_tap_step"),
    ("Phase", "source_tap_step"): ("source_step", "tap_step"),
    # Position.n has no sibling of its type
}
