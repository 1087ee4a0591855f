"""Finds the known defects of PyTorch's CPU op anew, from an empty corpus.

    python -m tests.hunt_known_defects [--examples 20000] [--shards N] [--seeds N,N]

Says for each seed and defect after how many cases it was found and shrunk to at most LARGEST_ELEMENTS; exit status 0 if
all were. Needs torch 2.13 on a processor that has them: AVX-512 for A, AMX with
bfloat16 and float16 for the others. A run of a dtype ends when its defects are found.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fuzz.campaign import Campaign
from fuzz.case import Case
from fuzz.failure import SHRUNK, Kind
from fuzz.shard import Finding, Options

LARGEST_ELEMENTS = 32  # of input and weight together


class Defect(NamedTuple):
    """A known defect and what a finding of it looks like.

    Args:
        name: its letter.
        dtype: of the cases that show it.
        what: verdict, and result or stage.
        condition: of a case that shows it, in words.
        holds: the condition.
    """

    name: str
    dtype: str
    what: str
    condition: str
    holds: Callable[[Case], bool]

    def is_shown_by(self, finding: Finding) -> bool:
        """Whether it is what a finding shows, as far as one can tell from outside, and the finding is small."""
        kind = finding.kind
        is_kind = kind.leg == "native" and not kind.is_vast and kind.dtype == self.dtype
        is_small = finding.status == SHRUNK and finding.case.elements <= LARGEST_ELEMENTS
        return is_kind and is_small and self.what == _what(kind) and self.holds(finding.case)


def _some_axis(holds: Callable[..., bool]) -> Callable[[Case], bool]:
    """Whether i, k, s, p, d of an axis are as wanted."""
    return lambda case: any(
        map(holds, case.input_size, case.kernel_size, case.stride, case.padding, case.dilation)
    )


# The conditions are what PyTorch's defects need, found by shrinking a case of each.
DEFECTS = (
    Defect(
        *("A", "f32", "wrong grad_weight", "an axis with stride > 1, padding = kernel - 1 > 0"),
        _some_axis(lambda i, k, s, p, d: s > 1 and p == k - 1 > 0),
    ),
    Defect(
        *("B", "bf16", "wrong grad_input", "an axis with stride > 1, and none with a padding"),
        lambda case: max(case.stride) > 1 and not any(case.padding),
    ),
    Defect(
        *("D", "bf16", "crashed SIGSEGV in forward", "a padding, and an axis with dilation > 1"),
        lambda case: any(case.padding) and max(case.dilation) > 1,
    ),
    Defect(
        *(
            "E",
            "f16",
            "crashed SIGSEGV in backward",
            "an axis with padding >= kernel, dilation > 1",
        ),
        _some_axis(lambda i, k, s, p, d: p >= k and d > 1),
    ),
)


class Hunt(Campaign):
    """A campaign on one dtype that ends when its defects are found and shrunk."""

    def __init__(self, options: Options, defects: list[Defect]) -> None:
        super().__init__(options)
        self.found: dict[Defect, tuple[Case, int]] = {}  # smallest case, cases examined by then
        self._defects = defects

    def _add(self, finding: Finding) -> None:
        super()._add(finding)
        for defect in self._defects:
            if defect.is_shown_by(finding):
                self.found.setdefault(defect, (finding.case, self.tally.cases))
        if len(self.found) == len(self._defects):
            self._stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--seeds", default=str(random.SystemRandom().getrandbits(32)))
    arguments = parser.parse_args()
    lines, is_complete = [], True
    for defect in DEFECTS:
        lines.append(f"{defect.name}  {defect.dtype} {defect.what}; {defect.condition}")
    for seed in map(int, arguments.seeds.split(",")):
        lines.append(f"seed {seed}")
        for dtype in dict.fromkeys(defect.dtype for defect in DEFECTS):
            defects = [defect for defect in DEFECTS if defect.dtype == dtype]
            found = _hunt(dtype, defects, seed, arguments.examples, arguments.shards)
            for defect in defects:
                case, cases = found.get(defect, (None, arguments.examples))
                is_complete &= case is not None
                shown = f"{case.elements} elements: {case}" if case else "not found"
                lines.append(f"  {defect.name}  {cases:,} cases, {shown}")
    print("\n" + "\n".join(lines))
    return 0 if is_complete else 1


def _hunt(
    dtype: str, defects: list[Defect], seed: int, examples: int, shards: int
) -> dict[Defect, tuple[Case, int]]:
    with tempfile.TemporaryDirectory() as directory:
        options = Options(
            seed=seed,
            examples=examples,
            shards=shards,
            dtypes=(dtype,),
            corpus=Path(directory),
            state=Path(directory) / "state",
        )
        hunt = Hunt(options, defects)
        hunt.run()
        return hunt.found


def _what(kind: Kind) -> str:
    words = [kind.verdict, kind.result, kind.signal, kind.stage and f"in {kind.stage}"]
    return " ".join(filter(None, words))


if __name__ == "__main__":
    sys.exit(main())
