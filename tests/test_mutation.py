"""Mutation testing: what the operators make, how mutants are built, run and judged, and what the report says."""

from __future__ import annotations

import argparse
import functools
import importlib
import pkgutil
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from convt3d import kernels, launch, plan
from fuzz import subjects
from fuzz.campaign import BROKEN, FAILED, PASSED
from fuzz.case import parse_case
from fuzz.mutation import command, operators, reasons, report, schemata
from fuzz.mutation.alike import ALIKE, LIKE_MEMBERS
from fuzz.mutation.kernel_text import LEFT_OUT, MODULES, parse, structs
from fuzz.mutation.mutant import (
    STATEMENTS,
    Change,
    Edit,
    KernelMutant,
    Mutant,
    PythonMutant,
    Result,
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

_WEIGHT_LOOP = "const index_t input_offset = offset_of(p.input, at);"


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


# ---- equivalent mutants, score, report -------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [reasons.EQUIVALENT, reasons.SURVIVORS], ids=lambda path: path.name
)
def test_every_mutant_that_has_a_reason_exists(path: Path) -> None:
    names = {mutant.name for mutant in automatic()}
    assert reasons.unknown(path, reasons.load(path), names) == []


def test_no_mutant_is_both_argued_away_and_a_survivor() -> None:
    equivalent, survivors = map(reasons.load, (reasons.EQUIVALENT, reasons.SURVIVORS))
    assert reasons.in_both(equivalent, survivors) == []
    assert reasons.in_both(["a", "b"], ["b", "c"]) == [
        "equivalent.txt and survivors.txt both name 'b'"
    ]


def test_the_cases_that_reasons_name_are_cases() -> None:
    texts = [
        text
        for path in (reasons.EQUIVALENT, reasons.SURVIVORS)
        for text in reasons.load(path).values()
    ]
    for word in re.findall(r"\b(?:f64|f32|f16|bf16)_[\w=.]+\w", " ".join(texts)):
        parse_case(word)


def test_a_reason_holds_for_the_names_right_under_it(tmp_path: Path) -> None:
    path = tmp_path / "equivalent.txt"
    path.write_text("# never\n# negative\na -> b\nc -> d\n\n# other\ne -> f\n")
    assert reasons.load(path) == {
        "a -> b": "never negative",
        "c -> d": "never negative",
        "e -> f": "other",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a -> b\n", ":1: no comment above"),
        ("# why\n\na -> b\n", ":3: no comment above"),
        ("# why\na -> b\n# again\na -> b\n", ":4: a -> b is there already"),
    ],
)
def test_a_name_without_a_reason_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "equivalent.txt"
    path.write_text(text)
    with pytest.raises(reasons.ReasonsError, match=message):
        reasons.load(path)


def result(name: str, check: str = "") -> Result:
    return Result(name, check, "f32_int" if check else "", "", 7, 0.5)


def test_what_has_a_reason_to_live_but_is_gone_or_killed_is_stale() -> None:
    why = {"gone": "why", "killed": "why", "alive": "why"}
    results = [result("killed", "hung"), result("alive"), result("no reason", "hung")]
    path = Path("some/survivors.txt")
    assert reasons.unknown(path, why, {"killed", "alive"}) == [
        "survivors.txt is stale: no mutant has the name 'gone'"
    ]
    assert reasons.killed(path, why, results) == [
        "survivors.txt has 'killed', killed: hung on f32_int"
    ]


def outcomes(
    killed: int,
    survived: int,
    equivalent: int,
    by_hand: Sequence[str] = (),
    explained: Sequence[str] = (),
) -> report.Outcomes:
    """A run with so many automatic mutants, and one by hand for each check; "" survived."""
    fates = ["guard bands"] * killed + [""] * (survived + equivalent)
    automatic = [KernelMutant(f"a{i}", "relational", ()) for i in range(len(fates))]
    hand = [KernelMutant(f"h{i}", "a bug", ()) for i in range(len(by_hand))]
    results = [result(f"a{i}", check) for i, check in enumerate(fates)]
    results += [result(f"h{i}", check) for i, check in enumerate(by_hand)]
    argued_away = {f"a{i}": "why" for i in range(killed + survived, len(fates))}
    by_name = {r.name: r for r in results}
    return report.Outcomes(
        report.Ran(by_name), automatic, hand, argued_away, dict.fromkeys(explained, "too small")
    )


def test_the_score_leaves_out_what_is_equivalent() -> None:
    assert outcomes(killed=57, survived=3, equivalent=40).score == (57, 60)
    assert outcomes(killed=57, survived=3, equivalent=40).score.share == 0.95


@pytest.mark.parametrize(
    ("killed", "counted", "text"),
    [
        (2224, 2342, "94.9%"),  # 94.96 %
        (9499, 10000, "94.9%"),
        (95, 100, "95.0%"),
        (999_999, 1_000_000, "99.9%"),
        (3, 3, "100.0%"),
        (0, 3, "0.0%"),
        (0, 0, "100.0%"),
    ],
)
def test_a_score_is_rounded_down(killed: int, counted: int, text: str) -> None:
    assert str(report.Score(killed, counted)) == text


@pytest.mark.parametrize(
    ("run", "problems"),
    [
        (outcomes(95, 5, 3, ["hung"]), []),
        (outcomes(94, 6, 3), ["94.0% of the automatic mutants were killed, but must be 95%"]),
        (outcomes(2224, 118, 0), ["94.9% of the automatic mutants were killed, but must be 95%"]),
        (outcomes(95, 5, 0, ["hung", ""]), ["survived: h1"]),
    ],
)
def test_a_run_is_red_when(run: report.Outcomes, problems: list[str]) -> None:
    assert run.problems() == problems


