"""A worker answers every case, whatever the subject does to its process."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from fuzz import worker as worker_module
from fuzz.case import Case
from fuzz.worker import SubjectError, Worker, preload
from tests import fake_subjects

CASE = Case(input_size=(2, 2, 2), kernel_size=(2, 2, 2))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    preload(["tests.fake_subjects", "pytest"])
    with closing(Worker("tests.fake_subjects:convt3d", time_limit_s=1.0)) as worker:
        worker.await_ready()
        yield worker


def behaving(behaviour: str) -> Case:
    return Case(input_size=(2, 2, 2), kernel_size=(2, 2, 2), forward_plan=behaviour)


def test_an_answer_comes_back_bit_for_bit(worker: Worker) -> None:
    outcome, expected = worker.run(CASE), fake_subjects.right(CASE)
    assert outcome.status == "ok"
    assert outcome.results.keys() == expected.results.keys()
    for name, raw in expected.results.items():
        assert outcome.results[name].dtype == raw.dtype
        assert outcome.results[name].tolist() == raw.tolist()


@pytest.mark.parametrize(
    ("behaviour", "status", "message"),
    [
        ("segfault", "crashed", "killed by signal 11 (SIGSEGV)"),
        ("abort", "crashed", "killed by signal 6 (SIGABRT): Assertion `i < size' failed."),
        ("leave", "crashed", "ended with exit code 3"),
        ("speak", "crashed", "ended with exit code 1: to stdout\nto stderr"),
        ("corrupt", "crashed", "answered '\\x00garbage', but must answer an Outcome"),
        ("stumble", "crashed", "KeyError: 'a defect of the subject itself'"),
        ("device.assert", "crashed", "CUDA error: device-side assert triggered"),
        ("segfault.in.backward", "crashed", "killed by signal 11 (SIGSEGV) in backward"),
        ("report", "crashed", "tsan: data race: write of 4 bytes at convt3d/kernels/gather.py:251"),
        ("defect", "crashed", "_Defect: no thread may leave the barrier"),
        ("kill", "crashed", "killed by signal 9 (SIGKILL)"),
        ("refuse", "refused", "ValueError: padding=5, but must be less than 3"),
        ("hang", "hung", "no answer within 1 s; killed"),
        ("hang.in.forward", "hung", "no answer within 1 s in forward; killed"),
    ],
)
def test_whatever_happens_is_an_outcome_and_the_next_case_runs(
    worker: Worker, behaviour: str, status: str, message: str
) -> None:
    outcome = worker.run(behaving(behaviour))
    assert outcome.status == status
    assert message in outcome.message
    assert worker.run(CASE).status == "ok"


@pytest.mark.parametrize("behaviour", ["segfault", "hang", "device.assert", "corrupt", "kill"])
def test_a_process_that_may_be_damaged_runs_no_other_case(worker: Worker, behaviour: str) -> None:
    worker.run(behaving(behaviour))
    assert worker.is_fresh
    assert worker.run(behaving("count")).message == "1"


@pytest.mark.parametrize("behaviour", ["refuse", "stumble", "report", "right"])
def test_a_process_that_is_sound_is_kept(worker: Worker, behaviour: str) -> None:
    worker.run(behaving(behaviour))
    before = int(worker.run(behaving("count")).message)
    assert int(worker.run(behaving("count")).message) == before + 1


def test_a_process_killed_between_two_cases_is_no_outcome_of_the_next(worker: Worker) -> None:
    worker.run(CASE)
    os.kill(worker.pid, signal.SIGKILL)
    wait([worker._process.sentinel], 30)
    worker.take_incidents()
    assert worker.run(CASE).status == "ok"
    assert worker.take_incidents() == ["SIGKILL between two cases"]


def test_the_stage_of_a_crash_is_not_that_of_the_case_before(worker: Worker) -> None:
    assert worker.run(behaving("segfault.in.backward")).stage == "backward"
    assert worker.run(behaving("segfault")).stage == ""
    assert worker.run(CASE).stage == ""


# ---- Note [Interference] --------------------------------------------------------------------------


@pytest.fixture
def patient() -> Iterator[Worker]:
    """A worker with limits that no test waits for."""
    with closing(Worker("tests.fake_subjects:convt3d")) as worker:
        worker.await_ready()
        yield worker
        assert worker.run(CASE).status == "ok"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_case_whose_process_is_killed_or_stopped_runs_again(
    patient: Worker, number: signal.Signals
) -> None:
    patient.run(CASE)
    start_s = time.monotonic()
    patient.start(behaving("slow"))
    time.sleep(0.1)
    os.kill(patient.pid, number)
    assert patient.finish().status == "ok"
    assert time.monotonic() - start_s < 5
    assert patient.take_incidents() == [number.name]
    assert patient.take_incidents() == []


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_signal_that_a_defect_may_raise_is_a_crash(
    patient: Worker, number: signal.Signals
) -> None:
    patient.start(behaving("slow"))
    os.kill(patient.pid, number)
    outcome = patient.finish()
    assert (outcome.status, outcome.cause) == ("crashed", number.name)
    assert patient.take_incidents() == []


def test_a_case_that_has_its_process_killed_every_time_has_crashed(patient: Worker) -> None:
    assert patient.run(behaving("kill")).cause == "SIGKILL"
    assert patient.take_incidents() == ["SIGKILL"] * (worker_module.MOST_TRIES - 1)


def test_a_late_case_runs_again_with_all_its_time(
    patient: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "FIRST_TIME_LIMIT_S", 0.2)
    patient.run(CASE)
    assert patient.run(behaving("late")).status == "ok"
    assert patient.take_incidents() == ["late"]
    assert patient.run(behaving("slow")).status == "ok"  # late at first, in the fresh process not
    assert patient.take_incidents() == ["late"]


def test_a_case_that_is_expected_to_hang_is_tried_once(
    patient: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "FIRST_TIME_LIMIT_S", 0.2)
    patient.start(behaving("hang"))
    assert patient.finish(is_hasty=True).status == "hung"
    assert patient.take_incidents() == []


def test_a_case_in_a_slow_mode_is_not_late_so_soon(
    patient: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "FIRST_TIME_LIMIT_S", 0.1)
    assert patient.run(replace(behaving("slow"), mode="tsan")).status == "ok"
    assert patient.take_incidents() == []


def test_a_process_stopped_in_the_middle_of_its_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "RECEIVE_LIMIT_S", 1)
    with closing(Worker("tests.fake_subjects:convt3d")) as worker:
        worker.await_ready()
        worker.start(behaving("large"))
        assert wait([worker._connection], 30)
        time.sleep(0.2)  # the pipe is full now, and the rest is to come
        os.kill(worker.pid, signal.SIGSTOP)
        assert worker.finish().results["output"].size == 1 << 20
        assert worker.take_incidents() == ["SIGSTOP"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP])
def test_a_process_killed_at_its_start_is_replaced_and_the_case_runs(
    number: signal.Signals,
) -> None:
    with closing(Worker("tests.fake_subjects:slow_start")) as worker:
        worker.start(CASE)
        worker.await_facts()
        os.kill(worker.pid, number)
        assert worker.finish().status == "ok"
        assert worker.take_incidents() == [f"{number.name} at its start"]


def test_a_subject_that_dies_at_every_start_is_a_fault_of_the_set_up() -> None:
    with closing(Worker("tests.fake_subjects:die_at_start")) as worker:
        with pytest.raises(
            SubjectError, match=r"its process died: killed by signal 11 \(SIGSEGV\)"
        ):
            worker.run(CASE)


def kill_server() -> None:
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_a_killed_server_is_started_again_and_the_case_runs(patient: Worker) -> None:
    patient.start(behaving("slow"))
    first = patient.pid
    kill_server()
    assert patient.finish().status == "ok"
    assert patient.take_incidents() == ["server killed"]
    stat = Path(f"/proc/{first}/stat")  # nobody may have asked how it ended: a zombie
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_server_killed_between_two_cases_harms_none(patient: Worker) -> None:
    patient.run(CASE)
    kill_server()
    assert patient.run(CASE).status == "ok"
    assert patient.take_incidents() == ["server killed between two cases"]


def test_a_subject_may_take_arguments() -> None:
    words = ("path/to/file.py", "Name")
    with closing(Worker("tests.fake_subjects:told", arguments=(words,))) as worker:
        assert worker.run(CASE).message == "path/to/file.py Name"


def test_the_time_limit_does_not_count_the_start_of_the_process() -> None:
    with closing(Worker("tests.fake_subjects:slow_start", time_limit_s=1.0)) as worker:
        assert worker.run(CASE).status == "ok"


def test_workers_run_side_by_side() -> None:
    case = Case(seed=os.getpid())
    workers = [Worker("tests.fake_subjects:meet") for _ in range(3)]
    for worker in workers:
        worker.start(case)
    # Each hangs until the others have the case too.
    assert [worker.finish().status for worker in workers] == ["ok"] * 3
    for worker in workers:
        worker.close()
    shutil.rmtree(fake_subjects.meeting_place(case))


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("tests.no_such_module:convt3d", "No module named 'tests.no_such_module'"),
        ("tests.fake_subjects:no_such_function", "no_such_function"),
        ("tests.fake_subjects:refuse", "RuntimeError: no compiler"),
    ],
)
def test_a_subject_that_cannot_be_loaded_is_a_fault_of_the_set_up(
    subject: str, message: str
) -> None:
    with closing(Worker(subject)) as worker:
        with pytest.raises(SubjectError, match=f"(?s)subject {subject} .*{message}"):
            worker.run(CASE)


def test_closing_leaves_no_process_and_no_file(worker: Worker) -> None:
    other = Worker("tests.fake_subjects:hang")
    other.start(CASE)
    pid = other.pid
    other.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert pid not in [child.pid for child in multiprocessing.active_children()]


def test_a_process_that_cannot_be_killed_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "END_LIMIT_S", 0.1)
    with closing(Worker("tests.fake_subjects:hang", time_limit_s=0.1)) as worker:
        worker.await_ready()
        stuck, pid = worker._process, worker.pid
        monkeypatch.setattr(stuck, "kill", lambda: None)
        monkeypatch.setattr("fuzz.worker.os.killpg", lambda *_: None)
        assert worker.run(CASE).status == "hung"
        assert worker.pid != pid
        os.kill(pid, signal.SIGKILL)
        stuck.join()


@pytest.mark.parametrize(("device", "has_gpu"), [("emulator", False), ("cuda", True)])
def test_an_outcome_says_whether_its_process_has_a_gpu(device: str, has_gpu: bool) -> None:
    with closing(Worker("tests.fake_subjects:convt3d")) as worker:
        worker.await_ready()
        assert worker.facts == {"device": "emulator"}
        worker.facts = {"device": device}
        assert worker.run(CASE).has_gpu is has_gpu
