"""What a shard draws from, and its share of a campaign's work."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from convt3d import build
from fuzz import compute_sanitizer, shard
from fuzz.coverage import pairs_of, possible_pairs, union
from fuzz.progress import Tally
from fuzz.shard import Options, Resume


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compute_sanitizer, "find", lambda: "compute-sanitizer")
    # Every shard computes them for itself, which takes seconds.
    monkeypatch.setattr(shard, "covering_cases", functools.cache(shard.covering_cases))
    shard.missing_sanitizers.cache_clear()
    yield
    shard.missing_sanitizers.cache_clear()


def share(
    options: Options, index: int, device: str, resume: Resume | None = None
) -> tuple[list[Any], int | None]:
    a_shard = shard._Shard(options, index, None, resume)  # type: ignore[arg-type]
    a_shard.facts = {"device": device}
    return a_shard._share()


@pytest.mark.parametrize("device", ["emulator", "cuda"])
def test_the_shards_of_a_ci_run_meet_all_pairs_within_its_examples(device: str) -> None:
    options = Options(seed=3, profile="ci", examples=500, shards=16)
    shares = [share(options, index, device) for index in range(options.shards)]
    covering = [case for mine, _ in shares for case in mine]
    assert not possible_pairs(shard.search_space(options, device)) & ~union(map(pairs_of, covering))
    assert len(covering) + sum(drawn or 0 for _, drawn in shares) == options.examples
    for index, (mine, _) in enumerate(shares):
        assert {case.mode for case in mine} <= set(shard.device_modes(device, index))


def test_examples_that_are_too_few_are_no_more_for_all_that() -> None:
    options = Options(seed=3, profile="ci", examples=20, shards=16)
    shares = [share(options, index, "cuda") for index in range(options.shards)]
    assert sum(len(mine) for mine, _ in shares) == 20
    assert all(drawn == 0 for _, drawn in shares)


def test_a_shard_that_takes_anothers_place_has_what_is_left_of_its_share() -> None:
    options = Options(seed=3, profile="ci", examples=500, shards=2)
    mine, drawn = share(options, 1, "emulator")
    assert drawn and len(mine) > 9
    for done, left in ((9, (mine[9:], drawn)), (len(mine) + 4, ([], drawn - 4))):
        past = Tally(covering=min(done, len(mine)))
        past.dtypes["f32"] = done
        assert share(options, 1, "emulator", Resume((), past, 1.0)) == left


def test_what_ran_again_counts_but_only_a_covering_case_is_one() -> None:
    options = Options(seed=3, profile="ci", examples=500, shards=2)
    mine, drawn = share(options, 1, "emulator")
    past = Tally(covering=5)
    past.dtypes["f32"] = 5
    resume = Resume((str(mine[5]), "f32_n2_int", "f32_n3_int"), past, 1.0)
    a_shard = shard._Shard(options, 1, None, resume)  # type: ignore[arg-type]
    a_shard.facts, a_shard.uncounted = {"device": "emulator"}, 3
    assert drawn is not None
    assert a_shard._share() == (mine[6:], drawn - 2)


def test_the_corpus_leaves_out_what_the_compiler_cannot_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def modes(device: str) -> set[str]:
        a_shard = shard._Shard(Options(seed=3), 0, None, None)  # type: ignore[arg-type]
        a_shard.facts = {"device": device}
        return {entry.case.mode for entry in a_shard._corpus()}

    assert modes("emulator") >= {"fast", "hostile", "asan", "tsan"}
    monkeypatch.setattr(build, "has_sanitizer", lambda target: False)
    shard.missing_sanitizers.cache_clear()
    assert not modes("emulator") & {"asan", "tsan"}
    assert "tsan" in modes("cuda")


def test_without_a_limit_a_shard_draws_for_ever() -> None:
    assert share(Options(seed=3), 0, "emulator") == ([], None)


def test_a_sanitizer_that_the_compiler_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(shard.device_modes("emulator")) == {"fast", "hostile", "asan", "tsan"}
    monkeypatch.setattr(build, "has_sanitizer", lambda target: target != "tsan")
    shard.missing_sanitizers.cache_clear()
    assert shard.missing_sanitizers() == ("tsan",)
    assert set(shard.device_modes("emulator")) == {"fast", "hostile", "asan"}


def test_one_shard_has_the_tools_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "racecheck" in shard.device_modes("cuda", 0)
    assert set(shard.device_modes("cuda", 1)) == {"fast", "delayed"}
    monkeypatch.setattr(compute_sanitizer, "find", lambda: None)
    assert set(shard.device_modes("cuda", 0)) == {"fast", "delayed"}
