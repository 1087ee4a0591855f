"""Mutation testing: what the operators make, and how mutants are built, run and judged."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from convt3d import kernels, launch, plan
from fuzz import subjects
from fuzz.case import parse_case
from fuzz.mutation import command, operators, schemata
from fuzz.mutation.alike import ALIKE, LIKE_MEMBERS
from fuzz.mutation.kernel_text import LEFT_OUT, MODULES, parse, structs
from fuzz.mutation.mutant import (
    STATEMENTS,
    Change,
    Edit,
    KernelMutant,
    Mutant,
    PythonMutant,
)
from fuzz.mutation.runner import Run, serve_in_process
from fuzz.mutation.server import MutationError, Options, Task, draw_cases
from fuzz.outcome import RESULTS

# A function's text in the place of SOURCE -> what the operators make of its body.
HEAD = "template <typename scalar_t, typename index_t>\nvoid f(const GatherParams& p, index_t n, int k) {\n"


def changes(body: str, operator: str) -> list[str]:
    """What an operator does to a function's body: "from -> to", a line each."""
    mutants = operators.automatic_mutants("gather.py", f"{HEAD}{body}\n}}\n")
    prefix = f"gather.py f: {operator}: "
    return [mutant.name.removeprefix(prefix) for mutant in mutants if mutant.why == operator]


@functools.cache
def automatic() -> list[Mutant]:
    return command.all_automatic()


@pytest.mark.parametrize(
    ("operator", "body", "made"),
    [
        ("relational", "if (k < 3) g();", ["k < 3 -> k <= 3", "k < 3 -> k != 3", "k < 3 -> k >= 3"]),
        ("arithmetic", "g(k * 2);", ["k * 2 -> k + 2"]),
        ("arithmetic", "k += 2;", ["k += 2 -> k -= 2"]),
        ("constant", "g(k + 1);", ["g(k + 1) -> g(k + 2)", "g(k + 1) -> g(k + 0)"]),
        ("statement", "for (;;) { if (k) break; h(); }", ["break; -> nothing", "h(); -> nothing"]),
        ("statement", "if (k) return; h(k);", ["return; -> nothing", "h(k); -> nothing"]),
        ("barrier", "barrier();", ["barrier(); -> nothing"]),
        ("wait", "async_wait<0>();", ["async_wait<0>(); -> nothing"]),
        ("bounds check", "if (k) g();", ["if (k) -> if (true)", "if (k) -> if (false)"]),
        ("bounds check", "g(k && n);", ["k && n -> k", "k && n -> n"]),
        ("narrow integer", "g(n * 2);", ["n * 2 -> int16_t(n * 2)"]),
        ("narrow integer", "g(n * p.source.outer);", [
            "n * p.source.outer -> int32_t(n * p.source.outer)",
        ]),
        ("rounding", "g(from_acc<scalar_t>(k));", ["from_acc<scalar_t>(k) -> truncated<scalar_t>(k)"]),
        ("stride or channel", "g(p.weight_group);", [
            "g(p.weight_group) -> g(p.weight_source)",
            "g(p.weight_group) -> g(p.weight_destination)",
        ]),
        ("index or axis", "g(p.weight_tap[1]);", [
            "g(p.weight_tap[1]) -> g(p.weight_tap[0])",
            "g(p.weight_tap[1]) -> g(p.weight_tap[2])",
        ]),
        ("index or axis", "int a_d = 1; int a_h = 2; g(a_h);", ["g(a_h) -> g(a_d)"]),
        ("narrow accumulator", "acc_t sum = 0; sum += k;", [
            "sum += k -> ... rounded to float",
            "sum += k -> ... rounded to scalar_t",
        ]),
    ],
)  # fmt: skip
def test_an_operator_changes(operator: str, body: str, made: list[str]) -> None:
    assert changes(body, operator) == made


