"""The emulator's machine layer, on small kernels: right ones pass in every schedule, wrong ones are found out."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convt3d.emulator import runtime
from tests.emulator_kernels import Kernels, compile_kernels, values

THREADS = 64
SEEDS = range(20)
SCHEDULES = [None, *SEEDS]
CHUNKS = 6
FIBERS = {"own": (), "ucontext": ("-DCONVT3D_UCONTEXT",)}
MOST_SHARED_BYTES = 163 * 1024


@pytest.fixture(scope="session", params=FIBERS)
def kernels(request: pytest.FixtureRequest, scratch: Path) -> Kernels:
    """The kernels, compiled once a run, with each way to switch stacks."""
    return compile_kernels(scratch, *FIBERS[request.param])


def handed_on(input: Tensor) -> Tensor:
    """What the hand_on kernel gives for one block."""
    return torch.cat([input[:1], input[:-1]])


# ---- barriers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [32, 64, 160, 1024])
def test_a_value_passes_a_barrier(kernels: Kernels, threads: int) -> None:
    input = values(3 * threads)
    expected = torch.cat([handed_on(block) for block in input.view(3, threads)])
    for seed in SCHEDULES:
        output = torch.zeros(3 * threads)
        run = kernels.run(
            "hand_on", input, output, blocks=3, threads=threads, shared_bytes=4096, seed=seed
        )
        assert run == ""
        assert torch.equal(output, expected)


def test_a_missing_barrier_before_a_read_is_found_by_hostile_schedules(kernels: Kernels) -> None:
    input, wrong = values(256), 0  # eight warps: few schedules run them all in order
    for seed in SEEDS:
        output = torch.zeros(256)
        run = kernels.run("hand_on_without_barrier", input, output, threads=256, seed=seed)
        assert run == ""
        wrong += not torch.equal(output, handed_on(input))
    assert wrong >= len(SEEDS) * 3 // 4


def test_a_missing_barrier_can_hide_from_the_fast_schedule(kernels: Kernels) -> None:
    input, output = values(THREADS), torch.zeros(THREADS)
    assert kernels.run("hand_on_without_barrier", input, output) == ""
    assert torch.equal(output, handed_on(input))


def rounds_wrong(kernels: Kernels, name: str) -> int:
    """Returns how many of the hostile schedules give wrong values."""
    input, wrong = values(THREADS), 0
    expected = torch.stack([input.roll(-1) + round for round in range(4)])
    for seed in SEEDS:
        output = torch.zeros(4, THREADS)
        assert kernels.run(name, input, output, seed=seed) == ""
        wrong += not torch.equal(output, expected)
    return wrong


def test_a_missing_barrier_before_a_write_is_found_by_hostile_schedules(kernels: Kernels) -> None:
    assert rounds_wrong(kernels, "rounds") == 0
    assert rounds_wrong(kernels, "rounds_without_second_barrier") >= len(SEEDS) * 3 // 4


@pytest.mark.parametrize(
    ("name", "waiting"),
    [("half_a_barrier", THREADS // 2), ("early_exit", THREADS - 1), ("uneven_barriers", 63)],
)
def test_a_barrier_that_part_of_a_block_reaches_is_an_error_and_no_hang(
    kernels: Kernels, name: str, waiting: int
) -> None:
    for seed in SCHEDULES:
        error = kernels.run(name, blocks=2, seed=seed)
        start = "emulator: a barrier was reached by only part of the block"
        assert error.startswith(f"{start} ({waiting} of {THREADS} threads; block ")
        if seed is None:
            assert "; block 0, thread " in error


def test_an_error_leaves_nothing_behind(kernels: Kernels) -> None:
    input, output = values(THREADS), torch.zeros(THREADS)
    failing = ("half_a_barrier", "early_exit", "half_a_shuffle", "pipeline_no_wait", "uncommitted")
    many, room = values(CHUNKS * THREADS), torch.zeros(CHUNKS * THREADS)
    for name in failing:
        for seed in SCHEDULES:
            assert kernels.run(name, many, room, seed=seed) != ""
            output.zero_()
            assert kernels.run("hand_on", input, output, seed=seed) == ""
            assert torch.equal(output, handed_on(input))


# ---- shuffles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32], ids=str)
def test_a_butterfly_of_shuffles_sums_over_each_warp(kernels: Kernels, dtype: torch.dtype) -> None:
    name = {torch.float32: "float", torch.float64: "double", torch.int32: "int"}[dtype]
    input = values(4 * 32).to(dtype)
    if dtype == torch.float64:
        input += 2.0**-40  # all eight bytes are exchanged
    expected = input.view(4, 32).sum(1, keepdim=True).expand(4, 32).reshape(-1)
    for seed in SCHEDULES:
        output = torch.zeros_like(input)
        run = kernels.run(f"butterfly_{name}", input, output, threads=128, seed=seed)
        assert run == ""
        assert torch.equal(output, expected)


def test_warps_may_shuffle_a_different_number_of_times(kernels: Kernels) -> None:
    input = values(4 * 32)
    swapped = input.view(-1, 2).flip(1).view(4, 32)
    expected = torch.where(torch.tensor([[True], [False]] * 2), swapped, input.view(4, 32))
    for seed in SCHEDULES:
        output = torch.zeros(4, 32)
        assert kernels.run("uneven_shuffles", input, output, threads=128, seed=seed) == ""
        assert torch.equal(output, expected)


@pytest.mark.parametrize("name", ["half_a_shuffle", "shuffle_or_barrier"])
def test_a_shuffle_that_part_of_a_warp_reaches_is_an_error_and_no_hang(
    kernels: Kernels, name: str
) -> None:
    for seed in SCHEDULES:
        error = kernels.run(name, seed=seed)
        start = "emulator: a warp operation was reached by only part of a warp"
        assert error.startswith(f"{start} (32 of {THREADS} threads; block 0, thread ")


# ---- warps --------------------------------------------------------------------------------------


def test_a_value_passes_a_barrier_of_its_warp(kernels: Kernels) -> None:
    input = values(256)
    expected = torch.cat([handed_on(warp) for warp in input.view(-1, 32)])
    for seed in SCHEDULES:
        output = torch.zeros(256)
        assert kernels.run("hand_on_in_warp", input, output, threads=256, seed=seed) == ""
        assert torch.equal(output, expected)


def test_a_missing_barrier_of_a_warp_is_found_by_hostile_schedules(kernels: Kernels) -> None:
    input, wrong = values(256), 0
    expected = torch.cat([handed_on(warp) for warp in input.view(-1, 32)])
    for seed in SEEDS:
        output, name = torch.zeros(256), "hand_on_in_warp_without_barrier"
        assert kernels.run(name, input, output, threads=256, seed=seed) == ""
        wrong += not torch.equal(output, expected)
    assert wrong >= len(SEEDS) // 4  # half of the schedules keep the lanes of a warp in order


@pytest.mark.parametrize("name", ["half_a_warp_barrier", "load_misaligned_matrices"])
def test_a_warp_operation_that_a_gpu_would_not_do_is_an_error(kernels: Kernels, name: str) -> None:
    message = {
        "half_a_warp_barrier": "emulator: a warp operation was reached by only part of a warp (32 of",
        "load_misaligned_matrices": "emulator: a row of a matrix is not aligned",
    }[name]
    for seed in SCHEDULES:
        assert kernels.run(name, seed=seed).startswith(message)


def test_matrices_are_loaded_as_the_ptx_manual_says(kernels: Kernels) -> None:
    rows = torch.randint(2**31 - 1, (THREADS, 4), dtype=torch.int32)
    pointed = rows.flip(0).view(-1, 4, 8, 4)  # warp, matrix, row, word
    expected = pointed.permute(0, 2, 3, 1).reshape(THREADS, 4)  # lane = 4 * row + word
    for seed in SCHEDULES:
        output = torch.zeros(THREADS, 4, dtype=torch.int32)
        assert kernels.run("load_matrices", rows, output, seed=seed) == ""
        assert torch.equal(output, expected)


def test_a_matrix_of_16_bit_numbers_is_transposed(kernels: Kernels) -> None:
    input = torch.randint(-(2**15), 2**15, (2, 8, 8), dtype=torch.int16)
    for seed in SCHEDULES:
        output = torch.zeros_like(input)
        assert kernels.run("transpose_matrix", input, output, seed=seed) == ""
        assert torch.equal(output, input.transpose(1, 2))


def fragments(a: Tensor, b: Tensor, sums: Tensor) -> Tensor:
    """What the 32 lanes of multiply_add hold of a (16, K), b (K, 8) and sums (16, 8): (32, 10) words."""
    a_words, b_words = a.contiguous().view(torch.int32), b.t().contiguous().view(torch.int32)
    lanes = []
    for lane in range(32):
        g, t = lane // 4, lane % 4
        left = [a_words[g, t], a_words[g + 8, t], a_words[g, t + 4], a_words[g + 8, t + 4]]
        mine = sums[g : g + 9 : 8, 2 * t : 2 * t + 2].reshape(-1).view(torch.int32)
        lanes.append(torch.stack([*left, b_words[g, t], b_words[g, t + 4], *mine]))
    return torch.stack(lanes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_product_of_matrices_is_that_of_the_ptx_manual(
    kernels: Kernels, dtype: torch.dtype
) -> None:
    name = str(dtype).removeprefix("torch.").replace("float32", "float").replace("float16", "half")
    name = {"bhalf": "bfloat16"}.get(name, name)
    k = 32 * 8 // torch.finfo(dtype).bits
    a, b = (torch.randint(-9, 10, shape).to(dtype) for shape in ((16, k), (k, 8)))
    sums = torch.randint(-99, 100, (16, 8)).float()
    expected = sums + a.float() @ b.float()
    for seed in SCHEDULES:
        output = torch.zeros(32, 4)
        operands = fragments(a, b, sums)
        assert kernels.run(f"multiply_add_{name}", operands, output, threads=32, seed=seed) == ""
        got = output.view(8, 4, 2, 2).permute(2, 0, 1, 3).reshape(16, 8)
        assert torch.equal(got, expected)


def test_of_a_float_a_product_sees_what_tf32_has(kernels: Kernels) -> None:
    a, b = torch.full((16, 8), 1 + 2.0**-10 + 2.0**-11), torch.eye(8)
    output = torch.zeros(32, 4)
    operands = fragments(a, b, torch.zeros(16, 8))
    assert kernels.run("multiply_add_float", operands, output, threads=32) == ""
    assert torch.equal(output, torch.full((32, 4), 1 + 2.0**-10))


def in_shared_memory(*operands: Tensor) -> Tensor:
    """The operands (rows, 32 bytes) as a warpgroup's products find them: [16 bytes of K][row]."""
    halves = [o.contiguous().view(torch.int32).view(-1, 2, 4).transpose(0, 1) for o in operands]
    return torch.cat([half.reshape(-1) for half in halves])


