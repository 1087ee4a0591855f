"""A campaign: starts the shards, shows what they find, and says in the end what it all means."""

from __future__ import annotations

import multiprocessing
import signal
import time
from dataclasses import dataclass, field
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from fuzz import corpus, machine
from fuzz.case import LANES
from fuzz.coverage import possible_pairs, report
from fuzz.failure import UNCONFIRMED, is_explained
from fuzz.number import DTYPES
from fuzz.outcome import Verdict
from fuzz.progress import Display, Tally, progress_line, summary, total
from fuzz.shard import (
    Finding,
    Options,
    Resume,
    adopt_unfinished,
    device_modes,
    missing_sanitizers,
    run_shard,
    search_space,
    uncounted_cases,
)
from fuzz.suspect import REFERENCE
from fuzz.worker import DEFAULT_TIME_LIMIT_S, pin_threads

PASSED, FAILED, BROKEN = 0, 1, 2
# What a shard may take after the end to finish its last case and its shrinking.
GRACE_S = 30.0
# How often a shard that dies is replaced; what it dies of more often is no accident.
MOST_RESTARTS = 5


@dataclass
class _Shard:
    index: int
    process: SpawnProcess
    connection: Connection
    tally: Tally = field(default_factory=Tally)
    resume: Resume | None = None  # where it began, if it took the place of another one
    restarts: int = 0
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
        self._unfinished: list[str] = []  # titles of failures that nobody has shrunk
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
        pasts = (shard.resume.past for shard in self._shards if shard.resume is not None)
        tally = total([*pasts, *(shard.tally for shard in self._shards)])
        if restarts := sum(shard.restarts for shard in self._shards):
            tally.incidents["shard killed"] = restarts
        return tally

    def _start(self) -> None:
        pin_threads()
        util.get_temp_dir()  # made here it serves all processes, and no killed one leaves it behind
        for path in sorted(self.options.unfinished(0).parent.glob("*.unfinished.txt")):
            index = int("".join(filter(str.isdigit, path.name)))
            if adopted := adopt_unfinished(self.options, index):
                self.display.print(f"left by a campaign that was killed: {': '.join(adopted)}")
        for index in range(self.options.shards):
            self._shards.append(_Shard(index, *self._start_process(index)))

    def _start_process(
        self, index: int, resume: Resume | None = None
    ) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=run_shard, args=(self.options, index, theirs, resume))
        # Ctrl-C is held back from the process while it starts, where it would end with a traceback. The
        # tracker, which would start on its own, lets it through again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        theirs.close()
        return process, ours

    def _restart(self, shard: _Shard) -> bool:
        """Starts another shard in the place of one that has died; returns whether it may be done."""
        if self._is_stopping or shard.restarts == MOST_RESTARTS:
            return False
        shard.restarts += 1
        death = self._describe_death(shard)
        cases = uncounted_cases(self.options.journal(shard.index), shard.tally, shard.resume)
        if adopted := adopt_unfinished(self.options, shard.index):
            title, case = adopted
            self._unfinished.append(title)
            cases = (case, *cases)
        left_s = float("inf")
        if self.options.duration_s is not None:
            ready_s = self._ready_s or time.monotonic()
            left_s = self.options.duration_s - (time.monotonic() - ready_s)
        past = [shard.tally] if shard.resume is None else [shard.resume.past, shard.tally]
        shard.resume, shard.tally = Resume(cases, total(past), left_s), Tally()
        self.display.print(f"{death}; another one takes its place, {len(cases)} cases run again")
        shard.connection.close()
        shard.process, shard.connection = self._start_process(shard.index, shard.resume)
        for finding in self.findings:
            if finding.status != UNCONFIRMED:
                self._tell("known", (finding.kind, finding.case), [shard])
        return True

    def _receive(self) -> None:
        """Takes what the shards have sent, for a moment, and shows it."""
        open_shards = {s.connection: s for s in self._shards if not s.is_done}
        for connection in wait(list(open_shards), timeout=0.2):
            shard = open_shards[connection]  # type: ignore[index]
            try:
                kind, value = shard.connection.recv()
            except (EOFError, OSError):
                if self._restart(shard):
                    continue
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
            return
        device = facts.pop("device")
        limits = [] if options.examples is None else [f"{options.examples} examples"]
        limits += [] if options.duration_s is None else [f"{options.duration_s:g} s"]
        facts.update(
            device=device,
            subjects=f"convt3d, oracle and native of {options.subject_module}",
            profile=f"{options.profile} ({', '.join(limits) or 'no limit'})",
            seed=f"{options.seed}, {options.shards} shards",
            dtypes=" ".join(options.dtypes or DTYPES),
            lanes=" ".join(options.lanes or LANES),
            modes=" ".join(dict.fromkeys(options.modes or device_modes(device))),
        )
        if device == "emulator" and options.modes is None and missing_sanitizers():
            facts["left out"] = (
                f"{' '.join(missing_sanitizers())}: the compiler has no runtime library"
            )
        self.display.print("\n".join(f"{name:11}{text}" for name, text in facts.items()))

    def _add(self, finding: Finding) -> None:
        """Shows a finding and writes it down, unless it is known: another shard may have been faster."""
        what = (finding.kind, finding.status)
        alike = [known for known in self.findings if (known.kind, known.status) == what]
        for known in alike:
            if finding.status == UNCONFIRMED or is_explained(finding.case, known.case):
                return
        for known in alike:
            if is_explained(known.case, finding.case):
                self.findings.remove(known)  # only in the summary: this one shows it better
        self.findings.append(finding)
        self.display.print(f"\n{finding.card}\n")
        is_native = finding.kind.leg == "native"
        if is_native and self.options.keep_native and finding.status != UNCONFIRMED:
            self._keep_native(finding)
        else:
            path = self.options.findings(finding.kind.leg)
            finding.write_down(path)
            self._written.add(str(path))
        if finding.status != UNCONFIRMED:
            self._tell("known", (finding.kind, finding.case))
        if self.options.stop_on_failure and not is_native:
            self._stop()

    def _keep_native(self, finding: Finding) -> None:
        facts = {**machine.own_facts(), **self._facts}
        why = f"{finding}; seen on {machine.one_line(facts)}"
        try:
            path = corpus.keep(finding.case, why, corpus.NATIVE, self.options.corpus)
            self._written.add(str(path))
        except corpus.CorpusError as error:
            self.display.print(f"not kept: {error}")

    def _show_progress(self) -> None:
        if self._ready_s is None:
            return
        tally, running_s = self.tally, time.monotonic() - self._ready_s
        left = []
        if self.options.duration_s is not None:
            left.append(f"{max(0.0, self.options.duration_s - running_s):.0f} s left")
        if self.options.examples is not None:
            left.append(f"{max(0, self.options.examples - tally.generated):,} examples left")
        native = sum(finding.kind.leg == "native" for finding in self.findings)
        failures = len(self.findings) - native
        line = progress_line(tally, running_s, failures, native, ", ".join(left))
        self.display.progress(line)

    def _tell(self, command: str, value: object = None, shards: list[_Shard] | None = None) -> None:
        for shard in self._shards if shards is None else shards:
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
        shard.process.join(1)
        journal = self.options.journal(shard.index)
        lines = journal.read_text().splitlines() if journal.exists() else []
        return (
            f"shard {shard.index} ended with exit code {shard.process.exitcode}; "
            f"its last case: {lines[-1] if lines else 'none'}"
        )

    def _close(self) -> int:
        for shard in self._shards:  # that was killed because it was late
            if adopted := adopt_unfinished(self.options, shard.index):
                self._unfinished.append(adopted[0])
        tally = self.tally
        running_s = 0.0 if self._ready_s is None else time.monotonic() - self._ready_s
        if tally.cases or not self.problems:
            self.display.print(f"\n{summary(tally, running_s)}")
        if tally.cases:
            self.display.print(self._coverage(tally))
        if self.findings:
            self.display.print("findings")
            self.display.print("\n".join(f"  {f}: {f.case}" for f in self.findings))
            self.display.print(f"written to {', '.join(sorted(self._written)) or 'no file'}")
        code, meaning = self._judge(tally)
        self.display.print(f"exit {code}: {meaning}")
        return code

    def _coverage(self, tally: Tally) -> str:
        """How many pairs of features were met; which, if asked for or if all had to be."""
        possible = self._possible_pairs()
        missing = (possible & ~tally.met).bit_count()
        is_asked = self.options.coverage or (self.options.meets_all_pairs and missing > 0)
        met = possible.bit_count() - missing
        line = f"coverage   {met:,} of {possible.bit_count():,} pairs of features met"
        if is_asked:
            return f"{line}\n{report(tally.met, possible)}"
        return f"{line}, {missing:,} missing (--coverage shows them)" if missing else line

    def _possible_pairs(self) -> int:
        return possible_pairs(search_space(self.options, self._facts["device"]))

    def _judge(self, tally: Tally) -> tuple[int, str]:
        failures = sum(count for leg, count in tally.failures.items() if leg != "native")
        found = any(finding.kind.leg != "native" for finding in self.findings)
        if failures or found or any(title.startswith("failure") for title in self._unfinished):
            whose = "the reference, convt3d or the oracle"
            if not tally.failures[REFERENCE]:
                whose = "convt3d or the oracle"
            unconfirmed = sum(n for leg, n in tally.unconfirmed.items() if leg != "native")
            how = f", {unconfirmed} of them not in a fresh process" if unconfirmed else ""
            return FAILED, f"{failures} cases failed on {whose}{how}"
        if self.problems:
            return BROKEN, "the campaign broke down: " + "\n".join(self.problems)
        if not tally.cases:
            return BROKEN, "interrupted before a case ran" if self._interrupts else "no case ran"
        mistrusted = tally.verdicts["convt3d", Verdict.MISTRUSTED.value]
        cases = f"{tally.cases:,} cases" + (f", {mistrusted:,} mistrusted" if mistrusted else "")
        if not tally.verdicts["convt3d", Verdict.PASS.value]:
            return BROKEN, f"convt3d passed none of {cases}"
        if self.options.meets_all_pairs and (missing := self._possible_pairs() & ~tally.met):
            return BROKEN, (
                f"{missing.bit_count():,} pairs of features were not met in {cases}, "
                f"but profile {self.options.profile} must meet all"
            )
        return PASSED, f"no failure of convt3d or the oracle in {cases}"
