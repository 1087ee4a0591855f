"""Runs mutants in a process of their own and yields what became of each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from convt3d.emulator import runtime
from fuzz.case import Case
from fuzz.mutation import schemata
from fuzz.mutation.mutant import KernelMutant, Mutant, PythonMutant, Result
from fuzz.mutation.server import MutationError, Options, Task, draw_cases, parts_of, serve
from fuzz.number import DTYPES
from fuzz.worker import pin_threads


@dataclass
class Run:
    """Mutants, compiled and ready to run.

    First all cases but those under a sanitizer run, which takes milliseconds a case. Then what is left is compiled
    again, alone and under the sanitizers, and sees the rest.

    Args:
        mutants: all of them; those of the kernels are compiled together, whichever will run.
        options: how they run.
        brief: names of those that run on a tenth of the cases only, and under no sanitizer.
    """

    mutants: Sequence[Mutant]
    options: Options
    brief: Collection[str] = ()
    stillborn: list[str] = field(default_factory=list)  # names of those that do not compile

    def results(self, names: Sequence[str] | None = None) -> Iterator[Result]:
        """Runs mutants; yields results as they come, survivors last.

        Args:
            names: of those that run; None for all.

        Raises:
            MutationError: a case fails without a mutant, or a mutant cannot be planted.
            RuntimeError: the sources do not compile.
            ValueError: a mutant whose text does not occur exactly once.
        """
        pin_threads()
        cases = draw_cases(self.options)
        plain = [case for case in cases if case.mode not in runtime.SANITIZERS]
        sanitized = [case for case in cases if case.mode in runtime.SANITIZERS]
        tasks, layers = self._compile(self.mutants)
        wanted = set(names) if names is not None else None
        tasks = [
            replace(task, is_brief=task.mutant.name in self.brief)
            for task in tasks
            if wanted is None or task.mutant.name in wanted
        ]
        survivors: dict[str, Result] = {}
        for result in serve_in_process(tasks, layers, plain, self.options.jobs):
            if result.is_killed or not sanitized or result.name in self.brief:
                yield result
            else:
                survivors[result.name] = result
        left = [task.mutant for task in tasks if task.mutant.name in survivors]
        if not left:
            return
        tasks, layers = self._compile(left)
        for result in serve_in_process(tasks, layers, sanitized, self.options.jobs):
            before = survivors[result.name]
            yield replace(
                result, cases=before.cases + result.cases, seconds=before.seconds + result.seconds
            )

    def _compile(self, mutants: Sequence[Mutant]) -> tuple[list[Task], list[schemata.Layer]]:
        """Mutants as the server takes them, in layers that compile."""
        parts = parts_of(self.options.dtypes or DTYPES)
        tasks = [Task(mutant) for mutant in mutants if isinstance(mutant, PythonMutant)]
        kernels = {mutant.name: mutant for mutant in mutants if isinstance(mutant, KernelMutant)}
        layers: list[schemata.Layer] = []
        for layer in schemata.layers([*kernels.values()]):
            living, stillborn = schemata.without_stillborn(layer, parts)
            self.stillborn += stillborn
            tasks += [
                Task(kernels[name], len(layers), number) for name, number in living.numbers.items()
            ]
            layers.append(living)
        return tasks, layers


def serve_in_process(
    tasks: Sequence[Task], layers: Sequence[schemata.Layer], cases: Sequence[Case], jobs: int
) -> Iterator[Result]:
    """Starts a server, and yields what it sends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, tasks, layers, cases, jobs))
    process.start()
    theirs.close()
    try:
        while True:
            try:
                kind, value = ours.recv()
            except EOFError:
                process.join()
                raise MutationError(f"the server died with exit code {process.exitcode}") from None
            if kind == "broken":
                raise MutationError(value)
            if kind == "done":
                return
            yield value
    finally:
        ours.close()
        process.kill()
        process.join()
