"""Finds the known defects of PyTorch's CPU op anew, from an empty corpus.

    python -m tests.hunt_known_defects [--examples 20000] [--shards N] [--seed N]

Says for each defect after how many cases it was found and how small it was shrunk; exit status 0 if all were found and
shrunk to at most LARGEST_ELEMENTS. Needs torch 2.13 on a processor that has them: AVX-512 for A, AMX with bfloat16 and
float16 for the others. A run of a dtype ends when its defects are found.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from fuzz.campaign import Campaign
from fuzz.case import Case
from fuzz.failure import Kind
from fuzz.shard import Finding, Options

LARGEST_ELEMENTS = 32  # of input and weight together


class Defect(NamedTuple):
    """A known defect and what a finding of it looks like.

    Args:
        name: its letter.
        dtype: of the cases that show it.
        what: verdict, and result or stage.
    """

    name: str
    dtype: str
    what: str

    def is_shown_by(self, kind: Kind) -> bool:
        """Whether a finding is of this kind."""
        return kind.leg == "native" and kind.dtype == self.dtype and self.what == _what(kind)


DEFECTS = (
    Defect("A", "f32", "wrong grad_weight"),
    Defect("B", "bf16", "wrong grad_input"),
    Defect("D", "bf16", "crashed SIGSEGV in forward"),
    Defect("E", "f16", "crashed SIGSEGV in backward"),
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
            if defect.is_shown_by(finding.kind) and finding.status == "shrunk":
                self.found.setdefault(defect, (finding.case, self.tally.cases))
        if len(self.found) == len(self._defects):
            self._stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    arguments = parser.parse_args()
    lines, is_complete = [], True
    for dtype in dict.fromkeys(defect.dtype for defect in DEFECTS):
        defects = [defect for defect in DEFECTS if defect.dtype == dtype]
        found = _hunt(dtype, defects, arguments)
        for defect in defects:
            case, cases = found.get(defect, (None, arguments.examples))
            elements = _elements(case) if case else 0
            is_complete &= case is not None and elements <= LARGEST_ELEMENTS
            shown = f"{elements} elements: {case}" if case else "not found"
            lines.append(f"{defect.name}  {defect.dtype} {defect.what}: {cases:,} cases, {shown}")
    print(f"\nseed {arguments.seed}\n" + "\n".join(lines))
    return 0 if is_complete else 1


def _hunt(
    dtype: str, defects: list[Defect], arguments: argparse.Namespace
) -> dict[Defect, tuple[Case, int]]:
    with tempfile.TemporaryDirectory() as directory:
        options = Options(
            seed=arguments.seed,
            examples=arguments.examples,
            shards=arguments.shards,
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


def _elements(case: Case) -> int:
    return math.prod(case.input_shape) + math.prod(case.weight_shape)


if __name__ == "__main__":
    sys.exit(main())
