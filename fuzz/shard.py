"""One process of a campaign: its own legs, its own Hypothesis engine, its share of the work."""

from __future__ import annotations

import functools
import random
import signal
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from convt3d import build
from convt3d.emulator import runtime
from fuzz import compute_sanitizer, corpus, machine
from fuzz.bounds import expect
from fuzz.case import LANES, Case, parse_case
from fuzz.checks import proves_nothing
from fuzz.covering import CoveringSet
from fuzz.data import generate
from fuzz.failure import UNCONFIRMED, UNSHRUNK, Failure, Kind
from fuzz.legs import SUBJECT_MODULE, HarnessError, Legs
from fuzz.number import DTYPES
from fuzz.plans import candidate_plans
from fuzz.progress import Tally
from fuzz.search import BATCH_EXAMPLES, EndOfCampaign, Search
from fuzz.strategies import Space, cases_of
from fuzz.worker import SubjectError

TALLY_EVERY_S = 0.5
# On the emulator, so that each sanitizer takes a few percent of the time: measured, a case of asan takes as long
# as another one (it is smaller: see fuzz.strategies), one of tsan five times as long.
EMULATOR_MODE_WEIGHTS = {"fast": 97, "hostile": 96, "asan": 6, "tsan": 1}
GPU_MODE_WEIGHTS = {"fast": 350, "delayed": 40}
GPU_TOOL_WEIGHTS = {"memcheck": 10, "racecheck": 1, "initcheck": 1, "synccheck": 1}
# Profiles that begin with cases that meet all pairs of features.
COVERING_PROFILES = ("ci", "nightly")


@dataclass(frozen=True)
class Options:
    """What a campaign does.

    Args:
        seed: everything drawn follows from it and from the number of shards.
        profile: name of the Hypothesis profile, or "timed" where only a duration was given.
        examples: cases to generate, or None for no limit.
        duration_s: seconds to run once the subjects are warm, or None for no limit.
        shards: processes that generate and judge.
        dtypes, lanes, modes: what to draw from; None stands for all that the device has.
        subject_module: module with the functions convt3d, oracle and native.
        time_limit_s: seconds that each leg may take for a case; None for the defaults of Legs.
        corpus: directory whose cases run first.
        corpus_only: generate nothing.
        stop_on_failure: end at the first failure of convt3d or the oracle.
        state: directory for findings and for the journal of each shard.
        keep_native: append native findings to the corpus.
        coverage: print which pairs of features were met, and which were not.
    """

    seed: int
    profile: str = "dev"
    examples: int | None = None
    duration_s: float | None = None
    shards: int = 1
    dtypes: tuple[str, ...] | None = None
    lanes: tuple[str, ...] | None = None
    modes: tuple[str, ...] | None = None
    subject_module: str = SUBJECT_MODULE
    time_limit_s: float | None = None
    corpus: Path = corpus.DIRECTORY
    corpus_only: bool = False
    stop_on_failure: bool = False
    state: Path = Path(".convt3d")
    keep_native: bool = False
    coverage: bool = False

    @property
    def meets_all_pairs(self) -> bool:
        """Whether the campaign is broken unless it meets all pairs of features."""
        return self.profile in COVERING_PROFILES and not self.corpus_only

    def journal(self, shard: int) -> Path:
        """Where a shard writes each case string before the case runs."""
        return self.state / "journal" / f"shard{shard}.txt"

    def unfinished(self, shard: int) -> Path:
        """Where a shard keeps the confirmed failure that it is shrinking."""
        return self.state / "journal" / f"shard{shard}.unfinished.txt"

    def findings(self, leg: str) -> Path:
        """Where the findings about a leg are written down."""
        return self.state / ("native_findings.txt" if leg == "native" else "findings.txt")


@dataclass(frozen=True)
class Finding:
    """A failure as a shard reports it.

    Args:
        kind: leg, dtype, verdict and so on.
        case: the case, shrunk if status says so.
        status: "shrunk", "unshrunk" or "unconfirmed".
        card: the failure card.
    """

    kind: Kind
    case: Case
    status: str
    card: str

    def __str__(self) -> str:
        """Whose failure it is, of what kind, and how sure it is."""
        whose = "native finding" if self.kind.leg == "native" else "failure"
        how = self.status
        if how == UNCONFIRMED:
            how += " (state-dependent): a fresh process did not fail"
        return f"{whose}: {self.kind}, {how}"

    def write_down(self, path: Path) -> None:
        """Appends it to a file of case strings, unless the same was found and written there before."""
        blocks = path.read_text(encoding="utf-8").split("\n\n") if path.exists() else []
        first, last = f"# {self}\n", f"\n{self.case}"
        if not any(text.startswith(first) and text.rstrip().endswith(last) for text in blocks):
            corpus.append(path, [str(self), *self.card.splitlines()], self.case)


