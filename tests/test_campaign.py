"""A campaign ends with the right exit code, and says what it found, whatever happens to its processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuzz import corpus
from fuzz.campaign import MOST_RESTARTS
from fuzz.case import parse_case

ROOT = Path(__file__).parents[1]
TIME_LIMIT_S = 120.0  # of a run; busy cores need only a part of it


class Run:
    """The command line in a process of its own, with fake subjects, in an empty directory."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.corpus = directory / "corpus"
        self.corpus.mkdir()

    def command(self, *arguments: str) -> list[str]:
        options = ["--subject-module=tests.fake_subjects", f"--state={self.state}"]
        options += [f"--corpus={self.corpus}"]
        return [sys.executable, "-m", "fuzz", "run", *options, *arguments]

    def __call__(self, *arguments: str, **fakes: str) -> tuple[int, str]:
        done = subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            env={**os.environ, **fakes},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        return done.returncode, done.stdout

    def popen(self, *arguments: str, **fakes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=ROOT,
            env={**os.environ, **fakes},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @contextmanager
    def started(self, *arguments: str, **fakes: str) -> Iterator[subprocess.Popen[str]]:
        """The command, once every shard is generating cases; ended at the latest on leaving."""
        process = self.popen(*arguments, **fakes)
        try:
            shards = int(next(a for a in arguments if a.startswith("--shards=")).split("=")[1])
            journals = [self.state / "journal" / f"shard{index}.txt" for index in range(shards)]
            deadline_s = time.monotonic() + TIME_LIMIT_S
            while not all(j.exists() and j.read_text().count("\n") > 20 for j in journals):
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.communicate()

    def keep(self, text: str, file: str = corpus.REGRESSIONS) -> None:
        corpus.keep(parse_case(text), "A test needs it.", file, self.corpus)

    def findings(self, name: str) -> list[str]:
        path = self.state / name
        return [str(entry.case) for entry in corpus.load(path)] if path.exists() else []


pytestmark = pytest.mark.usefixtures("no_gpu_required")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def descendants(pid: int) -> dict[int, str]:
    """Process id -> command line of all that came from a process."""
    parents, commands = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(path.name)] = (path / "cmdline").read_text()
        except OSError:
            continue
    found: dict[int, str] = {}
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found.update({child: commands[child] for child in new})
    return found


def wait_until_gone(pids: list[int]) -> None:
    deadline_s = time.monotonic() + TIME_LIMIT_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline_s, f"{pids} are still running"
        time.sleep(0.05)


def test_right_subjects_give_exit_0_and_an_account_of_what_ran(run: Run) -> None:
    run.keep("f16_i2_k2_int")
    code, printed = run("--examples=40", "--seed=7", "--shards=2")
    assert code == 0, printed
    for line in (
        r"^cpu +\S", r"^python +3\.", r"^numpy +\d", r"^hypothesis +\d", r"^compiler +\S",
        r"^device +emulator$", r"^subjects .* tests\.fake_subjects$", r"^profile .*40 examples",
        r"^seed +7, 2 shards$", r"^dtypes +f64 f32 tf32 f16 bf16$",
        r"^cases +41 in .* cases/s \(1 from the corpus, 0 while shrinking\)$",
        r"^  dtype .*f32 \d+", r"^  lane .*int \d+", r"^  mode .*hostile \d+",
        r"^  draws .*discarded 0\.\d+%$", r"^  bound .*convt3d: +output +grad_input +",
        r"^ +f16( +\d\.\d+){4}$", r"^coverage +1,\d+ of 2,\d+ pairs of features met, [\d,]+ missing",
        r"^  convt3d +pass \d+", r"^  oracle +pass \d+", r"^  native +pass \d+",
        r"^exit 0: no failure of convt3d or the oracle in 41 cases$",
    ):  # fmt: skip
        assert re.search(line, printed, re.MULTILINE), f"{line} not in:\n{printed}"
    assert not run.findings("findings.txt") + run.findings("native_findings.txt")


