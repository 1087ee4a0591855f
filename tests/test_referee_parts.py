"""The parts of the referee, without a worker: adapter, loading, watch, pool, verdicts, report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose3d as native

from fuzz import data
from fuzz.arena import Arena, Placed
from fuzz.bounds import expect
from fuzz.case import Case, format_case, parse_case
from fuzz.number import encode
from fuzz.outcome import RESULTS, Outcome, Verdict
from fuzz.referee import adapter
from fuzz.referee.loading import LoadError, describe, load
from fuzz.referee.pool import FEATURES, drawn_cases, given_cases, restrict
from fuzz.referee.report import Report, Row, format_end, format_row
from fuzz.referee.task import Task, with_other_data
from fuzz.referee.verdicts import examine
from fuzz.referee.watch import Watch, native_forbidden

CPU = torch.device("cpu")
CASE = parse_case("f32_n2_ci4_co6_g2_i3x2x2_k3x2x1_s2x1x3_p1_op1x0x1_d1x2x1_bias_int")
EVEN = parse_case("f32_ci2_co3_i3_k3_s2_p1_op1_int")


# Calling somebody's function.


def called(function: Callable[..., Any], case: Case = CASE) -> Any:
    weight, bias = torch.ones(case.weight_shape), torch.ones(case.out_channels)
    built = adapter.build(function, case, CPU)
    return built.bind(weight, bias if case.bias else None).call(torch.ones(case.input_shape))


def expected(case: Case = CASE) -> Tensor:
    bias = torch.ones(case.out_channels) if case.bias else None
    parameters = (case.stride, case.padding, case.output_padding, case.groups, case.dilation)
    return native(torch.ones(case.input_shape), torch.ones(case.weight_shape), bias, *parameters)


def by_position(x: Any, w: Any, b: Any, s: Any, /, padding: Any = 0) -> None: ...


def positional_only(input: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any,
                    groups: Any, dilation: Any, /) -> Any:  # fmt: skip
    return native(input, weight, bias, stride, padding, output_padding, groups, dilation)


def in_another_order(
    weight: Any, dilation: Any, x: Any, groups: Any, bias: Any = None, **rest: Any
) -> Any:
    return native(x, weight, bias, groups=groups, dilation=dilation, **rest)


@pytest.mark.parametrize("function", [native, positional_only, in_another_order])
def test_a_function_gets_its_arguments_by_name_or_position(function: Callable[..., Any]) -> None:
    assert torch.equal(called(function), expected())


def test_an_int_is_passed_where_the_axes_are_alike_and_a_triple_where_that_is_wanted() -> None:
    given: dict[str, Any] = {}

    def function(
        x: Any,
        w: Any,
        stride: int,
        padding: int | tuple[int, int, int],
        output_padding: tuple[int, int, int],
        dilation: Any = (1, 1, 1),
    ) -> None:
        given.update(locals())

    called(function, EVEN)
    assert (given["stride"], given["padding"]) == (2, 1)
    assert (given["output_padding"], given["dilation"]) == ((1, 1, 1), (1, 1, 1))
    with pytest.raises(NotImplementedError, match=r"stride=\(2, 1, 2\), but it takes one int"):
        called(function, replace(EVEN, stride=(2, 1, 2), output_padding=(1, 0, 1)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, w: None, "bias is given, but the arguments are"),
        (lambda x: None, "none for input and weight"),
        (lambda x, w, bias, factor, **rest: None, "argument factor is required"),
        (lambda x, w, bias, stride: None, r"padding=\(1, 1, 1\), but there is no argument padding"),
    ],
)
def test_what_a_function_cannot_take_is_refused(function: Any, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        called(function)


class Layer(nn.Module):
    """Takes what KernelBench's tasks take."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
                 padding: Any = 0, output_padding: Any = 0, dilation: Any = 1, groups: int = 1,
                 bias: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.conv_transpose3d = nn.ConvTranspose3d(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias,
            dilation,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv_transpose3d(x)
        return output


class WithBias(nn.Module):
    """Always has a bias, whatever the case says, and two parameters of the weight's shape."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(in_channels, out_channels, 1, 1, 1))
        self.scale = nn.Parameter(torch.ones(in_channels, out_channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.ones(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return native(x, self.weight, self.bias)


class Ambiguous(WithBias):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        del self.weight
        self.other = nn.Parameter(torch.ones(in_channels, out_channels, 1, 1, 1))


def test_a_class_gets_its_arguments_and_its_weights() -> None:
    assert torch.equal(called(Layer), expected())


def test_the_gradient_of_a_class_is_that_of_its_parameters() -> None:
    weight = torch.ones(EVEN.weight_shape, requires_grad=True)
    bound = adapter.build(Layer, EVEN, CPU).bind(weight, None)
    assert bound.weight.data_ptr() == weight.data_ptr()
    bound.call(torch.ones(EVEN.input_shape)).sum().backward()
    assert bound.weight.grad is not None and bound.bias is None


def test_a_class_without_an_argument_for_its_bias_gets_a_bias_of_zero() -> None:
    assert torch.equal(called(WithBias, Case()), expected(Case()))


def test_parameters_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"weight of shape \(1, 1, 1, 1, 1\) must be one"):
        called(Ambiguous, Case())


# Finding it in a file.


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def conv_transpose3d(x, w): ...", "function conv_transpose3d"),
        ("from torch import nn\nclass Mine(nn.Module): ...", "class Mine"),
        (
            "from torch import nn\ndef conv_transpose3d(x, w): ...\nclass ModelNew(nn.Module): ...",
            "class ModelNew",
        ),
        (
            "from torch import nn\nfrom torch.nn.functional import conv_transpose3d\n"
            "class Mine(nn.Module): ...",
            "class Mine",
        ),
        ("from torch.nn.functional import conv_transpose3d", "function conv_transpose3d"),
        ("from neighbour import conv_transpose3d", "function conv_transpose3d"),
    ],
)
def test_the_implementation_of_a_file_is_found(tmp_path: Path, source: str, found: str) -> None:
    (tmp_path / "neighbour.py").write_text("def conv_transpose3d(x, w): ...")
    (tmp_path / "file.py").write_text(source)
    assert describe(load(tmp_path / "file.py")) == found


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("file.py", "", "found A, B"),
        ("file.py", "C", "no C in"),
        ("file.py", "D", "must be a subclass of torch.nn.Module"),
        ("file.txt", "", "is no Python file"),
    ],
)
def test_what_is_no_implementation_is_named(
    tmp_path: Path, file: str, name: str, message: str
) -> None:
    source = "from torch import nn\nclass A(nn.Module): ...\nclass B(nn.Module): ...\nclass D: ..."
    (tmp_path / file).write_text(source)
    with pytest.raises(LoadError, match=message):
        load(tmp_path / file, name)


# Watching it.


@pytest.fixture
def arena() -> Arena:
    arena = Arena(CPU, 1 << 16)
    arena.begin([Placed("input", np.zeros((1, 1, 1, 1, 2), np.uint32), torch.float32, False)])
    return arena


ALLOCATIONS: list[Callable[[], Tensor]] = [
    lambda: torch.empty(2, 3),
    lambda: torch.empty_like(torch.ones(2, 3)),
    lambda: torch.ones(1).new_empty(2, 3),
    lambda: torch.empty_strided((2, 3), (3, 1)),
    lambda: torch.empty(2, 1, 1, 1, 3, memory_format=torch.channels_last_3d),
]


@pytest.mark.parametrize("allocate", ALLOCATIONS)
def test_what_is_allocated_lies_poisoned_between_guard_bands(
    arena: Arena, allocate: Callable[[], Tensor]
) -> None:
    with Watch(arena, CPU):
        result = allocate()
    (damage,) = arena.finish({"result": result})[1]
    assert damage.startswith("6 of 6 elements of result still hold the poison")
    with Watch(arena, CPU):
        result = allocate().fill_(1)
        result.as_strided((1,), (1,), result.storage_offset() + 6).fill_(0)
    assert "4 bytes written out of bounds" in arena.finish({"result": result})[1][0]


def test_what_the_arena_cannot_hold_is_filled_with_nan(arena: Arena) -> None:
    with Watch(arena, CPU) as watch:
        transposed, large = torch.empty_strided((2, 3), (1, 2)), torch.empty(1 << 16)
        integers, nothing = torch.empty(3, dtype=torch.int32), torch.empty(0)
    assert transposed.isnan().all() and large.isnan().all() and watch.lacks_room
    assert integers.shape == (3,) and nothing.numel() == 0


def test_writing_to_an_allocation_is_not_writing_to_an_input(arena: Arena) -> None:
    (x,) = (t.data.requires_grad_() for t in arena.begin([
        Placed("input", np.ones(2, np.uint32), torch.float32, False)
    ]))  # fmt: skip
    with Watch(arena, CPU):
        y = x * x
        torch.empty(2).fill_(3).add_(1)
        y.sum().backward()  # would raise if x had the version counter of the allocation


def test_convolutions_and_library_calls_are_noted(arena: Arena) -> None:
    x, w = torch.ones(1, 1, 2, 2, 2, requires_grad=True), torch.ones(1, 1, 1, 1, 1)
    with Watch(arena, CPU) as watch:
        y = native(x, w)
        watch.stage = "backward"
        y.sum().backward()
        torch.ones(2, 2) @ torch.ones(2, 2)
        torch.ones(2).long().to(torch.float64)  # conversions are no convolutions
    assert [*watch.native] == [
        "aten::convolution called in forward",
        "aten::convolution_backward called in backward",
    ]
    assert [*watch.library] == ["aten::mm"]


@pytest.fixture
def library() -> Iterator[Any]:
    library = torch.library.Library("referee_test", "DEF")
    yield library
    library._destroy()


@pytest.mark.parametrize("key", ["CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd"])
def test_operators_of_the_implementation_are_looked_into(
    arena: Arena, library: Any, key: str
) -> None:
    library.define("convolve(Tensor input, Tensor weight) -> Tensor")
    library.impl("convolve", lambda input, weight: native(input, weight), key)
    with Watch(arena, CPU) as watch, torch.no_grad():
        torch.ops.referee_test.convolve(torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1))
    assert len(watch.native) == 1
    assert "conv" in next(iter(watch.native))


def test_a_convolution_of_its_own_is_no_native_one(arena: Arena, library: Any) -> None:
    library.define("conv_transpose3d(Tensor input) -> Tensor")
    library.impl("conv_transpose3d", lambda input: input + 1, "CPU")
    with Watch(arena, CPU) as watch, torch.no_grad():
        torch.ops.referee_test.conv_transpose3d(torch.ones(2))
    assert not watch.native


def test_forbidden_convolutions_raise_and_are_there_again_afterwards() -> None:
    x, w = torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1)
    with native_forbidden() as seen:
        for call in (native, nn.functional.conv3d, torch.convolution):
            extra = (
                ([1] * 3, [0] * 3, [1] * 3, False, [0] * 3, 1) if call is torch.convolution else ()
            )
            with pytest.raises(RuntimeError, match="must not be called"):
                call(x, w, None, *extra)
        assert torch.equal(x * 2, x + x)
    assert [*seen] == [
        "aten::conv_transpose3d called", "aten::conv3d called", "aten::convolution called"
    ]  # fmt: skip
    assert torch.equal(native(x, w), x)


@pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_convolution_transpose_pointwise"), reason="not in this torch"
)
def test_operators_of_mkldnn_are_forbidden_too() -> None:
    x, w = torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1)
    convolve: Any = torch.ops.mkldnn._convolution_transpose_pointwise
    arguments: Any = ([0] * 3, [0] * 3, [1] * 3, [1] * 3, 1, "none", [], "")
    with native_forbidden() as seen, pytest.raises(RuntimeError, match="must not be called"):
        convolve(x, w, None, *arguments)
    assert [*seen] == ["mkldnn::_convolution_transpose_pointwise called"]
    assert torch.equal(convolve(x, w, None, *arguments), x)


# Cases.


@pytest.mark.parametrize("feature", FEATURES)
def test_drawn_cases_have_what_is_required_and_nothing_that_is_not_allowed(feature: str) -> None:
    required = ("stride", feature) if feature == "output_padding" else (feature,)
    cases = [case for case, _ in zip(drawn_cases(1, "row", ["f32"], required, ()), range(20))]
    assert len(set(cases)) == 20
    for case in cases:
        has = {name for name, is_in in FEATURES.items() if is_in(case)} - {"long_sums"}
        assert has == {*required} - {"long_sums"}
        assert (case.dtype, case.mode) == ("f32", "fast")


def test_the_same_seed_and_row_draw_the_same_cases() -> None:
    def first(seed: int, row: str) -> list[Case]:
        return [case for case, _ in zip(drawn_cases(seed, row, ["f16"], (), FEATURES), range(5))]

    assert first(1, "a") == first(1, "a")
    assert first(1, "a") != first(2, "a") != first(2, "b")


def test_restriction_keeps_a_case_legal_and_its_features_as_they_are() -> None:
    assert restrict(CASE, FEATURES) == CASE
    bare = restrict(CASE, ())
    assert format_case(bare) == "f32_ci4_co6_i3x2x2_k3_int"
    alike = restrict(CASE, ("stride", "padding", "output_padding"))
    assert (alike.stride, alike.padding, alike.output_padding) == ((3,) * 3, (1,) * 3, (1,) * 3)


def test_given_cases_come_first_as_they_are_and_then_with_other_data() -> None:
    given = (EVEN, parse_case("f16_s2_int"), parse_case("f32_int"))
    cases = [c for c, _ in zip(given_cases(1, "row", given, ["f32"], ("stride",)), range(9))]
    assert cases[0] == EVEN
    assert {replace(case, seed=0, lane="int") for case in cases} == {EVEN}
    assert len({case.seed for case in cases}) == 9
    assert [*given_cases(1, "row", given, ["f64"], ())] == []


# Verdicts.


def answer(case: Case, *names: str, label: str = "") -> dict[str, Any]:
    """The right results, or some of them."""
    values = expect(case, data.generate(case)).values
    return {
        label + name: encode(getattr(values, name), case.dtype)
        for name in names or RESULTS
        if name != "grad_bias" or case.bias
    }


def test_right_results_pass_and_only_wanted_ones_count() -> None:
    assert (
        examine(Task(CASE), Outcome("ok", results=answer(CASE)), "candidate").verdict
        is Verdict.PASS
    )
    output = Outcome("ok", results=answer(CASE, "output"))
    assert examine(Task(CASE, wants=()), output, "candidate").verdict is Verdict.PASS
    examined = examine(Task(CASE, wants=("grad_input",)), output, "candidate")
    assert (examined.verdict, examined.detail) == (Verdict.WRONG, "grad_input is missing")


@pytest.mark.parametrize("result", RESULTS)
def test_one_wrong_bit_is_wrong(result: str) -> None:
    results = answer(CASE)
    results[result].flat[-1] ^= 1
    examined = examine(Task(CASE), Outcome("ok", results=results), "candidate")
    assert examined.verdict is Verdict.WRONG
    assert f"elements of {result}" in examined.detail


@pytest.mark.parametrize("probe", ["repeat", "random_state"])
def test_runs_that_differ_in_a_bit_are_wrong(probe: str) -> None:
    case = replace(CASE, lane="normal")
    results = answer(case, label="0.") | answer(case, label="1.")
    task = Task(case, probe)
    assert examine(task, Outcome("ok", results=results), "candidate").verdict is Verdict.PASS
    results["1.grad_weight"].flat[3] ^= 1
    examined = examine(task, Outcome("ok", results=results), "candidate")
    assert "grad_weight differs in 1 of" in examined.detail


def test_an_answer_to_the_call_before_is_wrong() -> None:
    other = with_other_data(CASE)
    right = {
        **answer(CASE, label="first."),
        **answer(other, label="second."),
        **answer(CASE, label="kept."),
        **answer(CASE, label="after."),
        **answer(other, label="later."),
    }
    task = Task(CASE, "reuse")
    assert examine(task, Outcome("ok", results=right), "candidate").verdict is Verdict.PASS
    for label, source, reason in (
        ("second.", CASE, "second call, with other data in the same memory"),
        ("later.", CASE, "second call of two"),
        ("after.", other, "did not stay"),
    ):
        wrong = Outcome("ok", results=right | answer(source, label=label))
        assert reason in examine(task, wrong, "candidate").detail


def test_notes_go_to_the_rows_that_they_are_about() -> None:
    notes = (
        "input was overwritten",
        "3 of 8 elements of output still hold the poison: never written",
        "4 bytes written out of bounds, first 0 bytes after the end of output, before the end",
        "native: aten::convolution called in forward",
        "alias: output shares memory with input",
        "library: aten::mm",
    )
    outcome = Outcome("ok", results=answer(CASE), damage=notes)
    examined = examine(Task(CASE), outcome, "candidate")
    assert examined.verdict is Verdict.PASS
    assert set(examined.found) == {
        "inputs_unchanged", "all_written", "out_of_bounds", "native_op", "own_results"
    }  # fmt: skip
    assert examined.library == ("aten::mm",)


def test_a_result_that_is_none_is_wrong_whatever_the_values() -> None:
    outcome = Outcome("ok", damage=("result: output is a list, but must be a torch.Tensor",))
    examined = examine(Task(CASE), outcome, "candidate")
    assert (examined.verdict, examined.detail) == (
        Verdict.WRONG, "output is a list, but must be a torch.Tensor"
    )  # fmt: skip


def test_a_sum_kept_in_16_bits_is_wrong_unless_asked_for() -> None:
    case = parse_case("bf16_ci40_i2_k2_normal")
    inputs = data.generate(case)
    values = expect(case, inputs).values.output
    rounded_at_every_step = Outcome("ok", results={"output": encode(values * (1 + 2**-7), "bf16")})
    task = Task(case, wants=())
    assert examine(task, rounded_at_every_step, "candidate").verdict is Verdict.WRONG
    assert examine(task, rounded_at_every_step, "native").verdict is Verdict.PASS


def test_a_large_case_is_judged_by_identities() -> None:
    task = Task(CASE, "speed")
    results = {**answer(CASE), "seconds": np.array([0.25, 0.5])}
    examined = examine(task, Outcome("ok", results=results), "candidate")
    assert (examined.verdict, examined.seconds) == (Verdict.PASS, (0.25, 0.5))
    results["grad_input"] = results["grad_input"] * 0
    assert "must be 0" in examine(task, Outcome("ok", results=results), "candidate").detail


# The report.


def test_the_table_shows_a_case_under_its_row() -> None:
    row = Row("stride", Verdict.CRASHED, 4, "killed by signal 11", "f32_s2_int", True)
    assert format_row(row).splitlines() == [
        "stride              crashed      4  killed by signal 11",
        " " * 36 + "f32_s2_int",
    ]


def test_the_report_as_json_has_what_its_documentation_says() -> None:
    report = Report("file.py", "", "ab", 1, rows=[Row("builds"), Row("forward", cases=3)])
    values = json.loads(report.to_json())
    assert set(values) == {
        "schema", "file", "name", "sha256", "judged", "seed", "machine", "rows", "not_judged",
        "library_calls", "speed", "exit",
    }  # fmt: skip
    assert set(values["rows"][1]) == {
        "row", "asserts", "verdict", "cases", "reason", "case", "confirmed"
    }  # fmt: skip
    assert values["exit"] == 0 and math.isclose(values["schema"], 1)
    assert format_end(report, False) == "exit 0: all 2 rows passed"