def test_the_report_shows_survivors_first() -> None:
    text = report.text(outcomes(3, 1, 1, ["hung", ""]))
    assert (
        text.index("| `h1` | 7 | not explained |")
        < text.index("## By hand")
        < text.index("## Automatic")
    )
    assert "| relational | 5 | 3 | 1 | 1 | 75.0% | 7 | 7 | 0.50 |" in text
    assert "| by hand | 2 | 1 | 0 | 1 | 50.0% | 7 | 7 | 0.50 |" in text
    assert "guard bands 3, hung 1" in text
    assert report.summary_line(outcomes(3, 1, 1)) == (
        "3 of 5 mutants killed; automatic, without 1 equivalent: 75.0%; 1 survived, 1 not explained"
    )


def test_the_report_says_why_a_mutant_survives() -> None:
    run = outcomes(killed=2, survived=2, equivalent=0, explained=["a3"])
    text = report.text(run)
    assert "2, of which 1 are not explained." in text
    assert "| `a2` | 7 | not explained |" in text
    assert "| `a3` | 7 | too small |" in text
    assert report.summary_line(run).endswith("50.0%; 2 survived, 1 not explained")


def test_the_report_names_what_needs_a_gpu() -> None:
    mutant = KernelMutant("wrong_device", "", (), needs="two gpus")
    assert "`wrong_device` was not run: it needs two gpus" in report.text(
        report.Outcomes(report.Ran({}), [], [mutant])
    )


class FakeRun:
    """Kills every mutant but those named."""

    surviving: tuple[str, ...] = ()

    def __init__(
        self, mutants: Sequence[KernelMutant], options: Options, brief: Collection[str]
    ) -> None:
        self.stillborn: list[str] = []

    def results(self, names: Sequence[str]) -> Iterator[Result]:
        return iter([result(name, "" if name in self.surviving else "hung") for name in names])


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_command(parser.add_subparsers())
    parsed = parser.parse_args(["mutants", *arguments])
    code: int = parsed.command(parsed)
    return code


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    by_hand = [KernelMutant("one", "", ()), KernelMutant("two", "", ())]
    monkeypatch.setattr(command, "all_by_hand", lambda: by_hand)
    monkeypatch.setattr(command, "Run", FakeRun)
    mutants = automatic()
    monkeypatch.setattr(command, "all_automatic", lambda: mutants)
    monkeypatch.setattr(reasons, "load", lambda path: {})
    return monkeypatch


def test_the_command_is_green_when_all_are_killed(
    fake: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.md"
    assert run_command(f"--report={path}", f"--json={tmp_path / 'report.json'}") == PASSED
    assert path.read_text().startswith("# Kill matrix")
    assert "mutants killed" in capsys.readouterr().out


def test_the_command_is_red_when_one_by_hand_survives(
    fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.setattr(FakeRun, "surviving", ("two",))
    assert run_command("--by-hand") == FAILED
    assert "survived   two" in capsys.readouterr().out
    assert run_command("--by-hand", "--only=one") == PASSED


@pytest.mark.parametrize(
    "stale", [reasons.EQUIVALENT, reasons.SURVIVORS], ids=lambda path: path.name
)
def test_the_command_is_red_when_a_reason_is_stale(
    stale: Path, fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.setattr(reasons, "load", lambda path: {"no such": "why"} if path == stale else {})
    assert run_command("--automatic") == FAILED
    assert f"{stale.name} is stale: no mutant has the name 'no such'" in capsys.readouterr().out
    assert run_command("--by-hand") == PASSED


def test_a_killed_mutant_is_not_equivalent_but_may_have_been_expected_to_survive(
    fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = automatic()[0].name
    for path, code in ((reasons.EQUIVALENT, FAILED), (reasons.SURVIVORS, PASSED)):
        why = {path: {name: "why"}}
        fake.setattr(reasons, "load", lambda asked, why=why: why.get(asked, {}))
        assert run_command("--automatic") == code
        assert f"{path.name} has {name!r}, killed: hung" in capsys.readouterr().out


def test_what_a_run_has_written_down_is_reported_anew_with_the_reasons_of_today(
    fake: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survivor = automatic()[0].name
    fake.setattr(FakeRun, "surviving", (survivor,))
    written, first, second = (tmp_path / name for name in ("results.json", "1.md", "2.md"))
    code = run_command(f"--json={written}", f"--report={first}")
    fake.setattr(command, "Run", None)
    assert run_command(f"--results={written}", f"--report={second}") == code
    assert second.read_text() == first.read_text()
    why = {reasons.SURVIVORS: {survivor: "because"}}
    fake.setattr(reasons, "load", lambda path: why.get(path, {}))
    assert run_command(f"--results={written}", f"--report={second}") == code
    assert "| not explained |" in first.read_text()
    assert "| because |" in second.read_text() and "| not explained |" not in second.read_text()
    written.write_text(written.read_text().replace('"name": "one"', '"name": "another"'))
    capsys.readouterr()
    assert run_command(f"--results={written}") == FAILED
    printed = capsys.readouterr().out
    assert "of 'one' there is no result" in printed
    assert "no mutant that was asked for has the name 'another'" in printed
    written.write_text("{}")
    assert run_command(f"--results={written}") == BROKEN
    assert "holds no results" in capsys.readouterr().err


def test_the_command_says_when_it_cannot_run(
    fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def results(self: FakeRun, names: Sequence[str]) -> Iterator[Result]:
        raise MutationError("without a mutant, f32_int is wrong")

    fake.setattr(FakeRun, "results", results)
    assert run_command() == BROKEN
    assert "without a mutant" in capsys.readouterr().err
