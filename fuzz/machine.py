"""What a result depends on besides the case: processor, card, versions, compiler."""

from __future__ import annotations

import functools
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

# Instruction sets on which oneDNN takes other paths.
NOTED_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16")


def own_facts() -> dict[str, str]:
    """Facts that any process can tell, without torch: name -> text, in the order to print."""
    import hypothesis
    import numpy

    return {
        "cpu": cpu(),
        "system": f"{platform.system()} {platform.release()}",
        "compiler": compiler(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "hypothesis": hypothesis.__version__,
    }


def subject_facts() -> dict[str, str]:
    """Facts of a process with a subject in it; "device" is "cuda" or "emulator".

    Asks torch only if the subject has imported it. Starts CUDA, so never call it in a process
    that forks.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return {"device": "emulator"}
    facts = {"device": "emulator", "torch": str(torch.__version__)}
    if not torch.cuda.is_available():
        return facts
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": "cuda",
        "card": f"{properties.name} (sm_{properties.major}{properties.minor})",
        "driver": _driver(),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "nvcc": _first_match(["nvcc", "--version"], r"release .*"),
    }


def reserve_address_space(length: int) -> mmap.mmap:
    """Returns so many bytes of zeros, of which those that nobody touches cost nothing.

    Raises:
        OSError: the system does not hand out memory that it may not have.
    """
    map_noreserve = 0x4000  # Linux; mmap names it from Python 3.11 on
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_noreserve)


@functools.cache
def has_room_for_far_tensors() -> bool:
    """Whether the layout "far" can run here: a tensor of 100 positions along its far axis spans 1.6 TB in float64."""
    try:
        reserve_address_space(2**44).close()
    except (OSError, ValueError):
        return False
    return True


def is_gpu_required() -> bool:
    """Whether a missing GPU is an error, and no reason to skip or to use the emulator."""
    return os.environ.get("CONVT3D_REQUIRE_GPU", "") not in ("", "0")


def gpu_problem(facts: dict[str, str]) -> str:
    """Why a campaign must not run on this device: a GPU is required and missing; else empty."""
    if not is_gpu_required() or facts["device"] == "cuda":
        return ""
    return "CONVT3D_REQUIRE_GPU is set, but the subjects find no GPU"


def cpu() -> str:
    """Model name, usable cores and the noted instruction sets."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()}, {usable_cores()} cores"
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.*)$", text, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    name = model.group(1) if model else platform.machine()
    noted = [flag for flag in NOTED_CPU_FLAGS if flag in present]
    return f"{name}, {usable_cores()} cores, {' '.join(noted) or 'no avx2'}"


def usable_cores() -> int:
    """Cores that this process may use, which a container may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compiler() -> str:
    """First line that the C++ compiler prints about itself."""
    return _first_match([os.environ.get("CXX", "g++"), "--version"], r".+")


def one_line(facts: dict[str, str]) -> str:
    """The facts that a failure card needs."""
    shown = ["emulator"] if facts.get("device") == "emulator" else []
    shown += [facts[name] for name in ("card", "cpu") if name in facts]
    versions = ("driver", "torch", "cuda", "cudnn", "nvcc", "compiler", "python", "numpy")
    shown += [f"{name} {facts[name]}" for name in versions if name in facts]
    return ", ".join(shown)


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    match = re.search(r"\d+\.\d+(\.\d+)?", text)
    return match.group(0) if match else "unknown"


def _first_match(command: list[str], pattern: str) -> str:
    if shutil.which(command[0]) is None:
        return f"no {command[0]}"
    printed = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    match = re.search(pattern, printed)
    return match.group(0) if match else "unknown"