def test_a_wrong_convt3d_gives_exit_1_and_a_small_case_that_reproduces_it(run: Run) -> None:
    # About one case in four has the stride and the lane that show it.
    code, printed = run("--examples=120", "--shards=1", FAKE_CONVT3D="wrong")
    assert code == 1, printed
    case = run.findings("findings.txt")[0]
    assert parse_case(case).multiply_adds <= 4
    assert f"make repro CASE={case}" in printed
    assert re.search(r"^exit 1: \d+ cases failed", printed, re.MULTILINE)
    repro = [sys.executable, "-m", "fuzz", "repro", case, "--subject-module=tests.fake_subjects"]
    environment = {**os.environ, "FAKE_CONVT3D": "wrong"}
    assert subprocess.run(repro, cwd=ROOT, env=environment, check=False).returncode == 1
    assert subprocess.run(repro, cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("leg", "behaviour", "code", "file"),
    [
        ("CONVT3D", "segfault", 1, "findings.txt"),
        ("CONVT3D", "hang", 1, "findings.txt"),
        ("CONVT3D", "refuse", 1, "findings.txt"),
        ("ORACLE", "wrong", 1, "findings.txt"),
        ("NATIVE", "wrong", 0, "native_findings.txt"),
        ("NATIVE", "segfault", 0, "native_findings.txt"),
    ],
)
def test_a_failure_of_ours_turns_the_run_red_and_one_of_native_is_a_finding(
    run: Run, leg: str, behaviour: str, code: int, file: str
) -> None:
    run.keep("f32_s2_int")
    assert run("--corpus-only", "--time-limit=1", **{f"FAKE_{leg}": behaviour})[0] == code
    assert run.findings(file) == ["f32_s2x1x1_int"]


def test_a_failure_that_depends_on_the_process_is_red_and_called_unconfirmed(run: Run) -> None:
    run.keep("f32_i2_int")
    run.keep("f32_s2_int")
    code, printed = run("--corpus-only", "--shards=1", FAKE_CONVT3D="wrong.at.first")
    assert code == 1
    assert "unconfirmed (state-dependent)" in printed
    assert "1 not in a fresh process" in printed


def test_native_may_fail_where_it_is_known_to_and_ours_may_not(run: Run) -> None:
    run.keep("f32_s2_int", corpus.NATIVE)
    run.keep("f32_i2_int", corpus.NATIVE)
    code, printed = run("--corpus-only", FAKE_NATIVE="segfault")
    assert code == 0
    assert "native defects of the corpus: 1 seen here, 1 not" in printed
    assert not run.findings("native_findings.txt")
    assert run("--corpus-only", FAKE_CONVT3D="wrong")[0] == 1


def test_native_findings_enter_the_corpus_only_when_asked_to(run: Run) -> None:
    arguments = ("--examples=40", "--shards=1", "--seed=1", "--dtypes=f32", "--lanes=int")
    assert run(*arguments, FAKE_NATIVE="wrong")[0] == 0
    assert not list(run.corpus.iterdir())
    assert run(*arguments, "--keep-native", FAKE_NATIVE="wrong")[0] == 0
    kept = corpus.load(run.corpus / "native.txt")
    assert [str(entry.case) for entry in kept] == run.findings("native_findings.txt")
    assert "native f32 wrong output" in kept[0].why
    assert "numpy" in kept[0].why


def test_stop_on_failure_ends_a_long_campaign_early(run: Run) -> None:
    assert TIME_LIMIT_S < 600
    assert run("--duration=600", "--stop-on-failure", FAKE_CONVT3D="segfault")[0] == 1


def test_a_duration_is_kept(run: Run) -> None:
    code, printed = run("--duration=1.5", "--shards=1")
    assert code == 0
    seconds = re.search(r"^cases .* in ([\d.]+) s", printed, re.MULTILINE)
    assert seconds and 1 <= float(seconds.group(1)) < 20


def test_the_same_seed_runs_the_same_cases(run: Run) -> None:
    journals = []
    for seed in (5, 5, 6):
        assert run("--examples=30", "--shards=1", f"--seed={seed}")[0] == 0
        journals.append((run.state / "journal" / "shard0.txt").read_text())
    assert journals[0] == journals[1] != journals[2]


def test_an_interrupt_gives_the_summary_and_leaves_no_process(run: Run) -> None:
    with run.started("--duration=600", "--shards=2") as process:
        pids = list(descendants(process.pid))
        assert len(pids) >= 10
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=TIME_LIMIT_S)
    assert process.returncode == 0, printed
    assert re.search(r"^exit 0: no failure", printed, re.MULTILINE)
    assert "Traceback" not in printed
    wait_until_gone(pids)


def test_a_killed_campaign_leaves_no_process(run: Run) -> None:
    with run.started("--duration=600", "--shards=2") as process:
        pids = list(descendants(process.pid))
        process.kill()
        wait_until_gone(pids)