@dataclass(frozen=True)
class Resume:
    """Where a shard goes on that takes the place of one that died.

    Args:
        cases: case strings that were started and not counted, the most suspicious one last.
        past: what was counted.
        left_s: seconds until the end.
    """

    cases: tuple[str, ...]
    past: Tally
    left_s: float


def uncounted_cases(journal: Path, tally: Tally, resume: Resume | None) -> tuple[str, ...]:
    """Case strings that a shard has started, or should have, and not counted.

    Args:
        journal: of the shard.
        tally: what it has counted.
        resume: where it began.
    """
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    started = [line for line in lines if " " not in line]  # else on one leg only: not counted
    waiting = [case for case in (resume.cases if resume else ()) if case not in started]
    return tuple(dict.fromkeys([*waiting, *started[tally.cases :]]))


def adopt_unfinished(options: Options, shard: int) -> tuple[str, str] | None:
    """Writes down the failure that was being shrunk when a shard died, or a whole campaign.

    Returns:
        Its title and its case string; None if there is none.
    """
    path = options.unfinished(shard)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    title, *_, case = text.splitlines()
    findings = options.findings("native" if title.startswith("# native") else "convt3d")
    with findings.open("a", encoding="utf-8") as file:
        file.write(f"\n{text}")
    path.unlink()
    return title.removeprefix("# "), case


def device_modes(device: str, shard: int = 0) -> tuple[str, ...]:
    """Modes that a shard draws from; one that is there twice is drawn twice as often."""
    if device != "cuda":
        lacking = missing_sanitizers()
        modes = [mode for mode in runtime.MODES if mode not in lacking]
        return tuple(mode for mode in modes for _ in range(EMULATOR_MODE_WEIGHTS[mode]))
    # A process under a tool takes long to start and much memory: one shard has them.
    has_tools = shard == 0 and compute_sanitizer.find() is not None
    weights = GPU_MODE_WEIGHTS | (GPU_TOOL_WEIGHTS if has_tools else {})
    return tuple(mode for mode, weight in weights.items() for _ in range(weight))


@functools.cache
def missing_sanitizers() -> tuple[str, ...]:
    """Modes of the emulator that this machine's compiler cannot build for."""
    return tuple(mode for mode in runtime.SANITIZERS if not build.has_sanitizer(mode))


def device_layouts(device: str) -> tuple[str, ...]:
    """Layouts to draw from; one that is there twice is drawn twice as often."""
    usual = ("ncdhw", "cl")
    has_far = device != "cuda" and machine.has_room_for_far_tensors()
    return (*10 * usual, "far") if has_far else usual


def search_space(options: Options, device: str, shard: int | None = None) -> Space:
    """What a shard draws from; None stands for all of them together."""
    shards = range(options.shards) if shard is None else (shard,)
    modes = options.modes or tuple(mode for index in shards for mode in device_modes(device, index))
    every_pattern = device == "cuda" or options.profile == "nightly"
    return Space(
        dtypes=options.dtypes or DTYPES,
        lanes=options.lanes or LANES,
        layouts=device_layouts(device),
        modes=modes,
        plans=functools.partial(candidate_plans, every_pattern=every_pattern),
        has_vast=device != "cuda",
    )


def covering_cases(options: Options, device: str) -> list[list[Case]]:
    """Cases that meet all pairs of features that the campaign can meet, for each shard its own; at most `examples`."""
    space = search_space(options, device)
    drawn = [set(search_space(options, device, shard).modes) for shard in range(options.shards)]
    shares: list[list[Case]] = [[] for _ in drawn]
    covering = CoveringSet(space, f"{options.seed}/covering", _proves_something)
    for case in covering.cases[: options.examples]:
        able = [share for share, modes in zip(shares, drawn) if case.mode in modes]
        min(able, key=len).append(case)
    return shares


def _proves_something(case: Case) -> bool:
    return not proves_nothing(expect(case, generate(case)))


