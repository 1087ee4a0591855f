"""The emulator under its sanitizers: right kernels give no report, each planted bug gives one that names its line."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convt3d import build, conv_transpose3d, launch, plan
from convt3d.emulator import report, runtime
from convt3d.kernels import gather, weight
from fuzz import subjects
from fuzz.case import parse_case
from fuzz.worker_process import attempt
from tests.emulator_kernels import Kernels, values

ROOT = Path(__file__).parents[1]
THREADS = 64
CHUNKS = 6
SEEDS = range(2)
DTYPES = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def integers(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def lines_of(message: str, file: str) -> list[str]:
    """The lines of a file that a message names."""
    text = (ROOT / file).read_text().splitlines()
    return [text[int(number) - 1] for number in re.findall(rf"{re.escape(file)}:(\d+)", message)]


# ---- right kernels ------------------------------------------------------------------------------

RIGHT_KERNELS: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]] = {
    "hand_on": (lambda: values(THREADS), lambda x: torch.cat([x[:1], x[:-1]])),
    "rounds": (
        lambda: values(THREADS),
        lambda x: torch.stack([x.roll(-1) + round for round in range(4)]),
    ),
    "pipeline": (lambda: values(CHUNKS * THREADS).view(CHUNKS, THREADS), lambda x: x.roll(-1, 1)),
    "copy_again": (lambda: values(2 * THREADS), lambda x: x),
    "butterfly_float": (
        lambda: values(THREADS),
        lambda x: x.view(2, 32).sum(1, keepdim=True).expand(2, 32).reshape(-1),
    ),
    "hand_on_in_warp": (
        lambda: values(THREADS),
        lambda x: torch.cat([torch.cat([warp[:1], warp[:-1]]) for warp in x.view(2, 32)]),
    ),
    "ring": (lambda: values(6 * 32).view(6, 32), lambda x: x.roll(-1, 1)),
    "in_place": (lambda: values(THREADS), lambda x: x),
    "gather_shared": (
        lambda: integers(*range(THREADS)),
        lambda x: x.float(),
    ),
}


@pytest.mark.parametrize("name", RIGHT_KERNELS)
@pytest.mark.parametrize("sanitizer", runtime.SANITIZERS)
def test_a_right_kernel_gives_no_report_and_right_values(
    sanitizer: str, name: str, request: pytest.FixtureRequest
) -> None:
    kernels: Kernels = request.getfixturevalue(sanitizer)
    make_input, answer = RIGHT_KERNELS[name]
    for seed in (None, *SEEDS):
        input = make_input()
        output = torch.zeros_like(answer(input))
        assert kernels.run(name, input, output, seed=seed) == ""
        assert torch.equal(output, answer(input))


@pytest.mark.parametrize("sanitizer", runtime.SANITIZERS)
def test_blocks_may_use_the_same_shared_memory_one_after_the_other(
    sanitizer: str, request: pytest.FixtureRequest
) -> None:
    kernels: Kernels = request.getfixturevalue(sanitizer)
    input = values(7 * THREADS)
    expected = torch.cat([torch.cat([x[:1], x[:-1]]) for x in input.view(7, THREADS)])
    for seed in SEEDS:
        output = torch.zeros_like(input)
        assert kernels.run("hand_on", input, output, blocks=7, seed=seed) == ""
        assert torch.equal(output, expected)


def differentiate(dtype: torch.dtype, plans: dict[str, str]) -> list[Tensor]:
    """Output and gradients of a small layer: two stages of every sum, several phases."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 34, 2, 3, 4), (34, 3, 2, 2, 3), (6,), (2, 6, 4, 4, 12))
    x, w, b, g = (torch.randint(-2, 3, s, generator=generator).to(dtype) for s in shapes)
    leaves = [x.requires_grad_(), w.requires_grad_(), b.requires_grad_()]
    with plan.forced(plans):
        output = conv_transpose3d(*leaves, stride=(2, 1, 3), groups=2)
        return [output, *torch.autograd.grad(output, leaves, g)]


PLANS = {
    "tiled": {"forward": "tiled.i32", "grad_input": "tiled.i64", "grad_weight": "tiled.i32.split3"},
    "direct": {"forward": "direct.i64", "grad_input": "direct.i32", "grad_weight": "direct.i32"},
}


