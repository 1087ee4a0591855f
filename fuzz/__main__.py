"""The command line: python -m fuzz run | repro | keep | list | sanitize | mutants | judge | bench."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":

    def _leave(*_: object) -> None:
        os.write(2, b"fuzz: interrupted\n")
        os._exit(2)

    # The imports below take a second; from then on, main says it.
    signal.signal(signal.SIGINT, _leave)

from fuzz import corpus, machine, sanitize
from fuzz.arguments import names, positive_float, positive_int
from fuzz.bench import command as bench
from fuzz.campaign import BROKEN, FAILED, PASSED, Campaign
from fuzz.case import LANES, MODES, CaseError, parse_case
from fuzz.legs import NATIVE_TIME_LIMIT_S, SUBJECT_MODULE, Examination, HarnessError, Legs
from fuzz.mutation import command as mutation
from fuzz.number import DTYPES
from fuzz.outcome import Verdict
from fuzz.plans import check_plans
from fuzz.progress import case_counts
from fuzz.referee import command as referee
from fuzz.search import PROFILES
from fuzz.shard import Options
from fuzz.worker import DEFAULT_TIME_LIMIT_S, SubjectError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code, 2 for anything wrong with the command itself."""
    try:
        parsed = _parser().parse_args(arguments)
        code: int = parsed.command(parsed)
        sys.stdout.flush()
    except (CaseError, corpus.CorpusError, SubjectError, HarnessError) as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return BROKEN
    except KeyboardInterrupt:
        print("fuzz: interrupted", file=sys.stderr)
        return BROKEN
    except BrokenPipeError:  # nobody reads any more, as behind `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def run(arguments: argparse.Namespace) -> int:
    """Runs a campaign."""
    examples, profile = arguments.examples, arguments.profile
    if profile is None and examples is None and arguments.duration is not None:
        profile = "timed"
    profile = profile or "dev"
    if examples is None:
        examples = PROFILES.get(profile)
    shards = arguments.shards or machine.usable_cores()
    if examples is not None:
        shards = max(1, min(shards, examples // 10))
    corpus.load_all(arguments.corpus)  # say now what is wrong with it
    options = Options(
        seed=random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed,
        profile=profile,
        examples=examples,
        duration_s=arguments.duration,
        shards=shards,
        dtypes=arguments.dtypes,
        lanes=arguments.lanes,
        modes=arguments.modes,
        subject_module=arguments.subject_module,
        time_limit_s=arguments.time_limit,
        corpus=arguments.corpus,
        corpus_only=arguments.corpus_only,
        stop_on_failure=arguments.stop_on_failure,
        state=arguments.state,
        keep_native=arguments.keep_native,
        coverage=arguments.coverage,
    )
    return Campaign(options).run()


def repro(arguments: argparse.Namespace) -> int:
    """Runs one case on every leg, each in a fresh process, and shows the verdicts."""
    case = parse_case(arguments.case)
    check_plans(case)
    print(f"{case}\n", flush=True)
    with Legs(arguments.subject_module, arguments.time_limit, modes=(case.mode,)) as legs:
        facts = {**machine.own_facts(), **legs.await_facts()}
        if problem := machine.gpu_problem(facts):
            raise SubjectError(problem)
        examination = legs.examine(case)
    for leg in examination.judgements:
        print(f"{leg:10} {_verdict(examination, leg)}")
    print(f"\n{examination.card(machine.one_line(facts))}")
    code, meaning = _repro_code(examination)
    print(f"\nexit {code}: {meaning}")
    return code


def _repro_code(examination: Examination) -> tuple[int, str]:
    """The exit code of `repro`, and what it means."""
    failing = examination.failing_legs()
    if ours := [leg for leg in failing if leg != "native"]:
        return FAILED, f"{' and '.join(ours)} failed"
    if failing:
        return PASSED, "only native failed"
    doubtful = [
        leg
        for leg, judgement in examination.judgements.items()
        if judgement.verdict is Verdict.MISTRUSTED
    ]
    if doubtful:
        return PASSED, f"nothing failed, but {' and '.join(doubtful)} could not have: see above"
    return PASSED, "every leg passed"


def keep(arguments: argparse.Namespace) -> int:
    """Appends a case to the corpus."""
    case = parse_case(arguments.case)
    if arguments.file == corpus.NATIVE and "torch 2." not in arguments.why:
        raise corpus.CorpusError(
            f"the reason is {arguments.why!r}, but must say on which version it was seen: torch 2.X"
        )
    try:
        path = corpus.keep(
            case, arguments.why, arguments.file, arguments.corpus, may_create=arguments.new_file
        )
    except corpus.AlreadyKept as error:
        print(f"nothing to do: {error}")
        return PASSED
    print(f"kept {case} in {path}")
    return PASSED


def list_corpus(arguments: argparse.Namespace) -> int:
    """Prints every case of the corpus with its reason."""
    entries = corpus.load_all(arguments.corpus)
    for entry in entries:
        print(f"{entry.file}.txt:{entry.line}: {entry.why}\n    {entry.case}")
    print(f"{len(entries)} cases: {case_counts(entry.case for entry in entries)}")
    return PASSED


def _verdict(examination: Examination, leg: str) -> str:
    judgement = examination.judgements[leg]
    parts = (judgement.verdict.value, judgement.result)
    text = " ".join(filter(None, parts))
    return f"{text}: {judgement.detail}" if judgement.detail else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description="Judges convt3d on random and on kept cases."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run a campaign: the corpus, then random cases"))

    command = commands.add_parser("repro", help="run one case on every leg")
    command.set_defaults(command=repro)
    command.add_argument("case", metavar="CASE", help="case string")
    _add_subject_options(command)

    command = commands.add_parser("keep", help="append a case to the corpus")
    command.set_defaults(command=keep)
    command.add_argument("case", metavar="CASE", help="case string")
    command.add_argument("--why", required=True, metavar="TEXT", help="why it is worth keeping")
    command.add_argument("--file", default=corpus.REGRESSIONS, metavar="NAME", help="corpus file")
    command.add_argument("--new-file", action="store_true", help="the corpus file may be a new one")
    _add_corpus_option(command)

    command = commands.add_parser("list", help="print the corpus")
    command.set_defaults(command=list_corpus)
    _add_corpus_option(command)

    referee.add_command(commands)
    sanitize.add_command(commands)
    mutation.add_command(commands)
    bench.add_command(commands)
    return parser


def _add_run(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run)
    add = command.add_argument
    add("--duration", type=positive_float, metavar="S", help="end after so many seconds")
    add("--examples", type=positive_int, metavar="N", help="end after so many generated cases")
    add("--profile", choices=PROFILES, help=f"examples by name: {PROFILES}")
    add("--seed", type=int, metavar="N", help="of everything drawn; default: random, printed")
    add("--shards", type=positive_int, metavar="N", help="processes; default: one a core")
    add("--dtypes", type=names(DTYPES), metavar="A,B", help=f"of {', '.join(DTYPES)}")
    add("--lanes", type=names(LANES), metavar="A,B", help=f"of {', '.join(LANES)}")
    add("--modes", type=names(MODES), metavar="A,B", help=f"of {', '.join(MODES)}")
    add("--corpus-only", action="store_true", help="generate nothing")
    add("--stop-on-failure", action="store_true", help="end at the first failure of ours")
    add("--keep-native", action="store_true", help="append native findings to the corpus")
    add("--coverage", action="store_true", help="print which pairs of features were met")
    add("--state", type=Path, default=Path(".convt3d"), metavar="DIR", help="findings, journal")
    _add_corpus_option(command)
    _add_subject_options(command)


def _add_corpus_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--corpus", type=Path, default=corpus.DIRECTORY, metavar="DIR", help="where the corpus is"
    )


def _add_subject_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--subject-module", default=SUBJECT_MODULE, metavar="MODULE", help="what is examined"
    )
    command.add_argument(
        "--time-limit",
        type=positive_float,
        metavar="S",
        help=f"seconds a case may take on a leg; default: {DEFAULT_TIME_LIMIT_S:g}, "
        f"native {NATIVE_TIME_LIMIT_S:g}",
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
