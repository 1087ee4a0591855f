"""Whatever is done to the processes of a campaign, it loses no case and no finding, and goes on at once.

CONVT3D_CHAOS_S=600 python -m pytest -n0 -s tests/test_chaos.py -k kernels
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fuzz import corpus
from fuzz.legs import LEGS
from fuzz.outcome import Verdict

ROOT = Path(__file__).parents[1]
SECONDS = float(os.environ.get("CONVT3D_CHAOS_S", "6"))
SHARDS = 1 if SECONDS < 60 else 2
END_S = 120.0  # to start, to end, and to shrink
LONGEST_GAP_S = 5.0
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP)
SECONDS_BETWEEN_KILLS = (0.4 / SHARDS, 2.0 / SHARDS)
MOST_KILLS = 3
VERDICT = f"(?:{'|'.join(verdict.value for verdict in Verdict)})"


class Kill(NamedTuple):
    """A signal that was sent to a leg of a shard."""

    when_s: float
    shard: int
    leg: str
    number: signal.Signals


class Watch(threading.Thread):
    """Notes when each case of a shard starts, by its journal."""

    def __init__(self, journal: Path) -> None:
        super().__init__(daemon=True)
        self.starts_s: list[float] = []
        self.is_over = False
        self._journal = journal

    def run(self) -> None:
        while not self._journal.exists():
            time.sleep(0.01)
        with self._journal.open() as file:
            while not self.is_over:
                now_s, lines = time.monotonic(), file.read().splitlines()
                self.starts_s += [now_s for line in lines if " " not in line]
                time.sleep(0.005)

    def gaps(self, kills: list[Kill], end_s: float) -> list[tuple[float, Kill]]:
        """Seconds to the start of the next case, or to the end, from the first signal since the last start."""
        firsts: dict[int, Kill] = {}
        for kill in kills:
            firsts.setdefault(bisect(self.starts_s, kill.when_s), kill)
        starts = enumerate([*self.starts_s, end_s])
        return [(start_s - firsts[i].when_s, firsts[i]) for i, start_s in starts if i in firsts]


class Processes:
    """The subject processes of a campaign: which shard and leg each belongs to."""

    def __init__(self, campaign: int) -> None:
        self._campaign = campaign
        self._shards: dict[int, int] = {}  # process id -> index

    def find(self) -> list[tuple[int, int, str]]:
        """Process id, shard and leg of each."""
        found = []
        for server, shard in self._servers():
            for pid in _children(server):
                name = _read(pid, "comm").strip()
                if name in LEGS:
                    found.append((pid, shard, name))
        return found

    def _servers(self) -> Iterator[tuple[int, int]]:
        for pid in _children(self._campaign):
            if pid not in self._shards:
                try:
                    files = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
                except OSError:
                    continue
                for file in files:
                    if journal := re.search(r"shard(\d+)\.txt$", file):
                        self._shards[pid] = int(journal[1])
            if pid in self._shards:
                yield from ((server, self._shards[pid]) for server in _children(pid))


def _children(pid: int) -> list[int]:
    try:
        tasks = [*Path(f"/proc/{pid}/task").iterdir()]
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def kill_at_random(
    process: subprocess.Popen[bytes], seconds: float, seed: int, watches: list[Watch]
) -> list[Kill]:
    """Sends signals to subject processes for so many seconds; to a shard at most MOST_KILLS between two cases."""
    chance, kills, processes = random.Random(seed), list[Kill](), Processes(process.pid)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and process.poll() is None:
        if found := processes.find():
            pid, shard, leg = chance.choice(found)
            number = chance.choice(SIGNALS)
            last_start_s = watches[shard].starts_s[-1]
            recent = sum(kill.shard == shard and kill.when_s > last_start_s for kill in kills)
            if recent < MOST_KILLS:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
                kills.append(Kill(time.monotonic(), shard, leg, number))
        time.sleep(chance.uniform(*SECONDS_BETWEEN_KILLS))
    return kills


def started_cases(journal: Path) -> int:
    return sum(" " not in line for line in journal.read_text().splitlines())


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="needs /proc to find the processes"
)
@pytest.mark.parametrize("subjects", ["fakes", "kernels"])
def test_chaos_loses_no_case_and_no_finding(
    subjects: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONVT3D_REQUIRE_GPU", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a process with a GPU takes seconds to start
    module = {"fakes": "tests.fake_subjects", "kernels": "tests.chaos_subjects"}[subjects]
    (tmp_path / "corpus").mkdir()
    command = [sys.executable, "-m", "fuzz", "run", f"--duration={SECONDS}", f"--shards={SHARDS}"]
    command += [f"--subject-module={module}", f"--state={tmp_path}", f"--corpus={tmp_path}/corpus"]
    command += ["--modes=fast,hostile"]  # under a sanitizer the case itself takes seconds
    journals = [tmp_path / "journal" / f"shard{index}.txt" for index in range(SHARDS)]
    watches = [Watch(journal) for journal in journals]
    seed = random.SystemRandom().getrandbits(32)
    log = tmp_path / "printed.txt"  # a pipe that nobody reads would hold it up
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "FAKE_NATIVE": "wrong"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        for watch in watches:
            watch.start()
        deadline_s = time.monotonic() + END_S
        while not all(watch.starts_s for watch in watches):
            assert time.monotonic() < deadline_s and process.poll() is None
            time.sleep(0.01)
        kills = kill_at_random(process, SECONDS, seed, watches)
        killed_s = time.monotonic()
        process.wait(timeout=END_S)
    finally:
        process.kill()
        for watch in watches:
            watch.is_over = True
    printed, gaps = log.read_text(), []
    for shard, watch in enumerate(watches):
        gaps += watch.gaps([kill for kill in kills if kill.shard == shard], killed_s)
    print(f"\n{printed}\nseed {seed}: {len(kills)} signals: {account(kills)}")
    print(
        "longest times to the start of the next case, from the first signal since the last start:"
    )
    for gap_s, kill in sorted(gaps, reverse=True)[:5]:
        print(f"  {gap_s:.2f} s after {kill.number.name} to {kill.leg} of shard {kill.shard}")
    check(printed, process.returncode, tmp_path, sum(map(started_cases, journals)))
    assert len(kills) > SECONDS / 3 and len(gaps) > len(kills) / 4
    assert max(gaps)[0] < LONGEST_GAP_S, printed


def account(kills: list[Kill]) -> str:
    counts = Counter(f"{kill.leg} {kill.number.name}" for kill in kills)
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def check(printed: str, code: int, state: Path, started: int) -> None:
    """Every case that was started has one verdict a leg, the planted fault is found, the exit code is right."""
    cases = number(r"^cases +([\d,]+) in", printed)
    assert cases == started, printed
    for leg in LEGS:
        (verdicts,) = re.findall(rf"^  {leg} +({VERDICT} .*)$", printed, re.MULTILINE)
        counts = re.findall(rf"{VERDICT} ([\d,]+)", verdicts)
        assert sum(int(count.replace(",", "")) for count in counts) == cases, printed
        assert "hung" not in verdicts, printed  # what is stopped from outside does not hang
        if leg != "native":
            assert "wrong" not in verdicts and "crashed" not in verdicts, printed
    assert re.search(r"native finding: native \w+ wrong output, (un)?shrunk", printed), printed
    assert corpus.load(state / "native_findings.txt")
    # SIGSEGV and SIGABRT may come from the subject itself, so they are findings; the others are incidents.
    ours = re.findall(r"^  failure: (.*): ", printed, re.MULTILINE)
    for failure in ours:
        assert re.search(r"crashed SIG(SEGV|ABRT).*, unconfirmed", failure), printed
    assert code == (1 if ours else 0), printed


def number(pattern: str, text: str) -> int:
    match = re.search(pattern, text, re.MULTILINE)
    assert match, f"{pattern} not in:\n{text}"
    return int(match[1].replace(",", ""))