def test_a_campaign_survives_the_death_of_its_workers(run: Run) -> None:
    with run.started("--duration=5", "--shards=1") as process:
        servers = {pid for pid, line in descendants(process.pid).items() if "forkserver" in line}
        workers = [pid for pid in servers if not descendants(pid)]
        assert len(workers) == 3
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        printed, _ = process.communicate(timeout=TIME_LIMIT_S)
    assert process.returncode == 0, printed
    for leg in ("convt3d", "oracle", "native"):
        assert re.search(
            rf"^incidents .*{leg} SIGKILL( between two cases)? 1", printed, re.MULTILINE
        )


def shards_of(process: subprocess.Popen[str]) -> list[int]:
    return [pid for pid, line in descendants(process.pid).items() if "spawn_main" in line]


def test_a_killed_shard_is_replaced_and_no_case_is_lost(run: Run) -> None:
    run.keep("f32_i2_int")
    with run.started("--examples=400", "--shards=1", "--seed=3") as process:
        (shard,) = shards_of(process)
        os.kill(shard, signal.SIGKILL)
        printed, _ = process.communicate(timeout=TIME_LIMIT_S)
    assert process.returncode == 0, printed
    told = (
        r"^shard 0 ended with exit code -9; its last case: \w+_n\d.*; another one takes its place"
    )
    assert re.search(told, printed, re.MULTILINE), printed
    assert re.search(r"^incidents .*shard killed 1", printed, re.MULTILINE), printed
    assert re.search(r"^cases +401 in .* \(1 from the corpus", printed, re.MULTILINE), printed


def test_a_failure_that_is_being_shrunk_when_its_shard_dies_is_not_lost(run: Run) -> None:
    unfinished = run.state / "journal" / "shard0.unfinished.txt"
    process = run.popen("--examples=60", "--shards=1", FAKE_CONVT3D="wrong.slowly")
    deadline_s = time.monotonic() + TIME_LIMIT_S
    while not unfinished.exists():
        assert time.monotonic() < deadline_s and process.poll() is None
        time.sleep(0.01)
    os.kill(shards_of(process)[0], signal.SIGKILL)
    printed, _ = process.communicate(timeout=TIME_LIMIT_S)
    assert process.returncode == 1, printed
    assert not unfinished.exists()
    first, *others = run.findings("findings.txt")
    assert "failure: convt3d" in printed and others  # it was found again, and shrunk
    assert parse_case(first).multiply_adds >= parse_case(others[0]).multiply_adds


def test_a_killed_campaign_leaves_its_findings_in_files(run: Run) -> None:
    unfinished = run.state / "journal" / "shard0.unfinished.txt"
    process = run.popen("--duration=600", "--shards=1", FAKE_CONVT3D="wrong.slowly")
    deadline_s = time.monotonic() + TIME_LIMIT_S
    while not unfinished.exists():
        assert time.monotonic() < deadline_s and process.poll() is None
        time.sleep(0.01)
    pids = list(descendants(process.pid))
    process.kill()
    process.communicate()
    wait_until_gone(pids)
    assert len(run.findings("findings.txt")) == 1  # the shard has written it down
    unfinished.write_text(
        "# native finding: native f16 crashed\nf16_int\n"
    )  # had it been killed too
    assert "left by a campaign that was killed: native finding" in run("--examples=10")[1]
    assert run.findings("native_findings.txt") == ["f16_int"]
    assert not unfinished.exists()


def test_a_shard_that_dies_again_and_again_is_no_pass(run: Run) -> None:
    with run.started("--duration=600", "--shards=1") as process:
        deadline_s = time.monotonic() + TIME_LIMIT_S
        while process.poll() is None:
            assert time.monotonic() < deadline_s
            for shard in shards_of(process):
                os.kill(shard, signal.SIGKILL)
            time.sleep(0.05)
        assert process.stdout is not None
        printed = process.stdout.read()
    assert process.returncode == 2, printed
    assert printed.count("another one takes its place") == MOST_RESTARTS
    assert "exit 2: the campaign broke down: shard 0 ended with exit code -9" in printed


def test_no_case_at_all_is_no_pass(run: Run) -> None:
    code, printed = run("--corpus-only")
    assert code == 2
    assert "exit 2: no case ran" in printed


