"""A worker answers every case, whatever the subject does to its process."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import wait

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
        ("refuse", "refused", "ValueError: padding=5, but must be less than 3"),
        ("hang", "hung", "no answer within 1 s; killed"),
    ],
)
def test_whatever_happens_is_an_outcome_and_the_next_case_runs(
    worker: Worker, behaviour: str, status: str, message: str
) -> None:
    outcome = worker.run(behaving(behaviour))
    assert outcome.status == status
    assert message in outcome.message
    assert worker.run(CASE).status == "ok"


@pytest.mark.parametrize("behaviour", ["segfault", "hang", "device.assert", "corrupt"])
def test_a_process_that_may_be_damaged_runs_no_other_case(worker: Worker, behaviour: str) -> None:
    worker.run(behaving(behaviour))
    assert worker.is_fresh
    assert worker.run(behaving("count")).message == "1"


@pytest.mark.parametrize("behaviour", ["refuse", "stumble", "right"])
def test_a_process_that_is_sound_is_kept(worker: Worker, behaviour: str) -> None:
    worker.run(behaving(behaviour))
    before = int(worker.run(behaving("count")).message)
    assert int(worker.run(behaving("count")).message) == before + 1


def test_a_process_killed_from_outside_in_mid_case_is_a_crash(worker: Worker) -> None:
    worker.start(behaving("hang"))
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.finish().message == "killed by signal 9 (SIGKILL)"
    assert worker.run(CASE).status == "ok"


def test_a_process_killed_between_two_cases_is_no_outcome_of_the_next(worker: Worker) -> None:
    worker.run(CASE)
    os.kill(worker.pid, signal.SIGKILL)
    wait([worker._process.sentinel], 30)
    assert worker.run(CASE).status == "ok"


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
    pid, log = other.pid, other.log
    other.close()
    assert not log.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert pid not in [child.pid for child in multiprocessing.active_children()]


def test_a_process_that_cannot_be_killed_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "END_LIMIT_S", 0.1)
    with closing(Worker("tests.fake_subjects:hang", time_limit_s=0.1)) as worker:
        worker.await_ready()
        stuck, pid = worker._process, worker.pid
        monkeypatch.setattr(stuck, "kill", lambda: None)
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
