"""Plans: their names, which of them can run a call, and which one does."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convt3d import plan
from convt3d.geometry import Geometry
from convt3d.kernels import gather, weight
from convt3d.plan import Plan

ONES, ZEROS = (1, 1, 1), (0, 0, 0)
SMALL = Geometry(1, 4, 4, 1, (2, 2, 2), (2, 2, 2), ONES, ZEROS, ZEROS, ONES)
LAYER = Geometry(8, 64, 32, 1, (16, 16, 16), (3, 3, 3), (2, 2, 2), ONES, ONES, ONES)
# One voxel, one tap, and coordinates that 32 bits cannot hold.
FAR_APART = dataclasses.replace(SMALL, stride=(1, 2**31, 1), input_size=ONES)

EVERY_PLAN = [
    Plan(kernel, index_bits, splits)
    for kernel in plan.KERNELS
    for index_bits in (32, 64)
    for splits in (1, 2, 10, plan.LARGEST_SPLIT)
]


@pytest.mark.parametrize("one", EVERY_PLAN, ids=str)
def test_a_plan_is_read_back_from_its_name(one: Plan) -> None:
    assert plan.parse_plan(str(one)) == one
    assert re.fullmatch(r"[a-z0-9.]+", str(one))


def test_names_are_distinct() -> None:
    assert len({str(one) for one in EVERY_PLAN}) == len(EVERY_PLAN)
    assert str(Plan("tiled", 32)) == "tiled.i32"
    assert str(Plan("direct", 64, 4)) == "direct.i64.split4"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "auto",
        "tiled",
        "tiled.",
        "tiled.i16",
        "tiled.32",
        "Tiled.i32",
        "tiled.i32.",
        "tiled.i32.split",
        "tiled.i32.split0",
        "tiled.i32.split1",
        "tiled.i32.split-2",
        "tiled.i32.split02",
        "tiled.i32.4",
        "tiled.i32.split2.split3",
        "tiled.i32.splitsplit2",
        "tiled.i32.split²",
        " tiled.i32",
        "wgmma.i32",
    ],
)
def test_what_is_not_a_plans_name_is_refused(name: str) -> None:
    with pytest.raises(
        RuntimeError, match=re.escape(f"plan={name!r}, but must be like 'tiled.i32'")
    ):
        plan.parse_plan(name)


@pytest.mark.parametrize("primitive", plan.PRIMITIVES)
def test_every_kernel_and_width_is_a_candidate(primitive: str) -> None:
    names = [str(one) for one in plan.candidates(primitive, LAYER)]
    assert {"tiled.i32", "tiled.i64", "direct.i32", "direct.i64"} <= set(names)
    assert len(set(names)) == len(names)


def test_only_grad_weight_has_splits() -> None:
    split = {p: [c for c in plan.candidates(p, LAYER) if c.splits > 1] for p in plan.PRIMITIVES}
    assert split["forward"] == split["grad_input"] == []
    assert {one.splits for one in split["grad_weight"]} == {2, 3, 7}
    assert {one.index_bits for one in split["grad_weight"]} == {32, 64}
    assert {one.kernel for one in split["grad_weight"]} == {"tiled"}


def test_no_candidate_has_more_splits_than_products() -> None:
    for positions, splits in ((1, []), (2, [2]), (3, [2, 3]), (6, [2, 3]), (7, [2, 3, 7])):
        one = dataclasses.replace(SMALL, input_size=(1, 1, positions))
        found = {c.splits for c in plan.candidates("grad_weight", one)} - {1}
        assert sorted(found) == splits


def test_the_reduction_length_counts_products() -> None:
    one = dataclasses.replace(SMALL, batch=3, in_channels=4, out_channels=10, groups=2)
    lengths = [plan.reduction_length(primitive, one) for primitive in plan.PRIMITIVES]
    assert lengths == [8 * 2, 8 * 5, 3 * 8]


@pytest.mark.parametrize("primitive", plan.PRIMITIVES)
def test_offsets_past_32_bits_leave_64_bit_plans_alone(primitive: str) -> None:
    assert {c.index_bits for c in plan.candidates(primitive, LAYER, fits_32_bits=False)} == {64}
    assert plan.choose(primitive, LAYER, fits_32_bits=False).index_bits == 64
    assert plan.choose(primitive, LAYER, fits_32_bits=True).index_bits == 32


@pytest.mark.parametrize("primitive", plan.PRIMITIVES)
@pytest.mark.parametrize(
    "change",
    [
        {"stride": (2**31, 1, 1), "input_size": ONES},
        {"dilation": (1, 1, 2**31)},
        {"padding": (1, 2**30, 1), "dilation": (1, 2**31, 1)},
        {"input_size": (1, 1, 2**16), "stride": (1, 1, 2**15)},
        {"output_padding": (2**31 - 1, 0, 0), "dilation": (2**31, 1, 1), "kernel_size": ONES},
    ],
    ids=lambda change: "-".join(change),
)
def test_coordinates_past_32_bits_leave_64_bit_plans_alone(
    primitive: str, change: dict[str, tuple[int, int, int]]
) -> None:
    far = dataclasses.replace(SMALL, **change)  # type: ignore[arg-type]
    assert {one.index_bits for one in plan.candidates(primitive, far)} == {64}
    assert plan.choose(primitive, far).index_bits == 64


def test_coordinates_up_to_the_last_that_fits_keep_32_bit_plans() -> None:
    stride = 2**31 - 1 - (SMALL.output_size[0] + 1)
    inside = dataclasses.replace(SMALL, input_size=ONES, kernel_size=ONES, stride=(stride, 1, 1))
    assert inside.axis(0).largest_coordinate < 2**31
    assert plan.choose("forward", inside).index_bits == 32
    outside = dataclasses.replace(inside, stride=(2**31 - 1, 1, 1))
    assert outside.axis(0).largest_coordinate == 2**31
    assert plan.choose("forward", outside).index_bits == 64


@pytest.mark.parametrize(
    ("channels", "kernel"), [((8, 8), "tiled"), ((7, 8), "direct"), ((8, 7), "direct")]
)
@pytest.mark.parametrize("groups", [1, 3])
def test_few_channels_a_group_do_without_a_tile(
    channels: tuple[int, int], kernel: str, groups: int
) -> None:
    one = dataclasses.replace(
        LAYER, in_channels=groups * channels[0], out_channels=groups * channels[1], groups=groups
    )
    assert plan.choose("forward", one).kernel == kernel
    assert plan.choose("grad_input", one).kernel == kernel


@pytest.mark.parametrize("one", [SMALL, LAYER], ids=["small", "layer"])
@pytest.mark.parametrize("primitive", plan.PRIMITIVES)
@pytest.mark.parametrize("fits", [True, False])
def test_the_choice_for_the_emulator_is_a_candidate(
    one: Geometry, primitive: str, fits: bool
) -> None:
    assert plan.choose(primitive, one, fits) in plan.candidates(primitive, one, fits)


def test_the_emulator_does_not_split() -> None:
    assert plan.choose("grad_weight", LAYER).splits == 1


def test_splits_fill_the_multiprocessors() -> None:
    one = dataclasses.replace(LAYER, in_channels=32, out_channels=32, kernel_size=ONES)
    blocks = 1  # 32 x 32 elements lie in one tile
    assert one.taps * one.out_channels <= plan.WEIGHT_TILE_COLUMNS
    for multiprocessors in (2, 3):
        splits = plan.choose("grad_weight", one, True, multiprocessors).splits
        assert splits * blocks == multiprocessors * plan.BLOCKS_PER_MULTIPROCESSOR


def test_splits_are_as_many_as_their_products_pay_for() -> None:
    for positions in (1, 1023, 2047, 2048, 4096):
        one = dataclasses.replace(SMALL, input_size=(1, 1, positions))
        splits = plan.choose("grad_weight", one, True, multiprocessors=132).splits
        assert splits == max(1, positions // plan.SMALLEST_SPLIT_PRODUCTS)


def test_splits_stop_at_the_largest() -> None:
    one = dataclasses.replace(SMALL, input_size=(256, 256, 256))
    assert plan.choose("grad_weight", one, True, 10_000).splits == plan.LARGEST_SPLIT


def test_enough_tiles_need_no_splits() -> None:
    one = dataclasses.replace(LAYER, in_channels=512, out_channels=512)
    assert plan.choose("grad_weight", one, True, multiprocessors=132).splits == 1


def test_a_forced_plan_is_chosen_inside_the_block_alone() -> None:
    usual = plan.choose("forward", LAYER)
    assert usual == Plan("tiled", 32)
    with plan.forced({"forward": "direct.i64"}):
        assert plan.choose("forward", LAYER) == Plan("direct", 64)
        assert plan.choose("grad_input", LAYER) == plan.Plan("tiled", 32)
    assert plan.choose("forward", LAYER) == usual


def test_blocks_of_forced_plans_nest() -> None:
    with plan.forced({"forward": "direct.i32", "grad_weight": "tiled.i32.split3"}):
        with plan.forced({"forward": "tiled.i64"}):
            assert plan.choose("forward", LAYER) == Plan("tiled", 64)
            assert plan.choose("grad_weight", LAYER) == Plan("tiled", 32, 3)
        assert plan.choose("forward", LAYER) == Plan("direct", 32)


def test_auto_forces_nothing() -> None:
    with plan.forced(dict.fromkeys(plan.PRIMITIVES, "auto")):
        assert plan.choose("forward", LAYER) == Plan("tiled", 32)


def test_an_exception_ends_the_forcing() -> None:
    with pytest.raises(KeyError), plan.forced({"forward": "direct.i64"}):
        raise KeyError
    assert plan.choose("forward", LAYER) == Plan("tiled", 32)


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        ({"backward": "tiled.i32"}, "primitive='backward', but must be one of"),
        ({"forward": "fast"}, "plan='fast', but must be like"),
        ({"grad_input": "direct.i32", "forward": ""}, "plan='', but must be like"),
    ],
)
def test_forcing_what_does_not_exist_is_refused_and_forces_nothing(
    plans: dict[str, str], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message), plan.forced(plans):
        pytest.fail("entered the block")
    for primitive in plan.PRIMITIVES:
        assert plan.choose(primitive, LAYER) == Plan("tiled", 32)


@pytest.mark.parametrize("primitive", ["forward", "grad_input"])
def test_splits_of_a_primitive_that_has_none_are_refused(primitive: str) -> None:
    with pytest.raises(RuntimeError, match="split"), plan.forced({primitive: "tiled.i32.split2"}):
        plan.choose(primitive, LAYER)


@pytest.mark.parametrize("fits", [True, False])
def test_a_forced_32_bit_plan_is_refused_where_an_offset_needs_64_bits(fits: bool) -> None:
    one = FAR_APART if fits else LAYER
    with plan.forced({"forward": "direct.i32"}):
        with pytest.raises(RuntimeError, match=r"direct\.i32 is forced on forward, but an offset"):
            plan.choose("forward", one, fits_32_bits=fits)
    with plan.forced({"forward": "direct.i64"}):
        assert plan.choose("forward", one, fits_32_bits=fits) == Plan("direct", 64)


@pytest.mark.parametrize(
    ("constant", "source", "name"),
    [
        (plan.WEIGHT_TILE_ROWS, weight.SOURCE, "kWeightRows"),
        (plan.WEIGHT_TILE_COLUMNS, weight.SOURCE, "kWeightColumns"),
        (plan.GATHER_TILE, gather.SOURCE, "kTilePositions"),
        (plan.GATHER_PASS, gather.SOURCE, "kTileSlots"),
    ],
)
def test_the_tiles_are_those_of_the_kernels(constant: int, source: str, name: str) -> None:
    assert re.findall(rf"constexpr int {name} = (\d+);", source) == [str(constant)]


@given(st.integers(1, 400), st.integers(1, 300))
def test_a_gather_tile_fits_the_kernel_and_is_as_long_as_the_row_or_a_sector(
    width: int, step: int
) -> None:
    rows, columns = plan.gather_tile(width, step)
    assert rows >= 1 and rows * columns <= plan.GATHER_TILE
    assert min(width, plan.SHORTEST_GATHER_RUN) <= columns <= width


@pytest.mark.parametrize(
    ("width", "step", "expected"),
    [(64, 1, (2, 64)), (128, 1, (1, 128)), (128, 2, (1, 128)), (8, 2, (16, 8)), (1, 5, (128, 1))],
)
def test_a_gather_tile_fills_its_passes(width: int, step: int, expected: tuple[int, int]) -> None:
    assert plan.gather_tile(width, step) == expected


def test_more_splits_than_the_chooser_ever_takes_are_no_plan() -> None:
    assert plan.parse_plan(f"tiled.i32.split{plan.LARGEST_SPLIT}").splits == plan.LARGEST_SPLIT
    with pytest.raises(RuntimeError, match="at most 128 splits"):
        plan.parse_plan(f"tiled.i32.split{plan.LARGEST_SPLIT + 1}")


def test_a_row_just_longer_than_a_pass_is_cut_into_shorter_tiles() -> None:
    rows, columns = plan.gather_tile(66, 1)
    assert columns < 66 and rows * columns > 100
