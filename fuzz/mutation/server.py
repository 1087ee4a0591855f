"""The process that runs mutants: it holds libraries, cases and their expectations, and forks for each mutant.

A fork costs milliseconds and shares all of that; what a mutant does to its memory ends with it. Cases run in rounds,
each on the mutants that are left, so that the expectations of the later ones are held only while they are needed.
"""

from __future__ import annotations

import functools
import gc
import mmap
import os
import pickle
import select
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from random import Random

from convt3d.emulator import runtime
from fuzz import checks, data, shard
from fuzz.bounds import Expectation, expect
from fuzz.case import Case, format_case
from fuzz.mutation import schemata
from fuzz.mutation.check_name import check_name
from fuzz.mutation.kernel_text import MUTATED_PARTS
from fuzz.mutation.mutant import KernelMutant, Mutant, PythonMutant, Result
from fuzz.outcome import FAILURES, Judgement, Outcome
from fuzz.strategies import draw_case
from fuzz.worker_process import attempt

# Of the processor, so that a busy machine does not make a mutant seem to hang. A case takes milliseconds.
CASE_LIMIT_S = 3.0
# Of the clock, for a mutant that waits for something that never comes.
STANDSTILL_S = 120.0
# The last case of each round, as a share of all: most mutants die in the first.
ROUNDS = (0.02, 0.1, 0.3, 1.0)
# How many of the rounds a mutant runs in that is argued away.
BRIEF_ROUNDS = 2
_POLL_S = 0.5
_NO_TASK = -1  # the index of what runs without a mutant


class MutationError(Exception):
    """Mutants cannot be run, or what they would be compared with is wrong itself."""


@dataclass(frozen=True)
class Options:
    """How mutants are run.

    Args:
        cases: how many cases a mutant has to survive.
        seed: of the cases; the same list for every mutant.
        jobs: processes at a time.
        dtypes: of the cases; None for all that the emulator has.
        sanitizers: whether cases run under sanitizers too, as in a campaign.
    """

    cases: int = 2000
    seed: int = 0
    jobs: int = 1
    dtypes: tuple[str, ...] | None = None
    sanitizers: bool = True


@dataclass(frozen=True)
class Task:
    """A mutant as the server gets it.

    Args:
        mutant: what it is.
        layer: index of its layer; -1 for one of Python.
        number: of its switch.
        is_brief: it runs in the first rounds only, as it is expected to survive.
    """

    mutant: Mutant
    layer: int = -1
    number: int = schemata.OFF
    is_brief: bool = False


@dataclass
class _Prepared:
    case: Case
    expectation: Expectation
    seconds: float  # of the processor, that the case takes without a mutant


@dataclass
class _Running:
    """A fork at work.

    Args:
        slot: where it notes the case it is at.
    """

    task: Task
    pid: int
    pipe: int
    slot: int
    started_s: float
    seen: int = -1
    seen_s: float = 0.0


def draw_cases(options: Options) -> list[Case]:
    """The cases, all different, as a campaign on the emulator draws them."""
    space = shard.search_space(shard.Options(options.seed, dtypes=options.dtypes), "emulator")
    if not options.sanitizers:
        modes = tuple(mode for mode in space.modes if mode not in runtime.SANITIZERS)
        space = replace(space, modes=modes)
    random = Random(options.seed)
    cases: dict[Case, None] = {}
    while len(cases) < options.cases:
        cases[draw_case(random, space)] = None
    return [*cases]


def parts_of(dtypes: Iterable[str]) -> list[str]:
    """The parts that are mutated, of those that these dtypes need."""
    wanted = set(dtypes)
    return [part for part in MUTATED_PARTS if part.partition("_")[2] in wanted]