@pytest.mark.parametrize(
    ("operator", "body"),
    [
        ("constant", "constexpr int kSize = 4;"),
        ("constant", "int values[4];"),
        ("constant", "g<4>(k);"),
        ("constant", 'static_assert(4 == 4, "");'),
        ("constant", "g(sizeof(int[4]));"),
        ("narrow integer", "g(k * 2);"),  # an int already
        ("statement", "return;"),  # nothing follows it
        ("index or axis", "{ int a_d = 1; } int a_h = 2; g(a_h);"),  # out of scope
    ],
)
def test_an_operator_leaves_alone(operator: str, body: str) -> None:
    assert changes(body, operator) == []


def test_every_operator_but_the_wait_applies_to_the_kernels() -> None:
    made = {mutant.why for mutant in automatic()}
    assert made | {"wait"} == set(operators.OPERATORS)  # no kernel has an asynchronous copy yet


def test_names_of_automatic_mutants_are_unique_and_stay_in_one_line() -> None:
    names = [mutant.name for mutant in automatic()]
    assert len(set(names)) == len(names) > 2000
    assert not any("\n" in name for name in names)


def test_what_no_switch_can_reach_is_listed() -> None:
    assert any("kTileK" in place for place in operators.compile_time_places("gather.py"))


def test_text_that_is_no_cpp_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="line 2: not understood"):
        parse("void f() {\n  if (;\n}\n")


def test_every_kernel_string_is_mutated_or_left_out_for_a_reason() -> None:
    strings = {}
    for found in pkgutil.iter_modules(kernels.__path__):
        if found.name != "__main__":  # a command, which runs when it is imported
            module = importlib.import_module(f"convt3d.kernels.{found.name}")
            if hasattr(module, "SOURCE"):
                strings[f"{found.name}.py"] = module
    assert MODULES | {file: strings[file] for file in LEFT_OUT} == strings
    assert not MODULES.keys() & LEFT_OUT.keys()
    assert all(len(reason) > 20 for reason in LEFT_OUT.values())


def test_every_name_that_is_taken_for_another_is_one_of_the_kernels() -> None:
    words = {word for module in MODULES.values() for word in re.findall(r"\w+", module.SOURCE)}
    assert {name for pair in ALIKE for name in pair} <= words
    for (struct, member), others in LIKE_MEMBERS.items():
        assert {member, *others} <= structs()[struct].keys(), struct
        assert member not in others and len(set(others)) == len(others)


def switches(text: str, *changes: tuple[int, Change]) -> str:
    """The text with its switches, as one line without directives."""
    rendered = schemata.render(text, changes, "kernel.py", 7)
    lines = [line for line in rendered.splitlines() if not line.startswith("#line")]
    return "".join(lines).replace("convt3d::mutant", "m")


def change(text: str, right: str, wrong: str, kind: str = "expression") -> Change:
    start = text.index(right)
    return Change("gather.py", start, start + len(right), wrong, kind)


def test_changes_nest_and_the_wrong_text_is_plain() -> None:
    text = "a = b + c;"
    inner, outer = change(text, "b", "x"), change(text, "b + c", "b - c")
    expected = "a = (m == 2 ? (b - c) : ((m == 1 ? (x) : (b)) + c));"
    assert switches(text, (1, inner), (2, outer)) == expected


def test_changes_of_one_place_are_alternatives() -> None:
    text = "a = b;"
    expected = "a = (m == 1 ? (x) : m == 2 ? (y) : (b));"
    assert switches(text, (1, change(text, "b", "x")), (2, change(text, "b", "y"))) == expected


def test_a_changed_statement_is_a_branch() -> None:
    text = "if (a) b();"
    expected = "if (a) { if (m == 3) {  } else {  b(); } }".replace("{  b", "{ b")
    assert switches(text, (3, change(text, "b();", "", STATEMENTS))) == expected


def test_the_compiler_is_told_the_lines_of_the_python_file() -> None:
    text = "a =\n    b;"
    rendered = schemata.render(text, [(5, change(text, "b", "x"))], "kernel.py", 7)
    assert '#line 5 "mutant"' in rendered
    assert '#line 8 "kernel.py"' in rendered


