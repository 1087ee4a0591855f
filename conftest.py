"""Set-up of a test run: one thread a process, explicit Hypothesis profiles, the GPU gate, the header, fixtures."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from fuzz import machine

if TYPE_CHECKING:  # it imports torch
    from tests.emulator_kernels import Kernels

ROOT = Path(__file__).parent
GPU_TESTS = ROOT / "tests" / "gpu"

# xdist keeps every core busy with a process of its own. To hold, this must come before numpy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A name of their own: a campaign that a test runs registers profiles too, for its own purpose.
PREFIX = "tests-"


def register_profiles() -> None:
    """Registers the profiles and loads the one CONVT3D_PROFILE names; default ci where CI is set, else dev.

    ci and nightly draw anew in every run, from a seed that the header prints. dev replays its own failures from
    Hypothesis's database instead, which a fixed seed would switch off. The profile that Hypothesis itself loads
    where CI is set would try the same 100 examples for ever.
    """
    from fuzz.search import PROFILES

    for name, examples in PROFILES.items():
        settings.register_profile(
            PREFIX + name,
            settings.get_profile("default"),
            max_examples=examples,
            deadline=None,
            derandomize=False,
            database=DirectoryBasedExampleDatabase(ROOT / ".hypothesis") if name == "dev" else None,
            # A shared machine is slow at times; that is no failure of a strategy.
            suppress_health_check=[HealthCheck.too_slow],
        )
    name = os.environ.get("CONVT3D_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
    if name not in PROFILES:
        raise pytest.UsageError(f"CONVT3D_PROFILE={name!r}, but must be one of {[*PROFILES]}")
    settings.load_profile(PREFIX + name)


register_profiles()


@functools.cache
def gpu_problem() -> str:
    """Returns why the GPU tests cannot run here; empty if they can."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"compute capability {major}.{minor}, but must be 8.0 or above"
    return ""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draws the seed of the run before Hypothesis reads the option; a worker of xdist is handed it."""
    profile = config.getoption("--hypothesis-profile") or settings.get_current_profile_name()
    if profile == f"{PREFIX}dev" or config.getoption("--hypothesis-seed") is not None:
        return
    workerinput = getattr(config, "workerinput", {"seed": str(secrets.randbits(32))})
    config.option.hypothesis_seed = workerinput["seed"]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hands the seed to a worker of xdist."""
    node.workerinput["seed"] = node.config.getoption("--hypothesis-seed")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stops the run where a GPU is required and missing."""
    if machine.is_gpu_required() and not hasattr(session.config, "workerinput") and gpu_problem():
        raise pytest.UsageError(f"CONVT3D_REQUIRE_GPU is set, but {gpu_problem()}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is under tests/gpu as `gpu`, and skips it where there is no GPU."""
    gpu_items = [item for item in items if GPU_TESTS in item.path.parents]
    for item in gpu_items:
        item.add_marker(pytest.mark.gpu)
    if gpu_items and gpu_problem():
        reason = f"needs a GPU: {gpu_problem()} (CONVT3D_REQUIRE_GPU=1 makes this an error)"
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Says which machine, versions, profile and seed a result came from, without importing torch."""
    facts = {**machine.own_facts(), "torch": metadata.version("torch"), "card": "no GPU"}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        printed = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        facts["card"] = printed.partition("\n")[0] or "no GPU"
    profile = settings.get_current_profile_name()
    examples = settings.get_profile(profile).max_examples
    seed = config.getoption("--hypothesis-seed")
    return [
        f"machine: {machine.one_line(facts)}",
        f"profile: {profile.removeprefix(PREFIX)}, {examples} examples, "
        + (f"--hypothesis-seed={seed}" if seed else "a new seed for each test"),
    ]


@pytest.fixture(scope="session")
def scratch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the processes of a run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if hasattr(request.config, "workerinput") else folder


@pytest.fixture(scope="session")
def asan(scratch: Path) -> Kernels:
    """The kernels of tests/emulator_kernels.py under AddressSanitizer."""
    from tests.emulator_kernels import compile_kernels

    return compile_kernels(scratch, sanitizer="asan")


@pytest.fixture(scope="session")
def tsan(scratch: Path) -> Kernels:
    """The same under ThreadSanitizer."""
    from tests.emulator_kernels import compile_kernels

    return compile_kernels(scratch, sanitizer="tsan")


@pytest.fixture(autouse=True)
def strict_fp32(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a GPU fp32 is fp32, for native and for us: a test that wants TF32 says so."""
    if GPU_TESTS not in request.path.parents:
        yield
        return
    import torch

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills what the op allocates with NaN: an element that is not written cannot pass."""
    from convt3d import launch
    from tests import operator_checks

    monkeypatch.setattr(launch, "allocate", operator_checks.poisoned_allocate)


@pytest.fixture
def no_gpu_required(monkeypatch: pytest.MonkeyPatch) -> None:
    """For subjects that are fakes and have no GPU even where the run as a whole must."""
    monkeypatch.delenv("CONVT3D_REQUIRE_GPU", raising=False)
