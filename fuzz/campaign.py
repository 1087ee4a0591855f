"""A campaign: starts the shards, shows what they find, and says in the end what it all means."""

from __future__ import annotations

import multiprocessing
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from fuzz import corpus, machine
from fuzz.case import LANES
from fuzz.outcome import Verdict
from fuzz.progress import Display, Tally, progress_line, summary, total
from fuzz.search import UNCONFIRMED
from fuzz.shard import Finding, Options, device_dtypes, device_modes, run_shard
from fuzz.worker import DEFAULT_TIME_LIMIT_S, pin_threads

PASSED, FAILED, BROKEN = 0, 1, 2
# What a shard may take after the end to finish its last case and its shrinking.
GRACE_S = 30.0


@dataclass
class _Shard:
    process: SpawnProcess
    connection: Connection
    tally: Tally = field(default_factory=Tally)
    is_done: bool = False


class Campaign:
    """Runs a campaign and prints what happens.

    Args:
        options: what to do.
        display: where to print.
    """

    def __init__(self, options: Options, display: Display | None = None) -> None:
        self.options = options
        self.display = display or Display()
        self.findings: list[Finding] = []
        self._written: set[str] = set()  # files that findings went to
        self.problems: list[str] = []  # why the campaign is no campaign
        self._shards: list[_Shard] = []
        self._facts: dict[str, str] = {}
        self._ready_s: float | None = None
        self._end_s: float | None = None
        self._is_stopping = False
        self._interrupts = 0

    def run(self) -> int:
        """Runs the campaign to its end.

        Returns:
            0 when convt3d and the oracle failed on no case, and convt3d passed some; 1 when one of
            them failed; 2 when the campaign itself broke down, or proved nothing.
        """
        options = self.options
        # An exception in the middle of a message would leave half of it in the pipe.
        handlers = {
            number: signal.signal(number, self._interrupt)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            self.display.print(
                f"starting {options.shards} shards of {options.subject_module} "
                "(the first start builds the kernels)"
            )
            self._start()
            while not all(shard.is_done for shard in self._shards):
                self._receive()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for shard in self._shards:
                shard.process.kill()
                shard.process.join()
        return self._close()

    @property
    def tally(self) -> Tally:
        """What all shards have done so far."""
        return total(shard.tally for shard in self._shards)

    def _start(self) -> None:
        pin_threads()
        context = multiprocessing.get_context("spawn")
        for index in range(self.options.shards):
            ours, theirs = context.Pipe()
            process = context.Process(target=run_shard, args=(self.options, index, theirs))
            process.start()
            theirs.close()
            self._shards.append(_Shard(process, ours))

    def _receive(self) -> None:
        """Takes what the shards have sent, for a moment, and shows it."""
        open_shards = {s.connection: s for s in self._shards if not s.is_done}
        for connection in wait(list(open_shards), timeout=0.2):
            shard = open_shards[connection]  # type: ignore[index]
            try:
                kind, value = shard.connection.recv()
            except (EOFError, OSError):
                kind, value = "broken", self._describe_death(shard)
            self._take(shard, kind, value)
        if self._end_s is not None and time.monotonic() > self._end_s:
            for shard in open_shards.values():
                if not shard.is_done:
                    shard.process.kill()
                    if self._ready_s is None and (self._interrupts or self.problems):
                        shard.is_done = True  # it could not hear that all is over
                    else:
                        self._take(shard, "broken", f"late: {self._describe_death(shard)}")
        self._obey_interrupts()
        self._show_progress()

    def _take(self, shard: _Shard, kind: str, value: object) -> None:
        if isinstance(value, Tally):
            shard.tally = value
        if kind == "facts" and not self._facts:
            assert isinstance(value, dict)
            self._facts = value
            self._print_header()
        elif kind == "ready" and self._ready_s is None:
            self._ready_s = time.monotonic()
            if self.options.duration_s is not None:
                self._limit_end(self.options.duration_s)
        elif kind == "finding":
            assert isinstance(value, Finding)
            self._add(value)
        elif kind == "broken":
            if str(value) not in self.problems:
                self.problems.append(str(value))
            shard.is_done = True
            self._stop()
        elif kind == "done":
            shard.is_done = True

    def _print_header(self) -> None:
        options, facts = self.options, {**machine.own_facts(), **self._facts}
        if problem := machine.gpu_problem(facts):
            self.problems.append(problem)
            self._stop()
        device = facts.pop("device")
        limits = [] if options.examples is None else [f"{options.examples} examples"]
        limits += [] if options.duration_s is None else [f"{options.duration_s:g} s"]
        facts.update(
            device=device,
            subjects=f"convt3d, oracle and native of {options.subject_module}",
            profile=f"{options.profile} ({', '.join(limits) or 'no limit'})",
            seed=f"{options.seed}, {options.shards} shards",
            dtypes=" ".join(options.dtypes or device_dtypes(device)),
            lanes=" ".join(options.lanes or LANES),
            modes=" ".join(options.modes or device_modes(device)),
        )
        self.display.print("\n".join(f"{name:11}{text}" for name, text in facts.items()))

    def _add(self, finding: Finding) -> None:
        """Shows a finding and writes it down, unless another shard was faster."""
        if any(
            finding.kind == known.kind and finding.status == known.status for known in self.findings
        ):
            return
        self.findings.append(finding)
        self.display.print(f"\n{finding.card}\n")
        is_native = finding.kind.leg == "native"
        comment = [_title(finding), *finding.card.splitlines()]
        if is_native and self.options.keep_native and finding.status != UNCONFIRMED:
            self._keep_native(finding)
        else:
            path = self._findings_path(is_native)
            corpus.append(path, comment, finding.case)
            self._written.add(str(path))
        if finding.status != UNCONFIRMED:
            self._tell("known", finding.kind)
        if self.options.stop_on_failure and not is_native:
            self._stop()

    def _keep_native(self, finding: Finding) -> None:
        facts = {**machine.own_facts(), **self._facts}
        why = f"{_title(finding)}; seen on {machine.one_line(facts)}"
        try:
            path = corpus.keep(finding.case, why, corpus.NATIVE, self.options.corpus)
            self._written.add(str(path))
        except corpus.CorpusError as error:
            self.display.print(f"not kept: {error}")

    def _findings_path(self, is_native: bool) -> Path:
        return self.options.state / ("native_findings.txt" if is_native else "findings.txt")

    def _show_progress(self) -> None:
        if self._ready_s is None:
            return
        tally, running_s = self.tally, time.monotonic() - self._ready_s
        left = []
        if self.options.duration_s is not None:
            left.append(f"{max(0.0, self.options.duration_s - running_s):.0f} s left")
        if self.options.examples is not None:
            generated = tally.cases - tally.corpus_cases - tally.shrink_cases
            left.append(f"{max(0, self.options.examples - generated):,} examples left")
        native = sum(finding.kind.leg == "native" for finding in self.findings)
        failures = len(self.findings) - native
        line = progress_line(tally, running_s, failures, native, ", ".join(left))
        self.display.progress(line)

    def _tell(self, command: str, value: object = None) -> None:
        for shard in self._shards:
            if not shard.is_done:
                try:
                    shard.connection.send((command, value))
                except OSError:
                    pass  # _receive will find out

    def _stop(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            self._tell("stop")
            self._limit_end(0.0)

    def _interrupt(self, *_: object) -> None:
        self._interrupts += 1

    def _obey_interrupts(self) -> None:
        if self._interrupts and not self._is_stopping:
            ending = "" if self._ready_s is None else "; the last cases are being finished"
            self.display.print(f"interrupted{ending}")
            self._stop()
        if self._interrupts > 1:  # do not wait any longer
            for shard in self._shards:
                shard.process.kill()

    def _limit_end(self, left_s: float) -> None:
        # Before it is ready a shard waits for its subjects and hears nothing.
        time_limit_s = self.options.time_limit_s or DEFAULT_TIME_LIMIT_S
        grace_s = 0.0 if self._ready_s is None else time_limit_s * 2 + GRACE_S
        end_s = time.monotonic() + left_s + grace_s
        self._end_s = end_s if self._end_s is None else min(self._end_s, end_s)

    def _describe_death(self, shard: _Shard) -> str:
        index = self._shards.index(shard)
        shard.process.join(1)
        journal = self.options.journal(index)
        lines = journal.read_text().splitlines() if journal.exists() else []
        return (
            f"shard {index} ended with exit code {shard.process.exitcode}; "
            f"its last case: {lines[-1] if lines else 'none'}"
        )

    def _close(self) -> int:
        tally = self.tally
        running_s = 0.0 if self._ready_s is None else time.monotonic() - self._ready_s
        self.display.print(f"\n{summary(tally, running_s)}")
        if self.findings:
            self.display.print("findings")
            self.display.print("\n".join(f"  {_title(f)}: {f.case}" for f in self.findings))
            self.display.print(f"written to {', '.join(sorted(self._written)) or 'no file'}")
        code, meaning = self._judge(tally)
        self.display.print(f"exit {code}: {meaning}")
        return code

    def _judge(self, tally: Tally) -> tuple[int, str]:
        failures = tally.failures["convt3d"] + tally.failures["oracle"]
        if failures or any(finding.kind.leg != "native" for finding in self.findings):
            return FAILED, f"{failures} cases failed on convt3d or the oracle"
        if self.problems:
            return BROKEN, "the campaign broke down: " + "\n".join(self.problems)
        if not tally.cases:
            return BROKEN, "interrupted before a case ran" if self._interrupts else "no case ran"
        mistrusted = tally.verdicts["convt3d", Verdict.MISTRUSTED.value]
        cases = f"{tally.cases:,} cases" + (f", {mistrusted:,} mistrusted" if mistrusted else "")
        if not tally.verdicts["convt3d", Verdict.PASS.value]:
            return BROKEN, f"convt3d passed none of {cases}"
        return PASSED, f"no failure of convt3d or the oracle in {cases}"


def _title(finding: Finding) -> str:
    """Whose failure it is, of what kind, and how sure it is."""
    whose = "native finding" if finding.kind.leg == "native" else "failure"
    how = finding.status
    if how == UNCONFIRMED:
        how += " (state-dependent): a fresh process did not fail"
    return f"{whose}: {finding.kind}, {how}"
