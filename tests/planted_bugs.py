"""Bugs for a whole campaign to find: each is a change to a copy of the packages, as text for text.

These few prove that a run turns red. What the harness catches is measured by fuzz/mutation, on many more.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class PlantedBug:
    """One bug.

    Args:
        name: what it does wrong.
        file: where it is planted, under the package.
        right: the text as it is; must occur exactly once in the file.
        wrong: what stands there instead.
        package: the package; the leg of that name, "convt3d" or "reference", is to blame.
    """

    name: str
    file: str
    right: str
    wrong: str
    package: str = "convt3d"


PLANTED_BUGS = (
    PlantedBug(
        "bias_of_the_wrong_channel",
        "kernels/gather.py",
        "bias_at<scalar_t>(p, group * channels + c)",
        "bias_at<scalar_t>(p, c)",
    ),
    PlantedBug(
        "missing_barrier_before_the_tile_is_read",
        "kernels/gather.py",
        "          barrier();\n          if (computes)",
        "          if (computes)",
    ),
    PlantedBug(
        "last_tap_missing_in_the_reference",
        "scatter.py",
        "range(weight_shape[2 + axis])",
        "range(max(1, weight_shape[2 + axis] - 1))",
        package="reference",
    ),
)


def copy_packages(directory: Path) -> None:
    """Copies what a campaign needs into the directory."""
    for package in ("convt3d", "reference", "fuzz"):
        shutil.copytree(
            ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__")
        )


def plant(bug: PlantedBug, directory: Path) -> None:
    """Copies what a campaign needs into the directory, with the bug in it.

    Raises:
        ValueError: the text to change does not occur exactly once.
    """
    copy_packages(directory)
    path = directory / bug.package / bug.file
    text = path.read_text()
    if text.count(bug.right) != 1:
        raise ValueError(
            f"{bug.name}: {bug.right!r} occurs {text.count(bug.right)} times in {bug.file}, but must "
            "occur once"
        )
    path.write_text(text.replace(bug.right, bug.wrong))