def test_a_campaign_in_which_convt3d_passes_nothing_is_no_pass(run: Run) -> None:
    run.keep("f32_special_seed1518")  # its results are zeros, so that a pass would prove nothing
    code, printed = run("--corpus-only")
    assert code == 2
    assert "exit 2: convt3d passed none of 1 cases, 1 mistrusted" in printed
    run.keep("f32_int")
    code, printed = run("--corpus-only")
    assert code == 0
    assert "exit 0: no failure of convt3d or the oracle in 2 cases, 1 mistrusted" in printed


def test_a_campaign_draws_from_the_plans_of_convt3d(run: Run) -> None:
    assert run("--examples=60", "--shards=1", "--seed=1")[0] == 0
    journal = (run.state / "journal" / "shard0.txt").read_text()
    for token in ("fwd=tiled.i32", "gin=direct.i64", r"gwt=tiled.i32.split\d"):
        assert re.search(token, journal), token


def test_a_required_gpu_that_is_missing_is_an_error(run: Run) -> None:
    code, printed = run("--examples=10", CONVT3D_REQUIRE_GPU="1")
    assert code == 2
    starting, ending = printed.splitlines()
    assert starting.startswith("starting ")
    assert "CONVT3D_REQUIRE_GPU is set, but the subjects find no GPU" in ending


def test_the_missing_pairs_of_features_are_shown_when_asked_for(run: Run) -> None:
    code, printed = run("--examples=10", "--shards=1", "--seed=1", "--coverage", "--dtypes=f32")
    assert code == 0
    assert re.search(r"^  stride +\d/4( +\d+/\d+){7}$", printed, re.MULTILINE)
    assert re.search(r"^  missing: \d+$", printed, re.MULTILINE)
    assert re.search(r"^    lane x grad_weight plan: ", printed, re.MULTILINE)


def test_profile_ci_meets_all_pairs_of_features_in_a_dtype(run: Run) -> None:
    code, printed = run("--profile=ci", "--examples=260", "--shards=2", "--dtypes=f16")
    assert code == 0, printed
    met = re.search(
        r"^coverage +([\d,]+) of ([\d,]+) pairs of features met$", printed, re.MULTILINE
    )
    assert met and met.group(1) == met.group(2), printed
    assert re.search(r"^cases +260 in ", printed, re.MULTILINE), "covering cases are examples"


def test_profile_ci_is_no_pass_when_a_pair_was_not_met(run: Run) -> None:
    code, printed = run("--profile=ci", "--examples=20", "--shards=1")
    assert code == 2
    assert re.search(r"^exit 2: [\d,]+ pairs of features were not met in 20 cases", printed, re.M)
    assert "  missing: " in printed
    run.keep("f32_int")
    assert run("--profile=ci", "--corpus-only")[0] == 0


def test_a_failure_of_a_covering_case_is_confirmed_and_shrunk(run: Run) -> None:
    code, printed = run("--profile=ci", "--examples=40", "--shards=1", FAKE_CONVT3D="segfault")
    assert code == 1
    assert "failure: convt3d" in printed and "shrunk" in printed
    assert parse_case(run.findings("findings.txt")[0]).multiply_adds == 1


def test_native_findings_are_written_down_once(run: Run) -> None:
    run.keep("f32_s2x1x1_int")
    for _ in range(2):
        assert run("--corpus-only", FAKE_NATIVE="wrong")[0] == 0
        assert run.findings("native_findings.txt") == ["f32_s2x1x1_int"]
    assert run("--corpus-only", FAKE_NATIVE="segfault")[0] == 0  # another finding
    assert run.findings("native_findings.txt") == 2 * ["f32_s2x1x1_int"]


def test_subjects_that_cannot_be_loaded_are_an_error(run: Run) -> None:
    code, printed = run("--examples=10", "--subject-module=tests.no_such_module")
    assert code == 2
    assert "subject tests.no_such_module:convt3d cannot be loaded" in printed


def test_an_interrupt_before_the_first_case_says_so_and_nothing_else(run: Run) -> None:
    process = subprocess.Popen(
        run.command("--duration=600", "--shards=1", "--subject-module=tests.slow_start"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    printed = process.stdout.readline()  # from here on the campaign listens
    process.send_signal(signal.SIGINT)
    printed += process.communicate(timeout=TIME_LIMIT_S)[0]
    assert process.returncode == 2
    assert "exit 2: interrupted before a case ran" in printed
    assert "late" not in printed


def test_the_summary_names_the_files_that_findings_went_to(run: Run) -> None:
    run.keep("f32_s2_int")
    _, printed = run("--corpus-only", FAKE_NATIVE="wrong")
    assert f"written to {run.state / 'native_findings.txt'}\n" in printed