@pytest.mark.parametrize("kernel", PLANS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", runtime.SANITIZERS)
def test_the_kernels_give_no_report_and_the_same_bits(mode: str, dtype: str, kernel: str) -> None:
    expected = differentiate(DTYPES[dtype], PLANS[kernel])
    for seed in SEEDS:
        with runtime.schedule(mode, seed):
            got = differentiate(DTYPES[dtype], PLANS[kernel])
        assert all(map(torch.equal, got, expected))


def test_views_and_offsets_run_under_a_sanitizer() -> None:
    x = torch.randn(2, 9, 5, 4, 7)[:, 1:8:2, ::2, 1:, 2:]  # no dimension is dense
    w = torch.randn(2, 4, 3, 3, 3).transpose(0, 1)
    b = torch.randn(5)[1::2]
    expected = conv_transpose3d(x, w, b)
    for mode in runtime.SANITIZERS:
        with runtime.schedule(mode):
            assert torch.equal(conv_transpose3d(x, w, b), expected)


# ---- planted: out of bounds and undefined -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "input", "message", "line"),
    [
        (
            "read_past_the_end",
            values(THREADS),
            "asan: heap-buffer-overflow: READ of size 4 at tests/emulator_kernels.py:0 in shifted_kernel, "
            "0 bytes behind the 256 of input",
            "in<float>(p)[i + kShift]",
        ),
        (
            "read_before_the_start",
            values(THREADS),
            "asan: heap-buffer-overflow: READ of size 4 at tests/emulator_kernels.py:0 in shifted_kernel, "
            "4 bytes before input",
            "in<float>(p)[i + kShift]",
        ),
        (
            "write_past_the_end",
            values(THREADS),
            "asan: heap-buffer-overflow: WRITE of size 4 at tests/emulator_kernels.py:0 in "
            "shifted_write_kernel, 0 bytes behind the 256 of output",
            "out<float>(p)[i + kShift] =",
        ),
        (
            "copy_past_the_end",
            values(THREADS),
            "asan: heap-buffer-overflow: READ of size 4 at tests/emulator_kernels.py:0 in "
            "copy_past_the_end_kernel, 0 bytes behind the 256 of input",
            "async_copy<4>",
        ),
        (
            "gather_shared",
            integers(*[256] * THREADS),  # the first float past 1024 bytes
            "asan: use-after-poison: READ of size 4 at tests/emulator_kernels.py:0 in gather_shared_kernel, "
            "outside of the block's shared memory",
            "shared<float>()[in<int32_t>(p)[t]]",
        ),
        (
            "gather_shared",
            integers(*[-1] * THREADS),
            "asan: use-after-poison: READ of size 4 at tests/emulator_kernels.py:0 in gather_shared_kernel, "
            "outside of the block's shared memory",
            "shared<float>()[in<int32_t>(p)[t]]",
        ),
        (
            "overrun",
            integers(1024),
            "asan: use-after-poison: WRITE of size 1 at tests/emulator_kernels.py:0 in overrun_kernel, "
            "outside of the block's shared memory",
            "= 1;",
        ),
        (
            "increment",
            integers(*[2**31 - 1] * THREADS),
            "ubsan: signed integer overflow: 2147483647 + 1 cannot be represented in type 'int' at "
            "tests/emulator_kernels.py:0 in increment_kernel",
            "+ 1;",
        ),
        (
            "power",
            integers(*[33] * THREADS),
            "ubsan: shift exponent 33 is too large for 32-bit type 'int' at tests/emulator_kernels.py:0 in "
            "power_kernel",
            "1 <<",
        ),
        (
            "wild",
            values(THREADS),
            "asan: SEGV: WRITE at tests/emulator_kernels.py:0 in wild_kernel",
            "(64) = 1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_planted_bug_is_reported_with_its_line(
    asan: Kernels, name: str, input: Tensor, message: str, line: str
) -> None:
    output = torch.zeros(THREADS, dtype=input.dtype)
    error = asan.run(name, input, output, seed=1)
    assert re.sub(r"\.py:\d+", ".py:0", error) == message
    (named,) = lines_of(error, "tests/emulator_kernels.py")
    assert line in named


@pytest.mark.parametrize(
    ("name", "input"),
    [
        ("gather_shared", integers(*[255] * THREADS)),
        ("overrun", integers(1023)),
        ("increment", integers(*[2**31 - 2] * THREADS)),
        ("power", integers(*[30] * THREADS)),
    ],
)
def test_what_is_just_inside_is_accepted(asan: Kernels, name: str, input: Tensor) -> None:
    assert asan.run(name, input, torch.zeros(THREADS, dtype=input.dtype), seed=1) == ""


def test_a_misaligned_access_is_reported(asan: Kernels) -> None:
    input, output = values(THREADS), torch.full((THREADS,), 4.0)
    assert asan.run("unaligned", input, output) == ""
    assert output[0] == 2
    error = asan.run("unaligned", input, torch.full((THREADS,), 2.0))
    assert re.match(r"ubsan: load of misaligned address 0x\w+ for type 'const float', which", error)
    assert "reinterpret_cast" in lines_of(error, "tests/emulator_kernels.py")[0]


@pytest.mark.parametrize("offset", [4, 8, 20, 56])
def test_a_tensor_keeps_its_alignment_and_ends_where_it_ends(asan: Kernels, offset: int) -> None:
    whole = torch.zeros(512, dtype=torch.uint8)
    start = -whole.data_ptr() % 64 + offset
    input = whole[start : start + 4 * THREADS].view(torch.float32)
    assert input.data_ptr() % 64 == offset
    assert asan.run("in_place", input, torch.zeros(THREADS)) == ""
    error = asan.run("read_past_the_end", input, torch.zeros(THREADS))
    assert error.startswith("asan: heap-buffer-overflow: READ")
    if offset % 8 == 0:  # else both lie within the 8 bytes that AddressSanitizer knows as one
        error = asan.run("read_before_the_start", input, torch.zeros(THREADS))
        assert re.match(r"asan: use-after-poison: READ .*, 4 bytes before input$", error)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half_a_barrier", "emulator: a barrier was reached by only part of the block (32 of 64"),
        ("early_exit", "emulator: a barrier was reached by only part of the block (63 of 64"),
        (
            "half_a_shuffle",
            "emulator: a warp operation was reached by only part of a warp (32 of 64",
        ),
        ("uncommitted", "left 1 asynchronous copies without a wait"),
        ("misaligned", "emulator: an asynchronous copy is not aligned to its size (1 of 64"),
    ],
)
@pytest.mark.parametrize("sanitizer", runtime.SANITIZERS)
def test_what_the_emulator_finds_it_finds_under_a_sanitizer_too(
    sanitizer: str, name: str, message: str, request: pytest.FixtureRequest
) -> None:
    kernels: Kernels = request.getfixturevalue(sanitizer)
    input = integers(1, 16, 1, *[0] * THREADS)
    assert message in kernels.run(name, input, torch.zeros(THREADS), seed=1)
    assert kernels.run("hand_on", values(THREADS), torch.zeros(THREADS)) == ""


# ---- planted: races -----------------------------------------------------------------------------

COPY = "write of size 4 by an asynchronous copy"


@pytest.mark.parametrize(
    ("name", "accesses"),
    [
        ("hand_on_without_barrier", {"read of size 4", "write of size 4"}),
        ("rounds_without_second_barrier", {"read of size 4", "write of size 4"}),
        ("pipeline_no_wait", {"read of size 4", COPY}),
        ("pipeline_waits_for_too_few", {"read of size 4", COPY}),
        ("pipeline_no_barrier_after_wait", {"read of size 4", COPY}),
        ("pipeline_no_barrier_before_reuse", {"read of size 4", COPY}),
        ("copy_again_without_wait", {"read of size 4", COPY}),
        ("ordered_by_shuffle", {"read of size 4", "write of size 4"}),
        ("hand_on_in_warp_without_barrier", {"read of size 4", "write of size 4"}),
        ("ring_no_wait_for_empty", {"read of size 4", "write of size 4"}),
        ("ring_no_warp_barrier", {"read of size 4", "write of size 4"}),
    ],
)
def test_a_race_is_reported_with_both_lines_in_every_schedule(
    tsan: Kernels, name: str, accesses: set[str]
) -> None:
    for seed in SEEDS:
        room = CHUNKS * THREADS
        error = tsan.run(name, values(room), torch.zeros(room), seed=seed)
        at = r"(.*) at tests/emulator_kernels\.py:\d+ in (\w+)_kernel"
        found = re.fullmatch(rf"tsan: data race: {at}, previous {at}", error)
        assert found, error
        assert {found[1], found[3]} == accesses
        assert found[2] == found[4] and name.startswith(found[2])
        for line in lines_of(error, "tests/emulator_kernels.py"):
            assert "shared<float>()" in line or "async_copy<4>(" in line


def test_two_blocks_that_write_one_element_are_a_race(tsan: Kernels) -> None:
    input, output = values(THREADS), torch.zeros(THREADS)
    for seed in SEEDS:
        assert tsan.run("same_output", input, output, seed=seed) == ""
        error = tsan.run("same_output", input, output, blocks=2, seed=seed)
        assert re.match(r"tsan: data race: write of size 4 .*, previous write of size 4 .*", error)
        assert re.search(r", byte \d+ of output$", error)


# Which barrier is left out: the n-th of a module's string.
BARRIERS = {
    "gather_after_staging": (gather, 0),
    "gather_before_the_next_stage": (gather, 1),
    "gather_before_the_stores": (gather, 2),
    "bias_between_warps": (weight, 0),
    "weight_after_staging": (weight, 1),
    "weight_before_the_next_stage": (weight, 2),
}


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Has calls compile changed kernels: plant(right text, wrong text) of a module's SOURCE."""
    real = build.translation_unit

    def apply(right: str, wrong: str) -> None:
        assert right != wrong

        def changed(part: str, target: str) -> str:
            text = real(part, target)
            return text.replace(right, wrong) if right in text else text

        monkeypatch.setattr(build, "translation_unit", changed)
        monkeypatch.setattr(build, "library", functools.cache(build.library.__wrapped__))
        monkeypatch.setattr(launch, "_entry", functools.cache(launch._entry.__wrapped__))
        monkeypatch.setattr(launch, "_sanitized_library", functools.cache(build.library_path))

    return apply


def without_barrier(source: str, index: int) -> str:
    """The text without its n-th barrier; every line stays where it is."""
    start = [found.start() for found in re.finditer(r"barrier\(\);", source)][index]
    return source[:start] + source[start:].replace("barrier();", "", 1)


@pytest.mark.parametrize("name", BARRIERS)
def test_a_barrier_missing_in_a_kernel_is_caught_by_hostile_mode_and_by_tsan(
    name: str, plant: Callable[[str, str], None]
) -> None:
    module, index = BARRIERS[name]
    kernel = "gather_tiled_kernel" if module is gather else "weight_tiled_kernel"
    primitives = ("grad_weight",) if module is weight else ("forward", "grad_input")
    plans = {p: "tiled.i32" if p in primitives else "direct.i32" for p in plan.PRIMITIVES}
    expected = differentiate(torch.float32, plans)
    plant(module.SOURCE, without_barrier(module.SOURCE, index))
    caught = 0
    for seed in range(20):
        with runtime.schedule("hostile", seed):
            got = differentiate(torch.float32, plans)
        caught += not all(map(torch.equal, got, expected))
    assert caught >= 15
    file = re.escape(f"{module.__name__.replace('.', '/')}.py")
    at = rf"(?:read|write) of size 4 at {file}:\d+ in {kernel}"
    for seed in SEEDS:
        with (
            runtime.schedule("tsan", seed),
            pytest.raises(runtime.EmulatorError, match=rf"^tsan: data race: {at}, previous {at}; "),
        ):
            differentiate(torch.float32, plans)


def test_a_kernel_that_reads_one_channel_too_many_is_reported(
    plant: Callable[[str, str], None],
) -> None:
    loop = "for (index_t c = 0; c < source_channels; ++c) {\n          sum"
    assert gather.SOURCE.count(loop) == 1
    plant(loop, loop.replace("c <", "c <="))
    x, w = torch.randn(1, 3, 1, 1, 1), torch.randn(3, 2, 1, 1, 1)
    message = (
        r"^asan: heap-buffer-overflow: READ of size 4 at convt3d/kernels/gather\.py:(\d+) in "
        r"gather_direct_kernel, 0 bytes behind the 12 of source; forward with plan direct\.i32$"
    )
    with plan.forced({"forward": "direct.i32"}), runtime.schedule("asan"):
        with pytest.raises(runtime.EmulatorError, match=message) as caught:
            conv_transpose3d(x, w)
    assert "sum += to_acc(*from)" in lines_of(str(caught.value), "convt3d/kernels/gather.py")[0]


# ---- what comes of a report ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "hostile", "tsan"])
def test_what_the_emulator_finds_is_a_defect_and_no_refusal(
    mode: str, plant: Callable[[str, str], None]
) -> None:
    line = "auto& shared = *static_cast<GatherShared<scalar_t>*>(shared_memory());"
    assert gather.SOURCE.count(line) == 1
    plant(line, f"{line} if (thread_index() == 5) return;")
    message = (
        r"^emulator: a barrier was reached by only part of the block \(127 of 128 threads; block 0, "
        r"thread \d+\); forward with plan tiled\.i32$"
    )
    with plan.forced({"forward": "tiled.i32"}), runtime.schedule(mode):
        with pytest.raises(runtime.EmulatorError, match=message) as caught:
            conv_transpose3d(torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1))
    assert caught.value.is_defect


