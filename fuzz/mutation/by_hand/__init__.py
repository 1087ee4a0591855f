"""Bugs that real kernels had, planted in convt3d by hand.

`why` names where the bug, or one of its kind, was seen: a repository and the number of an issue or pull request there.
Where it names none, the bug is the textbook's.

    coordinates.py  channels.py  arithmetic.py  tiles.py  reductions.py  offsets.py    in the kernel strings
    geometry.py  launches.py                                                         in the Python around them
"""

from __future__ import annotations

from fuzz.mutation.by_hand import (
    arithmetic,
    channels,
    coordinates,
    geometry,
    launches,
    offsets,
    reductions,
    tiles,
)
from fuzz.mutation.mutant import KernelMutant, Mutant

KERNEL_MUTANTS: tuple[KernelMutant, ...] = (
    *coordinates.MUTANTS,
    *channels.MUTANTS,
    *arithmetic.MUTANTS,
    *tiles.MUTANTS,
    *reductions.MUTANTS,
    *offsets.MUTANTS,
)
MUTANTS: tuple[Mutant, ...] = (*KERNEL_MUTANTS, *geometry.MUTANTS, *launches.MUTANTS)
