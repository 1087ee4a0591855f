"""The command `python -m fuzz sanitize`: the corpus and random cases under every sanitizer that the device has.

On the emulator these are AddressSanitizer with UndefinedBehaviorSanitizer (asan) and ThreadSanitizer (tsan), on a GPU
the tools of compute-sanitizer. Each case is judged as in any campaign; what a sanitizer reports is a crash.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convt3d import build
from convt3d.emulator import runtime
from fuzz import compute_sanitizer, corpus, machine
from fuzz.arguments import count, positive_int
from fuzz.campaign import BROKEN, Campaign
from fuzz.case import GPU_TOOLS, Case, CaseError
from fuzz.legs import SUBJECT_MODULE
from fuzz.plans import usual_parts
from fuzz.shard import Options
from fuzz.strategies import MAX_SEED, SCHEDULED_MODES
from fuzz.worker import SubjectError

SANITIZER_MODES = {"emulator": runtime.SANITIZERS, "cuda": GPU_TOOLS}
DEFAULT_EXAMPLES = 500
# Each shard holds a process for each tool, with a CUDA context and gigabytes of memory.
MOST_GPU_SHARDS = 4
SHARDS_HELP = f"processes; default: one a core, on a GPU at most {MOST_GPU_SHARDS}"


def add_command(commands: Any) -> None:
    """Adds the command's parser to those of the command line."""
    command = commands.add_parser(
        "sanitize", help="run the corpus and random cases under sanitizers"
    )
    command.set_defaults(command=sanitize)
    add = command.add_argument
    known = ", ".join(mode for modes in SANITIZER_MODES.values() for mode in modes)
    add("--examples", type=count, default=DEFAULT_EXAMPLES, metavar="N", help="random cases")
    add("--modes", metavar="A,B", help=f"of {known}; default: all that the device has")
    add("--seed", type=int, metavar="N", help="of everything drawn; default: random, printed")
    add("--shards", type=positive_int, metavar="N", help=SHARDS_HELP)
    add("--coverage", action="store_true", help="print which pairs of features were met")
    add("--corpus", type=Path, default=corpus.DIRECTORY, metavar="DIR", help="where the corpus is")
    add("--state", type=Path, default=Path(".convt3d"), metavar="DIR", help="findings, journal")
    add("--subject-module", default=SUBJECT_MODULE, metavar="MODULE", help="what is examined")


def sanitize(arguments: argparse.Namespace) -> int:
    """Runs the campaign. Returns its exit status; 2 also where the device has no such sanitizer."""
    device = device_of_subjects()
    modes = tuple((arguments.modes or ",".join(SANITIZER_MODES[device])).split(","))
    problem = problem_of(device, modes)
    if problem:
        print(f"fuzz: {problem}", file=sys.stderr)
        return BROKEN
    seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
    if device == "emulator":
        _build(modes)
    with tempfile.TemporaryDirectory() as folder:
        cases = write_corpus(arguments.corpus, Path(folder), modes, seed)
        print(f"{' '.join(modes)} on the {device}: {cases} cases from the corpus, ", end="")
        print(f"then {arguments.examples} random ones", flush=True)
        options = Options(
            seed=seed,
            profile="sanitize",
            examples=arguments.examples,
            shards=arguments.shards or _default_shards(device),
            modes=modes,
            corpus=Path(folder),
            corpus_only=arguments.examples == 0,
            state=arguments.state,
            coverage=arguments.coverage,
            subject_module=arguments.subject_module,
        )
        return Campaign(options).run()


def device_of_subjects() -> str:
    """Returns "cuda" or "emulator": where the subjects run. Asks a process of its own, which may import torch."""
    program = "import torch; print('cuda' if torch.cuda.is_available() else 'emulator')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if ran.returncode != 0:
        raise SubjectError(f"torch cannot be asked for a GPU: {ran.stderr.strip()[-400:]}")
    return ran.stdout.split()[-1]


def problem_of(device: str, modes: Sequence[str]) -> str:
    """Returns why these modes cannot run on the device; "" if they can."""
    wrong = [mode for mode in modes if mode not in SANITIZER_MODES[device]]
    if wrong:
        return f"--modes {wrong[0]!r}, but must be of {', '.join(SANITIZER_MODES[device])} on this device"
    if device == "cuda" and compute_sanitizer.find() is None:
        return "there is no compute-sanitizer, which the CUDA toolkit has; put it on the PATH"
    if device == "emulator" and machine.is_gpu_required():
        return machine.gpu_problem({"device": device})
    return ""


def write_corpus(source: Path, folder: Path, modes: Sequence[str], seed: int) -> int:
    """Writes the corpus once for each mode, under its own file names.

    Args:
        source: directory of the corpus.
        folder: where to write.
        modes: in the place of the mode that a case has.
        seed: decides the seed of each case's schedule.

    Returns:
        How many cases were written.
    """
    draw = random.Random(seed)
    written: set[Case] = set()
    for mode in modes:
        for entry in corpus.load_all(source):
            schedule = draw.randint(0, MAX_SEED) if mode in SCHEDULED_MODES else 0
            try:
                case = replace(entry.case, mode=mode, schedule=schedule)
            except CaseError:
                continue  # a layout that a sanitizer does not have
            if case not in written:
                written.add(case)
                corpus.append(folder / f"{entry.file}.txt", [entry.why], case)
    return len(written)


def _build(modes: Sequence[str]) -> None:
    started_s = time.monotonic()
    for mode in modes:
        build.build_all(mode, usual_parts(mode))
    print(f"kernels for {' '.join(modes)} are built, in {time.monotonic() - started_s:.0f} s")


def _default_shards(device: str) -> int:
    cores = machine.usable_cores()
    return min(cores, MOST_GPU_SHARDS) if device == "cuda" else cores