def test_a_race_in_a_case_is_a_crash_that_names_the_line(
    plant: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plant(gather.SOURCE, without_barrier(gather.SOURCE, 0))
    outcome = attempt(subjects.convt3d, parse_case("f32_ci9_co9_i1x1x4_k1x1x2_int_tsan_sched1"))
    assert outcome.status == "crashed"
    assert re.match(r"tsan: data race: .* at convt3d/kernels/gather\.py:\d+ in ", outcome.message)


@pytest.mark.parametrize("mode", runtime.MODES)
def test_a_launch_that_is_refused_is_no_defect(mode: str) -> None:
    x = torch.ones(1, 1, 1, 1, 2, requires_grad=True)
    output = conv_transpose3d(x, torch.ones(1, 1, 1, 1, 1, requires_grad=True))
    with plan.forced({"grad_weight": "direct.i32.split2"}), runtime.schedule(mode):
        with pytest.raises(RuntimeError, match="the direct kernel has no split-K") as caught:
            output.sum().backward()
    assert not isinstance(caught.value, runtime.EmulatorError)


FRAMES = """    #0 0x7f01 in convt3d::emulator::watch::copy(void*) ./convt3d/emulator/watch.py:90
    #1 0x7f02 in operator() ./convt3d/kernels/gather.py:12
    #2 0x7f03 in void convt3d::gather_tiled_kernel<true, int>(P) convt3d/kernels/gather.py:34:5 (a.so+0x5)
    #3 0x7f04 in main main.cpp:1

"""


@pytest.mark.parametrize(
    ("mode", "text", "message"),
    [
        (
            "asan",
            "==1==ERROR: AddressSanitizer: heap-use-after-free on address 0x0000000000a4 at pc 0x1 bp 0x2\n"
            "WRITE of size 8 at 0x0000000000a4 thread T0\n"
            + FRAMES
            + "allocated by\n    #0 0x1 in f f.cpp:1",
            "asan: heap-use-after-free: WRITE of size 8 at convt3d/kernels/gather.py:12 in "
            "gather_tiled_kernel, byte 4 of weight",
        ),
        (
            "asan",
            "AddressSanitizer:DEADLYSIGNAL\n==1==ERROR: AddressSanitizer: SEGV on unknown address "
            "0x7f0000000000 (pc 0x1 bp 0x2 sp 0x3 T0)\n==1==The signal is caused by a READ memory access.\n"
            + FRAMES,
            "asan: SEGV: READ at convt3d/kernels/gather.py:12 in gather_tiled_kernel",
        ),
        (
            "asan",
            "convt3d/emulator/host.py:9:3: runtime error: shift exponent -1 is negative\n" + FRAMES,
            "ubsan: shift exponent -1 is negative at convt3d/kernels/gather.py:12 in gather_tiled_kernel",
        ),
        (
            "tsan",
            "ThreadSanitizer:DEADLYSIGNAL\n==1==ERROR: ThreadSanitizer: SEGV on unknown address 0x7f0000000000 "
            "(pc 0x1 T0)\n==1==The signal is caused by a READ memory access.\n" + FRAMES,
            "tsan: SEGV at convt3d/kernels/gather.py:12 in gather_tiled_kernel",
        ),
        (
            "tsan",
            "WARNING: ThreadSanitizer: data race (pid=1)\n  Write of size 1 at 0x0000000000b0 by thread T1:\n"
            + FRAMES.replace(":12", ":56")
            + "  Previous read of size 1 at 0x0000000000b0 by main thread:\n"
            + "    [failed to restore the stack]\n",
            "tsan: data race: write of size 1 at convt3d/kernels/gather.py:56 in gather_tiled_kernel, previous "
            "read of size 1, 0 bytes behind the 16 of weight",
        ),
        ("asan", "Traceback (most recent call last):\n  KeyError", None),
        ("tsan", "", None),
    ],
)
def test_a_report_becomes_one_line(mode: str, text: str, message: str | None) -> None:
    tensors = {"source": range(0x20, 0x30), "weight": range(0xA0, 0xB0)}
    assert report.one_line(mode, text, tensors) == message