def test_mutants_that_overlap_without_nesting_get_layers_of_their_own() -> None:
    first = Edit("gather.py", "n * static_cast<index_t>(p.source.outer) +", "0 +", within=(
        "n * static_cast<index_t>(p.source.outer) +\n                           group"
    ))  # fmt: skip
    second = Edit("gather.py", "(p.source.outer) +\n                           group", "+ 0")
    mutants = [KernelMutant("first", "", (first,)), KernelMutant("second", "", (second,))]
    assert [[*layer.numbers] for layer in schemata.layers(mutants)] == [["first"], ["second"]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("gather.py", "no such text", ""), "'no such text' occurs 0 times in gather.py"),
        (Edit("gather.py", "barrier();", ""), "occurs 3 times in gather.py"),
        (Edit("gather.py", "x", "", within="kTileK = 16"), "'x' occurs 0 times in `within`"),
        (Edit("host.py", "x", ""), "file='host.py'"),
    ],
)
def test_an_edit_must_fit_exactly_once(edit: Edit, message: str) -> None:
    with pytest.raises(ValueError, match=f"stale: .*{message}"):
        schemata.layers([KernelMutant("stale", "", (edit,))])


def test_two_mutants_of_one_name_are_an_error() -> None:
    twice = KernelMutant("twice", "", (Edit("gather.py", "if (!tiled) {", "if (tiled) {"),))
    with pytest.raises(ValueError, match="twice"):
        schemata.layers([twice, twice])


def test_what_does_not_compile_is_dropped_and_named() -> None:
    broken = Edit("weight.py", "positions + p.splits - 1", "no_such_name", within=(
        "const int64_t per_split = (positions + p.splits - 1) / p.splits;"
    ))  # fmt: skip
    (layer,) = schemata.layers([KernelMutant("broken", "", (broken,)), crashes])
    living, stillborn = schemata.without_stillborn(layer, ["weight_f32"])
    assert stillborn == ["broken"]
    assert [*living.numbers] == ["crashes"]


def test_without_a_mutant_the_results_are_those_of_the_kernels() -> None:
    cases = draw_cases(Options(cases=40, dtypes=("f32",), sanitizers=False))
    plain = [subjects.convt3d(case) for case in cases]
    (layer,) = schemata.layers(operators.automatic_mutants("weight.py"))  # type: ignore[arg-type]
    living, _ = schemata.without_stillborn(layer, ["weight_f32"])
    schemata.use(schemata.compiled(living, ["weight_f32"]), schemata.OFF)
    try:
        for case, expected in zip(cases, plain):
            outcome = subjects.convt3d(case)
            assert outcome.status == "ok" and not outcome.damage
            for result in RESULTS:
                if result in expected.results:
                    assert np.array_equal(outcome.results[result], expected.results[result])
    finally:
        launch.use_libraries({})


def test_launches_call_the_libraries_that_they_are_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    host, tsan = parse_case("f32_int"), parse_case("f32_int_tsan")
    files = {("gather_f32", target): tmp_path / f"{target}.so" for target in ("host", "tsan")}
    launch.use_libraries(files)
    try:
        with pytest.raises(OSError, match=r"host\.so"):
            subjects.convt3d(host)
        with pytest.raises(RuntimeError, match=r"tsan\.so"):
            subjects.convt3d(tsan)
        assert subjects.convt3d(parse_case("f64_int")).status == "ok"  # not among them
    finally:
        launch.use_libraries({})
    assert subjects.convt3d(host).status == subjects.convt3d(tsan).status == "ok"


# ---- mutants whose fate is known -------------------------------------------------------------------


def in_the_tiled_loop(name: str, statement: str) -> KernelMutant:
    """A statement before the tiled weight kernel's first barrier, in every thread."""
    right = "sum += shuffle_xor(sum, mask);"
    return KernelMutant(name, "", (Edit("weight.py", right, f"{right} {statement}", STATEMENTS),))


def in_every_block(name: str, wrong: str, right: str = "if (thread != 0) return;") -> KernelMutant:
    return KernelMutant(name, "", (Edit("weight.py", right, wrong, STATEMENTS),))