def run_warpgroup(
    kernels: Kernels, name: str, operands: Tensor, output: Tensor, seed: int | None
) -> str:
    return kernels.run(
        f"warpgroup_{name}", operands, output, threads=128, shared_bytes=4096, seed=seed
    )


def warpgroup_operands(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    k = 32 * 8 // torch.finfo(dtype).bits
    return torch.randint(-9, 10, (64, k)).to(dtype), torch.randint(-9, 10, (16, k)).to(dtype)


def warpgroup_sums(output: Tensor) -> Tensor:
    """The sums (64, 16) of what 128 threads hold of them: (128, 8)."""
    parts = output.view(4, 8, 4, 2, 2, 2)  # warp, g, t, tile of 8 columns, half of the rows, column
    return parts.permute(0, 4, 1, 3, 2, 5).reshape(64, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_product_of_a_warpgroup_is_that_of_the_ptx_manual(
    kernels: Kernels, dtype: torch.dtype
) -> None:
    name = {torch.float32: "float", torch.float16: "half"}.get(dtype, "bfloat16")
    a, b = warpgroup_operands(dtype)
    for seed in SCHEDULES:
        output = torch.zeros(128, 8)
        operands = in_shared_memory(a, b)
        assert run_warpgroup(kernels, name, operands, output, seed) == ""
        assert torch.equal(warpgroup_sums(output), 2 * a.float() @ b.float().t())


def test_products_that_no_wait_covers_are_an_error_where_they_come_late(kernels: Kernels) -> None:
    operands = in_shared_memory(*warpgroup_operands(torch.float32))
    errors = [
        run_warpgroup(kernels, "no_wait", operands, torch.zeros(128, 8), seed) for seed in SEEDS
    ]
    assert any(error.endswith("products without a wait") for error in errors)


def test_shared_memory_that_is_reused_while_products_read_it_is_found_by_hostile_schedules(
    kernels: Kernels,
) -> None:
    a, b = warpgroup_operands(torch.float32)
    wrong = 0
    for seed in SEEDS:
        output = torch.zeros(128, 8)
        operands = in_shared_memory(a, b)
        assert run_warpgroup(kernels, "reused", operands, output, seed) == ""
        wrong += not torch.equal(warpgroup_sums(output), 2 * a @ b.t())
    assert wrong >= len(SEEDS) // 2


def test_a_matrix_in_shared_memory_off_its_alignment_is_an_error(kernels: Kernels) -> None:
    error = kernels.run("misaligned_shared_matrix")
    assert "emulator: a matrix in shared memory is not aligned" in error


# ---- signals ------------------------------------------------------------------------------------

ROUNDS = 6


def run_ring(kernels: Kernels, variant: str, seed: int | None) -> tuple[str, bool]:
    """Returns the error of a ring kernel, and whether its results are right."""
    input, output = values(ROUNDS * 32).view(ROUNDS, 32), torch.zeros(ROUNDS, 32)
    error = kernels.run(f"ring{variant}", input, output, seed=seed)
    return error, torch.equal(output, input.roll(-1, 1))


def test_a_right_ring_of_signals_is_right_in_every_schedule(kernels: Kernels) -> None:
    for seed in (None, *range(100)):
        assert run_ring(kernels, "", seed) == ("", True)


@pytest.mark.parametrize("variant", ["_no_wait_for_full", "_no_wait_for_empty", "_no_warp_barrier"])
def test_a_ring_that_lacks_a_wait_is_found_by_hostile_schedules(
    kernels: Kernels, variant: str
) -> None:
    wrong = sum(not run_ring(kernels, variant, seed)[1] for seed in SEEDS)
    assert wrong >= len(SEEDS) // 4  # half of the schedules keep the lanes of a warp in order


def test_a_signal_that_none_gives_is_an_error_and_no_hang(kernels: Kernels) -> None:
    for seed in SCHEDULES:
        error, _ = run_ring(kernels, "_one_arrival_short", seed)
        assert error.startswith("emulator: threads wait for a signal that none gives")


def test_a_signal_off_its_alignment_is_an_error(kernels: Kernels) -> None:
    assert "emulator: a signal is not aligned" in kernels.run("misaligned_signal")


# ---- asynchronous copies ------------------------------------------------------------------------


def run_pipeline(kernels: Kernels, variant: str, seed: int | None) -> tuple[str, bool]:
    """Returns the error of a pipeline kernel, and whether its results are right."""
    input, output = values(CHUNKS * THREADS).view(CHUNKS, THREADS), torch.zeros(CHUNKS, THREADS)
    error = kernels.run(f"pipeline{variant}", input, output, seed=seed)
    return error, torch.equal(output, input.roll(-1, 1))


def test_a_right_pipeline_of_copies_is_right_in_every_schedule(kernels: Kernels) -> None:
    for seed in (None, *range(200)):
        assert run_pipeline(kernels, "", seed) == ("", True)


def test_copies_that_no_wait_covers_are_an_error(kernels: Kernels) -> None:
    for seed in SCHEDULES:
        error, is_right = run_pipeline(kernels, "_no_wait", seed)
        assert error.endswith("left 6 asynchronous copies without a wait"), error
        assert error.startswith("emulator: thread 0 of block 0 left")
        assert not is_right


def test_a_copy_after_the_last_commit_is_covered_by_no_wait(kernels: Kernels) -> None:
    for seed in SCHEDULES:
        error = kernels.run("uncommitted", values(THREADS), seed=seed)
        assert "left 1 asynchronous copies without a wait" in error


def test_more_copies_than_fit_are_an_error(kernels: Kernels) -> None:
    for seed in SCHEDULES:
        assert kernels.run("many_copies", torch.tensor([256], dtype=torch.int32), seed=seed) == ""
        error = kernels.run("many_copies", torch.tensor([257], dtype=torch.int32), seed=seed)
        message = "emulator: more asynchronous copies than the emulator holds wait to land (1 of"
        assert error.startswith(message)


@pytest.mark.parametrize("variant", ["_waits_for_too_few", "_no_barrier_after_wait"])
def test_a_wait_that_does_not_cover_the_copy_is_found(kernels: Kernels, variant: str) -> None:
    wrong = 0
    for seed in SEEDS:
        error, is_right = run_pipeline(kernels, variant, seed)
        assert error == ""
        wrong += not is_right
    assert wrong >= len(SEEDS) * 3 // 4


def test_a_copy_into_a_buffer_that_is_still_read_is_found_when_it_lands_early(
    kernels: Kernels,
) -> None:
    variant = "_no_barrier_before_reuse"
    assert run_pipeline(kernels, variant, None) == ("", True)  # copies land late
    wrong = sum(not run_pipeline(kernels, variant, seed)[1] for seed in SEEDS)
    assert wrong >= len(SEEDS) * 3 // 4


@pytest.mark.parametrize("copied_bytes", [4, 8, 16])
def test_a_copy_brings_its_bytes_or_zeros(kernels: Kernels, copied_bytes: int) -> None:
    name = f"copy{copied_bytes}"
    input = torch.arange(1, copied_bytes * THREADS + 1).to(torch.uint8)
    for seed in SCHEDULES:
        output = torch.full_like(input, 2)
        assert kernels.run(name, input, output, seed=seed) == ""
        assert torch.equal(output, input)
        assert kernels.run(name, torch.zeros(1, dtype=torch.uint8), output, seed=seed) == ""
        assert not output.any()


@pytest.mark.parametrize("offsets", [(4, 16), (1, 16), (8, 20), (8, 17)])
def test_a_copy_off_its_alignment_is_an_error(kernels: Kernels, offsets: tuple[int, int]) -> None:
    for seed in SCHEDULES:
        input = torch.tensor([*offsets, 1, *[0] * 13], dtype=torch.int32)
        error = kernels.run("misaligned", input, seed=seed)
        assert error.startswith("emulator: an asynchronous copy is not aligned to its size (")
        assert error.endswith("block 0, thread 0)")


def test_an_aligned_copy_and_an_unread_source_are_accepted(kernels: Kernels) -> None:
    for offsets in ((8, 16, 1), (16, 8, 1), (8, 17, 0)):
        input = torch.tensor([*offsets, *[0] * 13], dtype=torch.int32)
        assert kernels.run("misaligned", input) == ""


# ---- shared memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["double", "float", "half", "bfloat16"])
def test_shared_memory_is_nan_at_the_start_of_every_hostile_block(
    kernels: Kernels, kind: str
) -> None:
    for seed in SEEDS:
        output = torch.zeros(3 * THREADS, dtype=torch.float64)
        run = kernels.run(f"unwritten_{kind}", None, output, blocks=3, seed=seed)
        assert run == ""
        assert output.isnan().all()


@pytest.mark.parametrize(("offset", "written"), [(1024, 1), (1024 + 40, 41), (1024 + 255, 256)])
def test_a_write_past_the_end_of_shared_memory_is_an_error(
    kernels: Kernels, offset: int, written: int
) -> None:
    input = torch.tensor([offset], dtype=torch.int32)
    for seed in SCHEDULES:
        error = kernels.run("overrun", input, seed=seed)
        message = f"emulator: block 0 wrote {written} bytes past the end of its shared memory"
        assert error == message


def test_a_write_to_the_last_byte_of_shared_memory_is_accepted(kernels: Kernels) -> None:
    assert kernels.run("overrun", torch.tensor([1023], dtype=torch.int32), seed=1) == ""
    last = torch.tensor([MOST_SHARED_BYTES - 1], dtype=torch.int32)
    assert kernels.run("overrun", last, shared_bytes=MOST_SHARED_BYTES) == ""


# ---- the launch and its schedule ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": 0}, "a grid must have 1 to 2^31 - 1 blocks"),
        ({"blocks": 2**31}, "a grid must have 1 to 2^31 - 1 blocks"),
        ({"threads": 0}, "a block must be whole warps, at most 1024 threads"),
        ({"threads": 33}, "a block must be whole warps, at most 1024 threads"),
        ({"threads": 1056}, "a block must be whole warps, at most 1024 threads"),
        ({"shared_bytes": MOST_SHARED_BYTES + 1}, "too much shared memory for a block"),
    ],
)
def test_a_launch_that_a_gpu_would_refuse_is_refused(
    kernels: Kernels, change: dict[str, int], message: str
) -> None:
    assert kernels.run("overrun", torch.zeros(1), **change) == message  # type: ignore[arg-type]