def run_shard(
    options: Options, index: int, connection: Connection, resume: Resume | None = None
) -> None:
    """Runs one shard to its end; the entry point of its process.

    It sends ("facts", dict), ("ready", None), ("tally", Tally), ("finding", Finding) and at the
    end ("done", Tally) or ("broken", text), and takes ("known", (Kind, Case)) and ("stop", None).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the campaign, which says stop
    try:
        _Shard(options, index, connection, resume).run()
    except SubjectError as error:
        _send(connection, "broken", str(error))
    except HarnessError as error:
        _send(connection, "broken", f"{error}\n{traceback.format_exc()}")
    except (EOFError, BrokenPipeError):
        adopt_unfinished(options, index)  # the campaign is gone
    except Exception:
        _send(connection, "broken", traceback.format_exc())


class _Shard:
    def __init__(
        self, options: Options, index: int, connection: Connection, resume: Resume | None
    ) -> None:
        self.options = options
        self.resume = resume
        self.past = resume.past if resume else Tally()
        self.uncounted = 0  # cases of the shard before this one that ran again
        self.index = index
        self.connection = connection
        self.tally = Tally()
        self.facts: dict[str, str] = {}
        self.end_s = float("inf")
        self.last_tally_s = 0.0

    def run(self) -> None:
        options = self.options
        start_s = time.monotonic()
        with Legs(
            options.subject_module,
            options.time_limit_s,
            options.journal(self.index),
            options.modes or device_modes("emulator"),
        ) as legs:
            self.facts = legs.await_facts()
            self.tally.device = self.facts["device"]
            _send(self.connection, "facts", self.facts)
            self.search = Search(
                legs,
                cases_of(search_space(options, self.facts["device"], self.index)),
                self.tally,
                self._report,
                self._left_s,
                self._note_target,
            )
            legs.await_ready()
            _send(self.connection, "ready", None)
            if self.resume is not None:
                self.end_s = start_s + self.resume.left_s
            elif options.duration_s is not None:
                self.end_s = time.monotonic() + options.duration_s
            try:
                self._run_uncounted()
                self._replay_corpus()
                if not options.corpus_only:
                    self._generate()
            except EndOfCampaign:
                pass
        _send(self.connection, "done", self.tally)

    def _run_uncounted(self) -> None:
        """Runs what the shard before this one has started and not counted, the corpus aside."""
        if self.resume is None:
            return
        corpus_cases = {entry.case for entry in self._corpus()}
        for text in self.resume.cases:
            if self._left_s() == float("-inf"):
                raise EndOfCampaign
            case = parse_case(text)
            if case not in corpus_cases:
                self.uncounted += 1
                self.search.examine(case)

    def _corpus(self) -> list[corpus.Entry]:
        """The shard's share of the corpus that is left."""
        device = self.facts["device"]
        lacking = () if device == "cuda" else missing_sanitizers()
        entries = [
            entry
            for entry in corpus.load_all(self.options.corpus)
            if entry.case.mode not in lacking
        ]
        return entries[self.index :: self.options.shards][self.past.corpus_cases :]

    def _replay_corpus(self) -> None:
        for entry in self._corpus():
            if self._left_s() == float("-inf"):
                raise EndOfCampaign
            self.search.replay(entry.case, is_native_defect=entry.file == corpus.NATIVE)

    def _generate(self) -> None:
        covering, left = self._share()
        for case in covering:
            if self._left_s() <= 0:
                raise EndOfCampaign
            self.search.examine(case)
            self.tally.covering += 1
        batch = self.past.batches
        while left is None or left > 0:
            # A string seeds Random through SHA-512, which stays the same for ever.
            text = f"{self.options.seed}/{self.index}/{batch}"
            self.tally.batches += 1
            size = BATCH_EXAMPLES if left is None else min(left, BATCH_EXAMPLES)
            generated = self.search.run_batch(random.Random(text).getrandbits(64), size)
            left = None if left is None else left - generated
            batch += 1

    def _share(self) -> tuple[list[Case], int | None]:
        """The shard's covering cases that are left, and how many cases it draws then; None for no limit."""
        options = self.options
        shares: list[list[Case]] = [[] for _ in range(options.shards)]
        if options.meets_all_pairs:
            shares = covering_cases(options, self.facts["device"])
        ran_again = {parse_case(text) for text in self.resume.cases} if self.resume else set()
        mine = [case for case in shares[self.index][self.past.covering :] if case not in ran_again]
        if options.examples is None:
            return mine, None
        together = options.examples - sum(map(len, shares))
        whole = len(shares[self.index]) + len(range(self.index, together, options.shards))
        return mine, max(0, whole - self.past.generated - self.uncounted - len(mine))

    def _report(self, failure: Failure) -> None:
        _send(self.connection, "finding", self._finding(failure))

    def _finding(self, failure: Failure) -> Finding:
        examination = failure.examination
        place = machine.one_line({**machine.own_facts(), **self.facts})
        text = examination.card(place, failure.kind.leg)
        return Finding(failure.kind, examination.case, failure.status, text)

    def _note_target(self, failure: Failure | None) -> None:
        """Keeps the failure that is being shrunk where it outlives this process."""
        path = self.options.unfinished(self.index)
        path.unlink(missing_ok=True)
        if failure is not None:
            self._finding(replace(failure, status=UNSHRUNK)).write_down(path)

    def _left_s(self) -> float:
        """Seconds until the end; minus infinity when told to stop."""
        while self.connection.poll():
            command, value = self.connection.recv()
            if command == "known":
                self.search.learn(*value)
            elif command == "stop":
                self.end_s = float("-inf")
        now_s = time.monotonic()
        if now_s - self.last_tally_s >= TALLY_EVERY_S:
            self.last_tally_s = now_s
            _send(self.connection, "tally", self.tally)
        return self.end_s - now_s


def _send(connection: Connection, kind: str, value: object) -> None:
    connection.send((kind, value))