def serve(
    connection: Connection,
    tasks: Sequence[Task],
    layers: Sequence[schemata.Layer],
    cases: Sequence[Case],
    jobs: int,
) -> None:
    """Runs the cases on every task; the entry point of the process.

    It sends ("result", Result) for each task, and at the end ("done", None) or ("broken", text).
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = (
        ""  # the emulator, on a machine with a GPU too: CUDA survives no fork
    )
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the parent, which ends this process
    try:
        _Server(layers, cases, jobs, connection).run(tasks)
        connection.send(("done", None))
    except (BrokenPipeError, EOFError):
        pass  # the parent is gone
    except MutationError as error:
        connection.send(("broken", str(error)))
    except Exception:
        connection.send(("broken", traceback.format_exc()))


class _Server:
    def __init__(
        self,
        layers: Sequence[schemata.Layer],
        cases: Sequence[Case],
        jobs: int,
        connection: Connection,
    ) -> None:
        from fuzz import subjects

        warnings.simplefilter("ignore")
        self._connection = connection
        self._cases = cases
        self._jobs = jobs
        self._prepared: list[_Prepared] = []
        parts = parts_of(case.dtype for case in cases)
        modes = {case.mode for case in cases}
        # A mode that is no sanitizer's runs what is compiled for the host.
        targets = sorted({mode if mode in runtime.SANITIZERS else "host" for mode in modes})
        self._libraries = [schemata.compiled(layer, parts, targets) for layer in layers]
        self._subject = subjects.convt3d
        subjects.warm_up("convt3d", tuple(modes))
        data.generate = self._generate = functools.cache(data.generate)
        for libraries in reversed(self._libraries):  # all are loaded here, and the first is used
            schemata.use(libraries, schemata.OFF)
        # One slot a fork: the index of the case that it is at.
        self._slots = mmap.mmap(-1, 4 * jobs)
        gc.freeze()

    def run(self, tasks: Sequence[Task]) -> None:
        """Runs the tasks and sends a result for each.

        Raises:
            MutationError: a case fails without a mutant, or a mutant cannot be planted.
        """
        cases, seconds = [0] * len(tasks), [0.0] * len(tasks)
        left = [*range(len(tasks))]
        start = 0
        for number, share in enumerate(ROUNDS, start=1):
            if not left:
                break
            stop = max(1, round(share * len(self._cases)))
            self._prepare(stop)
            survivors = []
            order = [(i, tasks[i]) for i in left]
            for i, result in self._run_round([*_baselines(order), *order], start, stop):
                if i == _NO_TASK:
                    _check_baseline(result)
                    continue
                cases[i] += result.cases
                seconds[i] += result.seconds
                is_through = number == len(ROUNDS) or (tasks[i].is_brief and number == BRIEF_ROUNDS)
                if result.is_killed or is_through:
                    self._send_result(result, cases[i], seconds[i])
                else:
                    survivors.append(i)
            left, start = sorted(survivors), stop
            # What later cases have been given may go.
            for prepared in self._prepared[:stop]:
                prepared.expectation.__dict__.clear()
            self._generate.cache_clear()

    def _send_result(self, result: Result, cases: int, seconds: float) -> None:
        whole = Result(result.name, result.check, result.case, result.detail, cases, seconds)
        self._connection.send(("result", whole))

    def _prepare(self, stop: int) -> None:
        """Computes what is expected of the cases, and runs them without a mutant, on the libraries of the first layer.

        Raises:
            MutationError: one fails.
        """
        for case in self._cases[len(self._prepared) : stop]:
            expectation = expect(case, data.generate(case))
            started_s = time.process_time()
            judgement = self._judge(case, expectation)
            seconds = time.process_time() - started_s
            if judgement.verdict in FAILURES:
                raise MutationError(
                    f"without a mutant, {format_case(case)} is {judgement.verdict}: {judgement.detail}"
                )
            self._prepared.append(_Prepared(case, expectation, seconds))

    def _judge(self, case: Case, expectation: Expectation) -> Judgement:
        outcome: Outcome = attempt(self._subject, case)
        return checks.judge(case, expectation, outcome, "convt3d")

    def _run_round(
        self, tasks: Sequence[tuple[int, Task]], start: int, stop: int
    ) -> Iterator[tuple[int, Result]]:
        """Runs a slice of the cases on each task; yields the results as they come."""
        waiting = list(reversed(tasks))
        running: dict[int, tuple[int, _Running]] = {}
        free = [*range(self._jobs)]
        while waiting or running:
            while waiting and free:
                i, task = waiting.pop()
                fork = self._fork(task, free.pop(), start, stop)
                running[fork.pipe] = (i, fork)
            ready, _, _ = select.select([*running], [], [], _POLL_S)
            for pipe in ready:
                i, fork = running.pop(pipe)
                free.append(fork.slot)
                yield i, self._collect(fork, start)
            for _, fork in running.values():
                self._end_if_still(fork)

    def _fork(self, task: Task, slot: int, start: int, stop: int) -> _Running:
        self._note(slot, start)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._be_mutant(task, slot, range(start, stop), writing)
        os.close(writing)
        now_s = time.monotonic()
        return _Running(task, pid, reading, slot, now_s, start, now_s)

    def _be_mutant(self, task: Task, slot: int, indices: range, pipe: int) -> None:
        """The life of a fork; it never returns."""
        answer: tuple[str, str, int] = ("", "", 0)
        ran = 0
        try:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            self._plant(task)
            for i in indices:
                prepared = self._prepared[i]
                if task.mutant.dtypes and prepared.case.dtype not in task.mutant.dtypes:
                    continue
                self._note(slot, i)
                limit_s = max(CASE_LIMIT_S, 20 * prepared.seconds)
                signal.setitimer(signal.ITIMER_PROF, limit_s)
                judgement = self._judge(prepared.case, prepared.expectation)
                ran += 1
                if judgement.verdict in FAILURES:
                    answer = (check_name(judgement, prepared.case), judgement.detail, i)
                    break
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(pipe, pickle.dumps((ran, answer)))
        except BaseException:
            os.write(pipe, pickle.dumps((ran, ("broken", traceback.format_exc()[-3000:], 0))))
        finally:
            os._exit(0)

    def _plant(self, task: Task) -> None:
        if isinstance(task.mutant, PythonMutant):
            task.mutant.patch().__enter__()
            _forget_cached()
        else:
            files = {edit.file for edit in task.mutant.edits}
            # What has no change of this mutant in it runs as users run it, which is faster.
            libraries = {
                (part, target): file
                for (part, target), file in self._libraries[task.layer].items()
                if task.number == schemata.OFF or schemata.files(part) & files
            }
            if not libraries:
                raise MutationError("no library has it")
            schemata.use(libraries, task.number)

    def _collect(self, fork: _Running, start: int) -> Result:
        """The result of a fork that has ended, or is about to."""
        written = b""
        while piece := os.read(fork.pipe, 1 << 16):
            written += piece
        os.close(fork.pipe)
        _, status = os.waitpid(fork.pid, 0)
        seconds = time.monotonic() - fork.started_s
        name = fork.task.mutant.name
        if written:
            ran, (check, detail, index) = pickle.loads(written)
            if check == "broken":
                raise MutationError(f"{name} cannot be judged:\n{detail}")
            case = format_case(self._cases[index]) if check else ""
            return Result(name, check, case, detail, ran, seconds)
        index = struct.unpack_from("i", self._slots, 4 * fork.slot)[0]
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        check, detail = _describe_death(number, os.waitstatus_to_exitcode(status))
        dtypes = fork.task.mutant.dtypes
        ran = sum(not dtypes or case.dtype in dtypes for case in self._cases[start : index + 1])
        return Result(name, check, format_case(self._cases[index]), detail, ran, seconds)

    def _end_if_still(self, fork: _Running) -> None:
        """Kills a fork that has been at one case for too long by the clock."""
        at = struct.unpack_from("i", self._slots, 4 * fork.slot)[0]
        now_s = time.monotonic()
        if at != fork.seen:
            fork.seen, fork.seen_s = at, now_s
        elif now_s - fork.seen_s > STANDSTILL_S:
            os.kill(fork.pid, signal.SIGPROF)

    def _note(self, slot: int, index: int) -> None:
        struct.pack_into("i", self._slots, 4 * slot, index)


def _baselines(tasks: Iterable[tuple[int, Task]]) -> list[tuple[int, Task]]:
    """Each layer of these tasks without a mutant, but for the first, on which `_prepare` runs the cases."""
    layers = sorted({task.layer for _, task in tasks} - {-1, 0})
    nothing = [KernelMutant(f"without a mutant, in layer {layer}", "", ()) for layer in layers]
    return [(_NO_TASK, Task(mutant, layer)) for mutant, layer in zip(nothing, layers)]


def _check_baseline(result: Result) -> None:
    if result.is_killed:
        raise MutationError(f"{result.name}, {result.case} is {result.check}: {result.detail}")


def _describe_death(number: int, code: int) -> tuple[str, str]:
    if number == signal.SIGPROF:
        return "hung", f"no end within {CASE_LIMIT_S:g} s"
    if number:
        name = signal.Signals(number).name
        return f"crashed {name}", f"killed by {name}"
    return "crashed", f"ended with exit code {code}"


def _forget_cached() -> None:
    """Empties the caches of convt3d's functions, but for the compiled libraries."""
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] == "convt3d" and name != "convt3d.build":
            for value in [*vars(module).values()]:
                if hasattr(value, "cache_clear") and not isinstance(value, type):
                    value.cache_clear()