def trace(kernels: Kernels, seed: int | None, blocks: int = 1) -> list[int]:
    """Returns the order in which threads ran, block * 10000 + thread, three rounds."""
    output = torch.zeros(1 + 3 * blocks * THREADS, dtype=torch.int32)
    assert kernels.run("trace", None, output, blocks=blocks, seed=seed) == ""
    assert output[0] == 3 * blocks * THREADS
    return output[1:].tolist()


def test_the_fast_schedule_starts_threads_and_blocks_in_order(kernels: Kernels) -> None:
    order = trace(kernels, None, blocks=2)
    assert order[:THREADS] == list(range(THREADS))
    assert order[3 * THREADS : 4 * THREADS] == list(range(10000, 10000 + THREADS))


def test_every_thread_runs_once_between_two_barriers(kernels: Kernels) -> None:
    for seed in SCHEDULES:
        order = torch.tensor(trace(kernels, seed)).view(3, THREADS)
        assert torch.equal(order.sort(1).values, torch.arange(THREADS).expand(3, THREADS))


def test_a_seed_decides_the_schedule(kernels: Kernels) -> None:
    traces = [trace(kernels, seed, blocks=2) for seed in SEEDS]
    assert traces == [trace(kernels, seed, blocks=2) for seed in SEEDS]
    assert len({tuple(order) for order in traces}) == len(SEEDS)
    large = 2**62 - 1
    assert trace(kernels, large) == trace(kernels, large)
    assert trace(kernels, large) not in (trace(kernels, seed) for seed in SEEDS)


