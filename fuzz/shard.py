"""One process of a campaign: its own legs, its own Hypothesis engine, its share of the work."""

from __future__ import annotations

import random
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fuzz import corpus, machine
from fuzz.case import LANES, MODES, Case
from fuzz.legs import SUBJECT_MODULE, HarnessError, Legs
from fuzz.plans import candidate_plans
from fuzz.progress import Tally
from fuzz.search import BATCH_EXAMPLES, EndOfCampaign, Failure, Kind, Search
from fuzz.strategies import cases
from fuzz.worker import SubjectError

TALLY_EVERY_S = 0.5


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

    def journal(self, shard: int) -> Path:
        """Where a shard writes each case string before the case runs."""
        return self.state / "journal" / f"shard{shard}.txt"


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


def device_dtypes(device: str) -> tuple[str, ...]:
    """dtypes to draw from: TF32 exists on a GPU only."""
    emulated = ("f64", "f32", "f16", "bf16")
    return (*emulated, "tf32") if device == "cuda" else emulated


def device_modes(device: str) -> tuple[str, ...]:
    """Modes to draw from: they are the emulator's."""
    return ("fast",) if device == "cuda" else MODES


def run_shard(options: Options, index: int, connection: Connection) -> None:
    """Runs one shard to its end; the entry point of its process.

    It sends ("facts", dict), ("ready", None), ("tally", Tally), ("finding", Finding) and at the
    end ("done", Tally) or ("broken", text), and takes ("known", Kind) and ("stop", None).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the campaign, which says stop
    try:
        _Shard(options, index, connection).run()
    except SubjectError as error:
        _send(connection, "broken", str(error))
    except HarnessError as error:
        _send(connection, "broken", f"{error}\n{traceback.format_exc()}")
    except (EOFError, BrokenPipeError):
        pass  # the campaign is gone
    except Exception:
        _send(connection, "broken", traceback.format_exc())


class _Shard:
    def __init__(self, options: Options, index: int, connection: Connection) -> None:
        self.options = options
        self.index = index
        self.connection = connection
        self.tally = Tally()
        self.facts: dict[str, str] = {}
        self.end_s = float("inf")
        self.last_tally_s = 0.0

    def run(self) -> None:
        options = self.options
        with Legs(
            options.subject_module, options.time_limit_s, options.journal(self.index)
        ) as legs:
            self.facts = legs.await_facts()
            _send(self.connection, "facts", self.facts)
            self.search = Search(legs, self._strategy(), self.tally, self._report, self._left_s)
            legs.await_ready()
            _send(self.connection, "ready", None)
            if options.duration_s is not None:
                self.end_s = time.monotonic() + options.duration_s
            try:
                self._replay_corpus()
                if not options.corpus_only:
                    self._generate()
            except EndOfCampaign:
                pass
        _send(self.connection, "done", self.tally)

    def _strategy(self) -> Any:
        device, options = self.facts["device"], self.options
        return cases(
            dtypes=options.dtypes or device_dtypes(device),
            lanes=options.lanes or LANES,
            modes=options.modes or device_modes(device),
            plans=candidate_plans,
        )

    def _replay_corpus(self) -> None:
        dtypes = device_dtypes(self.facts["device"])
        entries = [e for e in corpus.load_all(self.options.corpus) if e.case.dtype in dtypes]
        for entry in entries[self.index :: self.options.shards]:
            if self._left_s() == float("-inf"):
                raise EndOfCampaign
            self.search.replay(entry.case, is_native_defect=entry.file == corpus.NATIVE)

    def _generate(self) -> None:
        options = self.options
        left = None
        if options.examples is not None:
            left = len(range(self.index, options.examples, options.shards))
        batch = 0
        while left is None or left > 0:
            # A string seeds Random through SHA-512, which stays the same for ever.
            text = f"{options.seed}/{self.index}/{batch}"
            size = BATCH_EXAMPLES if left is None else min(left, BATCH_EXAMPLES)
            generated = self.search.run_batch(random.Random(text).getrandbits(64), size)
            left = None if left is None else left - generated
            batch += 1

    def _report(self, failure: Failure) -> None:
        examination = failure.examination
        place = machine.one_line({**machine.own_facts(), **self.facts})
        text = examination.card(place, failure.kind.leg)
        finding = Finding(failure.kind, examination.case, failure.status, text)
        _send(self.connection, "finding", finding)

    def _left_s(self) -> float:
        """Seconds until the end; minus infinity when told to stop."""
        while self.connection.poll():
            command, value = self.connection.recv()
            if command == "known":
                self.search.known.add(value)
            elif command == "stop":
                self.end_s = float("-inf")
        now_s = time.monotonic()
        if now_s - self.last_tally_s >= TALLY_EVERY_S:
            self.last_tally_s = now_s
            _send(self.connection, "tally", self.tally)
        return self.end_s - now_s


def _send(connection: Connection, kind: str, value: object) -> None:
    connection.send((kind, value))