crashes = in_every_block("crashes", "*static_cast<volatile int*>(nullptr) = 0;")
harmless = in_the_tiled_loop("harmless", "sum += 0;")
KNOWN = {
    crashes: "crashed SIGSEGV",
    in_the_tiled_loop("hangs", 'for (;;) asm volatile("");'): "hung",
    harmless: "",
    in_the_tiled_loop("part_of_the_block", "if (thread < 32) barrier();"): "emulator: barrier",
    in_the_tiled_loop(
        "writes_behind",
        "static_cast<scalar_t*>(p.grad_bias_data)[p.groups * p.out_channels] = sum;",
    ): "guard bands",
    in_the_tiled_loop(
        "writes_an_input", "*const_cast<scalar_t*>(from) = from_acc<scalar_t>(sum + 1);"
    ): "input overwritten",
    in_every_block("writes_nothing", "return;"): "never written",
}


@contextmanager
def _choosing_for_itself() -> Iterator[None]:
    plan.choose = lambda *_: plan.Plan("direct", 64)  # type: ignore[assignment]
    yield


@contextmanager
def _refusing() -> Iterator[None]:
    def gather(*arguments: object) -> object:
        raise RuntimeError("no")

    launch.gather = gather  # type: ignore[assignment]
    yield


PYTHON = {
    PythonMutant("ignores_the_plan", "", _choosing_for_itself): "wrong plan",
    PythonMutant("refuses", "", _refusing): "refused",
}


def test_each_mutant_is_killed_for_the_right_reason_and_the_harmless_one_survives() -> None:
    fates: dict[Mutant, str] = dict([*KNOWN.items(), *PYTHON.items()])
    expected = {mutant.name: check for mutant, check in fates.items()}
    briefly = replace(harmless, name="briefly")
    run = Run(
        [*fates, briefly],
        Options(cases=30, jobs=2, dtypes=("f32",), sanitizers=False),
        brief=["briefly"],
    )
    results = {result.name: result for result in run.results()}
    assert results.pop("briefly") == replace(
        results["harmless"], name="briefly", cases=3, seconds=ANY
    )
    assert {name: result.check for name, result in results.items()} == expected
    assert results["harmless"].cases == 30
    assert results["harmless"].case == ""
    for name in expected.keys() - {"harmless"}:
        assert 1 <= results[name].cases < 30
        assert results[name].case


def test_what_every_result_survives_a_sanitizer_may_see() -> None:
    # All lanes of a warp hold the same sum, and all write it to one place.
    race = Edit("weight.py", "thread % kWarpSize == 0", "true")
    case = parse_case("f32_co2_i2x3x4_k2_bias_int_gwt=tiled.i32_tsan")
    (layer,) = schemata.layers([KernelMutant("race", "", (race,))])
    tasks = [Task(KernelMutant("race", "", (race,)), 0, layer.numbers["race"])]
    (plain,) = serve_in_process(tasks, [layer], [replace(case, mode="hostile")], jobs=1)
    (sanitized,) = serve_in_process(tasks, [layer], [case], jobs=1)
    assert (plain.check, sanitized.check) == ("", "tsan")


def test_a_schema_that_is_wrong_without_a_mutant_is_no_result() -> None:
    # Half of an expression: a switch around it changes what the rest of it means.
    cut = Edit(
        "params.py", "padding - first_tap", "0", within="(first + padding - first_tap * dilation)"
    )
    broken = Run(
        [KernelMutant("cut", "", (cut,))], Options(cases=60, dtypes=("f32",), sanitizers=False)
    )
    with pytest.raises(MutationError, match="without a mutant"):
        list(broken.results())


def test_a_schema_that_is_wrong_in_a_later_layer_is_no_result_either() -> None:
    within = "(first + padding - first_tap * dilation)"
    sum_ = Edit("params.py", "first + padding", "first + padding + 0", within=within)
    cut = Edit("params.py", "padding - first_tap", "0", within=within)  # crosses the other
    mutants = [KernelMutant("sum", "", (sum_,)), KernelMutant("cut", "", (cut,))]
    assert [[*layer.numbers] for layer in schemata.layers(mutants)] == [["sum"], ["cut"]]
    broken = Run(mutants, Options(cases=60, jobs=2, dtypes=("f32",), sanitizers=False))
    with pytest.raises(MutationError, match="without a mutant, in layer 1"):
        list(broken.results())
