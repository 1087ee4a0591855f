"""The benchmark's data and arithmetic: the suite, floors, samples, means, tables, pictures, files."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from convt3d.geometry import Geometry, check_geometry
from fuzz.bench import picture, report, results
from fuzz.bench.floor import Ceilings, compulsory_bytes, floor_ms, useful_products
from fuzz.bench.results import Row, Run, Timing, timing
from fuzz.bench.sample import (
    LONGEST_MS,
    MOST_ELEMENTS,
    SHORTEST_MS,
    estimated_native_ms,
    is_measurable,
    sample,
)
from fuzz.bench.suite import (
    DIRECTIONS,
    DTYPES,
    LAYOUTS,
    NAMES,
    SUITE,
    Layer,
    case_string,
    points_of,
    points_of_case,
)
from fuzz.case import CaseError, parse_case

LAYERS = {layer.name: layer for layer in SUITE}
CEILINGS = Ceilings(4.0, {"bf16": 700.0, "f16": 750.0, "tf32": 360.0, "f32": 50.0})
SVG = "{http://www.w3.org/2000/svg}"


def row(shape: str, ratio: float = 2.0, dtype: str = "bf16", layout: str = "ncdhw") -> Row:
    """A row whose native times are 1 and 1.5 ms; cudnn.benchmark is better off."""
    times = {"ours": 1 / ratio, "native_on": 1.5, "native_off": 1.0}
    return Row(
        shape=shape,
        case="bf16_normal",
        dtype=dtype,
        layout=layout,
        direction="forward",
        floor_ms=0.1,
        plan="tiled.i32",
        times={name: Timing(ms, ms, ms, 30) for name, ms in times.items()},
        host_us={"ours": 80.0, "native": 40.0},
        exact="f64",
        error=1e-3,
        allowed_error=1e-2,
        rms_error=2e-3,
        native_rms_error=4e-3,
    )


def run_of(*rows: Row, kind: str = "suite") -> Run:
    return Run(kind, {"card": "Some <GPU> & more", "arch": "the card's own"}, CEILINGS, [*rows])


# ---- the suite ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "output_shape"),
    [
        ("kb58", (16, 16, 18, 36, 70)),
        ("kb61", (8, 48, 66, 66, 66)),
        ("kb68", (16, 64, 66, 68, 68)),
        ("kb70", (8, 24, 98, 98, 98)),
        ("kb72", (8, 32, 24, 48, 96)),
        ("kb73", (4, 32, 63, 127, 255)),
        ("kb77", (16, 64, 33, 65, 65)),
        ("nnunet_top", (2, 32, 128, 128, 128)),
        ("nnunet_bottleneck", (2, 320, 8, 8, 8)),
        ("nnunet_aniso", (2, 32, 20, 320, 256)),
        ("monai_unet_top", (4, 2, 96, 96, 96)),
        ("psmnet_conv6", (4, 32, 48, 96, 312)),
        ("mvsnet_conv11", (2, 8, 192, 128, 160)),
        ("videogpt_up1", (8, 240, 8, 64, 64)),
        ("kb2_50_cin3", (128, 16, 31, 63, 63)),
        ("mednext_dw_k5", (2, 64, 127, 127, 127)),
    ],
)
def test_a_layer_has_the_output_that_its_source_has(
    name: str, output_shape: tuple[int, ...]
) -> None:
    assert LAYERS[name].geometry.output_shape == output_shape


def test_the_suite_has_sixteen_layers_of_different_names() -> None:
    assert len(set(NAMES)) == len(SUITE) == 16
    assert LAYERS["kb72"].geometry.groups == 4
    assert LAYERS["kb73"].geometry.groups == 1
    assert LAYERS["mednext_dw_k5"].geometry.groups == 64
    assert [layer.name for layer in SUITE if layer.bias] == [
        *("nnunet_top", "nnunet_bottleneck", "nnunet_aniso", "monai_unet_top", "videogpt_up1"),
        *("kb2_50_cin3", "mednext_dw_k5"),
    ]


def test_a_case_string_measures_the_same_layer_again() -> None:
    for point in points_of(SUITE, DTYPES, tuple(LAYOUTS), DIRECTIONS):
        (again,) = points_of_case(parse_case(case_string(point)), [point.direction])
        layer = dataclasses.replace(again.layer, name=point.layer.name)
        assert dataclasses.replace(again, layer=layer) == point


def test_plans_of_a_case_string_are_kept() -> None:
    text = "f16_ci4_co4_i3_k2_bias_normal_fwd=direct.i64_gwt=tiled.i32.split2"
    (point,) = points_of_case(parse_case(text), ["forward"])
    assert point.plans == (("forward", "direct.i64"), ("grad_weight", "tiled.i32.split2"))
    assert case_string(point) == text


@pytest.mark.parametrize(
    ("text", "what"), [("f64_int", "dtype='f64'"), ("f32_far", "layout='far'")]
)
def test_a_case_that_is_not_measured_is_refused(text: str, what: str) -> None:
    with pytest.raises(CaseError, match=f"{what}, but bench measures"):
        points_of_case(parse_case(text), ["forward"])


# ---- the floor ----------------------------------------------------------------------------------


def test_the_products_of_a_layer_without_padding_are_all_of_them() -> None:
    products = 2 * 64 * 32 * 64**3 * 2**3  # N, C_in, C_out, voxels, taps
    assert useful_products(LAYERS["nnunet_top"].geometry) == products


def test_cropped_products_do_not_count() -> None:
    # An axis of I inputs, k3 s2 p1 op1: tap 0 of the first input is cropped, no other.
    axes = (3 * 24 - 1) * (3 * 48 - 1) * (3 * 156 - 1)
    assert useful_products(LAYERS["psmnet_conv6"].geometry) == 4 * 64 * 32 * axes


@pytest.mark.parametrize("layer", sample(20, 1, ["f32"], ["ncdhw"], ["forward"]), ids=str)
def test_products_are_those_that_counting_finds(layer: object) -> None:
    geometry: Geometry = layer.layer.geometry  # type: ignore[attr-defined]
    pairs = 1
    for index in range(3):
        axis = geometry.axis(index)
        pairs *= sum(
            0 <= i * axis.stride - axis.padding + tap * axis.dilation < axis.output_size
            for i in range(axis.input_size)
            for tap in range(axis.kernel_size)
        )
    per_pair = geometry.batch * geometry.in_channels * geometry.out_channels_per_group
    assert useful_products(geometry) == per_pair * pairs


def test_the_floor_of_a_layer_bound_by_memory_is_its_bytes() -> None:
    layer = LAYERS["nnunet_top"]
    elements = 2 * 64 * 64**3 + 64 * 32 * 8 + 2 * 32 * 128**3 + 32  # input, weight, output, bias
    assert compulsory_bytes(layer, "bf16") == 2 * elements
    assert floor_ms(layer, "bf16", CEILINGS) == pytest.approx(2 * elements / 4e12 * 1e3)
    assert floor_ms(layer, "bf16", CEILINGS) == pytest.approx(0.0839, abs=1e-4)


def test_the_floor_of_a_layer_bound_by_products_is_its_products() -> None:
    layer = LAYERS["kb61"]
    flops = 2 * 8 * 48 * 48 * (3 * 64) ** 3
    assert floor_ms(layer, "bf16", CEILINGS) == pytest.approx(flops / 700e12 * 1e3)
    assert floor_ms(layer, "f32", CEILINGS) == pytest.approx(5.218, abs=1e-3)


# ---- samples ------------------------------------------------------------------------------------


def test_a_sample_is_decided_by_its_seed_and_a_longer_one_begins_the_same() -> None:
    first = sample(30, 7, DTYPES, tuple(LAYOUTS), DIRECTIONS)
    assert first == sample(40, 7, DTYPES, tuple(LAYOUTS), DIRECTIONS)[:30]
    assert first != sample(30, 8, DTYPES, tuple(LAYOUTS), DIRECTIONS)


def test_a_sample_is_legal_and_measurable() -> None:
    for point in sample(200, 3, DTYPES, tuple(LAYOUTS), DIRECTIONS):
        geometry = point.layer.geometry
        check_geometry(geometry)
        parse_case(case_string(point))
        shapes = (geometry.input_shape, geometry.weight_shape, geometry.output_shape)
        assert sum(math.prod(shape) for shape in shapes) <= MOST_ELEMENTS
        assert SHORTEST_MS < estimated_native_ms(point.layer) < LONGEST_MS


def test_a_sample_is_broad() -> None:
    points = sample(300, 5, DTYPES, tuple(LAYOUTS), DIRECTIONS)
    shapes = [point.layer.geometry for point in points]
    assert {max(shape.kernel_size) for shape in shapes} == {*range(1, 8)}
    assert {max(shape.stride) for shape in shapes} == {1, 2, 3, 4}
    assert {max(shape.dilation) for shape in shapes} == {1, 2, 3}
    assert any(1 < shape.groups < shape.in_channels for shape in shapes)
    assert any(shape.groups == shape.in_channels > 1 for shape in shapes)
    assert any(max(shape.output_padding) > 0 for shape in shapes)
    assert {point.dtype for point in points} == {*DTYPES}
    assert {point.layout for point in points} == {*LAYOUTS}


def test_what_is_illegal_or_too_large_is_not_measurable() -> None:
    layer = LAYERS["nnunet_top"]
    assert is_measurable(layer)
    for change in (
        {"padding": (200, 0, 0)},
        {"output_padding": (2, 0, 0)},
        {"batch": 200},
        {"batch": 1, "input_size": (1, 1, 1)},
    ):
        geometry = dataclasses.replace(layer.geometry, **change)  # type: ignore[arg-type]
        assert not is_measurable(Layer("changed", geometry, True))


# ---- rows ---------------------------------------------------------------------------------------


def test_the_ratio_is_to_the_better_of_natives_modes() -> None:
    one = row("a", ratio=2.0)
    assert one.best_native == "native_off"
    assert (one.native_ms, one.ours_ms, one.ratio, one.floor_share) == (1.0, 0.5, 2.0, 0.2)
    assert one.rms_ratio == 0.5


def test_a_wrong_row_has_times_but_no_ratio() -> None:
    wrong = dataclasses.replace(row("a"), problem="wrong: error 0.3, but must be at most 0.01")
    assert (wrong.mark, wrong.ratio, wrong.floor_share, wrong.ours_ms) == ("WRONG", None, None, 0.5)


def test_median_and_quartiles() -> None:
    assert timing([5.0, 1.0, 2.0, 4.0, 3.0]) == Timing(3.0, 2.0, 4.0, 5)
    assert timing([7.0]) == Timing(7.0, 7.0, 7.0, 1)


# ---- the table ----------------------------------------------------------------------------------


def test_lost_rows_are_marked_and_none_is_dropped() -> None:
    failed = dataclasses.replace(row("e"), problem="failed: RuntimeError: no", times={}, plan="")
    alone = dataclasses.replace(row("f"), native_problem="failed with benchmark on: no")
    alone.times = {"ours": alone.times["ours"]}
    rows = [
        row("a", 2.0),
        row("b", 0.99),
        row("c", 1.0),
        dataclasses.replace(row("d"), problem="wrong: error 0.3"),
        failed,
        alone,
    ]
    lines = report.table(rows).splitlines()
    marks = {words[1]: words[0] for words in map(str.split, lines) if words[0].isupper()}
    assert marks == {"b": "LOST", "d": "WRONG", "e": "FAILED", "f": "NATIVE"}
    assert [line for line in lines if line.split()[0] in ("a", "c")]
    assert "       ours failed: RuntimeError: no" in lines
    assert "       native failed with benchmark on: no" in lines
    assert "1 FAILED, 1 LOST, 1 NATIVE, 1 WRONG" in report.summary(run_of(*rows))


def test_a_line_holds_times_mode_ratio_floor_plan_and_host_time() -> None:
    words = report.line(row("a", 4.0), 25).split()
    assert words[:4] == ["a", "bf16", "ncdhw", "forward"]
    assert words[4:] == [
        *("1.0000", "off", "0.2500", "4.00", "0.1000", "0.40", "0.50", "80/40", "tiled.i32")
    ]


def test_means_are_geometric_and_stand_beside_their_target() -> None:
    assert report.geometric_mean([2.0, None, 8.0]) == pytest.approx(4.0)
    assert report.geometric_mean([None]) is None
    text = report.summary(run_of(row("a", 2.0), row("b", 8.0), row("c", 6.0, "f32")))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "bf16 ncdhw forward 2/2 4.00 5.0 0.40 0.5 2.00 a (target 1.0) MISSED" in lines
    assert "f32 ncdhw forward 1/1 6.00 3.0 0.60 - 6.00 c (target 1.0)" in lines


def test_a_mean_without_all_of_its_rows_reaches_no_target() -> None:
    wrong = dataclasses.replace(row("b"), problem="wrong: error 0.3")
    line = next(
        line
        for line in report.summary(run_of(row("a", 9.0), wrong)).splitlines()
        if line.startswith("bf16 ncdhw forward")
    )
    assert " 1/2 " in line and line.endswith("MISSED")


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        (("bf16", "ncdhw", "forward"), 5),
        (("f16", "ncdhw", "grad_weight"), 4),
        (("tf32", "ncdhw", "grad_input"), 3),
        (("bf16", "channels_last", "grad_weight"), 2.5),
        (("tf32", "channels_last", "grad_input"), 2),
        (("f32", "ncdhw", "grad_weight"), 3),
        (("f32", "channels_last", "forward"), 3),
    ],
)
def test_targets(group: tuple[str, str, str], wanted: float) -> None:
    assert report.target(*group) == wanted


def test_the_table_of_a_sample_lists_every_lost_row_worst_first() -> None:
    rows = [row("a", 0.9), row("b", 3.0), row("c", 0.2)]
    lines = report.lost_rows(run_of(*rows, kind="sample")).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("LOST")] == ["c", "a"]
    assert lines.count("       bf16_normal") == 2
    assert report.lost_rows(run_of(row("a", 3.0), kind="sample")) == "no row is lost"


def test_rows_that_were_replayed_are_shown_again() -> None:
    one = row("a")
    one.graph = {"ours": Timing(0.02, 0.02, 0.02, 30), "native_on": Timing(0.05, 0.05, 0.05, 30)}
    text = report.summary(run_of(one))
    assert "under CUDA graph replay" in text
    assert ["0.0500", "-", "0.0200", "2.50"] in [line.split()[4:] for line in text.splitlines()]


# ---- pictures -----------------------------------------------------------------------------------


def test_the_bars_are_well_formed_with_one_a_row() -> None:
    wrong = dataclasses.replace(row("d"), problem="wrong: error 0.3")
    rows = [row("a", 0.02), row("b", 40.0), row("c", 2.0, "f32"), wrong]
    root = ElementTree.fromstring(picture.draw(run_of(*rows)))
    bars = root.findall(f"{SVG}rect")
    assert [bar.get("fill") for bar in bars] == [picture.LOST, picture.WON, picture.WON]
    texts = [element.text for element in root.findall(f"{SVG}text")]
    assert {"a", "b", "c", "d", "wrong", "1x", "bf16 ncdhw forward", "f32 ncdhw forward"} <= {
        *texts
    }
    width = float(root.get("width", "0"))
    for bar in bars:
        assert 0 <= float(bar.get("x", "")) <= width - float(bar.get("width", ""))


def test_bars_begin_at_the_line_of_1x() -> None:
    root = ElementTree.fromstring(picture.bars(run_of(row("a", 0.5), row("b", 2.0))))
    line = next(e for e in root.findall(f"{SVG}line") if e.get("stroke") == picture.TEXT)
    slower, faster = root.findall(f"{SVG}rect")
    one = float(line.get("x1", ""))
    assert float(slower.get("x", "")) + float(slower.get("width", "")) == pytest.approx(
        one, abs=0.2
    )
    assert float(faster.get("x", "")) == pytest.approx(one, abs=0.2)


def test_the_scatter_colours_what_is_slower() -> None:
    rows = [row("a", 0.5), row("b", 3.0), row("c", 1.0)]
    root = ElementTree.fromstring(picture.draw(run_of(*rows, kind="sample")))
    colours = [circle.get("fill") for circle in root.findall(f"{SVG}circle")]
    assert colours == [picture.LOST, picture.WON, picture.WON]
    assert "3 random layers, 1 slower than native" in (root.findtext(f"{SVG}title") or "")


@pytest.mark.parametrize("kind", ["suite", "sample"])
def test_a_run_without_rows_is_drawn_too(kind: str) -> None:
    ElementTree.fromstring(picture.draw(run_of(kind=kind)))


# ---- files --------------------------------------------------------------------------------------


def test_a_run_comes_back_from_its_file(tmp_path: Path) -> None:
    failed = dataclasses.replace(row("b"), problem="failed: no", times={}, error=None)
    run = run_of(row("a"), failed)
    run.unmeasured, run.stopped = ["c bf16 ncdhw forward"], "the budget of 5 s is used up"
    results.save(run, tmp_path / "run.json")
    assert results.load(tmp_path / "run.json") == run
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no results of format 1"),
        ('{"format": 0}', "holds no results of format 1"),
        ('{"format": 1, "rows": []}', "holds no results: 'ceilings'"),
        ('{"format": 1, "rows": [{"times": {}, "graph": {}}]}', "holds no results"),
    ],
)
def test_a_file_that_holds_no_run_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(results.ResultsError, match=message):
        results.load(tmp_path / "run.json")