def test_hostile_schedules_shuffle_threads_warps_and_blocks(kernels: Kernels) -> None:
    traces = [trace(kernels, seed, blocks=2) for seed in range(40)]
    first_blocks = {order[0] // 10000 for order in traces}
    assert first_blocks == {0, 1}
    starts = [[entry % 10000 for entry in order[:THREADS]] for order in traces]
    in_warps = [
        all(b == a + 1 for a, b in itertools.pairwise(order) if a % 32 != 31) for order in starts
    ]
    assert any(in_warps) and not all(in_warps)
    assert {order[0] for order, whole in zip(starts, in_warps) if whole} == {0, 32}


def test_hostile_schedules_shuffle_anew_at_every_barrier(kernels: Kernels) -> None:
    for seed in SEEDS:
        rounds = torch.tensor(trace(kernels, seed)).view(3, THREADS).tolist()
        assert len({tuple(order) for order in rounds}) > 1


def test_two_python_threads_run_machines_of_their_own(kernels: Kernels) -> None:
    input = values(1024)

    def run_many(seed: int) -> bool:
        right = True
        for _ in range(20):
            output = torch.zeros(1024)
            kernels.run("hand_on", input, output, threads=1024, shared_bytes=4096, seed=None)
            right = right and torch.equal(output, handed_on(input))
        return right

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(run_many, range(2)))


