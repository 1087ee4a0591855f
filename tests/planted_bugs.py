"""Bugs for the harness to find: each is a change to a copy of `convt3d`, as text for text."""

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
        file: under convt3d/.
        right: the text as it is; must occur exactly once in the file.
        wrong: what stands there instead.
        dtype: of the cases that are drawn.
    """

    name: str
    file: str
    right: str
    wrong: str
    dtype: str = "f32"


_TILED_LOOP_END = """            }
          barrier();
        }
      }
"""

PLANTED_BUGS = (
    PlantedBug(
        "wrong_group_offset",
        "kernels/gather.py",
        "group * source_channels * static_cast<index_t>(p.source.channel);\n  const scalar_t* weight = static",
        "group * channels * static_cast<index_t>(p.source.channel);\n  const scalar_t* weight = static",
    ),
    PlantedBug(
        "output_padding_ignored",
        "geometry.py",
        "(i - 1) * s - 2 * p + d * (k - 1) + op + 1",
        "(i - 1) * s - 2 * p + d * (k - 1) + 1",
    ),
    PlantedBug(
        "dilation_missing_from_the_size",
        "geometry.py",
        "(i - 1) * s - 2 * p + d * (k - 1) + op + 1",
        "(i - 1) * s - 2 * p + (k - 1) + op + 1",
    ),
    PlantedBug(
        "last_tap_of_a_phase_dropped",
        "kernels/gather.py",
        "tap < taps_d * taps_h * phase_w.taps;",
        "tap + 1 < taps_d * taps_h * phase_w.taps;",
    ),
    PlantedBug(
        "bias_of_the_wrong_channel",
        "kernels/gather.py",
        "bias_at<scalar_t>(p, group * channels + c)",
        "bias_at<scalar_t>(p, c)",
    ),
    PlantedBug(
        "accumulation_in_fp16",
        "kernels/gather.py",
        "sum += to_acc(*from) * to_acc(*by);",
        "sum = to_acc(from_acc<scalar_t>(sum + to_acc(*from) * to_acc(*by)));",
        dtype="f16",
    ),
    PlantedBug(
        "missing_barrier_before_the_tile_is_read",
        "kernels/gather.py",
        "          barrier();\n          if (computes)",
        "          if (computes)",
    ),
    PlantedBug(
        "missing_barrier_before_the_tile_is_overwritten",
        "kernels/gather.py",
        _TILED_LOOP_END,
        _TILED_LOOP_END.replace("          barrier();\n", ""),
    ),
    PlantedBug(
        "uninitialised_shared_memory",
        "kernels/gather.py",
        """              shared.source[k][staged_slot] =
                  inside ? to_acc(from[(first_k + k) * static_cast<index_t>(p.source.channel)])
                         : acc_t(0);""",
        """              if (inside)
                shared.source[k][staged_slot] =
                    to_acc(from[(first_k + k) * static_cast<index_t>(p.source.channel)]);""",
    ),
    PlantedBug(
        "last_output_not_written",
        "kernels/gather.py",
        "if (element >= int64_t(p.batch) * channels * size_d * size_h * size_w) return;",
        "if (element + 1 >= int64_t(p.batch) * channels * size_d * size_h * size_w) return;",
    ),
    PlantedBug(
        "write_past_the_end",
        "kernels/gather.py",
        "if (element >= int64_t(p.batch) * channels * size_d * size_h * size_w) return;",
        "if (element > int64_t(p.batch) * channels * size_d * size_h * size_w) return;",
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
    path = directory / "convt3d" / bug.file
    text = path.read_text()
    if text.count(bug.right) != 1:
        raise ValueError(
            f"{bug.name}: {bug.right!r} occurs {text.count(bug.right)} times in {bug.file}, but must "
            "occur once"
        )
    path.write_text(text.replace(bug.right, bug.wrong))
