"""Few cases that meet all pairs of features: see fuzz.coverage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from random import Random

from convt3d.plan import PRIMITIVES
from fuzz.case import Case
from fuzz.coverage import (
    GEOMETRY,
    NAMES,
    NUMBERS,
    PLAN_VALUES,
    ROWS,
    VALUES,
    drawn_values,
    named_pairs,
    numbers_in,
    pairs_of,
    possible_pairs,
    union,
    values_of,
)
from fuzz.reduce import with_fields
from fuzz.strategies import MAX_SEED, Space, draw_geometry, draw_schedule, is_within

# Geometries that the covering cases are chosen from, and how many are crossed for a pair that none of them has.
POOL = 3_000
CROSSINGS = 5_000
ROUNDS = 10  # each with a pool more
# Of the geometries that can have a pair, how many are compared; and how many cases are tried for it.
COMPARED = 100
TRIES = 10


class CoveringSet:
    """Few cases that meet all possible pairs of a space.

    One case after the other is made for a pair that none has met: of the geometries that can have it, the one with
    the most missing pairs, then for each other feature the value with the most (Cohen, Dalal, Fredman and Patton,
    The AETG system, IEEE TSE 23, 1997). All of it follows from the seed.

    Args:
        space: what cases are drawn from.
        seed: any text.
        is_telling: whether a case can prove something; one that cannot is not taken.

    Attributes:
        cases: the cases.
        missing: possible pairs that no case was found for, as in Note [Pairs].
    """

    def __init__(
        self, space: Space, seed: str, is_telling: Callable[[Case], bool] = lambda case: True
    ) -> None:
        self.cases: list[Case] = []
        self.missing = possible_pairs(space)
        self._space = space
        self._random = Random(seed)  # which a string seeds through SHA-512: the same for ever
        self._is_telling = is_telling
        self._drawn = drawn_values(space)
        self._possible = _partners(self.missing)
        self._partners = _partners(self.missing)  # value -> others that no case has it with
        self._limits = sorted({space.multiply_adds_of(mode) for mode in space.modes})
        self._pool: dict[tuple[int, int], Case] = {}  # limit and values -> geometry
        for limit in self._limits:
            self._draw(POOL // len(self._limits), limit)
        given_up = 0
        while left := self.missing & ~given_up:
            pair = left & -left
            if not self._meet(pair):
                given_up |= pair

    def _meet(self, pair: int) -> bool:
        """Adds a case that has the pair; False if there is none."""
        wanted = union(1 << NUMBERS[name] for names in named_pairs(pair) for name in names)
        for attempt in range(TRIES):
            key = self._choose_geometry(wanted)
            if key is None:
                return False
            case = self._complete(key, wanted, is_greedy=attempt == 0)
            if case is not None and pairs_of(case) & pair and self._is_telling(case):
                self.cases.append(case)
                self.missing &= ~pairs_of(case)
                values = values_of(case)
                for value in numbers_in(values):
                    self._partners[value] &= ~values
                return True
        return False

    def _draw(self, count: int, limit: int) -> None:
        for _ in range(count):
            geometry = draw_geometry(self._random, limit, self._space.draws_vast)
            self._pool[limit, values_of(geometry) & GEOMETRY] = geometry

    def _choose_geometry(self, wanted: int) -> tuple[int, int] | None:
        """Returns the key of a geometry in the pool that can have the wanted values."""
        modes = self._options("mode", self._space.modes, wanted)
        most = max((self._space.multiply_adds_of(mode) for mode in modes), default=0)
        asked = wanted & GEOMETRY
        for _ in range(ROUNDS):
            fitting = [key for key in self._pool if key[0] <= most and not asked & ~key[1]]
            fitting = fitting or self._cross(asked, most)
            self._random.shuffle(fitting)
            able = (key for key in fitting if self._has_plans(self._pool[key], wanted))
            some = list(islice(able, COMPARED))
            if some:
                return max(some, key=lambda key: self._gain(key[1]))
            self._draw(POOL, most)
        return None

    def _cross(self, asked: int, most: int) -> list[tuple[int, int]]:
        """A geometry that has one value, given a field of one that has the other; empty if that never helps."""
        numbers = list(numbers_in(asked))
        having = [
            [key for key in self._pool if key[0] <= most and key[1] >> n & 1] for n in numbers
        ]
        if len(numbers) < 2 or not all(having):
            return []
        for attempt in range(CROSSINGS):
            giver, taker = attempt % 2, 1 - attempt % 2
            limit, values = self._random.choice(having[taker])
            crossed = _crossed(
                self._pool[limit, values],
                self._pool[self._random.choice(having[giver])],
                NAMES[numbers[giver]][0],
            )
            if crossed is None or not is_within(crossed, limit):
                continue
            key = (limit, values_of(crossed) & GEOMETRY)
            if not asked & ~key[1]:
                self._pool[key] = crossed
                return [key]
        return []

    def _has_plans(self, geometry: Case, wanted: int) -> bool:
        """Whether the wanted plans can run a geometry."""
        if self._space.plans is None or not wanted & PLAN_VALUES:
            return True
        names = dict(NAMES[number] for number in numbers_in(wanted))
        asked = {field: names[field] for field in ("mode", "layout", "dtype") if field in names}
        plans = self._space.plans(replace(geometry, **asked))  # type: ignore[arg-type]
        return all(
            value == "auto" or value in plans.get(feature.removesuffix(" plan"), ())
            for feature, value in (NAMES[number] for number in numbers_in(wanted & PLAN_VALUES))
        )

    def _complete(self, key: tuple[int, int], wanted: int, is_greedy: bool) -> Case | None:
        """Chooses all that is no geometry, at random unless greedy; None if that does not go together."""
        space, random = self._space, self._random
        (limit, values), case = key, self._pool[key]

        def choose(feature: str, options: Sequence[str]) -> str:
            nonlocal values
            options = self._options(feature, options, wanted)
            if not options:
                raise LookupError
            numbers = [NUMBERS[feature, option] for option in options]
            gains = [(self._partners[number] & values).bit_count() for number in numbers]
            least = max(gains) if is_greedy else 0
            best = random.choice([i for i, gain in enumerate(gains) if gain >= least])
            values |= 1 << numbers[best]
            return options[best]

        try:
            mode = choose("mode", [m for m in space.modes if limit <= space.multiply_adds_of(m)])
            case = replace(
                case,
                mode=mode,
                schedule=draw_schedule(random, mode),
                layout=choose("layout", space.layouts_of(mode)),
                dtype=choose("dtype", space.dtypes),
                lane=choose("lane", space.lanes_of(case)),
                bias=choose("bias", ("nobias", "bias")[: len(space.biases_of(case))]) == "bias",
                seed=random.randint(0, MAX_SEED),
            )
            plans = {} if space.plans is None else space.plans(case)
            for primitive in PRIMITIVES:
                name = choose(f"{primitive} plan", ("auto", *plans.get(primitive, ())))
                case = replace(case, **{f"{primitive}_plan": name})  # type: ignore[arg-type]
        except LookupError:
            return None
        return case

    def _options(self, feature: str, options: Sequence[str], wanted: int) -> list[str]:
        """Those of a feature's values that go together with the wanted ones."""
        asked = wanted & ROWS[feature]
        others = wanted & ~ROWS[feature]
        return [
            option
            for option in options
            if not others & ~self._possible[NUMBERS[feature, option]]
            and (not asked or asked >> NUMBERS[feature, option] & 1)
        ]

    def _gain(self, values: int) -> int:
        """About how many missing pairs a case of a geometry with these values can meet."""
        inside = sum((self._partners[v] & values).bit_count() for v in numbers_in(values)) // 2
        return inside + sum(
            max((self._partners[NUMBERS[name, v]] & values).bit_count() for v in drawn)
            for name, drawn in self._drawn.items()
            if not ROWS[name] & GEOMETRY
        )


def _crossed(taker: Case, giver: Case, feature: str) -> Case | None:
    """One geometry with what makes up a feature of another; None if that is illegal, or the sizes as a whole."""
    if feature == "groups":  # the channels of a group stay as they are
        ins, outs = taker.in_channels // taker.groups, taker.out_channels // taker.groups
        groups = giver.groups
        return with_fields(
            taker, groups=groups, in_channels=groups * ins, out_channels=groups * outs
        )
    fields = {"kernel": "kernel_size", "batch": "n"}
    field = fields.get(feature, feature)
    return None if feature == "size" else with_fields(taker, **{field: getattr(giver, field)})


def _partners(pairs: int) -> list[int]:
    """For each value, by number, the values that it is in a pair with."""
    partners = [0] * VALUES
    for first in range(VALUES):
        row = pairs >> first * VALUES & (1 << VALUES) - 1
        partners[first] |= row
        for second in numbers_in(row):
            partners[second] |= 1 << first
    return partners