def test_a_schedule_holds_inside_its_block_alone() -> None:
    def current() -> tuple[str, int]:
        return runtime.current_mode(), runtime.current_schedule()

    assert current() == ("fast", 0)
    with runtime.schedule("hostile", 5):
        outer = current()
        assert outer == ("hostile", 5 << 1 | 1)
        with runtime.schedule("fast"):
            assert current() == ("fast", 0)
        assert current() == outer
    assert current() == ("fast", 0)
    with pytest.raises(KeyError), runtime.schedule("hostile", 1):
        raise KeyError
    assert current() == ("fast", 0)


@pytest.mark.parametrize("mode", runtime.SANITIZERS)
def test_a_sanitizer_gets_the_hostile_schedule(mode: str) -> None:
    with runtime.schedule("hostile", 5):
        hostile = runtime.current_schedule()
    with runtime.schedule(mode, 5):
        assert runtime.current_mode() == mode
        assert runtime.current_schedule() == hostile


@pytest.mark.parametrize(
    ("mode", "seed", "message"),
    [
        ("slow", 0, "mode='slow', but must be one of"),
        ("hostile", -1, "seed=-1, but must be in"),
        ("hostile", 2**62, f"seed={2**62}, but must be in"),
    ],
)
def test_a_schedule_that_does_not_exist_is_refused(mode: str, seed: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message), runtime.schedule(mode, seed):
        pytest.fail("entered the block")


# ---- 16-bit floating point ----------------------------------------------------------------------

KINDS = {"half": torch.float16, "bfloat16": torch.bfloat16}


def every_bit_pattern() -> Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16)


def hard_values(kind: str) -> Tensor:
    """Returns fp32 values around every number of the kind, every tie, and random bits."""
    exact = every_bit_pattern().view(KINDS[kind]).float()
    finite = exact[exact.isfinite()].sort().values
    ties = (finite[1:].double() + finite[:-1].double()).div(2).float()
    past_the_end = torch.tensor([65519.996, 65520.0, 65520.004, 3.4e38, 3.3895314e38, 3.3961775e38])
    points = torch.cat([finite, ties, past_the_end, -past_the_end, exact[exact.isinf()]])
    bits = points.view(torch.int32)
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(-(2**31), 2**31, (300_000,), generator=generator).to(torch.int32)
    return torch.cat([bits, bits + 1, bits - 1, random]).view(torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_16_bit_pattern_widens_as_in_torch(kernels: Kernels, kind: str) -> None:
    bits = every_bit_pattern()
    expected = bits.view(KINDS[kind]).float()
    got = kernels.convert(f"widen_{kind}", bits, torch.float32)
    assert torch.equal(got.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(got.view(torch.int32)[number], expected.view(torch.int32)[number])
    assert torch.equal(got.signbit(), expected.signbit())


@pytest.mark.parametrize("kind", KINDS)
def test_every_hard_value_is_rounded_as_in_torch(kernels: Kernels, kind: str) -> None:
    values = hard_values(kind)
    expected = values.to(KINDS[kind])
    got = kernels.convert(f"round_off_{kind}", values, torch.int16).view(KINDS[kind])
    assert torch.equal(got.isnan(), values.isnan())
    number = ~values.isnan()
    assert torch.equal(got.view(torch.int16)[number], expected.view(torch.int16)[number])


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_undoes_widening(kernels: Kernels, kind: str) -> None:
    bits = every_bit_pattern()
    widened = kernels.convert(f"widen_{kind}", bits, torch.float32)
    again = kernels.convert(f"round_off_{kind}", widened, torch.int16)
    number = ~widened.isnan()
    assert torch.equal(again[number], bits[number])
    assert again.view(KINDS[kind])[~number].isnan().all()
